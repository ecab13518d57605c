"""One step of learning: the batches of a process, their gradients, the update."""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from train.feed import Fed, Position
from train.machine import is_sharded
from train.optim import build_optimizer, set_learning_rate
from train.parts import FeatureCache, Objective, Origin, lower_frozen, to_device
from train.settings import TrainConfig

if TYPE_CHECKING:
    from accelerate import Accelerator

    from mmspeech.types import Batch


@dataclass
class StepOut:
    """What one process saw in a step. `numbers`: one dictionary per batch; `norm`: of the gradient of all processes,
    before clipping; where it is not finite no update was made (under DeepSpeed: it was). `after`: the next position."""

    numbers: list[dict[str, float]] = field(default_factory=list)
    batches: list["Batch"] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    norm: float = math.nan
    after: Position | None = None

    @property
    def finite(self) -> bool:
        return math.isfinite(self.norm)


class Learner:
    """Model, objective and optimiser, as they were and as accelerate wrapped them. ZeRO splits both in place."""

    def __init__(self, accelerator: "Accelerator", origin: Origin, config: TrainConfig, trainable: list[str]):
        self.accelerator, self.origin, self.trainable, self.config = accelerator, origin, trainable, config
        on_gpu = accelerator.device.type == "cuda" and not is_sharded(accelerator)
        if config.frozen_precision == "bf16" or (
            config.frozen_precision == "auto" and on_gpu and config.precision == "bf16"
        ):
            lower_frozen(origin.model)
        self.optimizer = build_optimizer(origin.model.to(accelerator.device), config.optim)
        self.objective = Objective(origin.model, config.loss, batch_frames=config.data.batch_frames)
        self._wrapped = self.optimizer
        shapes = {name: list(parameter.shape) for name, parameter in origin.model.named_parameters()}
        self.listing = "".join(f"{name} {shapes[name]}\n" for name in trainable)
        self.trained_numbers = sum(math.prod(shapes[name]) for name in trainable)
        size = config.data.cached_pictures
        self.features = None if origin.tower is None else FeatureCache(origin.tower, size=size)

    def wrap(self) -> None:
        """Hand model and optimiser to accelerate; the weights must be in place."""
        self.objective, self._wrapped = self.accelerator.prepare(self.objective, self.optimizer)

    @property
    def zero_optimizer(self) -> Any:
        """DeepSpeed's optimiser around ours."""
        return self._wrapped.optimizer

    def seen(self, batch: "Batch") -> "Batch":
        """The batch on this process's device, with what the tower makes of its pictures."""
        batch = to_device(batch, self.accelerator.device)
        if self.features is not None:
            self.features.fill(batch)
        return batch

    def step(self, feed: Iterator[Fed], *, number: int, rate: float) -> StepOut:
        """Learn from this process's batches of step `number` at learning rate `rate`; all processes do so together."""
        # Whatever a module draws at random depends on the step alone, so that a resumed run draws the same.
        torch.manual_seed(self.config.seed * 1_000_003 + number * 4099 + self.accelerator.process_index)
        self.objective.train()
        set_learning_rate(self.optimizer, rate)
        done = StepOut()
        for _ in range(self.accelerator.gradient_accumulation_steps):
            waited = time.monotonic()
            fed = next(feed)
            waited = time.monotonic() - waited
            done.problems += fed.problems
            done.after = fed.after
            batch = self.seen(fed.batch)
            with self.accelerator.accumulate(self.objective):
                out = self.objective(batch)
                self.accelerator.backward(out.loss)
                if self.accelerator.sync_gradients:
                    done.norm = self._update()
            done.numbers.append(out.numbers() | {"wait_sec": waited})
            done.batches.append(batch)
        return done

    def _update(self) -> float:
        norm = float(self.accelerator.clip_grad_norm_(self.objective.parameters(), self.config.optim.max_grad_norm))
        # The gradient is the same in every process, and so is its norm: all of them skip an update, or none.
        if math.isfinite(norm) or is_sharded(self.accelerator):
            self._wrapped.step()
        self._wrapped.zero_grad()
        return norm
