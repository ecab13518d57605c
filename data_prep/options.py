"""The options that verbs share."""

from pathlib import Path
from typing import Annotated

import typer

from data_prep.steps import How
from mmspeech.config import ConfigError

Seed = Annotated[int, typer.Option(min=0, help="Same seed, same data.")]
Shard = Annotated[str, typer.Option(help="i/n: every n-th part only, beginning with i; for several processes.")]
OutDir = Annotated[Path, typer.Option(help="Folder to write to.")]
Split = Annotated[str, typer.Option(help="train, valid or test; no arrangement of objects is in two of them.")]
Data = Annotated[Path, typer.Option(help="Folder with a manifest (manifest.jsonl), or the file.")]
Jobs = Annotated[int, typer.Option(min=1, help="Processes, or workers of the cluster.")]
Ray = Annotated[str | None, typer.Option(help="Address of a Ray cluster whose workers do it (auto: the one here).")]


def shard_of(text: str) -> tuple[int, int]:
    """ "i/n" -> (i, n). Raises ConfigError."""
    index, _, count = text.partition("/")
    if not (index.isdigit() and count.isdigit() and int(index) < int(count)):
        raise ConfigError(f"--shard {text}: expected i/n with 0 <= i < n, e.g. 0/2")
    return int(index), int(count)


def how_of(shard: str, jobs: int, ray: str | None) -> How:
    """Who does a step. Raises ConfigError."""
    return How(shard_of(shard), jobs, ray)
