"""Runs a list of steps, one command after the other: a whole model from nothing.

`python -m train.rebuild --config configs/train/tiny.yaml --root runs/tiny`. A finished step leaves a mark in ROOT/done
and is not run again; an unfinished one is started again, and every command picks up what it had done.
"""

import argparse
import shlex
import subprocess
import sys
import time
from pathlib import Path

from pydantic import Field

from mmspeech.config import ConfigError, StrictModel, load_config


class Step(StrictModel):
    """`run`: arguments of `python -m`; {root} stands for the folder of the run. `name` is the mark's file name."""

    name: str = Field(pattern=r"^[a-z0-9_]+$")
    run: str


class RebuildConfig(StrictModel):
    """The steps in order."""

    steps: list[Step] = Field(min_length=1)


def rebuild(config: RebuildConfig, root: Path) -> None:
    """Run what is not done yet. Raises ConfigError when a step fails, naming it and its command."""
    from rich.console import Console

    console = Console(stderr=True)
    marks = root / "done"
    marks.mkdir(parents=True, exist_ok=True)
    for number, step in enumerate(config.steps, start=1):
        mark = marks / step.name
        title = f"[{number}/{len(config.steps)}] {step.name}"
        if mark.is_file():
            console.print(f"{title}: done before")
            continue
        arguments = [part.replace("{root}", str(root)) for part in shlex.split(step.run)]
        console.print(f"{title}: python -m {shlex.join(arguments)}")
        began_sec = time.monotonic()
        status = subprocess.run([sys.executable, "-m", *arguments], check=False).returncode
        if status:
            raise ConfigError(f"step {step.name} ended with status {status}; mend what it says and run this again")
        mark.write_text(f"{time.monotonic() - began_sec:.0f} s\n", encoding="utf-8")
        console.print(f"{title}: {time.monotonic() - began_sec:.0f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", required=True)
    parser.add_argument("--root", type=Path, required=True, help="folder for data and runs, some 15 GB")
    arguments = parser.parse_args()
    try:
        rebuild(load_config(RebuildConfig, arguments.config), arguments.root)
    except (ConfigError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
