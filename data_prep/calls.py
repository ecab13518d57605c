"""Reads the manifest of spoken calls: a .jsonl of {"path", "duration"}, each path a stereo wav with a .json beside it.

The json holds `alignments` [[word, [start_sec, end_sec], "SPEAKER_MAIN" | "SPEAKER_USER"], ...], `visuals`
[{"kind": "image" | "clip", "path", "start_sec", "fps"}, ...] (paths relative to the json's folder or to the manifest's;
fps for clips, 2 by default) and anything else (kept as metadata).
"""

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.files import inside
from mmspeech.config import ConfigError
from mmspeech.types import Visual, Word

_PART = re.compile(r"manifest-(\d+)-of-(\d+)\.jsonl")
SPEAKERS = {"SPEAKER_MAIN": "main", "SPEAKER_USER": "user"}


class ManifestError(ConfigError):
    """A manifest or a call's json that cannot be read; the message is one line that names the file."""


@dataclass(frozen=True)
class Call:
    """One line of a manifest. `id` is the audio's path in the manifest's folder, without suffix."""

    id: str
    audio: Path
    duration_sec: float
    root: Path


@dataclass
class Transcript:
    """What the json beside a call holds: words of both speakers, pictures and clips (and where those are, in the
    manifest's folder), and the rest as `meta`."""

    words: list[Word]
    visuals: list[Visual]
    paths: list[str]
    meta: dict[str, Any]


def read_manifest(data: Path) -> list[Call]:
    """The calls of a manifest (see find_manifests) in its order; those of several parts are sorted by id."""
    calls: list[Call] = []
    files = find_manifests(data)
    for file in files:
        for number, line in manifest_lines(file):
            calls.append(parse_line(line, where=f"{file}:{number}", folder=file.parent))
    if not calls:
        raise ManifestError(f"{files[0]}: no calls in it; run the step that makes it first")
    if len({call.id for call in calls}) != len(calls):
        raise ManifestError(f"{files[0]}: the same path stands in it twice; every call must be there once")
    return calls if len(files) == 1 else sorted(calls, key=lambda call: call.id)


def parse_line(line: str, *, where: str, folder: Path) -> Call:
    """As parse_entry, of a line that is not parsed yet."""
    try:
        entry = json.loads(line)
    except json.JSONDecodeError:
        entry = line
    return parse_entry(entry, where=where, folder=folder)


def parse_entry(entry: Any, *, where: str, folder: Path) -> Call:
    """The call that a parsed line of the manifest in `folder` names. Raises ManifestError, also for a path that leads
    out of the folder."""
    try:
        path, duration_sec = entry["path"], float(entry["duration"])
        if not 0 < duration_sec < math.inf or not isinstance(path, str):
            raise ValueError
    except (KeyError, TypeError, ValueError) as error:
        told = entry if isinstance(entry, str) else json.dumps(entry, default=str)
        expected = '{"path": ..., "duration": seconds}'
        raise ManifestError(f"{where}: expected {expected}, got {told[:80]}") from error
    try:
        audio = inside(folder, path)
    except ConfigError as error:
        raise ManifestError(f"{where}: {error}") from error
    return Call(audio.relative_to(folder).with_suffix("").as_posix(), audio, duration_sec, folder)


def manifest_lines(file: Path) -> Iterator[tuple[int, str]]:
    """(number, text) of the lines that are not empty, one at a time. Raises ManifestError for a file that is no
    text."""
    with file.open("rb") as opened:
        for number, line in enumerate(opened, start=1):
            try:
                text = line.decode("utf-8").strip()
            except UnicodeDecodeError as error:
                raise ManifestError(f"{file}: not a text file; expected one JSON object per line") from error
            if text:
                yield number, text


def read_transcript(call: Call) -> Transcript:
    """The json beside the call's audio, with the pictures' bytes. Raises ManifestError."""
    file = call.audio.with_suffix(".json")
    if not file.is_file():
        raise ManifestError(f"{file}: not there; expected the word times of {call.audio.name}")
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
        words = [Word(text, float(a), float(b), SPEAKERS[who]) for text, (a, b), who in data.pop("alignments")]
        visuals = [_read_visual(v, file=file, root=call.root) for v in data.pop("visuals", None) or []]
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ManifestError(f"{file}: not a call's json ({type(error).__name__}: {error})") from error
    visuals.sort(key=lambda one: one[0].start_sec)
    return Transcript(words, [visual for visual, _ in visuals], [path for _, path in visuals], data)


def find_manifests(data: Path) -> list[Path]:
    """The manifest itself, or what a folder holds: manifest.jsonl, else all parts (manifest-0-of-2.jsonl ...) that
    `--shard` made, else the only .jsonl. Raises ManifestError."""
    if data.is_file():
        return [data]
    found = sorted(data.glob("*.jsonl")) if data.is_dir() else []
    if (data / "manifest.jsonl") in found:
        return [data / "manifest.jsonl"]
    counts = {int(match[2]) for file in found if (match := _PART.fullmatch(file.name))}
    names = ", ".join(file.name for file in found) or "none"
    if len(counts) == 1:
        count = counts.pop()
        parts = [data / f"manifest-{index}-of-{count}.jsonl" for index in range(count)]
        if missing := [part.name for part in parts if part not in found]:
            raise ManifestError(f"{data}: {', '.join(missing)} is missing, found {names}; run that --shard too")
        return parts
    if len(found) == 1 and not counts:
        return found
    raise ManifestError(f"{data}: expected a manifest.jsonl in this folder, found {names}")


def _read_visual(entry: dict[str, Any], *, file: Path, root: Path) -> tuple[Visual, str]:
    kind, fps = entry.get("kind", "image"), float(entry.get("fps", Visual.fps))
    if kind not in ("image", "clip"):
        raise ManifestError(f"{file}: visual of kind {kind!r}; expected 'image' or 'clip'")
    if not 0 < fps < math.inf:
        raise ManifestError(f"{file}: {entry['path']} has fps {fps}; expected frames a second above 0")
    for folder in (file.parent, root):
        if (path := inside(folder, entry["path"])).is_file():
            visual = Visual(path.read_bytes(), float(entry.get("start_sec", 0.0)), kind, fps)
            return visual, path.relative_to(root).as_posix()
    named = "picture" if kind == "image" else "clip"
    raise ManifestError(f"{file}: {named} {entry['path']} is not there; expected it beside the json or the manifest")
