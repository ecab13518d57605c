"""TallyQA: questions of how many there are of something in a picture.

Files: train.json and test.json, lists of {"image": "VG_100K_2/2410408.jpg", "question", "answer": 4, "question_id",
"image_id", "data_source": "imported_genome" | "imported_vqa" | "amt", "issimple" (test only)}. Pictures: train2014/,
val2014/ of COCO and VG_100K/, VG_100K_2/ of Visual Genome, in the folder or in --media.
Licence: none is stated with the data. Where: github.com/manoja328/TallyQA_dataset. Splits: train, test.
"""

from collections.abc import Iterator
from pathlib import Path

from data_prep.importers.base import Context, Row, field, files, json_items, number
from data_prep.records import UNKNOWN_LICENCE, Record
from mmspeech.config import ConfigError

LICENCE = UNKNOWN_LICENCE
SPLITS = ("train", "test")


def rows(folder: Path, split: str) -> Iterator[Row]:
    if split not in SPLITS:
        raise ConfigError(f"TallyQA has no split {split}; expected {' or '.join(SPLITS)}")
    yield from json_items(files(folder, f"{split}.json")[0], "item")


def key(row: Row) -> str:
    """The ids of questions are those of the sets that they come from."""
    return f"{field(row, 'data_source')}-{number(row, 'question_id')}"


def record(row: Row, context: Context) -> Record:
    answer = str(field(row, "answer", int))
    meta = {"answers": [answer], "simple": row.get("issimple"), "image_id": row.get("image_id")}
    return context.asked(key(row), context.picture(row.get("image")), field(row, "question"), answer, **meta)
