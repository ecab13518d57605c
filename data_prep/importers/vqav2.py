"""VQA v2: short questions about COCO pictures, ten people's answers to each; the model says what most of them said.

Files: v2_OpenEnded_mscoco_{train2014,val2014,test2015}_questions.json {"questions": [{"image_id", "question",
"question_id"}]} and v2_mscoco_{train2014,val2014}_annotations.json {"annotations": [{"question_id", "answers":
[{"answer", ...}], "multiple_choice_answer", "answer_type", ...}]}; the answers of test are not public, and its
questions are left out. On the hub (lmms-lab/VQAv2), rows have both, and the picture.
Pictures: train2014/COCO_train2014_000000000009.jpg and so on, in the folder or in --media.
Licence: CC-BY-4.0 for questions and answers. Where: visualqa.org/download.html. Splits: train, val (valid), test.
"""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_prep.importers.base import Context, Row, field, files, gathered, json_items, number
from data_prep.records import Record
from data_prep.steps import DroppedError
from mmspeech.config import ConfigError

LICENCE = "CC-BY-4.0"
SPLITS = {"train": "train2014", "valid": "val2014", "test": "test2015"}
HUB_SPLITS = {"valid": "validation", "test": "test"}


def rows(folder: Path, split: str) -> Iterator[Any]:
    part = SPLITS[split]
    if folder.is_file():
        raise ConfigError(f"{folder}: VQA v2 has questions and annotations in two files; give the folder they are in")
    questions = files(folder, f"v2_OpenEnded_mscoco_{part}_questions.json")[0]
    answers = folder / f"v2_mscoco_{part}_annotations.json"
    if split != "test" and not answers.is_file():
        raise ConfigError(f"{answers}: not there; expected the answers beside {questions.name}")
    told = json_items(answers, "annotations.item") if answers.is_file() else ()
    with gathered(told, "question_id") as answers_of:
        for question in json_items(questions, "questions.item"):
            if not isinstance(question, dict):
                yield question
                continue
            found = answers_of(question.get("question_id"))
            yield (found[0] if found else {}) | question | {"part": part}


def key(row: Row) -> str:
    return number(row, "question_id")


def record(row: Row, context: Context) -> Record:
    if not row.get("answers"):
        raise DroppedError("no answer")
    said = [field(one, "answer") for one in field(row, "answers", list)]
    picture = row["image"] if isinstance(row.get("image"), dict) else None
    image, part = field(row, "image_id", int), row.get("part")
    name = f"COCO_{part}_{image:012d}.jpg"
    shown = context.picture(picture) if picture else context.picture(f"{part}/{name}", name)
    return context.asked(
        key(row), shown, field(row, "question"), majority(said), answers=said, answer_type=row.get("answer_type"),
        image_id=image,
    )  # fmt: skip


def majority(answers: list[str]) -> str:
    """What most said; of several said as often, the one that was said first."""
    return Counter(answers).most_common(1)[0][0]
