"""`python -m data_prep VERB`: from a rendered world to checked shards. Every step can be killed and run again."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from mmspeech.config import ConfigError, parse_config

_UsageError = typer.BadParameter.__base__  # what the command line parser raises
app = typer.Typer(help=__doc__, add_completion=False, pretty_exceptions_enable=False)

Seed = Annotated[int, typer.Option(min=0, help="Same seed, same data.")]
Shard = Annotated[str, typer.Option(help="i/n: every n-th item only, beginning with i; for several processes.")]
OutDir = Annotated[Path, typer.Option(help="Folder to write to.")]
Split = Annotated[str, typer.Option(help="train, valid or test; no arrangement of objects is in two of them.")]


def shard_of(text: str) -> tuple[int, int]:
    """ "i/n" -> (i, n). Raises ConfigError."""
    index, _, count = text.partition("/")
    if not (index.isdigit() and count.isdigit() and int(index) < int(count)):
        raise ConfigError(f"--shard {text}: expected i/n with 0 <= i < n, e.g. 0/2")
    return int(index), int(count)


@app.command()
def scenes(
    out: OutDir,
    count: Annotated[int, typer.Option(min=1)],
    seed: Seed = 0,
    split: Split = "train",
    size_px: Annotated[int, typer.Option(min=96, max=448)] = 96,
    blind_share: Annotated[float, typer.Option(min=0, max=1, help="Share of calls without a picture.")] = 0.0,
    shard: Shard = "0/1",
) -> None:
    """Render pictures and write dialogues about them."""
    from data_prep.scenes import make_scenes

    make_scenes(
        out, count=count, seed=seed, split=split, size_px=size_px, blind_share=blind_share, shard=shard_of(shard)
    )


@app.command()
def clips(
    out: OutDir,
    count: Annotated[int, typer.Option(min=1)],
    seed: Seed = 0,
    split: Split = "train",
    size_px: Annotated[int, typer.Option(min=96, max=448)] = 96,
    commentary_share: Annotated[float, typer.Option(min=0, max=1, help="Of the clips: told as they happen.")] = 0.25,
    swap_share: Annotated[float, typer.Option(min=0, max=1, help="Calls in which the picture changes.")] = 0.15,
    still_share: Annotated[float, typer.Option(min=0, max=1, help="Calls about one still picture.")] = 0.1,
    shard: Shard = "0/1",
) -> None:
    """Film clips and write dialogues about them, and about pictures that change in the middle of a call."""
    from data_prep.clips import ClipSettings, make_clips

    values = {"seed": seed, "split": split, "size_px": size_px}
    values |= {"commentary": commentary_share, "swap": swap_share, "still": still_share}
    make_clips(out, parse_config(ClipSettings, values, source="clips"), count=count, shard=shard_of(shard))


@app.command()
def watched(
    out: OutDir,
    count: Annotated[int, typer.Option(min=1)],
    seed: Seed = 0,
    split: Split = "train",
    size_px: Annotated[int, typer.Option(min=96, max=448)] = 96,
    shard: Shard = "0/1",
) -> None:
    """Film clips and write what can be known at each of their frames, for towers that learn to see motion."""
    from data_prep.watched import make_watched

    make_watched(out, count=count, seed=seed, split=split, size_px=size_px, shard=shard_of(shard))


@app.command()
def render(
    scene: Path,
    out: Annotated[Path, typer.Option(help="The PNG file to write, or for a clip the mp4 file.")],
    size_px: Annotated[int, typer.Option(min=96, max=448)] = 96,
) -> None:
    """Draw one scene JSON into a picture, or film one clip JSON."""
    if out.suffix.lower() == ".mp4":
        from data_prep.film import film_file

        film_file(scene, out, size_px=size_px)
        return
    from data_prep.render import render_file

    render_file(scene, out, size_px=size_px)


@app.command()
def speak(
    data: Annotated[Path, typer.Option(help="Folder of the `scenes` verb.")],
    out: OutDir,
    seed: Seed = 0,
    jobs: Annotated[int, typer.Option(min=1, help="Processes.")] = 2,
    shard: Shard = "0/1",
) -> None:
    """Voice both sides of every dialogue into stereo wav with word times."""
    from data_prep.speak import Timing
    from data_prep.speak import speak as voice_dialogues

    if failed := voice_dialogues(data, out, seed=seed, jobs=jobs, timing=Timing(), shard=shard_of(shard)):
        typer.echo(f"{failed} dialogues could not be voiced; each has an .err file in {out}", err=True)
        raise typer.Exit(1)


@app.command()
def remix(
    like: Annotated[list[Path], typer.Option(help="A shard set of voiced calls, which lends its questions.")],
    codec: Annotated[Path, typer.Option(help="Codec or checkpoint directory: the one of that set.")],
    out: OutDir,
    count: Annotated[int, typer.Option(min=1)],
    seed: Seed = 0,
    split: Split = "train",
    size_px: Annotated[int, typer.Option(min=96, max=448)] = 96,
    num_turns: Annotated[int, typer.Option(min=1, help="Turns of a call about a picture or none, at most.")] = 3,
    clip_share: Annotated[float, typer.Option(min=0, max=1, help="Calls about a clip.")] = 0.0,
    swap_share: Annotated[float, typer.Option(min=0, max=1, help="Calls in which the picture changes.")] = 0.0,
    blind_share: Annotated[float, typer.Option(min=0, max=1, help="Calls without a picture.")] = 0.0,
    commentary_share: Annotated[float, typer.Option(min=0, max=1, help="Of the clips: told as they happen.")] = 0.2,
    barge_share: Annotated[float, typer.Option(min=0, max=1, help="Of long answers: interrupted.")] = 0.0,
) -> None:
    """Ask voiced questions again, under new pictures and clips and with the answers that are true of them."""
    from data_prep.remix import RemixSettings, make_remix

    values = {"seed": seed, "split": split, "size_px": size_px, "num_turns": num_turns}
    values |= {"clips": clip_share, "swaps": swap_share, "blind": blind_share, "commentary": commentary_share}
    values |= {"barge_ins": barge_share}
    info = make_remix(out, parse_config(RemixSettings, values, source="remix"), like=like, codec_dir=codec, count=count)
    typer.echo(f"{out}: {info.calls} calls, {info.frames} frames, {info.pictures} pictures")


@app.command()
def features(
    data: Annotated[Path, typer.Option(help="Shard set whose pictures and clips are looked at.")],
    out: OutDir,
    model: Annotated[str | None, typer.Option(help="Checkpoint whose tower looks (default: the embedded one).")] = None,
    shard: Shard = "0/1",
) -> None:
    """Keep what a frozen tower makes of the pictures and clips of a shard set; training reads it (data.features)."""
    from data_prep.features import make_features

    written, failed = make_features(data, model, out, shard=shard_of(shard))
    typer.echo(f"{out}: {written} features written; {failed} calls could not be read")


@app.command()
def facts(
    codec: Annotated[Path, typer.Option(help="Codec or checkpoint directory: whose calls the set goes with.")],
    out: OutDir,
    count: Annotated[int, typer.Option(min=1, help="Pictures and clips.")],
    seed: Seed = 0,
    split: Split = "train",
    size_px: Annotated[int, typer.Option(min=96, max=448)] = 96,
    num_facts: Annotated[int, typer.Option(min=1, help="Sentences about each, at most.")] = 4,
    clip_share: Annotated[float, typer.Option(min=0, max=1, help="Clips among them.")] = 0.0,
    commentary_share: Annotated[float, typer.Option(min=0, max=1, help="Of the clips: told as they happen.")] = 0.2,
) -> None:
    """Write pictures and clips with sentences that are true of them, without sound: a shard set."""
    from data_prep.facts import FactsSettings, make_facts

    values = {"seed": seed, "split": split, "size_px": size_px, "num_facts": num_facts}
    values |= {"clips": clip_share, "commentary": commentary_share}
    info = make_facts(out, parse_config(FactsSettings, values, source="facts"), codec_dir=codec, count=count)
    typer.echo(f"{out}: {info.calls} calls, {info.frames} frames, {info.pictures} pictures")


@app.command()
def questions(
    out: OutDir,
    name: Annotated[
        str,
        typer.Option(
            help="known, unseen, talk, pause, barge; motion, change, present, past, swap, commentary (also _unseen); "
            "or all of them."
        ),
    ],
    count: Annotated[int, typer.Option(min=1, help="Of each set.")] = 200,
    seed: Seed = 0,
    split: Split = "test",
    size_px: Annotated[int, typer.Option(min=96, max=448)] = 96,
) -> None:
    """Write spoken questions with known answers, which `python -m eval --tasks rendered_world` asks."""
    from data_prep.questions import SETS, make_questions

    for one in SETS if name == "all" else [name]:
        make_questions(out, name=one, count=count, seed=seed, split=split, size_px=size_px)


@app.command()
def tokenizer(
    out: Annotated[Path, typer.Option(help="The file to write (tokenizer.model).")],
    vocab_size: int = 512,
    count: Annotated[int, typer.Option(min=1, help="Scenes whose sentences it learns from.")] = 1500,
    seed: Seed = 0,
) -> None:
    """Train the text tokenizer on what the world's people say."""
    import numpy as np

    from data_prep.dialogue import model_sentences, user_sentences
    from data_prep.world import random_scene
    from mmspeech.tokens.text import train_tokenizer

    rng = np.random.default_rng(seed)
    worlds = [random_scene(rng, split="train") for _ in range(count)]
    sentences = model_sentences(rng, worlds, per_scene=4) + user_sentences(rng, worlds, per_scene=4)
    train_tokenizer(sentences, vocab_size, out)


