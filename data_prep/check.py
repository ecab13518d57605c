"""`check`: reads everything that a manifest of calls or of questions names, or a shard set, and tells each fault."""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from data_prep.calls import Call, ManifestError, find_manifests, manifest_lines, read_transcript
from data_prep.check_records import record_faults, said_faults
from data_prep.motion import SEEN_FPS
from data_prep.phones import PHONES
from data_prep.records import media_root
from data_prep.tts import HELD_OUT_VOICES
from data_prep.twins import Names, among
from data_prep.world_speak import COMMENT_WITHIN_SEC
from mmspeech.config import ConfigError
from mmspeech.data.shards import SIDECAR, ShardError, ShardSet, speaker_rows
from mmspeech.frames import SAMPLE_RATE_HZ, frames_to_seconds
from mmspeech.types import Sample, Visual, Word
from mmspeech.vision.image import load_image
from mmspeech.vision.timeline import Timeline

MOST_FAULTS = 1000  # that are told
SLACK_SEC = 0.08  # one frame: what rounding and a synthesiser's overlapping words may differ by
_TURN_TIMES = ("question_start_sec", "question_end_sec", "answer_start_sec", "answer_end_sec")
_HELD_OUT = {voice.key for voice in HELD_OUT_VOICES}


@dataclass
class CheckReport:
    """faults: one line each, naming the file, the first MOST_FAULTS of `num_faults`. `entries` counts manifest lines,
    `seconds` what could be read of them."""

    entries: int = 0
    seconds: float = 0.0
    num_faults: int = 0
    faults: list[str] = field(default_factory=list)

    def add(self, fault: str) -> None:
        """Count a fault, and keep it if there is room."""
        self.num_faults += 1
        if len(self.faults) < MOST_FAULTS:
            self.faults.append(fault)


def check(data: Path) -> CheckReport:
    """Check a manifest (a file, or the one of a folder, in parts or whole) or a folder with a shard set.

    Failures noted beside the manifest (.err files) count as faults. Raises ManifestError when there is neither.
    """
    if (data / SIDECAR).is_file():
        return check_shards(data)
    report = CheckReport()
    root = media_root(data if data.is_dir() else data.parent)
    for manifest in find_manifests(data):
        _check_manifest(manifest, root, report)
    for file in sorted(data.glob("*.err")) if data.is_dir() else ():
        for _, line in manifest_lines(file):
            report.add(f"{file}: {line}")
    return report


def _check_manifest(manifest: Path, root: Path, report: CheckReport) -> None:
    from rich.progress import track

    names, entries_before = Names(), report.entries
    for number, line in track(manifest_lines(manifest), description="check"):
        report.entries += 1
        entry = _parsed(line)
        if (name := _name(entry)) is None:
            report.add(f"{manifest}:{number}: expected an object with path, audio or id and source, got {line[:80]}")
            continue
        names.add(name)
        for fault in _safely(_entry_faults(entry, manifest.parent, root, report)):
            report.add(f"{manifest}:{number}: {fault}")
    if twice := names.twice():
        for number, line in manifest_lines(manifest):
            if (name := _name(_parsed(line))) is not None and among(name, twice):
                report.add(f"{manifest}:{number}: {name} stands in the manifest twice")
    if report.entries == entries_before and manifest.name == "manifest.jsonl":
        report.add(f"{manifest}: no entries")


def _parsed(line: str) -> dict:
    """The object of a line; an empty one for what is none."""
    try:
        entry = json.loads(line)
    except json.JSONDecodeError:
        return {}
    return entry if isinstance(entry, dict) else {}


def _name(entry: dict) -> str | None:
    """What a line is known by: the path of a call, the audio of a question, or the id of a record."""
    name = entry.get("path", entry.get("id" if "source" in entry else "audio"))
    return name if isinstance(name, str) else None


