"""`check`: reads everything a manifest names and tells each fault; of calls (from `speak`) or of `questions`."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from data_prep.calls import Call, ManifestError, Transcript, find_manifest, read_transcript
from data_prep.files import SAMPLE_RATE_HZ
from data_prep.phones import PHONES
from data_prep.tts import HELD_OUT_VOICES
from mmspeech.types import Word
from mmspeech.vision.image import ImageError, load_image

SLACK_SEC = 0.08  # one frame: what rounding and a synthesiser's overlapping words may differ by
_TURN_TIMES = ("question_start_sec", "question_end_sec", "answer_start_sec", "answer_end_sec")
_HELD_OUT = {voice.key for voice in HELD_OUT_VOICES}


@dataclass
class CheckReport:
    """faults: one line each, naming the file. `entries` counts manifest lines, `seconds` what could be read of them."""

    entries: int = 0
    seconds: float = 0.0
    faults: list[str] = field(default_factory=list)


def check(data: Path) -> CheckReport:
    """Check the manifest `data` (a file, or a folder with manifest.jsonl). Raises ManifestError when there is none."""
    from rich.progress import track

    manifest = find_manifest(data)
    report, seen = CheckReport(), set()
    lines = manifest.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(track(lines, description="check"), start=1):
        if not line.strip():
            continue
        report.entries += 1
        where = f"{manifest}:{number}"
        try:
            entry = json.loads(line)
            name = entry.get("path", entry.get("audio"))
        except (json.JSONDecodeError, AttributeError):
            name = None
        if not isinstance(name, str):
            report.faults.append(f"{where}: expected an object with path (a call) or audio (a question), got {line[:80]}")
            continue
        if name in seen:
            report.faults.append(f"{where}: {name} stands in the manifest twice")
        seen.add(name)
        one = _call_faults if "path" in entry else _question_faults
        report.faults += [f"{where}: {fault}" for fault in one(entry, manifest.parent, report)]
    if not report.entries:
        report.faults.append(f"{manifest}: no entries")
    return report


def _wave(path: Path, *, channels: int) -> tuple[np.ndarray | None, str]:
    """[N, channels] of a whole 24 kHz file, or None and what is wrong with it."""
    import soundfile

    if not path.is_file():
        return None, f"{path} is not there"
    try:
        wave, rate_hz = soundfile.read(path, dtype="float32", always_2d=True)
    except soundfile.LibsndfileError as error:
        return None, f"{path} is not audio ({error})"
    if rate_hz != SAMPLE_RATE_HZ or wave.shape[1] != channels:
        wanted = f"{SAMPLE_RATE_HZ} Hz and {channels}"
        return None, f"{path} has {rate_hz} Hz and {wave.shape[1]} channels, expected {wanted}"
    if not len(wave) or not np.isfinite(wave).all():
        return None, f"{path} is empty or has samples that are no numbers"
    return wave, ""


def _call_faults(entry: dict, root: Path, report: CheckReport) -> Iterator[str]:
    path, told_sec = root / entry["path"], entry.get("duration")
    wave, fault = _wave(path, channels=2)
    if wave is None:
        yield fault
        return
    duration_sec = len(wave) / SAMPLE_RATE_HZ
    report.seconds += duration_sec
    if not isinstance(told_sec, int | float) or abs(told_sec - duration_sec) > SLACK_SEC:
        yield f"duration is {told_sec}, but {path} has {duration_sec:.3f} s"
    try:
        transcript = read_transcript(Call(path.stem, path, duration_sec, root))
    except ManifestError as error:
        yield str(error)
        return
    name = path.with_suffix(".json")
    yield from (f"{name}: {fault}" for fault in _word_faults(transcript.words, wave))
    yield from (f"{name}: {fault}" for fault in _visual_faults(transcript, duration_sec))
    yield from (f"{name}: {fault}" for fault in _phone_faults(transcript.meta.get("phones", {}), duration_sec))
    yield from (f"{name}: {fault}" for fault in _voice_faults(transcript.meta))
    for number, turn in enumerate(transcript.meta.get("turns", [])):
        yield from (f"{name}: turn {number}: {fault}" for fault in _turn_faults(turn, transcript.words, duration_sec))


def _word_faults(words: list[Word], wave: np.ndarray) -> Iterator[str]:
    duration_sec = len(wave) / SAMPLE_RATE_HZ
    for channel, speaker in enumerate(("main", "user")):
        spoken = [word for word in words if word.speaker == speaker]
        for word in spoken:
            if not 0 <= word.start_sec <= word.end_sec <= duration_sec + SLACK_SEC:
                yield f"{speaker} says {word.text!r} from {word.start_sec} to {word.end_sec} s of {duration_sec:.3f}"
        for before, after in zip(spoken, spoken[1:], strict=False):
            if after.start_sec < before.end_sec - SLACK_SEC:
                yield f"{speaker} says {after.text!r} at {after.start_sec} s before {before.text!r} has ended"
        if spoken and np.abs(wave[:, channel]).max() < 1e-3:
            yield f"{speaker} has words, but its channel is silent"


def _visual_faults(transcript: Transcript, duration_sec: float) -> Iterator[str]:
    for number, visual in enumerate(transcript.visuals):
        try:
            load_image(visual.image)
        except ImageError as error:
            yield f"picture {number}: {error}"
        if not 0 <= visual.start_sec <= duration_sec:
            yield f"picture {number} comes at {visual.start_sec} s of {duration_sec:.3f}"


def _phone_faults(phones: dict, duration_sec: float) -> Iterator[str]:
    for side, items in phones.items():
        for phone, start_sec, end_sec in items:
            if phone not in PHONES:
                yield f"{side} has the unknown phone {phone!r}"
            if not 0 <= start_sec <= end_sec <= duration_sec + SLACK_SEC:
                yield f"{side} has {phone!r} from {start_sec} to {end_sec} s of {duration_sec:.3f}"


def _voice_faults(meta: dict) -> Iterator[str]:
    voice = meta.get("voice")
    if voice is not None and meta.get("split") == "train" and f"{voice['engine']}:{voice['name']}" in _HELD_OUT:
        yield f"the voice {voice['name']} is held out, but the call is for training"


def _turn_faults(turn: dict, words: list[Word], duration_sec: float) -> Iterator[str]:
    """The times are in order, and the words said in them are those of the turn."""
    missing = [key for key in (*_TURN_TIMES, "question", "answer", "answers", "interrupted") if key not in turn]
    if missing:
        yield f"lacks {', '.join(missing)}"
        return
    times = [turn[key] for key in _TURN_TIMES]
    if times != sorted(times) or times[0] < 0 or times[-1] > duration_sec + SLACK_SEC:
        yield f"times {times} are not in order within {duration_sec:.3f} s"
    asked = _said(words, "user", times[0], times[1])
    if asked != turn["question"].split():
        yield f"the question is {turn['question']!r}, but the words are {' '.join(asked)!r}"
    said, answer = _said(words, "main", times[2], times[3]), turn["answer"].split()
    if said != (answer[: len(said)] if turn["interrupted"] else answer):
        yield f"the answer is {turn['answer']!r}, but the words are {' '.join(said)!r}"
    if not any(f" {accepted} " in f" {turn['answer']} " for accepted in turn["answers"]):
        yield f"the answer {turn['answer']!r} holds none of the accepted {turn['answers']}"


def _said(words: list[Word], speaker: str, start_sec: float, end_sec: float) -> list[str]:
    return [w.text for w in words if w.speaker == speaker and start_sec - 1e-3 <= w.start_sec <= end_sec]


def _question_faults(entry: dict, root: Path, report: CheckReport) -> Iterator[str]:
    wave, fault = _wave(root / entry["audio"], channels=1)
    if wave is None:
        yield fault
        return
    duration_sec = len(wave) / SAMPLE_RATE_HZ
    report.seconds += duration_sec
    for key, kind in (("question", str), ("answers", list), ("kind", str), ("voice", str)):
        if not isinstance(entry.get(key), kind) or not entry[key]:
            yield f"{key} is {entry.get(key)!r}, expected a {kind.__name__} that is not empty"
    for key in ("question_end_sec", "barge_start_sec"):
        value = entry.get(key, 0.0)
        if not isinstance(value, int | float) or not 0 <= value <= duration_sec:
            yield f"{key} is {value}, expected seconds within {duration_sec:.3f}"
    if np.abs(wave).max() < 1e-3:
        yield f"{entry['audio']} is silent"
    if entry.get("image") is not None:
        try:
            load_image(root / entry["image"])
        except ImageError as error:
            yield str(error)
