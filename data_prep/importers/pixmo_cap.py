"""PixMo-Cap: web pictures with long captions, made from what people said about them.

Files: data/train-*.parquet (or rows of the hub) with image_url, caption, transcripts (what was said). The pictures are
not part of it: download them first, to --media (the folder media/ by default), as SHA256-OF-THE-URL.jpg (or .png, ...)
or under the name that the address ends with. Many addresses are dead by now; those records fail, and say so.
Licence: ODC-BY-1.0 for the texts; the pictures are their owners'. Where: hf.co/datasets/allenai/pixmo-cap, all train.
"""

from collections.abc import Iterator
from pathlib import Path

from data_prep.importers.base import Context, Row, field, files, parquet_rows, short_hash, text, told
from data_prep.importers.by_url import downloaded
from data_prep.records import Record

LICENCE = "ODC-BY-1.0"
HUB_SPLITS = {"train": "train"}
BY_URL = True


def rows(folder: Path, split: str) -> Iterator[Row]:
    yield from parquet_rows(files(folder, "data/*.parquet", "*.parquet"))


def key(row: Row) -> str:
    """A picture may have several captions."""
    return short_hash(field(row, "image_url"), row.get("caption"))


def record(row: Row, context: Context) -> Record:
    url = field(row, "image_url")
    caption = {"text": text(field(row, "caption"))}
    meta = told({"url": url, "transcripts": row.get("transcripts")})
    return context.record(key(row), visuals=[downloaded(context, url)], captions=[caption], meta=meta)
