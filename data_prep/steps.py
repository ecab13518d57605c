"""How every step of the chain runs: a manifest in, a manifest out, in chunks that are done or not.

A chunk is a run of lines of the input. What becomes of its items is one file, OUT/parts/NNNNNN.jsonl, which is whole or
not there; files beside it (sounds, codes) are written before, each whole, under names that follow from their items.
So a step may be killed at any moment and started again, by any number of processes on any number of machines that share
a folder: each does chunks that are not there yet, doing one twice gives the same bytes, and who finds all of them there
writes manifest.jsonl (entries, in the order of the input), manifest.err (what failed, and why) and step.json (what was
done, with which settings). Chunks in which something failed are tried again by the next run.
"""

import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from data_prep.calls import find_manifests
from data_prep.files import no_room, write_atomic
from data_prep.twins import Names
from mmspeech.config import ConfigError

SCHEMA_VERSION = 1
STEP, MANIFEST, ERRORS, PARTS = "step.json", "manifest.jsonl", "manifest.err", "parts"
MOST_DETAIL = 200  # characters

Item = tuple[str, Any]  # where it stands ("FILE:LINE"), and what: parsed JSON, or a ConfigError for what is none


class DroppedError(Exception):
    """An item that a rule leaves out; `detail`: what in it breaks the rule."""

    def __init__(self, rule: str, detail: str = ""):
        super().__init__(rule)
        self.rule, self.detail = rule, detail[:MOST_DETAIL]


@dataclass(frozen=True)
class Outcome:
    """What became of an item: an `entry` of the new manifest, or why there is none. `failed`: it broke, and is tried
    again; `dropped`: the name of the rule that leaves it out, `detail`: what breaks it."""

    id: str
    entry: dict[str, Any] | None = None
    failed: str = ""
    dropped: str = ""
    detail: str = ""


class Work(Protocol):
    """What a step does. It goes to other processes, so it is small and holds no model."""

    def open(self) -> "Do":
        """Load what a process needs; returns what does a chunk, the same way whoever does it."""
        ...


Do = Callable[[int, list[Item]], Iterable[Outcome]]  # the number of a chunk and its items -> what became of each


@dataclass(frozen=True)
class Chunk:
    """Lines of a manifest: `count` of them from byte `offset` on, the first being line number `line`."""

    number: int
    file: Path
    offset: int
    line: int
    count: int


@dataclass(frozen=True)
class How:
    """shard (i, n): every n-th chunk, beginning with i. jobs: processes. ray: the address of a cluster, or None."""

    shard: tuple[int, int] = (0, 1)
    jobs: int = 1
    ray: str | None = None


@dataclass
class Tally:
    """Of a step so far: entries, failures, how often each rule left something out, seconds of sound; `complete`: all
    chunks are there. spent_sec: of this run, in which `fresh_sec` seconds of sound were made."""

    entries: int = 0
    failed: int = 0
    dropped: Counter = field(default_factory=Counter)
    sound_sec: float = 0.0
    fresh_sec: float = 0.0
    spent_sec: float = 0.0
    complete: bool = False

    def add(self, outcomes: Iterable[dict[str, Any]]) -> None:
        for one in outcomes:
            if "entry" in one:
                self.entries += 1
                self.sound_sec += one["entry"].get("duration", 0.0)
            elif "failed" in one:
                self.failed += 1
            else:
                self.dropped[one["dropped"]] += 1

    def line(self) -> str:
        """For people."""
        told = f"{self.entries} entries, {self.failed} failed"
        if self.dropped:
            told += ", left out: " + ", ".join(f"{count} {rule}" for rule, count in self.dropped.most_common())
        if self.sound_sec:
            told += f"; {self.sound_sec / 3600:.2f} h of sound"
        if self.fresh_sec and self.spent_sec:
            told += f", {self.fresh_sec / self.spent_sec:.0f} times as fast as it sounds"
        return told + ("" if self.complete else "; other shards are not done yet")


