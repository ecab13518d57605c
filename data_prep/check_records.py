"""Faults of records, and of what the calls made of them say."""

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from data_prep.files import inside
from data_prep.records import parse_record
from mmspeech.config import ConfigError
from mmspeech.types import Word
from mmspeech.vision.image import load_image

SLACK_SEC = 0.08  # one frame


def record_faults(entry: dict[str, Any], root: Path) -> Iterator[str]:
    """What is wrong with a record whose files are in `root`: its form, its turns, its files."""
    try:
        record = parse_record(entry, where="a record")
    except ConfigError as error:
        yield str(error)
        return
    for visual in record.visuals:
        yield from _file_faults(root, visual.path, visual.kind)
    for path in [turn.audio for turn in record.turns if turn.audio] + ([record.audio] if record.audio else []):
        yield from _file_faults(root, path, "sound")
    if record.turns and not any(turn.speaker == "main" for turn in record.turns):
        yield "a dialogue in which the model says nothing"
    starts_sec = [turn.start_sec for turn in record.turns if turn.start_sec is not None]
    if starts_sec != sorted(starts_sec):
        yield f"its turns begin at {starts_sec} s, which is not in order"
    for kind, times in (("caption", record.captions), ("word", record.words)):
        for one in times:
            if one.end_sec is not None and one.start_sec is not None and one.end_sec < one.start_sec:
                yield f"the {kind} {one.text[:40]!r} ends at {one.end_sec} s, before it begins"


def _file_faults(root: Path, path: str, kind: str) -> Iterator[str]:
    try:
        file = inside(root, path)
    except ConfigError as error:
        yield str(error)
        return
    if fault := _unreadable(file, kind):
        yield fault


@lru_cache(maxsize=4096)  # many records ask about one picture
def _unreadable(file: Path, kind: str) -> str:
    """Why a file cannot be used, or nothing."""
    if not file.is_file():
        return f"{file} is not there"
    try:
        if kind == "image":
            load_image(file)
        elif kind == "clip":
            from mmspeech.vision.video import Video

            for _ in Video(file).sample(1.0):
                pass
        else:
            import soundfile

            if not soundfile.info(str(file)).frames:
                return f"{file} is empty"
    except (ConfigError, OSError, RuntimeError) as error:
        return f"{file}: {' '.join(str(error).split())}"
    return ""


def said_faults(said: list[dict[str, Any]], words: list[Word], duration_sec: float) -> Iterator[str]:
    """What is wrong with the turns that a call tells of: times, and whether their words are among those said."""
    for number, turn in enumerate(said):
        start_sec, end_sec = turn["start_sec"], turn["end_sec"]
        if not 0 <= start_sec <= end_sec <= duration_sec + SLACK_SEC:
            yield f"turn {number} lasts from {start_sec} to {end_sec} s of {duration_sec:.3f}"
        told = [text for word in words if word.speaker == turn["speaker"] for text in word.text.split()]
        wanted = turn["text"].split()
        rest = iter(told)  # between its words there may be what a listener says meanwhile
        if not all(word in rest for word in wanted[: 1 if turn["interrupted"] else None]):
            yield f"turn {number} is {turn['text'][:60]!r}, but that is not among the words of {turn['speaker']}"
