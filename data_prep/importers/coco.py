"""COCO captions: pictures of everyday scenes with five captions each; a record is a picture with all of them.

Files: captions_train2017.json and captions_val2017.json (or of 2014; in the folder, or in annotations/), {"licenses":
[{"id", "name", "url"}], "images": [{"id", "file_name", "license", ...}], "annotations": [{"image_id", "caption"}]}.
Pictures: train2017/000000000009.jpg and so on, in the folder or in --media.
Licence: CC-BY-4.0 for the captions; each picture has its own, named in the file, and that is the record's.
Where: cocodataset.org/#download. Splits: train, val (valid); test has no public captions.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_prep.importers.base import Context, Row, field, files, gathered, json_items, number, told
from data_prep.importers.base import text as checked
from data_prep.records import Record
from data_prep.steps import DroppedError
from mmspeech.config import ConfigError

LICENCE = "CC-BY-4.0"
SPLITS = {"train": "train", "valid": "val"}


def rows(folder: Path, split: str) -> Iterator[Any]:
    if split not in SPLITS:
        raise ConfigError(f"COCO captions have no split {split}; expected {' or '.join(SPLITS)}")
    name = SPLITS[split]
    patterns = [f"{place}captions_{name}{year}.json" for year in (2017, 2014) for place in ("", "annotations/")]
    file = files(folder, *patterns)[0]
    licences = {number(one, "id"): field(one, "name") for one in json_items(file, "licenses.item")}
    with gathered(json_items(file, "annotations.item"), "image_id") as captions_of:
        for image in json_items(file, "images.item"):
            if not isinstance(image, dict):
                yield image
                continue
            own = {"licence": licences.get(str(image.get("license"))), "folder": file.stem.removeprefix("captions_")}
            yield image | {"captions": [one.get("caption") for one in captions_of(image.get("id"))]} | own


def key(row: Row) -> str:
    return number(row, "id")


def record(row: Row, context: Context) -> Record:
    name = field(row, "file_name")
    picture = context.picture(name, f"{row['folder']}/{name}", f"images/{row['folder']}/{name}")
    captions = [{"text": checked(one)} for one in row["captions"] if not isinstance(one, str) or one.strip()]
    if not captions:
        raise DroppedError("empty text")
    meta = told({"flickr_url": row.get("flickr_url"), "captions_licence": LICENCE})
    return context.record(key(row), licence=row["licence"], visuals=[picture], captions=captions, meta=meta)