@app.command()
def babble(
    out: OutDir,
    count: Annotated[int, typer.Option(min=1)],
    seed: Seed = 0,
    split: Split = "train",
    shard: Shard = "0/1",
) -> None:
    """Voice random words of the world on both sides, with phone times, for the codec."""
    from data_prep.babble import make_babble

    make_babble(out, count=count, seed=seed, split=split, shard=shard_of(shard))


@app.command()
def check(
    data: Annotated[Path, typer.Option(help="Manifest of calls or questions, or a folder with one or with shards.")],
) -> None:
    """Read every file a manifest names, or a shard set, and tell each fault; exit code 1 when there is one."""
    from data_prep.check import check as check_manifest

    report = check_manifest(data)
    for fault in report.faults:
        typer.echo(fault)
    typer.echo(f"{data}: {report.entries} entries, {report.seconds / 3600:.2f} h, {len(report.faults)} faults")
    if report.faults:
        raise typer.Exit(1)


@app.command()
def preview(
    data: Annotated[Path, typer.Option(help="Manifest of calls, or a folder with manifest.jsonl.")],
    out: OutDir,
    call: Annotated[str | None, typer.Option(help="Its name, such as 000012; the first when not given.")] = None,
    tokenizer_file: Annotated[
        Path | None, typer.Option("--tokenizer", help="tokenizer.model; shows the text stream too.")
    ] = None,
) -> None:
    """Look at one call and listen to it: its wav, its picture, its words and text tokens on the frame grid."""
    from data_prep.preview import preview as preview_call

    for line in preview_call(data, out, call=call, tokenizer=tokenizer_file):
        typer.echo(line)