def attempt(item_id: str, make: Callable[[], dict[str, Any]]) -> Outcome:
    """The outcome of making an entry. What a full disk raises goes on: it is no fault of the item."""
    try:
        return Outcome(item_id, make())
    except DroppedError as rule:
        return Outcome(item_id, dropped=rule.rule, detail=rule.detail)
    except (ValueError, KeyError, TypeError, OSError, RuntimeError) as error:
        if no_room(error):
            raise
        reason = " ".join(str(error).split())
        return Outcome(
            item_id, failed=reason if isinstance(error, ConfigError) else f"{type(error).__name__}: {reason}"
        )


def chunks_of(data: Path, size: int) -> list[Chunk]:
    """The manifest of a folder (or file) in chunks of `size` lines, in memory for one entry per chunk only."""
    chunks: list[Chunk] = []
    for file in find_manifests(data):
        offset = position = count = 0
        line = 1
        with file.open("rb") as opened:
            for text in opened:
                position += len(text)
                count += 1
                if count == size:
                    chunks.append(Chunk(len(chunks), file, offset, line, count))
                    offset, line, count = position, line + count, 0
        if count:
            chunks.append(Chunk(len(chunks), file, offset, line, count))
    return chunks


def read_chunk(chunk: Chunk) -> list[Item]:
    """Its lines, parsed; empty ones are left out."""
    items: list[Item] = []
    with chunk.file.open("rb") as opened:
        opened.seek(chunk.offset)
        for number in range(chunk.line, chunk.line + chunk.count):
            text = opened.readline()
            if not text.strip():
                continue
            where = f"{chunk.file.name}:{number}"
            try:
                items.append((where, json.loads(text)))
            except ValueError as error:
                items.append((where, ConfigError(f"{where}: not JSON ({error})")))
    return items


def do_chunk(do: Do, chunk: Chunk, out: Path) -> list[dict[str, Any]]:
    """Do a chunk and write its part; returns what the part holds."""
    outcomes = [_line_of(outcome) for outcome in do(chunk.number, read_chunk(chunk))]
    write_part(out, chunk.number, outcomes)
    return outcomes


def _line_of(outcome: Outcome) -> dict[str, Any]:
    if outcome.entry is not None:
        return {"entry": outcome.entry}
    if outcome.failed:
        return {"id": outcome.id, "failed": outcome.failed}
    return {"id": outcome.id, "dropped": outcome.dropped} | ({"detail": outcome.detail} if outcome.detail else {})


def write_part(out: Path, number: int, outcomes: Iterable[dict[str, Any]]) -> None:
    """The part of a chunk, whole."""
    lines = "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in outcomes)
    write_atomic(part_file(out, number), lines.encode("utf-8", "surrogatepass"))


def part_file(out: Path, number: int) -> Path:
    """Where the part of a chunk lies."""
    return out / PARTS / f"{number:06d}.jsonl"


def read_part(out: Path, number: int) -> list[dict[str, Any]] | None:
    """What a part holds, or None when it is not there."""
    file = part_file(out, number)
    if not file.is_file():
        return None
    with file.open(encoding="utf-8", errors="surrogatepass") as opened:
        return [json.loads(line) for line in opened]


def run_step(verb: str, data: Path, out: Path, work: Work, *, settings: dict[str, Any], how: How, chunk_items: int = 64,
             told: dict[str, Any] | None = None) -> Tally:  # fmt: skip
    """Do what is not done yet of the manifest of `data`. `settings`: all that decides on the output beside the input;
    `told`: what readers of the output need to know (step.json).

    Raises ConfigError when `out` holds another step's output, and the OSError of a full disk; what is done stays done.
    """
    from data_prep.workers import do_chunks

    chunks = chunks_of(data, chunk_items)
    if not chunks:
        raise ConfigError(f"{data}: nothing in its manifest; run the step that makes it first")
    claim(out, verb, {"input": fingerprint(data), "chunk_items": chunk_items} | settings, told or {})
    mine = chunks[how.shard[0] :: how.shard[1]]
    todo = [chunk for chunk in mine if _is_open(read_part(out, chunk.number))]
    began, tally = time.monotonic(), Tally()
    with _bar(verb, done=len(mine) - len(todo), total=len(mine)) as advance:
        for outcomes in do_chunks(work, todo, out, how):
            tally.add(outcomes)
            advance(tally)
    fresh_sec, spent_sec = tally.sound_sec, time.monotonic() - began
    tally = finish(out, len(chunks))
    tally.fresh_sec, tally.spent_sec = fresh_sec, spent_sec
    return tally


