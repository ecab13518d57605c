"""VoiceBench as it lies on the hub (hlt-lab/voicebench), and its answer files.

`python -m eval.voicebench_data RUN OUT` writes the replies of a run's task as VoiceBench's own scripts read them:
SPLIT.jsonl with prompt, response and reference.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from eval.console import told_errors
from eval.run import SAMPLES, read_records
from eval.spoken_rows import Place, read_rows
from mmspeech.config import ConfigError

OPEN = ("alpacaeval", "alpacaeval_full", "commoneval", "wildvoice")
FACTS = ("sd-qa",)
CHOICES = ("mmsu", "openbookqa")
HARM = ("advbench",)
INSTRUCTIONS = ("ifeval",)
YES_NO = ("bbh",)
SPLITS = (*OPEN, *FACTS, *CHOICES, *HARM, *INSTRUCTIONS, *YES_NO)


@dataclass(frozen=True)
class Asked:
    """A spoken question. `told`: all that its row says. `voice`: the region of its speaker (sd-qa)."""

    id: str
    kind: str
    question: str
    reference: str | None
    place: Place
    told: dict[str, Any]
    voice: str = "all"


def split_files(folder: Path) -> dict[str, list[Path]]:
    """The parquet files of each split that is there: folders of that name, as on the hub."""
    found = {split: sorted((folder / split).rglob("*.parquet")) for split in SPLITS}
    return {split: files for split, files in found.items() if files}


def read_split(split: str, files: list[Path]) -> list[Asked]:
    """All rows of a split, without their sound. ConfigError for files of another form."""
    rows = (row for file in files for row in read_rows(file, needed={"prompt"}, column="audio"))
    return [
        Asked(
            f"{split}/{number:05d}",
            split,
            str(told["prompt"]),
            told.get("reference") or told.get("output"),
            place,
            told,
            _region(split, place.file),
        )
        for number, (told, place) in enumerate(rows)
    ]


def _region(split: str, file: Path) -> str:
    """ "usa" of usa-00000-of-00001.parquet: sd-qa asks the same questions in eleven regions' voices."""
    return re.sub(r"-\d+-of-\d+$", "", file.stem) if split in FACTS else "all"


def export(run: Path, out: Path) -> int:
    """Write OUT/SPLIT.jsonl for each split of the run; returns how many answers. ConfigError when there are none."""
    records = [r for r in read_records(run / SAMPLES) if r["task"] == "voicebench" and "error" not in r]
    if not records:
        raise ConfigError(f"{run / SAMPLES}: no answers of the task voicebench; run python -m eval --tasks voicebench")
    out.mkdir(parents=True, exist_ok=True)
    for split in sorted({record["kind"] for record in records}):
        lines = (
            json.dumps(r["told"] | {"prompt": r["question"], "response": r["answer"]}, ensure_ascii=False) + "\n"
            for r in records
            if r["kind"] == split
        )
        (out / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")
    return len(records)


def main(
    run: Annotated[Path, typer.Argument(help="--out of a run of python -m eval")],
    out: Annotated[Path, typer.Argument(help="folder to write to")],
) -> None:
    """Write what VoiceBench's own evaluation reads."""
    with told_errors():
        typer.echo(f"{out}: {export(run, out)} answers")


if __name__ == "__main__":
    typer.run(main)
