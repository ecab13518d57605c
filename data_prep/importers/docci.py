"""DOCCI: photographs with long descriptions, written by people.

Files: docci_descriptions.jsonlines, lines of {"example_id": "train_00000", "split": "train" | "test" | "qual_dev" |
"qual_test", "image_file": "train_00000.jpg", "description": "..."}. Pictures: images/<image_file>, in the folder or in
--media.
Licence: CC-BY-4.0. Where: google.github.io/docci. Splits: train, qual_dev (valid), test and qual_test (test).
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_prep.importers.base import Context, Row, field, json_lines, one_file, text
from data_prep.records import Record

LICENCE = "CC-BY-4.0"
SPLITS = {"train": ("train",), "valid": ("qual_dev",), "test": ("test", "qual_test")}


def rows(folder: Path, split: str) -> Iterator[Any]:
    for row in json_lines(one_file(folder, "docci_descriptions.jsonlines", "*.jsonl*")):
        if not isinstance(row, dict) or row.get("split") in SPLITS[split]:
            yield row


def key(row: Row) -> str:
    return field(row, "example_id")


def record(row: Row, context: Context) -> Record:
    name = field(row, "image_file")
    caption = {"text": text(field(row, "description"))}
    return context.record(key(row), visuals=[context.picture(f"images/{name}", name)], captions=[caption])