_PASSED_ON = {"ignore_unknown_options": True, "allow_extra_args": True}


@app.command(context_settings=_PASSED_ON, add_help_option=False)
def encode(context: typer.Context) -> None:
    """Turn both channels of every call into codes of a codec."""
    from data_prep.encode import main as run

    raise typer.Exit(run(context.args))


@app.command(context_settings=_PASSED_ON, add_help_option=False)
def pack(context: typer.Context) -> None:
    """Make a shard set of codes, words and pictures."""
    from data_prep.pack import main as run

    raise typer.Exit(run(context.args))


def main(argv: list[str] | None = None) -> int:
    """Exit status: 0, 1 when something failed on the way, or 2 after one line on what to mend."""
    arguments = (sys.argv[1:] if argv is None else argv) or ["--help"]
    try:
        return app(args=arguments, prog_name="python -m data_prep", standalone_mode=False) or 0
    except _UsageError as error:
        message = f"{error.format_message()} (`python -m data_prep {arguments[0]} --help` tells more)"
    except (ConfigError, OSError) as error:
        message = str(error)
    except typer.Abort:
        typer.echo("data_prep: stopped; the same command goes on from here", err=True)
        return 130
    typer.echo(f"data_prep: {' '.join(message.split())}", err=True)
    return 2


if __name__ == "__main__":
    sys.exit(main())
