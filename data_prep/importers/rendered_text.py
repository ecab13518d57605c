"""RenderedText: pictures of sheets of paper with handwriting on them, rendered; the captions say what is written.

Files: 000000.tar and so on (and more in remaining/), each with pairs KEY.png, KEY.json; of the json,
["ocr_annotation"]["text"] is the list of lines. On the hub, rows with __key__, __url__ (of the tar), png and json. The
pictures are taken out of the tars, into the set.
Licence: none is stated. Where: hf.co/datasets/wendlerc/RenderedText. All is train.
"""

import json
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from data_prep.importers.base import Context, Row, field, files, text
from data_prep.records import UNKNOWN_LICENCE, Record
from mmspeech.config import ConfigError

LICENCE = UNKNOWN_LICENCE
HUB_SPLITS = {"train": "train"}


def rows(folder: Path, split: str) -> Iterator[Row]:
    found = files(folder, "*.tar", "remaining/*.tar")
    more = sorted((folder / "remaining").glob("*.tar")) if folder.is_dir() and found[0].parent == folder else []
    for file in found + more:
        yield from _pairs(file)


def _pairs(file: Path) -> Iterator[Row]:
    """The files of one item follow each other in a tar."""
    row: Row = {}
    try:
        with tarfile.open(file, "r|") as packed:
            for member in packed:
                place, _, name = member.name.removeprefix("./").rpartition("/")
                stem, _, ending = name.partition(".")
                stem = f"{place}/{stem}" if place else stem
                if not member.isfile() or ending not in ("png", "json"):
                    continue
                if row and row["__key__"] != stem:
                    yield row
                    row = {}
                row |= {"__key__": stem, "__url__": file.name, ending: packed.extractfile(member).read()}
    except tarfile.TarError as error:
        raise ConfigError(f"{file}: not a whole tar file ({error}); download it again") from error
    if row:
        yield row


def key(row: Row) -> str:
    """Keys may be the same in two tars."""
    tar = PurePosixPath(row["__url__"].rpartition("::")[2]).stem
    return f"{tar}-{field(row, '__key__').removeprefix('./')}"


def record(row: Row, context: Context) -> Record:
    told = field(row, "json", (dict, bytes, str))
    told = told if isinstance(told, dict) else json.loads(told)
    lines = field(field(told, "ocr_annotation", dict), "text", list)
    caption = text("\n".join(line for line in lines if field({"line": line}, "line").strip()))
    shown = row.get("png")
    picture = context.picture({"bytes": shown} if isinstance(shown, bytes) else field(row, "png", dict))
    return context.record(key(row), visuals=[picture], captions=[{"text": caption}], meta={"written": True})
