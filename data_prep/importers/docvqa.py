"""DocVQA: questions about scanned pages; several answers may count as right, and the model says the first.

Files: train_v1.0.json, val_v1.0.json, test_v1.0.json (or _withQT.json; in the folder, or in spdocvqa_qas/), {"data":
[{"questionId", "question", "image": "documents/xnbl0037_1.png", "docId", "ucsf_document_id", "ucsf_document_page_no",
"answers": [...], "question_types"}]}; the answers of test are not public, and its questions are left out. Pictures:
documents/ (or spdocvqa_images/), in the folder or in --media. On the hub (lmms-lab/DocVQA:DocVQA), and in its .parquet
files, rows have the same fields and hold the picture.
Licence: none is stated; free for research after registration. Where: rrc.cvc.uab.es/?ch=17. Splits: train, val (valid),
test.
"""

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from data_prep.importers.base import Context, Row, field, files, json_items, number, parquet_rows
from data_prep.records import UNKNOWN_LICENCE, Record
from data_prep.steps import DroppedError

LICENCE = UNKNOWN_LICENCE
SPLITS = {"train": "train", "valid": "val", "test": "test"}
HUB_SPLITS = {"valid": "validation", "test": "test"}


def rows(folder: Path, split: str) -> Iterator[Row]:
    name = SPLITS[split]
    written = [f"{place}{name}_v1.0{kind}.json" for place in ("", "spdocvqa_qas/") for kind in ("", "_withQT")]
    packed = [f"{place}{HUB_SPLITS.get(split, name)}-*.parquet" for place in ("", "DocVQA/", "data/")]
    found = files(folder, *written, *packed)
    if found[0].suffix == ".parquet":
        yield from parquet_rows(found)
    else:
        yield from json_items(found[0], "data.item")


def key(row: Row) -> str:
    return number(row, "questionId")


def record(row: Row, context: Context) -> Record:
    answers = row.get("answers")
    if not answers:
        raise DroppedError("no answer")
    said = field(row, "answers", list)
    shown = row.get("image")
    places = [f"spdocvqa_images/{PurePosixPath(shown).name}"] if isinstance(shown, str) else []
    meta = {name: row.get(name) for name in ("ucsf_document_id", "ucsf_document_page_no", "question_types")}
    return context.asked(
        key(row), context.picture(shown, *places), field(row, "question"), said[0], answers=said, **meta
    )