def _entry_faults(entry: dict, folder: Path, root: Path, report: CheckReport) -> Iterator[str]:
    if "path" in entry:
        yield from _call_faults(entry, folder, report)
    elif "source" in entry:
        yield from record_faults(entry, root)
    else:
        yield from _question_faults(entry, folder, report)


def check_shards(path: Path) -> CheckReport:
    """Check every call of a shard set: codes, words, pictures, and the counts that its sidecar promises."""
    from rich.progress import track

    report = CheckReport()
    try:
        shards = ShardSet(path)
    except ShardError as error:
        report.add(str(error))
        return report
    if int(shards.num_frames.sum()) != shards.info.frames:
        report.add(f"{path}: {shards.num_frames.sum()} frames, {SIDECAR} promises {shards.info.frames}")
    seen, pictures = Names(), 0
    for index in track(range(len(shards)), description="check"):
        report.entries += 1
        try:
            sample = shards[index]
        except (ValueError, TypeError, KeyError) as error:
            report.add(f"{path}: call {index} cannot be read ({error})")
            continue
        report.seconds += frames_to_seconds(sample.codes.shape[1])
        pictures += len(sample.visuals)
        for fault in _safely(_sample_faults(sample, shards)):
            report.add(f"{path}: call {sample.id}: {fault}")
        seen.add(sample.id)
    for sample_id in shards.ids() if (twice := seen.twice()) else ():
        if among(sample_id, twice):
            report.add(f"{path}: call {sample_id} is in the set twice")
    if pictures != shards.info.pictures and len(seen) == len(shards):
        report.add(f"{path}: {pictures} pictures, {SIDECAR} promises {shards.info.pictures}")
    return report


def _safely(faults: Iterator[str]) -> Iterator[str]:
    """The faults; a value of another type than expected ends them with one that says so."""
    try:
        yield from faults
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        yield f"not of the expected form ({type(error).__name__}: {error})"


def _sample_faults(sample: Sample, shards: ShardSet) -> Iterator[str]:
    stamp, duration_sec = shards.info.codec, frames_to_seconds(sample.codes.shape[1])
    if sample.codes.shape[0] != 2 * stamp.num_codebooks or not sample.codes.shape[1]:
        yield f"codes of shape {tuple(sample.codes.shape)}, expected [{2 * stamp.num_codebooks}, T] with T > 0"
        return
    if int(sample.codes.min()) < -1 or int(sample.codes.max()) >= stamp.codebook_size:
        yield f"codes outside -1 .. {stamp.codebook_size - 1}"
    yield from _time_faults(sample.words, duration_sec)
    yield from _visual_faults(sample.visuals, duration_sec)
    for speaker, rows in zip(("main", "user"), speaker_rows(sample.codes), strict=True):
        if any(word.speaker == speaker for word in sample.words) and bool((rows == rows[:, :1]).all()):
            yield f"{speaker} has words, but its codes never change"


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
        duration_sec = float(told_sec) if isinstance(told_sec, int | float) else math.inf
    else:
        duration_sec = len(wave) / SAMPLE_RATE_HZ
        report.seconds += duration_sec
        if not isinstance(told_sec, int | float) or not abs(told_sec - duration_sec) <= SLACK_SEC:
            yield f"duration is {told_sec}, but {path} has {duration_sec:.3f} s"
    try:
        transcript = read_transcript(Call(path.stem, path, duration_sec, root))
    except ManifestError as error:
        yield str(error)
        return
    words, meta, name = transcript.words, transcript.meta, path.with_suffix(".json")
    parts = [_time_faults(words, duration_sec) if wave is None else _word_faults(words, wave)]
    parts += [_visual_faults(transcript.visuals, duration_sec), _phone_faults(meta.get("phones", {}), duration_sec)]
    parts.append(_meta_faults(meta, transcript.visuals))
    for part in parts:
        yield from (f"{name}: {fault}" for fault in _safely(part))
    yield from (f"{name}: {fault}" for fault in _safely(said_faults(meta.get("said", []), words, duration_sec)))
    for number, turn in enumerate(meta.get("turns", [])):
        yield from (f"{name}: turn {number}: {fault}" for fault in _safely(_turn_faults(turn, words, duration_sec)))


