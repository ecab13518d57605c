"""Numbers of a run: RUN/metrics.jsonl, TensorBoard in RUN/tensorboard, and a progress bar."""

import json
import os
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any


class MetricsLog:
    """Appends to metrics.jsonl and TensorBoard. After a resume at `step`, later lines of the killed run are removed."""

    def __init__(self, run_dir: Path, *, step: int):
        from torch.utils.tensorboard import SummaryWriter

        self.file = run_dir / "metrics.jsonl"
        _forget_after(self.file, step)
        self._lines = self.file.open("a", encoding="utf-8")
        self.board = SummaryWriter(str(run_dir / "tensorboard"), purge_step=step + 1)

    def write(self, kind: str, step: int, values: dict[str, Any]) -> None:
        """One line {"kind", "step", ...}; `kind` is train, eval/NAME, samples or event. TensorBoard takes numbers."""
        self._lines.write(json.dumps({"kind": kind, "step": step} | values) + "\n")
        self._lines.flush()
        for name, value in values.items():
            if isinstance(value, int | float):
                self.board.add_scalar(f"{kind}/{name}", value, step)

    def close(self) -> None:
        self._lines.close()
        self.board.close()


class Mean:
    """Means of numbers that arrive under names."""

    def __init__(self):
        self._sums: dict[str, float] = defaultdict(float)
        self._counts: dict[str, int] = defaultdict(int)

    def add(self, values: dict[str, float]) -> None:
        for name, value in values.items():
            self._sums[name] += value
            self._counts[name] += 1

    def take(self) -> dict[str, float]:
        """The means so far; starts over."""
        means = {name: self._sums[name] / self._counts[name] for name in self._sums}
        self._sums.clear()
        self._counts.clear()
        return means


class Rate:
    """Frames per second since the last `take`."""

    def __init__(self):
        self.frames, self.began_sec = 0, time.monotonic()

    def add(self, frames: int) -> None:
        self.frames += frames

    def take(self) -> float:
        now_sec = time.monotonic()
        rate = self.frames / max(1e-9, now_sec - self.began_sec)
        self.frames, self.began_sec = 0, now_sec
        return rate


class ProgressBar:
    """A rich bar on a terminal; elsewhere one plain line per `note`, so that a log file can be followed."""

    def __init__(self, name: str, *, total: int, done: int):
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn(name), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._bar = Progress(*columns, TextColumn("{task.fields[note]}"), disable=not sys.stdout.isatty())
        self._task = self._bar.add_task(name, total=total, completed=done, note="")
        self.name = name

    def __enter__(self) -> "ProgressBar":
        self._bar.start()
        return self

    def __exit__(self, kind, error, trace) -> None:
        self._bar.stop()

    def advance(self) -> None:
        self._bar.advance(self._task)

    def note(self, step: int, text: str) -> None:
        self._bar.update(self._task, note=text)
        if self._bar.disable:
            print(f"{self.name} step {step}: {text}", flush=True)

    def line(self, text: str) -> None:
        """A line above the bar."""
        self._bar.console.print(text, highlight=False, markup=False, soft_wrap=True)


def _forget_after(file: Path, step: int) -> None:
    if not file.is_file():
        return
    lines = file.read_text(encoding="utf-8").splitlines()
    kept = [line for line in lines if _step_of(line) <= step]
    temporary = file.with_suffix(".tmp")
    temporary.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
    os.replace(temporary, file)


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (json.JSONDecodeError, KeyError, TypeError):
        return float("inf")  # a line cut off by a kill
