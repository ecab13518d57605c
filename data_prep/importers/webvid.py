"""WebVid: short clips of stock footage with a caption each.

Files: results_2M_train.csv, results_2M_val.csv (or results_10M_...), with columns videoid, contentUrl, duration,
page_dir, name (the caption). Clips, which the user has downloaded: videos/<page_dir>/<videoid>.mp4, in the folder or in
--media.
Licence: terms of use of WebVid, for research that is not commercial. Where: github.com/m-bain/webvid (its own copies
are gone). Splits: train, val (valid).
"""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_prep.importers.base import Context, Row, field, files, text, told
from data_prep.records import Record
from mmspeech.config import ConfigError

LICENCE = "WebVid terms: non-commercial research"
SPLITS = {"train": "train", "valid": "val"}


def rows(folder: Path, split: str) -> Iterator[Any]:
    if split not in SPLITS:
        raise ConfigError(f"WebVid has no split {split}; expected {' or '.join(SPLITS)}")
    for file in files(folder, f"results_*_{SPLITS[split]}.csv", f"*{SPLITS[split]}*.csv"):
        # Bytes that are no text stay in their row, which fails, and the rest goes on.
        with file.open(encoding="utf-8", errors="surrogateescape", newline="") as opened:
            read = csv.DictReader(opened)
            missing = {"videoid", "page_dir", "name"} - set(read.fieldnames or ())
            if missing:
                raise ConfigError(f"{file}: no column {', '.join(sorted(missing))}; found {read.fieldnames}")
            yield from _rows(file, read)


def _rows(file: Path, read: csv.DictReader) -> Iterator[Any]:
    while True:
        try:
            yield next(read)
        except StopIteration:
            return
        except csv.Error as error:  # a quote that is never closed, say
            yield ConfigError(f"{file.name}:{read.line_num}: {error}")


def key(row: Row) -> str:
    return field(row, "videoid")


def record(row: Row, context: Context) -> Record:
    caption = {"text": text(field(row, "name"))}
    path = f"{field(row, 'page_dir')}/{field(row, 'videoid')}.mp4"
    clip = {"kind": "clip", "path": context.find(f"videos/{path}", path)}
    meta = told({"url": row.get("contentUrl"), "duration": row.get("duration")})
    return context.record(key(row), visuals=[clip], captions=[caption], meta=meta)
