"""The verbs of the rendered world."""

from pathlib import Path
from typing import Annotated

import typer

from data_prep.options import OutDir, Seed, Shard, Split, shard_of
from mmspeech.config import parse_config

app = typer.Typer()


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
    hurried_share: Annotated[
        float, typer.Option(min=0, max=1, help="Of the other clips: one thing follows the other at once.")
    ] = 0.3,
    barge_share: Annotated[float, typer.Option(min=0, max=1, help="Of long answers: interrupted.")] = 0.0,
) -> None:
    """Ask voiced questions again, under new pictures and clips and with the answers that are true of them."""
    from data_prep.remix import RemixSettings, make_remix

    values = {"seed": seed, "split": split, "size_px": size_px, "num_turns": num_turns}
    values |= {"clips": clip_share, "swaps": swap_share, "blind": blind_share, "commentary": commentary_share}
    values |= {"barge_ins": barge_share, "hurried": hurried_share}
    info = make_remix(out, parse_config(RemixSettings, values, source="remix"), like=like, codec_dir=codec, count=count)
    typer.echo(f"{out}: {info.calls} calls, {info.frames} frames, {info.pictures} pictures")


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
    hurried_share: Annotated[
        float, typer.Option(min=0, max=1, help="Of the other clips: one thing follows the other at once.")
    ] = 0.3,
) -> None:
    """Write pictures and clips with sentences that are true of them, without sound: a shard set."""
    from data_prep.facts import FactsSettings, make_facts

    values = {"seed": seed, "split": split, "size_px": size_px, "num_facts": num_facts}
    values |= {"clips": clip_share, "commentary": commentary_share, "hurried": hurried_share}
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

    from data_prep.world import random_scene
    from data_prep.world_dialogue import model_sentences, user_sentences
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
