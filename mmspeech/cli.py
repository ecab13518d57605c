"""The command line: `mmspeech demo | serve | talk | info | doctor | merge | convert | verify | bench | ...`.

Only options stand here. What a command does is in mmspeech/commands/, imported when it is called: help is quick.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Speech models that see: talk with a model about a picture.",
)

config_app = typer.Typer(no_args_is_help=True, help="List the configurations that come along, or copy one.")
app.add_typer(config_app, name="config")

Model = Annotated[str | None, typer.Option(help="Checkpoint directory or hub id (default: the embedded one).")]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps.")]
TensorParallel = Annotated[int, typer.Option(min=1, help="Split the LM over N processes (DeepSpeed), one GPU each.")]
Processes = Annotated[int, typer.Option(min=1, help="So many share the calls, each with a model: one for a core.")]
Quantize = Annotated[str | None, typer.Option(help="int8, int4, fp8, or by part: temporal=int8,depth=int4,tower=int8.")]
CudaGraphs = Annotated[bool, typer.Option("--cuda-graphs", help="Launch each step on the GPU as one graph.")]
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
    video: Annotated[
        Path | None,
        typer.Option(help='A clip to watch meanwhile, or a .json list of pictures: [[0.0, "a.png"], ...].'),
    ] = None,
    fps: Annotated[float, typer.Option(min=0.01, max=100, help="Frames of the clip shown per second.")] = 2.0,
    voice: Annotated[Path | None, typer.Option(help="A sample of the voice to answer with, heard beforehand.")] = None,
    role: Annotated[str | None, typer.Option(help="Who the model is, told beforehand.")] = None,
    model: Model = None,
    stereo: Annotated[bool, typer.Option("--stereo", help="Left the model, right the question.")] = False,
    seed: Seed = 0,
    greedy: Annotated[bool, typer.Option("--greedy", help="Always the likeliest text and codes.")] = False,
    max_sec: Annotated[float, typer.Option(min=0.1, help="Longest wait after the end of the question.")] = 15.0,
    json_: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")] = False,
    plot: Annotated[Path | None, typer.Option(help="Draw waveforms, words and gate over time here.")] = None,
    device: Device = "cpu",
    quantize: Quantize = None,
    tensor_parallel: TensorParallel = 1,
) -> None:
    """Ask a recorded question, with or without a picture or a clip, and hear the answer."""
    with _reported():
        from mmspeech.commands.talk import TalkOptions, run_talk

        options = TalkOptions(
            audio=audio, out=out, image=image, video=video, fps=fps, voice=voice, role=role, model=model,
            stereo=stereo, seed=seed, greedy=greedy, max_sec=max_sec, as_json=json_, plot=plot, device=device,
            quantize=quantize, tensor_parallel=tensor_parallel,
        )  # fmt: skip
        run_talk(options)


@app.command()
def transcribe(
    audio: Annotated[Path, typer.Argument(help="A recording: wav, flac, ogg, mp3 ..., any rate, any channels.")],
    model: Annotated[str, typer.Option(help="Kyutai's speech to text: directory or hub id.")] = "kyutai/stt-1b-en_fr",
    json_: Annotated[bool, typer.Option("--json", help="One JSON object a word, as soon as it is known.")] = False,
    device: Device = "cpu",
) -> None:
    """The words of a recording with their times, by a delayed-streams speech to text model."""
    with _reported():
        from mmspeech.commands.transcribe import run_transcribe

        run_transcribe(audio, model, as_json=json_, device=device)


@app.command()
def say(
    text: Annotated[list[str], typer.Argument(help='What to say; two speakers take turns. "-": lines of stdin.')],
    out: Annotated[Path, typer.Option(help="Where to write the speech (wav, 24 kHz).")],
    model: Annotated[str, typer.Option(help="Kyutai's text to speech: directory or hub id.")] = "kyutai/tts-1.6b-en_fr",
    voice: Annotated[
        list[str] | None,
        typer.Option(help="Of the first speaker, then of the other: a voice file, or a name in kyutai/tts-voices."),
    ] = None,
    guidance: Annotated[float | None, typer.Option(help="How closely to keep to text and voice (1 to 4).")] = None,
    codebooks: Annotated[int | None, typer.Option(help="How many the model makes: fewer are faster.")] = None,
    temperature: Annotated[float, typer.Option(min=0, help="0: always the likeliest.")] = 0.6,
    seed: Seed = 0,
    json_: Annotated[bool, typer.Option("--json", help="Print each word with its start.")] = False,
    device: Device = "cpu",
) -> None:
    """Speak a text in a voice, by a delayed-streams text to speech model."""
    with _reported():
        from mmspeech.commands.say import SayOptions, run_say

        options = SayOptions(tuple(voice or ()), guidance, codebooks, temperature, seed)
        run_say(text, model, out, options, as_json=json_, device=device)


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
def merge(
    run: Annotated[str, typer.Argument(help="Run directory, one of its checkpoints, or any checkpoint.")],
    out: Annotated[Path, typer.Argument(help="New directory to write.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="a.b=value for the model's configuration.")] = None,
    adapters_only: Annotated[bool, typer.Option("--adapters-only", help="Only the vision adapters.")] = False,
    dtype: Annotated[str, typer.Option(help="Stored precision: fp16, bf16, fp32.")] = "fp32",
    card: Annotated[Path | None, typer.Option(help="The README.md to write (default: one made from the run).")] = None,
    push: Annotated[str | None, typer.Option(metavar="OWNER/NAME", help="Upload it to the hub, too.")] = None,
    private: Annotated[bool, typer.Option("--private", help="A new repository on the hub is not public.")] = False,
) -> None:
    """Make of a training run a model directory that needs nothing else, with a card; LoRA becomes plain weights."""
    with _reported():
        from mmspeech.commands.merge import MergeOptions, run_merge

        options = MergeOptions(
            run=run, out=out, overrides=overrides or [], adapters_only=adapters_only, dtype=dtype, card=card,
            push=push, private=private,
        )  # fmt: skip
        run_merge(options)


class Layout(StrEnum):
    """What `convert` writes a checkpoint of ours as."""

    moshivis = "moshivis"
    moshi = "moshi"
    transformers = "transformers"
    lora = "lora"


@app.command()
def convert(
    src: Annotated[str, typer.Argument(help="Checkpoint in another layout (directory, file or hub id), or ours.")],
    dst: Annotated[Path, typer.Argument(help="New directory to write.")],
    layout: Annotated[Layout | None, typer.Option(help="For ours: which other (default: Kyutai's).")] = None,
    lora: Annotated[Path | None, typer.Option(help="Pairs of moshi-finetune to add to the matrices.")] = None,
) -> None:
    """Translate MoshiVis, Moshi, PersonaPlex, transformers' Moshi, candle's files or Mimi into ours, or ours back."""
    with _reported():
        from mmspeech.commands.convert import run_convert

        run_convert(src, dst, layout=None if layout is None else layout.value, lora=lora)


@app.command("add-vision")
def add_vision(
    base: Annotated[str, typer.Argument(help="A speech model without eyes: checkpoint directory or hub id.")],
    out: Annotated[Path, typer.Argument(help="New directory to write.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="a.b=value for the new configuration.")] = None,
    tower: Annotated[str, typer.Option(help="timm:NAME or hf:ID_OR_DIR.")] = "hf:google/siglip-so400m-patch14-384",
    seed: Seed = 0,
) -> None:
    """Give any duplex model eyes: fresh adapters that change nothing until they are trained."""
    with _reported():
        from mmspeech.commands.add_vision import AddVisionOptions, run_add_vision

        run_add_vision(AddVisionOptions(base=base, out=out, tower=tower, overrides=overrides or [], seed=seed))


@app.command()
def quantize(
    out: Annotated[Path, typer.Argument(help="New directory to write.")],
    kinds: Annotated[str, typer.Argument(help="int8 or fp8, or by part: temporal=int8,tower=fp8.")] = "int8",
    model: Model = None,
) -> None:
    """Store a model with weights in fewer bits; it is loaded like any other."""
    with _reported():
        from mmspeech.commands.quantize import run_quantize

        run_quantize(model, out, kinds)


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
    video: Annotated[Path | None, typer.Option(help="Time how fast this clip is decoded, and nothing else.")] = None,
    long: Annotated[bool, typer.Option("--long", help="A call that lasts, shown pictures all the time.")] = False,
    minutes: Annotated[int, typer.Option(min=3, help="How long the long call or the soak is.")] = 60,
    fps: Annotated[float, typer.Option(min=0.01, max=100, help="Of clip or long call: pictures a second.")] = 2.0,
    calls: Annotated[int | None, typer.Option(min=1, help="So many callers at once, over real sockets.")] = None,
    find_max: Annotated[
        bool, typer.Option("--find-max", help="More and more callers, until they are too many.")
    ] = False,
    processes: Processes = 1,
    seconds: Annotated[float, typer.Option(min=5, help="How long each of those callers talks.")] = 20.0,
    soak: Annotated[
        bool, typer.Option("--soak", help="For --minutes, at most --calls callers who come and go.")
    ] = False,
    batches: Annotated[str | None, typer.Option(help="Steps of so many calls in process, such as 1,32,64.")] = None,
    random_weights: Annotated[
        bool, typer.Option("--random-weights", help="With --batches: --model is a configuration file.")
    ] = False,
    quantize: Annotated[
        list[str] | None, typer.Option(help="Size, speed and drift of the model quantised so; may be given again.")
    ] = None,
    audio: Annotated[list[Path] | None, typer.Option(help="With --quantize: questions to measure drift on.")] = None,
    image: Annotated[Path | None, typer.Option(help="With --quantize: the picture they are about.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write the numbers as JSON here.")] = None,
    device: Device = "cpu",
    cuda_graphs: CudaGraphs = False,
    tensor_parallel: TensorParallel = 1,
) -> None:
    """Time a whole frame (encode, think, decode) beside a loop without streaming state, or split beside whole."""
    with _reported():
        if video is not None:
            from mmspeech.commands.bench_video import run_bench_video

            run_bench_video(video, fps=fps, out=out)
            return
        if quantize:
            from mmspeech.commands.quantize import run_bench_quantize

            run_bench_quantize(model, quantize, questions=audio or [], picture=image, device=device, out=out)
            return
        if soak:
            from mmspeech.commands.bench_soak import run_bench_soak

            run_bench_soak(model, calls=calls or 4, processes=processes, minutes=minutes, out=out)
            return
        if calls is not None or find_max:
            from mmspeech.commands.bench_calls import run_bench_calls

            run_bench_calls(model, calls=calls or 1, processes=processes, seconds=seconds, find_max=find_max, out=out)
            return
        if batches is not None or random_weights:
            from mmspeech.commands.bench_batches import run_bench_batches

            run_bench_batches(
                model, batches=batches or "1", random_weights=random_weights, num_frames=frames, device=device,
                cuda_graphs=cuda_graphs, out=out,
            )  # fmt: skip
            return
        if long:
            from mmspeech.commands.bench_long import run_bench_long

            run_bench_long(model, minutes=minutes, fps=fps, out=out, device=device, tensor_parallel=tensor_parallel)
            return
        from mmspeech.commands.bench import run_bench

        run_bench(model, num_frames=frames, out=out, device=device, tensor_parallel=tensor_parallel)


@app.command()
def demo(
    model: Model = None,
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8998,
    places: Annotated[int, typer.Option(min=1, help="Calls at once.")] = 4,
    open_page: Annotated[bool, typer.Option("--open/--no-open", help="Open the page in a browser.")] = True,
    device: Device = "cpu",
    quantize: Quantize = None,
) -> None:
    """Talk to the model in a browser, on this machine."""
    with _reported():
        from mmspeech.commands.serve import run_server
        from mmspeech.serve.settings import ServeConfig

        run_server(
            model, ServeConfig(places=places), host="127.0.0.1", port=port, device=device, quantize=quantize,
            processes=1, cuda_graphs=False, tls=None, certificate=None, key=None, open_page=open_page,
        )  # fmt: skip


@app.command()
def serve(
    model: Model = None,
    host: Annotated[str, typer.Option(help="0.0.0.0 for all of the network: then with TLS and a token.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8998,
    places: Annotated[int, typer.Option(min=1, help="Calls at once.")] = 8,
    processes: Processes = 1,
    queue: Annotated[int, typer.Option(min=0, help="Callers who may wait for a place.")] = 32,
    token: Annotated[str | None, typer.Option(envvar="MMSPEECH_TOKEN", help="What callers must know.")] = None,
    origin: Annotated[list[str] | None, typer.Option(help="A page of another site that may call; * for all.")] = None,
    tls: Annotated[bool | None, typer.Option("--tls/--no-tls", help="Default: TLS beyond this machine.")] = None,
    certificate: Annotated[Path | None, typer.Option(help="PEM; without one, one is made.")] = None,
    key: Annotated[Path | None, typer.Option(help="PEM of the certificate's key.")] = None,
    call_sec: Annotated[float, typer.Option(min=1, help="How long a call may last.")] = 1800.0,
    per_address: Annotated[int, typer.Option(min=1, help="Calls at once from one address.")] = 8,
    record: Annotated[Path | None, typer.Option(help="Keep calls in this folder; the page says so.")] = None,
    role: Annotated[str | None, typer.Option(help="What the model is, in words; callers may say otherwise.")] = None,
    voice: Annotated[Path | None, typer.Option(help="A recording of the voice to speak with.")] = None,
    tools: Annotated[Path | None, typer.Option(help="A Python file whose `tools` the model's words call.")] = None,
    device: Device = "cpu",
    quantize: Quantize = None,
    cuda_graphs: CudaGraphs = False,
) -> None:
    """The same for deployment: many calls in one batch, with limits, /health, /ready and /metrics."""
    with _reported():
        from mmspeech.commands.serve import run_server
        from mmspeech.serve.settings import ServeConfig

        config = ServeConfig(
            places=places, queue=queue, token=token, origins=tuple(origin or ()), call_sec=call_sec,
            per_address=per_address, record=record, role=role, voice=voice, tools=tools,
        )  # fmt: skip
        run_server(
            model, config, host=host, port=port, device=device, quantize=quantize, processes=processes,
            cuda_graphs=cuda_graphs, tls=tls, certificate=certificate, key=key, open_page=False,
        )  # fmt: skip


@app.command()
def estimate(
    config: Annotated[Path, typer.Option(help="A training configuration, such as configs/train/X.yaml.")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[a.b=c]...", help="Settings to replace.")] = None,
    gpus: Annotated[int, typer.Option(min=1, help="Processes, one for each GPU.")] = 8,
    gpu_memory: Annotated[float, typer.Option(min=1, help="Memory of a GPU, in GB.")] = 80.0,
    gpu: Annotated[str | None, typer.Option(help="Its name, for its peak: H100, A100, L40S ...")] = None,
    peak_tflops: Annotated[float | None, typer.Option(min=0.001, help="Its peak, where the name is not known.")] = None,
    mfu: Annotated[float, typer.Option(min=0.001, max=1, help="Share of the peak that training reaches.")] = 0.4,
    run: Annotated[Path | None, typer.Option(help="A run to take the speed from, instead of --mfu.")] = None,
) -> None:
    """Memory per GPU under DDP and ZeRO, frames a second and steps a day, before it costs money."""
    with _reported():
        from mmspeech.commands.estimate import EstimateOptions, run_estimate

        options = EstimateOptions(
            config=config, overrides=overrides or [], gpus=gpus, gpu_memory_gb=gpu_memory, gpu=gpu,
            peak_tflops=peak_tflops, mfu=mfu, run=run,
        )  # fmt: skip
        run_estimate(options)


@config_app.command("ls")
def config_ls() -> None:
    """Every configuration, with one line on what it is."""
    with _reported():
        from mmspeech.commands.config import run_ls

        run_ls()


@config_app.command("cp")
def config_cp(
    name: Annotated[str, typer.Argument(help="As `mmspeech config ls` shows it.")],
    dst: Annotated[Path, typer.Argument(help="A new file, or a folder.")],
) -> None:
    """Copy a configuration, to edit it."""
    with _reported():
        from mmspeech.commands.config import run_cp

        run_cp(name, dst)


if __name__ == "__main__":
    app()