def _word_faults(words: list[Word], wave: np.ndarray) -> Iterator[str]:
    yield from _time_faults(words, len(wave) / SAMPLE_RATE_HZ)
    for channel, speaker in enumerate(("main", "user")):
        if any(word.speaker == speaker for word in words) and np.abs(wave[:, channel]).max() < 1e-3:
            yield f"{speaker} has words, but its channel is silent"


def _time_faults(words: list[Word], duration_sec: float) -> Iterator[str]:
    for speaker in ("main", "user"):
        spoken = [word for word in words if word.speaker == speaker]
        for word in spoken:
            if not 0 <= word.start_sec <= word.end_sec <= duration_sec + SLACK_SEC:
                yield f"{speaker} says {word.text!r} from {word.start_sec} to {word.end_sec} s of {duration_sec:.3f}"
        for before, after in zip(spoken, spoken[1:], strict=False):
            if after.start_sec < before.end_sec - SLACK_SEC:
                yield f"{speaker} says {after.text!r} at {after.start_sec} s before {before.text!r} has ended"


def _visual_faults(visuals: list[Visual], duration_sec: float) -> Iterator[str]:
    for number, visual in enumerate(visuals):
        named = f"{'picture' if visual.kind == 'image' else 'clip'} {number}"
        try:
            _read_visual(visual)
        except ConfigError as error:
            yield f"{named}: {error}"
        if not 0 <= visual.start_sec <= duration_sec:
            yield f"{named} comes at {visual.start_sec} s of {duration_sec:.3f}"


def _read_visual(visual: Visual) -> None:
    """Decode the picture, or all of the clip's frames that a model would be shown; raises ConfigError."""
    if visual.kind == "image":
        load_image(visual.data)
        return
    from mmspeech.vision.video import Video

    for _ in Video(visual.data).sample(visual.fps):
        pass


def _phone_faults(phones: dict, duration_sec: float) -> Iterator[str]:
    for side, items in phones.items():
        for phone, start_sec, end_sec in items:
            if phone not in PHONES:
                yield f"{side} has the unknown phone {phone!r}"
            if not 0 <= start_sec <= end_sec <= duration_sec + SLACK_SEC:
                yield f"{side} has {phone!r} from {start_sec} to {end_sec} s of {duration_sec:.3f}"


def _meta_faults(meta: dict, visuals: list[Visual]) -> Iterator[str]:
    kind = meta.get("entry", {}).get("kind", "blind")
    if kind != "blind" and not visuals:
        yield f"a {kind} call in which nothing is seen"
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
    yield from _answer_faults(turn["answer"], turn["answers"])
    for comment in turn.get("comments", []):
        start_sec, end_sec, event_sec = (comment[key] for key in ("start_sec", "end_sec", "event_sec"))
        if not event_sec <= start_sec <= event_sec + COMMENT_WITHIN_SEC or end_sec > duration_sec + SLACK_SEC:
            yield f"{comment['text']!r} is said at {start_sec} s, but happened at {event_sec} s"
        if (told := _said(words, "main", start_sec, end_sec)) != comment["text"].split():
            yield f"{comment['text']!r} is told, but the words are {' '.join(told)!r}"
        yield from _answer_faults(comment["text"], comment["answers"])


def _answer_faults(answer: str, accepted: list[str]) -> Iterator[str]:
    if not any(f" {wanted} " in f" {answer} " for wanted in accepted):
        yield f"the answer {answer!r} holds none of the accepted {accepted}"


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
    try:
        if entry.get("image") is not None:
            load_image(root / entry["image"])
        if entry.get("video") is not None:
            timeline = Timeline(root / entry["video"], fps=entry.get("fps", SEEN_FPS))
            timeline.due(math.inf)
            yield from timeline.problems
    except ConfigError as error:
        yield str(error)
