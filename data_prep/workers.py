"""Who does the chunks of a step: this process, processes beside it, or a Ray cluster."""

import logging
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_all_start_methods, get_context
from pathlib import Path
from typing import Any

from data_prep.files import no_room
from data_prep.steps import Chunk, Do, How, Tally, Work, do_chunk
from mmspeech.config import ConfigError

REACH_SEC = 5.0
MOST_BREAKS = 3  # in a row, without a chunk done between
_do: Do | None = None  # of a process of the pool

Outcomes = list[dict[str, Any]]


def do_chunks(work: Work, chunks: list[Chunk], out: Path, how: How) -> Iterator[Outcomes]:
    """Do chunks, and give what came of each as it is done."""
    if not chunks:
        return
    if how.ray is not None:
        yield from _on_a_cluster(work, chunks, out, how)
    elif how.jobs == 1:
        do = work.open()
        for chunk in chunks:
            yield do_chunk(do, chunk, out)
    else:
        yield from _in_processes(work, chunks, out, how.jobs)


def _in_processes(work: Work, chunks: list[Chunk], out: Path, jobs: int) -> Iterator[Outcomes]:
    """A process that dies (killed, out of memory) costs the chunks in work, which are done again by new ones."""
    left = {chunk.number: chunk for chunk in chunks}
    breaks = 0
    while left:
        pool = ProcessPoolExecutor(
            min(jobs, len(left)), mp_context=_processes(work), initializer=_begin, initargs=(work,)
        )
        try:
            working = {pool.submit(_work, chunk, out): chunk for chunk in left.values()}
            for done in as_completed(working):
                outcomes = done.result()
                breaks = 0
                del left[working[done].number]
                yield outcomes
        except BrokenProcessPool as error:
            breaks += 1
            if breaks == MOST_BREAKS:
                names = ", ".join(f"{chunk.file.name}:{chunk.line}" for chunk in list(left.values())[:jobs])
                raise ConfigError(
                    f"processes died {breaks} times, at the lines after {names}; memory? lower --jobs, or look at them"
                ) from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _processes(work: Work):
    """Forks of a process that has imported what the work needs and done nothing yet; where there are none, new ones."""
    if "forkserver" not in get_all_start_methods():
        return get_context("spawn")
    context = get_context("forkserver")
    context.set_forkserver_preload(["torch", type(work).__module__])
    return context


def _begin(work: Work) -> None:
    global _do
    import torch

    torch.set_num_threads(1)  # the processes are as many as the cores
    _do = work.open()


def _work(chunk: Chunk, out: Path) -> Outcomes:
    return do_chunk(_do, chunk, out)


class _Worker:
    """A worker of a cluster; Ray Data starts another when it dies, and gives that its chunks again."""

    def __init__(self, work: Work, out: Path):
        self._do, self._out = work.open(), out

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        import json

        return {"outcomes": json.dumps(do_chunk(self._do, row["item"], self._out))}


def _on_a_cluster(work: Work, chunks: list[Chunk], out: Path, how: How) -> Iterator[Outcomes]:
    """`how.jobs` workers of the Ray cluster at `how.ray`. All machines see `out` and the input under the same paths."""
    import json

    try:
        import ray
        import ray.data
    except ModuleNotFoundError as error:
        raise ConfigError("--ray needs the extra `ray`: pip install 'mmspeech[ray]'") from error
    _check_reachable(how.ray)
    try:
        ray.init(address=how.ray, ignore_reinit_error=True, log_to_driver=False)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise ConfigError(f"--ray {how.ray}: no cluster there ({' '.join(str(error).split())})") from error
    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    rows = ray.data.from_items(chunks, override_num_blocks=len(chunks))
    arguments = {"fn_constructor_args": (work, out.resolve()), "concurrency": how.jobs, "max_restarts": -1}
    done = rows.map(_Worker, max_task_retries=-1, num_cpus=1, **arguments)
    try:
        for row in done.iter_rows():
            yield json.loads(row["outcomes"])
    except ray.exceptions.RayTaskError as error:
        cause = error.as_instanceof_cause()
        raise (cause if no_room(cause) else ConfigError(f"a worker failed: {error.cause}")) from error
    except ray.exceptions.RayError as error:
        raise ConfigError(f"the cluster failed: {str(error).strip().splitlines()[0]}") from error


def _check_reachable(address: str) -> None:
    """ConfigError when nobody answers at host:port: Ray itself would try for minutes, and then end the process."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not (host and port.isdigit()):
        return
    try:
        socket.create_connection((host, int(port)), timeout=REACH_SEC).close()
    except OSError as error:
        raise ConfigError(f"--ray {address}: no cluster there ({error})") from error


@contextmanager
def progress_bar(verb: str, *, done: int, total: int) -> Iterator[Callable[[Tally], None]]:
    """A bar over chunks, with what came of them so far; call what it gives with the tally after each."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn(verb), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[told]}"))
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as progress:
        bar = progress.add_task(verb, completed=done, total=total, told="")

        def advance(tally: Tally) -> None:
            left_out = sum(tally.dropped.values())
            progress.update(bar, advance=1, told=f"{tally.entries} done, {tally.failed} failed, {left_out} left out")

        yield advance
