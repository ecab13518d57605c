"""OCR-VQA: questions about the covers of books.

Files: dataset.json {"<ASIN>": {"imageURL", "questions": [...], "answers": [...], "title", "authorName", "genre",
"split": 1 | 2 | 3}}. Pictures, which its loadDataset.py downloads: images/<ASIN>.jpg (or .gif, as the URL ends), in the
folder or in --media. Each question is a record.
Licence: none is stated; the covers are their publishers'. Where: ocr-vqa.github.io. Splits: 1 train, 2 valid, 3 test.
"""

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from data_prep.importers.base import Context, Row, field, json_pairs, one_file
from data_prep.records import UNKNOWN_LICENCE, Record
from mmspeech.config import ConfigError

LICENCE = UNKNOWN_LICENCE
SPLITS = {"train": 1, "valid": 2, "test": 3}


def rows(folder: Path, split: str) -> Iterator[Any]:
    for asin, book in json_pairs(one_file(folder, "dataset.json")):
        if not isinstance(book, dict) or not isinstance(book.get("questions"), list):
            yield ConfigError(f"{asin}: expected an object with questions and answers")
        elif book.get("split") == SPLITS[split]:
            answers = book.get("answers") if isinstance(book.get("answers"), list) else []
            for number, question in enumerate(book["questions"]):
                answer = answers[number] if number < len(answers) else None
                yield {name: book.get(name) for name in ("imageURL", "title", "authorName", "genre")} | {
                    "asin": asin, "number": number, "question": question, "answer": answer,
                }  # fmt: skip


def key(row: Row) -> str:
    return f"{row['asin']}-{row['number']}"


def record(row: Row, context: Context) -> Record:
    asin = row["asin"]
    ending = PurePosixPath(str(row["imageURL"] or "")).suffix or ".jpg"
    picture = context.picture(f"images/{asin}{ending}", f"{asin}{ending}", f"images/{asin}.jpg", f"{asin}.jpg")
    meta = {"title": row["title"], "author": row["authorName"], "genre": row["genre"]}
    return context.asked(key(row), picture, field(row, "question"), field(row, "answer"), **meta)
