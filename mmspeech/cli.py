"""The command line: `mmspeech talk | info | doctor | convert | verify | bench`.

Only options stand here. What a command does is in mmspeech/commands/, imported when it is called: help is quick.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Speech models that see: talk with a model about a picture.",
)

Model = Annotated[str | None, typer.Option(help="Checkpoint directory or hub id (default: the embedded one).")]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps.")]
TensorParallel = Annotated[
    int,
    typer.Option(min=1, help="Split the speech LM over N processes (DeepSpeed); with cuda, one GPU each."),
]
Seed = Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Same seed, same reply.")]


@contextmanager
def _reported() -> Iterator[None]:
    """What the user can mend becomes one line on stderr and exit code 2; anything else is a bug and shows its trace."""
    try:
        yield
    except (ValueError, OSError) as error:
        from mmspeech.config import ConfigError

        if not isinstance(error, ConfigError | OSError):
            raise
        typer.echo(f"error: {' '.join(str(error).split())}", err=True)
        raise typer.Exit(2) from error
    except KeyboardInterrupt as error:
        typer.echo("stopped; nothing was written", err=True)
        raise typer.Exit(130) from error


@app.command()
def talk(
    audio: Annotated[Path, typer.Option(help="The spoken question: wav, flac, ogg, mp3 ..., any rate, any channels.")],
    out: Annotated[Path, typer.Option(help="Where to write the reply (wav, 24 kHz).")],
    image: Annotated[Path | None, typer.Option(help="The picture to talk about (none: talk blind).")] = None,
    model: Model = None,
    stereo: Annotated[bool, typer.Option("--stereo", help="Left the model, right the question.")] = False,
    seed: Seed = 0,
    greedy: Annotated[bool, typer.Option("--greedy", help="Always the likeliest text and codes.")] = False,
    max_sec: Annotated[float, typer.Option(min=0.1, help="Longest wait after the end of the question.")] = 15.0,
    json_: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")] = False,
    plot: Annotated[Path | None, typer.Option(help="Draw waveforms, words and gate over time here.")] = None,
    device: Device = "cpu",
    tensor_parallel: TensorParallel = 1,
) -> None:
    """Ask a recorded question, with or without a picture, and hear the answer."""
    with _reported():
        from mmspeech.commands.talk import TalkOptions, run_talk

        options = TalkOptions(
            audio=audio, out=out, image=image, model=model, stereo=stereo, seed=seed, greedy=greedy,
            max_sec=max_sec, as_json=json_, plot=plot, device=device, tensor_parallel=tensor_parallel,
        )  # fmt: skip
        run_talk(options)


@app.command()
def info(
    model: Annotated[str | None, typer.Argument(help="Checkpoint, hub id or configuration file.")] = None,
) -> None:
    """Show a model's parts, parameters, frame rate and memory."""
    with _reported():
        from mmspeech.commands.info import run_info

        run_info(model)


@app.command()
def doctor() -> None:
    """Show what is installed, what is missing, and what that would be for."""
    with _reported():
        from mmspeech.commands.doctor import run_doctor

        raise typer.Exit(run_doctor())


@app.command()
def convert(
    src: Annotated[Path, typer.Argument(help="MoshiVis in Kyutai's layout, Mimi (directory or file), or ours.")],
    dst: Annotated[Path, typer.Argument(help="New directory to write, in the other layout.")],
) -> None:
    """Translate a checkpoint (or Mimi, alone) from Kyutai's or transformers' layout into ours, or back."""
    with _reported():
        from mmspeech.commands.convert import run_convert

        run_convert(src, dst)


@app.command()
def verify(
    path: Annotated[Path, typer.Argument(help="Kyutai-layout checkpoint with an expected.safetensors beside it.")],
) -> None:
    """Rerun a checkpoint against the outputs the reference gave; exit 0 when they agree, else 1."""
    with _reported():
        from mmspeech.commands.convert import run_verify

        raise typer.Exit(run_verify(path))


@app.command()
def bench(
    model: Model = None,
    frames: Annotated[int, typer.Option(min=10, help="Frames to time (12.5 are a second of call).")] = 250,
    out: Annotated[Path | None, typer.Option(help="Write the numbers as JSON here.")] = None,
    device: Device = "cpu",
    tensor_parallel: TensorParallel = 1,
) -> None:
    """Time a whole frame (encode, think, decode) beside a loop without streaming state, or split beside whole."""
    with _reported():
        from mmspeech.commands.bench import run_bench

        run_bench(model, num_frames=frames, out=out, device=device, tensor_parallel=tensor_parallel)


if __name__ == "__main__":
    app()
