"""Numbers of a run: RUN/metrics.jsonl, the boards they are watched on, and a progress bar."""

import json
import os
import resource
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from mmspeech.flops import ModelFlops
from train.boards import Board, Shown, TensorBoard, WeightsAndBiases
from train.machine import together

if TYPE_CHECKING:
    from accelerate import Accelerator

    from train.learner import StepOut


class MetricsLog:
    """Appends to metrics.jsonl and tells the boards. After a resume at `step`, later lines of the file are removed."""

    def __init__(self, run_dir: Path, *, step: int, writes: bool = True, wandb: str | None = None):
        """`writes` false, for all processes but the first: nothing is written. `wandb`: a project to tell as well."""
        self.writes = writes
        if not writes:
            return
        self.boards: list[Board] = [TensorBoard(run_dir, step=step)]
        if wandb is not None:
            self.boards.append(WeightsAndBiases(run_dir, project=wandb))
        self.file = run_dir / "metrics.jsonl"
        _forget_after(self.file, step)
        self._lines = self.file.open("a", encoding="utf-8")

    def write(self, kind: str, step: int, values: dict[str, Any]) -> None:
        """One line {"kind", "step", ...}; `kind` is train, eval/NAME, samples or event. Boards take numbers."""
        if not self.writes:
            return
        self._lines.write(json.dumps({"kind": kind, "step": step} | values) + "\n")
        self._lines.flush()
        numbers = {name: value for name, value in values.items() if isinstance(value, int | float)}
        for board in self.boards:
            board.numbers(kind, step, numbers)

    def show(self, kind: str, step: int, shown: Shown) -> None:
        """A sampled call, on the boards."""
        for board in self.boards if self.writes else ():
            board.show(kind, step, shown)

    def close(self) -> None:
        if self.writes:
            self._lines.close()
            for board in self.boards:
                board.close()


class Mean:
    """Means of numbers that arrive under names, over all processes."""

    def __init__(self):
        self._sums: dict[str, float] = defaultdict(float)
        self._counts: dict[str, int] = defaultdict(int)

    def add(self, *values: dict[str, float]) -> None:
        for numbers in values:
            for name, value in numbers.items():
                self._sums[name] += value
                self._counts[name] += 1

    def take(self, accelerator: "Accelerator") -> dict[str, float]:
        """The means so far; starts over. All processes must call it."""
        sums: dict[str, float] = defaultdict(float)
        counts: dict[str, int] = defaultdict(int)
        for own_sums, own_counts in together(accelerator, (dict(self._sums), dict(self._counts))):
            for name, value in own_sums.items():
                sums[name] += value
                counts[name] += own_counts[name]
        self._sums.clear()
        self._counts.clear()
        return {name: sums[name] / counts[name] for name in sums}


class Rate:
    """What the processes work off in a second, and how much of it was padding, since the last `take`.

    `peak_tflops`: of one process's device, or None where it is not known.
    """

    def __init__(self, flops: ModelFlops, *, peak_tflops: float | None):
        self._flops, self._peak_tflops = flops, peak_tflops
        self.restart()

    def restart(self) -> None:
        self.frames = self.padded = self.tokens = 0
        self.operations = 0.0
        self.began_sec = time.monotonic()

    def add(self, out: "StepOut") -> None:
        self.operations += sum(self._flops.total(work) for work in out.works)
        for batch in out.batches:
            held = int((batch.codes >= 0).any(dim=1).sum())
            self.frames += held
            self.padded += batch.codes.shape[0] * batch.codes.shape[2] - held
            self.tokens += int((batch.codes >= 0).sum())

    def take(self, accelerator: "Accelerator") -> dict[str, float]:
        """frames_per_sec, tokens_per_sec and padding_share of all processes; tflops_per_sec and mfu of one on average
        (model operations, see mmspeech.flops); peak_memory_mb of the one that holds most. Starts over. All processes
        must call it."""
        seconds = max(1e-9, time.monotonic() - self.began_sec)
        parts = together(accelerator, (self.frames, self.padded, self.tokens, self.operations, peak_memory_bytes()))
        frames, padded, tokens, operations, memory = zip(*parts, strict=True)
        frames, padded, tokens = sum(frames), sum(padded), sum(tokens)
        reached = sum(operations) / seconds / len(parts) / 1e12
        self.restart()
        return ({} if self._peak_tflops is None else {"mfu": reached / self._peak_tflops}) | {
            "tflops_per_sec": reached,
            "peak_memory_mb": max(memory) / 1e6,
            "frames_per_sec": frames / seconds,
            "tokens_per_sec": tokens / seconds,
            "padding_share": padded / max(1, frames + padded),
        }


def peak_memory_bytes() -> int:
    """The most this process has held: on its GPU, or of the machine's memory where there is none."""
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated()
    # Linux counts in KiB, macOS in bytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


class ProgressBar:
    """A rich bar on a terminal; elsewhere one plain line per `note`, so that a log file can be followed."""

    def __init__(self, name: str, *, total: int, done: int, shown: bool = True):
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn(name), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._bar = Progress(*columns, TextColumn("{task.fields[note]}"), disable=not (shown and sys.stdout.isatty()))
        self._task = self._bar.add_task(name, total=total, completed=done, note="")
        self.name, self.shown = name, shown

    def __enter__(self) -> "ProgressBar":
        self._bar.start()
        return self

    def __exit__(self, kind, error, trace) -> None:
        self._bar.stop()

    def advance(self) -> None:
        self._bar.advance(self._task)

    def note(self, step: int, text: str) -> None:
        self._bar.update(self._task, note=text)
        if self._bar.disable and self.shown:
            print(f"{self.name} step {step}: {text}", flush=True)

    def line(self, text: str) -> None:
        """A line above the bar."""
        if self.shown:
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