def _is_open(part: list[dict[str, Any]] | None) -> bool:
    """Not done, or with something in it to try again."""
    return part is None or any("failed" in one for one in part)


def claim(out: Path, verb: str, settings: dict[str, Any], told: dict[str, Any]) -> None:
    """Make `out` the folder of this step. ConfigError when it holds something else."""
    (out / PARTS).mkdir(parents=True, exist_ok=True)
    wanted = json.loads(json.dumps({"schema_version": SCHEMA_VERSION, "verb": verb, "settings": settings} | told))
    there = read_step(out)
    if there:
        own = {key: there.get(key) for key in wanted}
        if own != wanted:
            others = sorted(key for key in settings if (own["settings"] or {}).get(key) != wanted["settings"][key])
            changed = ", ".join(others or [key for key in wanted if own[key] != wanted[key]])
            raise ConfigError(f"{out}: holds the output of another run (different {changed}); choose another --out")
        return
    if (out / MANIFEST).exists():
        raise ConfigError(f"{out}: has a {MANIFEST} but no {STEP}: not the output of a step; choose another --out")
    write_atomic(out / STEP, json.dumps(wanted, indent=1).encode())


def read_step(folder: Path) -> dict[str, Any]:
    """What step.json of a folder says; nothing where there is none. ConfigError for a broken one."""
    file = (folder if folder.is_dir() else folder.parent) / STEP
    if not file.is_file():
        return {}
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{file}: not JSON ({error}); choose another --out folder") from error


def finish(out: Path, num_chunks: int) -> Tally:
    """Count what is there; when all chunks are, write the manifest and what failed."""
    tally = Tally()
    parts = [part_file(out, number) for number in range(num_chunks)]
    tally.complete = all(part.is_file() for part in parts)
    manifest, errors = (out / f".{name}.tmp" for name in (MANIFEST, ERRORS))
    with manifest.open("w", encoding="utf-8") as entries, errors.open("w", encoding="utf-8") as failures:
        for number in range(num_chunks):
            outcomes = read_part(out, number) or []
            tally.add(outcomes)
            entries.writelines(
                json.dumps(one["entry"], ensure_ascii=False) + "\n" for one in outcomes if "entry" in one
            )
            failures.writelines(f"{one['id']}: {one['failed']}\n" for one in outcomes if "failed" in one)
    if not tally.complete:
        manifest.unlink()
        errors.unlink()
        return tally
    _refuse_twins(out, manifest)
    manifest.replace(out / MANIFEST)
    if tally.failed:
        errors.replace(out / ERRORS)
    else:
        errors.unlink()
        (out / ERRORS).unlink(missing_ok=True)
    counts = {"entries": tally.entries, "failed": tally.failed, "dropped": dict(sorted(tally.dropped.items()))}
    write_atomic(out / STEP, json.dumps(read_step(out) | {"counts": counts}, indent=1).encode())
    return tally


def _refuse_twins(out: Path, manifest: Path) -> None:
    """ConfigError where an item stands in the manifest twice: its files would have been written over."""
    names = Names()
    with manifest.open("rb") as opened:
        for line in opened:
            entry = json.loads(line)
            names.add(str(entry.get("id", entry.get("path"))))
    if names.twice():
        manifest.unlink()
        raise ConfigError(f"{out}: an item stands in its input twice; every one must be there once (`check` names it)")


def fingerprint(data: Path) -> str:
    """One hash over the manifest of a folder (or a file)."""
    digest = hashlib.sha256()
    for file in find_manifests(data):
        with file.open("rb") as opened:
            digest.update(hashlib.file_digest(opened, "sha256").digest())
    return digest.hexdigest()[:16]


def _bar(verb: str, *, done: int, total: int):
    from data_prep.workers import progress_bar

    return progress_bar(verb, done=done, total=total)
