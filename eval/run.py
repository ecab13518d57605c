"""Runs a task batch by batch; what is done is kept, so that a run can be killed and started again."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from eval.task import Task
from mmspeech.config import ConfigError
from mmspeech.frames import samples_to_seconds

SAMPLES = "samples.jsonl"
_SEEDS_PER_RUN = 1_000_003


def run_task(
    task: Task, *, out: Path, seed: int, batch_size: int, progress: Callable[[int, int], None]
) -> tuple[list[dict[str, Any]], float]:
    """Measure all lines of `task`, adding to `out`/samples.jsonl; returns its records and the seconds spent now.

    A line has the same seed and the same company in its batch, whatever was done before. `progress(done, total)` is
    called after each batch. A line whose files cannot be used gets a record with `error`, and counts as failed.
    """
    file = out / SAMPLES
    batches = make_batches(task.lines, batch_size)
    done = _read_done(file, task.name)
    _keep_only(file, task.name, done, batches)
    began = time.monotonic()
    count = 0
    seeds = {line.id: seed * _SEEDS_PER_RUN + number for number, line in enumerate(task.lines)}
    for batch in batches:
        if not all(line.id in done for line in batch):
            records = _run_batch(task, batch, seeds=seeds)
            with file.open("a", encoding="utf-8") as samples:
                samples.writelines(json.dumps(record) + "\n" for record in records)
            done |= {record["id"]: record for record in records}
        count += len(batch)
        progress(count, len(task.lines))
    return [done[line.id] for line in task.lines], time.monotonic() - began


def make_batches(lines: list[Any], batch_size: int) -> list[list[Any]]:
    """Lines of like length together, so that few calls wait for a longer one."""
    ordered = sorted(lines, key=lambda line: (_duration_sec(line.audio), line.id))
    return [ordered[i : i + batch_size] for i in range(0, len(ordered), batch_size)]


def _duration_sec(path: Path) -> float:
    import soundfile

    try:
        info = soundfile.info(str(path))
    except (soundfile.LibsndfileError, OSError):
        return 0.0
    return samples_to_seconds(info.frames, info.samplerate)


def _run_batch(task: Task, batch: list[Any], *, seeds: dict[str, int]) -> list[dict[str, Any]]:
    items, heads, failed = [], [], []
    for line in batch:
        head = {"task": task.name, "id": line.id}
        try:
            items.append(task.load(line))
            heads.append({**head, "seed": seeds[line.id]})
        except ConfigError as error:
            failed.append({**head, "error": str(error)})
    records = task.run(items, seeds=[head["seed"] for head in heads]) if items else []
    return failed + [{**head, **record} for head, record in zip(heads, records, strict=True)]


def _read_done(file: Path, task_name: str) -> dict[str, dict[str, Any]]:
    """Finished records by id; lines of a killed write are skipped, failed ones are tried again."""
    done = {}
    for record in _read_records(file):
        if record["task"] == task_name and "error" not in record:
            done[record["id"]] = record
    return done


def _read_records(file: Path) -> list[dict[str, Any]]:
    records = []
    if file.is_file():
        for text in file.read_text(encoding="utf-8").splitlines():
            try:
                records.append(json.loads(text))
            except json.JSONDecodeError:
                continue
    return records


def _keep_only(file: Path, task_name: str, done: dict[str, Any], batches: list[list[Any]]) -> None:
    """Rewrite the samples without what will be measured again, so that no id stands there twice."""
    whole = {line.id for batch in batches if all(line.id in done for line in batch) for line in batch}
    for key in [key for key in done if key not in whole]:
        del done[key]
    kept = [r for r in _read_records(file) if r["task"] != task_name] + list(done.values())
    temporary = file.with_suffix(".tmp")
    temporary.write_text("".join(json.dumps(record) + "\n" for record in kept), encoding="utf-8")
    temporary.replace(file)
