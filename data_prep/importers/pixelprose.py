"""PixelProse: web pictures with long captions by a model.

Files: data/vlm_captions_*.parquet (or rows of the hub) with uid, url, key, status, original_caption, vlm_model,
vlm_caption, scores of what the caption and the picture are like. The pictures are not part of it: download them first
(img2dataset), to --media (the folder media/ by default), as SHA256-OF-THE-URL.jpg (or .png, ...), KEY.jpg, or under
the name that the address ends with. Addresses that are dead are records that fail, and say so.
Licence: CC-BY-4.0 for the texts (and Google's terms, by whose model they were written); the pictures are their owners'.
Where: hf.co/datasets/tomg-group-umd/pixelprose. All is train.
"""

from collections.abc import Iterator
from pathlib import Path

from data_prep.importers.base import Context, Row, field, files, parquet_rows, text, told
from data_prep.importers.by_url import downloaded
from data_prep.records import Record

LICENCE = "CC-BY-4.0"
HUB_SPLITS = {"train": "train"}
BY_URL = True


def rows(folder: Path, split: str) -> Iterator[Row]:
    yield from parquet_rows(files(folder, "data/*.parquet", "*.parquet"))


def key(row: Row) -> str:
    return field(row, "uid")


def record(row: Row, context: Context) -> Record:
    url = field(row, "url")
    caption = {"text": text(field(row, "vlm_caption"))}
    name = str(row.get("key") or "")
    meta = told({name: row.get(name) for name in ("url", "original_caption", "vlm_model")})
    return context.record(key(row), visuals=[downloaded(context, url, name)], captions=[caption], meta=meta)
