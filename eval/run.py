"""Runs a task batch by batch; what is done is kept, so that a run can be killed and started again."""

import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from eval.keep import keep_prompt
from eval.task import Prompt, Responder, Task
from mmspeech.commands.common import whole_file
from mmspeech.config import ConfigError

SAMPLES = "samples.jsonl"
_SEEDS_PER_RUN = 1_000_003


def run_task(
    task: Task,
    responder: Responder,
    *,
    out: Path,
    seed: int,
    batch_size: int,
    at_once: int = 1,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[list[dict[str, Any]], float]:
    """Measure all samples of `task`, adding to `out`/samples.jsonl; returns its records and the seconds spent now.
    `at_once`: batches in work, each in a thread (the responder must bear that); a task that is `alone` has one.

    A sample has the same seed and the same company in its batch, whatever was done before. `progress(done, total)` is
    called after each batch. A sample whose files cannot be used gets a record with `error`, and counts as failed.
    """
    file = out / SAMPLES
    samples = task.samples
    ordered = sorted(samples, key=lambda sample: (task.length_sec(sample), sample.id))
    batches = [ordered[first : first + batch_size] for first in range(0, len(ordered), batch_size)]
    done = _read_done(file, task.name)
    _keep_only(file, task.name, done, batches)
    began = time.monotonic()
    seeds = {sample.id: seed * _SEEDS_PER_RUN + number for number, sample in enumerate(samples)}
    left = [batch for batch in batches if not all(sample.id in done for sample in batch)]
    count = len(samples) - sum(map(len, left))
    progress(count, len(samples))
    threads = ThreadPoolExecutor(1 if task.alone else at_once)
    try:
        working = [threads.submit(_run_batch, task, responder, batch, seeds=seeds, out=out) for batch in left]
        for batch in as_completed(working):
            records = batch.result()
            with file.open("a", encoding="utf-8") as opened:
                opened.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
            done |= {record["id"]: record for record in records}
            count += len(records)
            progress(count, len(samples))
    finally:
        threads.shutdown(cancel_futures=True)
    _rewrite(file, task.name, [done[sample.id] for sample in samples])
    return [done[sample.id] for sample in samples], time.monotonic() - began


def _run_batch(
    task: Task, responder: Responder, batch: list[Any], *, seeds: dict[str, int], out: Path
) -> list[dict[str, Any]]:
    asked: list[Any] = []
    prompts: list[Prompt] = []
    heads, failed = [], []
    for sample in batch:
        head = {"task": task.name, "id": sample.id, "kind": sample.kind, "voice": sample.voice}
        try:
            prompts.append(task.prompt(sample))
            asked.append(sample)
            heads.append(head | {"seed": seeds[sample.id]})
        except ConfigError as error:
            failed.append(head | {"error": str(error)})
    own_seeds = [head["seed"] for head in heads]
    records = task.run(asked, prompts, responder, seeds=own_seeds) if asked else []
    kept = [
        keep_prompt(out, prompt) | _sound_of(responder, prompt, one)
        for prompt, one in zip(prompts, own_seeds, strict=True)
    ]
    return failed + [head | files | record for head, files, record in zip(heads, kept, records, strict=True)]


def _sound_of(responder: Responder, prompt: Prompt, seed: int) -> dict[str, str]:
    """Where the sound of the reply lies, if it is kept and there is one."""
    keeps = getattr(responder, "file", None)
    path = None if keeps is None else keeps(prompt, seed)
    return {"audio": f"{path.parent.name}/{path.name}"} if path is not None and path.is_file() else {}


def _read_done(file: Path, task_name: str) -> dict[str, dict[str, Any]]:
    """Finished records by id; lines of a killed write are skipped, failed ones are tried again."""
    records = read_records(file)
    return {record["id"]: record for record in records if record["task"] == task_name and "error" not in record}


def read_records(file: Path) -> list[dict[str, Any]]:
    """The whole lines of a samples.jsonl; none of a file that is not there."""
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
    whole = {one.id for batch in batches if all(one.id in done for one in batch) for one in batch}
    for key in [key for key in done if key not in whole]:
        del done[key]
    _rewrite(file, task_name, list(done.values()))


def _rewrite(file: Path, task_name: str, records: list[dict[str, Any]]) -> None:
    """These records of the task, in this order, behind those of other tasks."""
    kept = [record for record in read_records(file) if record["task"] != task_name] + records
    with whole_file(file) as temporary:
        temporary.write_text(
            "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in kept), encoding="utf-8"
        )
