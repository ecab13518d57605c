"""What watches a run: spikes of loss or gradient, batches that do not come, memory that runs out."""

import signal
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

from mmspeech.config import ConfigError
from train.feed import Fed, Plan
from train.settings import DataConfig, GuardConfig, TrainConfig

if TYPE_CHECKING:
    from mmspeech.types import Batch

LEAST_SEEN = 20
SPREAD_FLOOR = 0.02
NORMAL_SPREAD = 1.4826  # standard deviations in a median absolute deviation, for normal numbers


class SpikeGuard:
    """Compares loss and gradient norm of a step with those of the last `spike_window` good steps.

    A value is a spike when it is more than `spike` spreads above the median; the spread is the median absolute
    deviation, at least `SPREAD_FLOOR` of the median. `recent` is its memory, which a checkpoint keeps.
    """

    def __init__(self, config: GuardConfig, recent: dict[str, list[float]] | None = None):
        self.config = config
        recent = recent or {}
        self._recent = {
            name: deque(recent.get(name, ()), maxlen=config.spike_window) for name in ("loss", "gradient norm")
        }

    @property
    def recent(self) -> dict[str, list[float]]:
        return {name: list(values) for name, values in self._recent.items()}

    def look(self, *, loss: float, norm: float) -> str | None:
        """What is wrong with a step, in words, or None; a good step is remembered."""
        if self.config.spike is None:
            return None
        values = {"loss": loss, "gradient norm": norm}
        found = [text for name, value in values.items() if (text := self._judge(name, value))]
        if found:
            return "; ".join(found)
        for name, value in values.items():
            self._recent[name].append(value)
        return None

    def _judge(self, name: str, value: float) -> str | None:
        seen = self._recent[name]
        if len(seen) < LEAST_SEEN:
            return None
        middle = median(seen)
        spread = max(NORMAL_SPREAD * median(abs(old - middle) for old in seen), SPREAD_FLOOR * abs(middle))
        if value <= middle + self.config.spike * spread:
            return None
        return f"{name} {value:.4g} after a median of {middle:.4g} (spread {spread:.2g}, {len(seen)} steps)"


class HandedPlans(Iterator[Plan]):
    """Plans on their way to the loader; remembers those whose batch has not come yet."""

    def __init__(self, plans: Iterator[Plan]):
        self._plans, self.waiting, self.received = plans, deque(), 0

    def __next__(self) -> Plan:
        plan = next(self._plans)
        self.waiting.append(plan)
        return plan

    def receive(self) -> None:
        """The oldest plan's batch has come."""
        self.waiting.popleft()
        self.received += 1


@dataclass
class StallGuard(Iterator[Fed]):
    """A feed that says so, or ends the run, when a batch does not come within `stall_sec`.

    An alarm interrupts the wait: it works only in a program's main thread.
    """

    feed: Iterator[Fed]
    plans: HandedPlans
    config: GuardConfig
    data: DataConfig

    def __next__(self) -> Fed:
        if self.config.stall_sec is None:
            fed = next(self.feed)
        else:
            with self._alarm(self.config.stall_sec):
                fed = next(self.feed)
        self.plans.receive()
        return fed

    @contextmanager
    def _alarm(self, seconds: float) -> Iterator[None]:
        before = signal.signal(signal.SIGALRM, self._ring)
        signal.setitimer(signal.ITIMER_REAL, seconds, seconds)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)

    def _ring(self, number: int, frame: object) -> None:
        text = f"no batch for {self.config.stall_sec:g} s: {self._culprit()}"
        if self.config.stall_action == "stop":
            raise ConfigError(f"{text}; check the disk, raise data.workers or guards.stall_sec")
        print(f"warning: {text}", flush=True)

    def _culprit(self) -> str:
        names = list(self.data.sources)
        who = f"worker {self.plans.received % self.data.workers}" if self.data.workers else "this process"
        if not self.plans.waiting:
            return f"{who} plans the next batch"
        calls: dict[str, list[str]] = {}
        for draw in self.plans.waiting[0].draws:
            calls.setdefault(names[draw.source], []).extend(map(str, draw.calls))
        told = ", ".join(f"calls {' '.join(numbers[:8])} of source {name!r}" for name, numbers in calls.items())
        return f"{who} loads {told}"


@contextmanager
def memory_explained(config: TrainConfig, batch: "Batch") -> Iterator[None]:
    """Memory that runs out inside becomes one line on the batch's shape and what to change."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not _is_out_of_memory(error):
            raise
        rows, _, frames = batch.codes.shape
        pictures = 0 if batch.pixels is None else len(batch.pixels)
        raise ConfigError(
            f"out of memory on a batch of {rows} calls x {frames} frames with {pictures} pictures; "
            f"{', or '.join(memory_remedies(config))} (`mmspeech estimate` says what fits)"
        ) from error


def memory_remedies(config: TrainConfig) -> list[str]:
    """Settings that save memory and are not used to the full, the cheapest first."""
    remedies = [] if config.recompute_layers else ["set recompute_layers=true"]
    if config.precision == "no":
        remedies.append("set precision=bf16")
    remedies.append(f"lower data.batch_frames (now {config.data.batch_frames})")
    if config.loss.depth_frames_share > 0.1:
        remedies.append(f"lower loss.depth_frames_share (now {config.loss.depth_frames_share:g})")
    if config.deepspeed is None:
        remedies.append("split the model over processes with deepspeed=configs/deepspeed/zero2.json (or zero3)")
    elif "zero3" not in config.deepspeed:
        remedies.append("take a higher ZeRO stage (configs/deepspeed/zero3.json)")
    return remedies


def _is_out_of_memory(error: BaseException) -> bool:
    kind = type(error).__name__  # torch has moved its class between versions
    told = str(error)
    return isinstance(error, MemoryError) or kind == "OutOfMemoryError" or "can't allocate memory" in told
