"""`stats`: what is in a set of records, calls or shards, and what splits (or sets) wrongly have in common."""

import hashlib
import json
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.calls import find_manifests, manifest_lines, parse_entry, read_transcript
from data_prep.files import inside
from data_prep.filters import words_of
from data_prep.records import media_root, parse_record
from mmspeech.config import ConfigError
from mmspeech.data.shards import SIDECAR, ShardSet
from mmspeech.frames import FRAME_RATE_HZ, frames_to_seconds
from mmspeech.types import Visual, Word

NUMBERS = ("seconds", "turns", "words_per_turn", "gap_sec", "user_share", "main_share", "overlap_share")
NAMED = ("kind", "language", "voice", "source", "licence", "split", "visual")
MOST_GROUPS = 64
_MOST_NAMES = 12
_SHARED = {"pictures": "picture or clip", "text": "text", "voice": "caller's voice"}


class Owners:
    """Which splits have which things: nine bytes of memory for each time one of them is had."""

    def __init__(self):
        self._hashes, self._groups = array("Q"), array("B")
        self._names: list[str] = []

    def add(self, name: str, group: str) -> None:
        """A split has a thing of that name."""
        if group not in self._names:
            if len(self._names) == MOST_GROUPS:
                raise ConfigError(f"more than {MOST_GROUPS} sets and splits; count some of them at a time")
            self._names.append(group)
        self._hashes.append(int.from_bytes(hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()[:8], "big"))
        self._groups.append(self._names.index(group))

    def leakage(self) -> dict[str, int]:
        """How many different things there are, how many of them are in several splits, and in which."""
        if not self._hashes:
            return {"different": 0, "in_several": 0}
        order = np.argsort(np.frombuffer(self._hashes, np.uint64), kind="stable")
        hashes = np.frombuffer(self._hashes, np.uint64)[order]
        bits = np.uint64(1) << np.frombuffer(self._groups, np.uint8)[order].astype(np.uint64)
        firsts = np.flatnonzero(np.r_[True, hashes[1:] != hashes[:-1]])
        masks, counts = np.unique(np.bitwise_or.reduceat(bits, firsts), return_counts=True)
        found = {}
        for mask, count in zip(masks.tolist(), counts.tolist(), strict=True):
            names = [name for place, name in enumerate(self._names) if mask >> place & 1]
            if len(names) > 1:
                found[" and ".join(sorted(names))] = count
        return {"different": len(firsts), "in_several": sum(found.values())} | found


@dataclass
class Item:
    """What is counted of one item; shared: what it may have in common with others, by kind, as names."""

    id: str
    split: str
    numbers: dict[str, list[float]] = field(default_factory=dict)
    named: dict[str, list[str]] = field(default_factory=dict)
    shared: dict[str, list[str]] = field(default_factory=dict)


