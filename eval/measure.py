"""Measures tasks into a run's folder: claimed first, every reply kept on the way, its numbers written at the end."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval.results import claim, summarise_task, task_identity, write_results
from eval.run import run_task
from eval.task import Responder, Task

if TYPE_CHECKING:
    from mmspeech.checkpoint import Bundle

Advance = Callable[[int, int], None]


@contextmanager
def unseen(name: str) -> Iterator[Advance]:
    """No progress bar."""
    yield lambda done, total: None


@dataclass(frozen=True)
class Run:
    """out: its folder. identity: see results.run_identity. bundle None: a script answers. at_once: batches in work."""

    out: Path
    identity: dict[str, Any]
    bundle: "Bundle | None" = None
    at_once: int = 1
    missing: dict[str, str] = field(default_factory=dict)


def measure_tasks(
    tasks: list[Task],
    run: Run,
    responder_of: Callable[[Task], Responder],
    *,
    progress: Callable[[str], AbstractContextManager[Advance]] = unseen,
    measured: Callable[[str, dict[str, Any]], None] = lambda name, summary: None,
) -> dict[str, dict[str, Any]]:
    """The summary of each task, by name, which are in results.json then, too. `measured(name, summary)` is called as
    soon as a task is done. ConfigError when the folder holds another run."""
    about = {task.name: task_identity(task) for task in tasks}
    claim(run.out, run.identity, about)
    summaries, spent_sec = {}, {}
    for task in tasks:
        with progress(task.name) as advance:
            records, spent = run_task(
                task,
                responder_of(task),
                out=run.out,
                seed=run.identity["seed"],
                batch_size=run.identity["batch_size"],
                at_once=run.at_once,
                progress=advance,
            )
        summaries[task.name], spent_sec[task.name] = about[task.name] | summarise_task(task, records), round(spent, 1)
        measured(task.name, summaries[task.name])
    kept = {"identity": run.identity, "missing": run.missing, "bundle": run.bundle}
    write_results(run.out, tasks=summaries, spent_sec=spent_sec, **kept)
    return summaries
