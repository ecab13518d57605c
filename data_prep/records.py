"""The record between import and calls: what is seen, what is said about it, where it comes from, under which licence.

A set of records is a folder: manifest.jsonl with a Record in each line, and step.json (data_prep/steps.py), whose
`media_root` is the folder that all paths of the records are in.
"""

import hashlib
import json
import re
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from data_prep.files import inside
from data_prep.steps import read_step
from mmspeech.config import ConfigError, StrictModel, parse_config

SPLITS = ("train", "valid", "test")
MOST_CHARACTERS = 20_000  # of one text: more is a book, or a fault
UNKNOWN_LICENCE = "unknown"
_ID = re.compile(r"[A-Za-z0-9_\-]+(\.[A-Za-z0-9_\-]+)*(/[A-Za-z0-9_\-]+(\.[A-Za-z0-9_\-]+)*)*")

Split = Literal["train", "valid", "test"]


class SeenRecord(StrictModel):
    """A picture or a clip: a file under the set's media_root, seen from `start_sec` of the call on, a clip with `fps`
    frames a second."""

    kind: Literal["image", "clip"] = "image"
    path: str = Field(min_length=1)
    start_sec: float = Field(0.0, ge=0)
    fps: float = Field(2.0, gt=0, le=100)


class TextRecord(StrictModel):
    """What is known of what is seen. Times, where there are any, are seconds of the clip."""

    text: str = Field(min_length=1, max_length=MOST_CHARACTERS)
    start_sec: float | None = Field(None, ge=0)
    end_sec: float | None = Field(None, ge=0)


class SaidRecord(StrictModel):
    """One turn. `speaker` is "user" or "main" (the model). `start_sec`: the earliest moment of the call it may begin
    (None: after the turn before). `audio`: a recording of this turn alone."""

    speaker: Literal["user", "main"]
    text: str = Field(min_length=1, max_length=MOST_CHARACTERS)
    start_sec: float | None = Field(None, ge=0)
    audio: str | None = None


class WordRecord(StrictModel):
    """A word of a recording, with its times in seconds."""

    text: str = Field(min_length=1)
    start_sec: float = Field(ge=0)
    end_sec: float = Field(ge=0)
    speaker: Literal["user", "main"]


class Record(StrictModel):
    """One item of a set. `id` may become file names: letters, digits, dots, dashes, with slashes between.

    turns: a dialogue, in order. captions: what a dialogue may be written from. audio: a recording of all of it, stereo
    (left the model, right the user) or mono; words: its words, where they are known.
    """

    id: str = Field(min_length=1, max_length=200)
    source: str = Field(min_length=1)
    licence: str = Field(min_length=1)
    split: Split = "train"
    visuals: tuple[SeenRecord, ...] = ()
    captions: tuple[TextRecord, ...] = ()
    turns: tuple[SaidRecord, ...] = ()
    audio: str | None = None
    words: tuple[WordRecord, ...] = ()
    meta: dict[str, Any] = {}

    @field_validator("id")
    @classmethod
    def _is_a_name(cls, value: str) -> str:
        if not _ID.fullmatch(value):
            raise ValueError("expected letters, digits, dots and dashes, with single slashes between")
        return value

    def line(self) -> dict[str, Any]:
        """As the manifest holds it: what is empty is left out."""
        return self.model_dump(mode="json", exclude_defaults=True)

    def paths(self) -> list[str]:
        """All files it names."""
        own = [visual.path for visual in self.visuals] + [turn.audio for turn in self.turns if turn.audio]
        return own + ([self.audio] if self.audio else [])


def parse_record(data: Any, *, where: str) -> Record:
    """A line of a manifest. ConfigError, beginning with `where`, for what is none."""
    if not isinstance(data, dict):
        raise ConfigError(f"{where}: expected an object with id, source and licence, got {str(data)[:60]}")
    return parse_config(Record, data, source=where)


def media_root(folder: Path) -> Path:
    """The folder that the paths of a set's records are in."""
    told = read_step(folder).get("media_root", ".")
    return (folder / told).resolve()


def safe_id(source: str, name: str) -> str:
    """An id for the item `name` of a set, whatever characters are in it: two names never have the same one."""
    plain = re.sub(r"[^A-Za-z0-9_\-]+", "-", name).strip("-")[:100]
    if plain == name:
        return f"{source}/{plain}"
    return f"{source}/{plain}-{hashlib.sha256(name.encode('utf-8', 'surrogatepass')).hexdigest()[:8]}".replace(
        "/-", "/"
    )


def check_paths(record: Record, root: Path) -> None:
    """ConfigError for a path that leads out of `root`, or a file that is not there."""
    for path in record.paths():
        if not inside(root, path).is_file():
            raise ConfigError(f"{path}: no such file in {root}")


def write_records(folder: Path, records: list[Record], *, root: Path) -> None:
    """A small set at once (tests, tools); large ones grow by steps."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(record.line(), ensure_ascii=False) + "\n" for record in records)
    (folder / "manifest.jsonl").write_text(lines, encoding="utf-8")
    told = {"verb": "import", "media_root": str(root.resolve())}
    (folder / "step.json").write_text(json.dumps(told), encoding="utf-8")