def stats(data: list[Path], out: Path | None) -> list[str]:
    """Lines of the tables; with `out` also stats.json and stats.png there.

    `data`: folders of records, calls or shards; what several have in common is counted as between splits.
    """
    numbers: dict[str, array] = defaultdict(lambda: array("d"))
    named, hours = defaultdict(Counter), Counter()
    owners = {kind: Owners() for kind in _SHARED}
    count = 0
    for path in data:
        for item in _progress(items_of(path)):
            count += 1
            group = item.split if len(data) == 1 else f"{path.name} {item.split}"
            for name, values in item.numbers.items():
                numbers[name].extend(values)
            for name, values in item.named.items():
                named[name].update(values)
            hours[f"{item.named['source'][0]}, {group}"] += sum(item.numbers.get("seconds", ())) / 3600
            for kind, names in item.shared.items():
                for name in names:
                    owners[kind].add(name, group)
    if not count:
        raise ConfigError(f"{data[0]}: nothing in it to count")
    told = {
        "items": count,
        "hours": sum(hours.values()),
        "hours_of": dict(hours),
        "numbers": {name: _summary(values) for name, values in numbers.items() if values},
        "overlapping_gaps": _share(numbers["gap_sec"]),
        "counts": {name: dict(counter.most_common()) for name, counter in named.items()},
        "leakage": {kind: own.leakage() for kind, own in owners.items()},
    }
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / "stats.json").write_text(json.dumps(told, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        _draw(numbers, hours, out / "stats.png")
    return list(_lines(told))


def items_of(path: Path) -> Iterator[Item]:
    """The items of a shard set, of calls, or of records. ConfigError where there are none."""
    if (path / SIDECAR).is_file():
        shards = ShardSet(path)
        for index in range(len(shards)):
            sample = shards[index]
            seconds = frames_to_seconds(sample.codes.shape[1])
            yield _call(sample.id, seconds, sample.words, sample.visuals, sample.meta)
        return
    root = media_root(path if path.is_dir() else path.parent)
    for manifest in find_manifests(path):
        for number, line in manifest_lines(manifest):
            entry, where = json.loads(line), f"{manifest.name}:{number}"
            if "path" not in entry:
                yield _record(entry, where, root)
                continue
            call = parse_entry(entry, where=where, folder=manifest.parent)
            transcript = read_transcript(call)
            yield _call(call.id, call.duration_sec, transcript.words, transcript.visuals, transcript.meta)


def _record(entry: dict[str, Any], where: str, root: Path) -> Item:
    record = parse_record(entry, where=where)
    texts = [turn.text for turn in record.turns] or [caption.text for caption in record.captions]
    item = _item(record.id, record.split, record.source, record.licence, record.meta, texts)
    item.numbers["turns"] = [float(len(record.turns))] if record.turns else []
    item.named["visual"] = [visual.kind for visual in record.visuals]
    item.shared["pictures"] = [_digest(inside(root, visual.path)) for visual in record.visuals]
    return item


def _call(name: str, seconds: float, words: list[Word], visuals: list[Visual], meta: dict[str, Any]) -> Item:
    turns = meta.get("said") or [one for turn in meta.get("turns", []) for one in _both(turn)]
    about = meta.get("meta", {}) | {"kind": meta.get("meta", {}).get("kind", meta.get("entry", {}).get("kind"))}
    source, licence = meta.get("source", "unknown"), meta.get("licence", "unknown")
    item = _item(name, meta.get("split", "train"), source, licence, about, [turn["text"] for turn in turns])
    caller = meta.get("voices", {}).get("user") or json.dumps(meta.get("voice"), sort_keys=True)
    if caller != "null":
        item.named["voice"] = [_voice_name(caller)]
        item.shared["voice"] = [caller]
    item.named["visual"] = [visual.kind for visual in visuals]
    item.shared["pictures"] = [hashlib.sha256(visual.data).hexdigest() for visual in visuals]
    item.numbers |= {"seconds": [seconds], "turns": [float(len(turns))] if turns else []}
    item.numbers["gap_sec"] = [
        after["start_sec"] - before["end_sec"]
        for before, after in zip(turns, turns[1:], strict=False)
        if before["speaker"] != after["speaker"] and not before["interrupted"]
    ]
    return _with_speech(item, seconds, words)


def _item(name: str, split: str, source: str, licence: str, about: dict[str, Any], texts: list[str]) -> Item:
    named = {"split": [split], "source": [source], "licence": [licence]}
    named |= {key: [str(about[key])] for key in ("kind", "language") if about.get(key)}
    item = Item(name, split, {"words_per_turn": [float(len(words_of(text))) for text in texts]}, named)
    if texts:
        item.shared["text"] = [" ".join(words_of(" ".join(texts)))]
    return item


def _both(turn: dict[str, Any]) -> list[dict[str, Any]]:
    """A question and its answer, as the rendered world tells them, as two turns."""
    sides = (("user", "question"), ("main", "answer"))
    return [
        {
            "speaker": speaker,
            "text": turn[name],
            "start_sec": turn[f"{name}_start_sec"],
            "end_sec": turn[f"{name}_end_sec"],
            "interrupted": turn["interrupted"] and name == "answer",
        }
        for speaker, name in sides
    ]


def _with_speech(item: Item, seconds: float, words: list[Word]) -> Item:
    """Which share of the call each side speaks, and of the time anyone speaks, both do; on the frame grid."""
    frames = int(seconds * FRAME_RATE_HZ) + 1
    speaking = {"user": np.zeros(frames, bool), "main": np.zeros(frames, bool)}
    for word in words:
        speaking[word.speaker][int(word.start_sec * FRAME_RATE_HZ) : int(word.end_sec * FRAME_RATE_HZ) + 1] = True
    anyone = (speaking["user"] | speaking["main"]).sum()
    item.numbers |= {f"{side}_share": [float(own.mean())] for side, own in speaking.items()}
    if anyone:
        item.numbers["overlap_share"] = [float((speaking["user"] & speaking["main"]).sum() / anyone)]
    return item


def _voice_name(told: str) -> str:
    try:
        voice = json.loads(told)
        return f"{voice['engine']}:{voice['name']}"
    except (ValueError, KeyError, TypeError):
        return told


def _digest(file: Path) -> str:
    try:
        with file.open("rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest()
    except OSError:
        return str(file)


def _summary(values: array) -> dict[str, float]:
    found = np.percentile(values, (10, 50, 90))
    return {"mean": float(np.mean(values)), "p10": float(found[0]), "p50": float(found[1]), "p90": float(found[2])}


def _share(gaps: array) -> float | None:
    return float((np.array(gaps) < 0).mean()) if gaps else None


def _lines(told: dict[str, Any]) -> Iterator[str]:
    yield f"{told['items']} items, {told['hours']:.2f} h"
    yield f"{'':18} {'mean':>9} {'p10':>9} {'p50':>9} {'p90':>9}"
    for name in NUMBERS:
        if name in told["numbers"]:
            own = told["numbers"][name]
            yield f"{name:18} {own['mean']:9.3f} {own['p10']:9.3f} {own['p50']:9.3f} {own['p90']:9.3f}"
    if told["overlapping_gaps"] is not None:
        yield f"{told['overlapping_gaps']:.1%} of turns begin before the other has ended"
    for name in NAMED:
        if counts := told["counts"].get(name):
            shown = ", ".join(f"{key} {count}" for key, count in list(counts.items())[:_MOST_NAMES])
            rest = f" and {len(counts) - _MOST_NAMES} more" if len(counts) > _MOST_NAMES else ""
            yield f"{name}: {shown}{rest}"
    for kind, label in _SHARED.items():
        own = told["leakage"][kind]
        pairs = {key: count for key, count in own.items() if key not in ("different", "in_several")}
        where = "".join(f"; {count} in {pair}" for pair, count in pairs.items())
        yield f"leakage, {label}: {own['in_several']} of {own['different']} stand in more than one split{where}"


def _draw(numbers: dict[str, array], hours: Counter, path: Path) -> None:
    from matplotlib.figure import Figure

    shown = [name for name in ("seconds", "turns", "words_per_turn", "gap_sec", "overlap_share") if numbers.get(name)]
    figure = Figure(figsize=(11, 6), layout="constrained")
    axes = figure.subplots(2, 3).ravel()
    for place, name in zip(axes, shown, strict=False):
        place.hist(numbers[name], bins=40, color="tab:blue")
        place.set(xlabel=name.replace("_", " "), ylabel="how many")
    last = axes[len(shown)]
    names = list(hours)[:_MOST_NAMES]
    last.barh(names, [hours[name] for name in names], color="tab:green")
    last.set(xlabel="hours")
    for place in axes[len(shown) + 1 :]:
        place.axis("off")
    figure.savefig(path, dpi=110)


def _progress(items: Iterable[Item]) -> Iterator[Item]:
    from rich.console import Console
    from rich.progress import track

    yield from track(items, description="stats", console=Console(stderr=True))
