"""Babillage as it lies on the hub (kyutai/Babillage): parquet files of spoken questions, which hold no pictures.

Pictures are joined by their ids from local folders; VQAv2's also needs the official annotations, for its rows tell
neither picture nor answers.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.spoken_rows import Place, read_rows
from eval.task import MissingDataError
from mmspeech.config import ConfigError

SPLITS = {"coco": "test", "ocrvqa": "test", "vqav2": "validation"}
ANNOTATIONS = "v2_mscoco_val2014_annotations.json"
_SUFFIXES = (".jpg", ".jpeg", ".png", ".gif")


@dataclass(frozen=True)
class Row:
    """A spoken question. `answers`: what people said; `picture`: a file that may not be there."""

    id: str
    subset: str
    question: str
    answers: tuple[str, ...]
    picture: Path
    place: Place


def subset_files(folder: Path, subset: str) -> list[Path]:
    """The parquet files of a subset's split."""
    files = sorted((folder / subset).rglob("*.parquet"))
    return [file for file in files if SPLITS[subset] in file.name or SPLITS[subset] in file.parent.name]


def read_subset(folder: Path, subset: str) -> list[Row]:
    """All rows of a subset, without their sound; captions of one picture become one row.

    MissingDataError for VQAv2 without its annotations; ConfigError for files of another form.
    """
    rows = [row for file in subset_files(folder, subset) for row in _rows(file)]
    if subset == "vqav2":
        return _joined(rows, folder)
    if subset == "coco":
        return _captions(rows, folder)
    return [
        Row(str(row["sample_id"]), subset, _text(row["question_transcript"]), (_text(row["answer_transcript"]),),
            _picture(folder, subset, row["image_id"]), row["place"])
        for row in rows
    ]  # fmt: skip


def _rows(file: Path) -> list[dict[str, Any]]:
    needed = {"sample_id", "question_transcript"}
    return [row | {"place": place} for row, place in read_rows(file, needed=needed, column="question_audio")]


def _captions(rows: list[dict[str, Any]], folder: Path) -> list[Row]:
    """One question for each picture, the first; all captions of the picture are its references."""
    pictures: dict[int, list[dict[str, Any]]] = {}
    for row in rows:
        pictures.setdefault(int(row["image_id"]), []).append(row)
    return [
        Row(str(image_id), "coco", _text(own[0]["question_transcript"]),
            tuple(_text(row["answer_transcript"]) for row in own), _picture(folder, "coco", image_id), own[0]["place"])
        for image_id, own in pictures.items()
    ]  # fmt: skip


def _joined(rows: list[dict[str, Any]], folder: Path) -> list[Row]:
    file = next(iter((folder / "vqav2").rglob(ANNOTATIONS)), None)
    if rows and file is None:
        raise MissingDataError(
            f"{folder / 'vqav2'}: no {ANNOTATIONS}; Babillage's vqav2 holds neither answers nor picture ids: get the "
            "validation annotations of VQA v2 (visualqa.org, CC BY 4.0) and put the json there"
        )
    if not rows:
        return []
    told = {one["question_id"]: one for one in json.loads(file.read_text(encoding="utf-8"))["annotations"]}
    found = []
    for row in rows:
        one = told.get(int(row["sample_id"]))
        if one is None:
            raise ConfigError(f"{file}: no question {row['sample_id']}, which Babillage asks; it is of another split")
        answers = tuple(answer["answer"] for answer in one["answers"])
        picture = _picture(folder, "coco", one["image_id"])
        question = _text(row["question_transcript"])
        found.append(Row(str(row["sample_id"]), "vqav2", question, answers, picture, row["place"]))
    return found


def _picture(folder: Path, kind: str, image_id: int | str) -> Path:
    """images/coco/COCO_val2014_000000000042.jpg (or the number alone), images/ocrvqa/ID.jpg; there or not."""
    base = folder / "images" / kind
    names = [str(image_id)]
    if kind == "coco":
        number = f"{int(image_id):012d}"
        names = [f"COCO_val2014_{number}", number]
    paths = [base / f"{name}{suffix}" for name in names for suffix in _SUFFIXES]
    return next((path for path in paths if path.is_file()), paths[0])


def _text(transcript: list[str] | str) -> str:
    """Words with their times are a list of words."""
    return transcript if isinstance(transcript, str) else " ".join(word.strip() for word in transcript)
