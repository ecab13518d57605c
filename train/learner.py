"""One step of learning: the batches of a process, their gradients, the update."""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch

from mmspeech.data.features import FeatureShards
from mmspeech.flops import ModelFlops, Work
from train.features import FeatureCache
from train.feed import Fed, Position
from train.guards import SpikeGuard, memory_explained
from train.lora import gather_together
from train.machine import attention, is_sharded
from train.optim import build_optimizer, set_learning_rate
from train.parts import Objective, Origin, lower_frozen, to_device
from train.settings import TrainConfig

if TYPE_CHECKING:
    from accelerate import Accelerator

    from mmspeech.data.visuals import PictureFormat
    from mmspeech.types import Batch
    from mmspeech.vision.encoder import VisionTower


@dataclass
class StepOut:
    """What one process saw in a step. `numbers`: one dictionary per batch; `norm`: of the gradient of all processes,
    before clipping; where it is not finite no update was made (under DeepSpeed: it was). `works`: what each batch made
    the model compute on. `spike`: what the guard found odd, in words. `after`: the next position."""

    numbers: list[dict[str, float]] = field(default_factory=list)
    batches: list["Batch"] = field(default_factory=list)
    works: list[Work] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    norm: float = math.nan
    spike: str | None = None
    after: Position | None = None

    @property
    def finite(self) -> bool:
        return math.isfinite(self.norm)


class Learner:
    """Model, objective and optimiser, as they were and as accelerate wrapped them. ZeRO splits both in place."""

    def __init__(self, accelerator: "Accelerator", origin: Origin, config: TrainConfig, trainable: list[str]):
        self.accelerator, self.origin, self.trainable, self.config = accelerator, origin, trainable, config
        lower = accelerator.mixed_precision == "bf16"
        spare = accelerator.device.type == "cuda" and not is_sharded(accelerator) and lower
        if {"auto": spare, "no": False, "bf16": True}[config.frozen_precision]:
            lower_frozen(origin.model)
        self.optimizer = build_optimizer(origin.model.to(accelerator.device), config.optim)
        self.objective = Objective(origin.model, config.loss, batch_frames=config.data.batch_frames)
        self._wrapped = self.optimizer
        shapes = {name: list(parameter.shape) for name, parameter in origin.model.named_parameters()}
        self.listing = "".join(f"{name} {shapes[name]}\n" for name in trainable)
        self.trained_numbers = sum(math.prod(shapes[name]) for name in trainable)
        self.flops = ModelFlops(origin.config.lm, shapes, trainable)
        self.guard = SpikeGuard(config.guards)
        self.features = None if origin.tower is None else self._feature_cache(origin.tower, config)

    @staticmethod
    def _feature_cache(tower: "VisionTower", config: TrainConfig) -> FeatureCache:
        data = config.data
        shards = None if data.features is None else FeatureShards(config.at(data.features), tower)
        return FeatureCache(tower, size=data.cached_pictures, shards=shards)

    def wrap(self) -> None:
        """Hand model and optimiser to accelerate; the weights must be in place."""
        if self.origin.lora is not None and is_sharded(self.accelerator):
            gather_together(self.origin.model)
        self.objective, self._wrapped = self.accelerator.prepare(self.objective, self.optimizer)

    @property
    def zero_optimizer(self) -> Any:
        """DeepSpeed's optimiser around ours."""
        return self._wrapped.optimizer

    @property
    def pictures(self) -> "PictureFormat | None":
        """What calls have to look like for the model's eyes, and what of them need not be decoded; None without any."""
        return None if self.features is None else replace(self.origin.pictures, kept=self.features.kept)

    def seen(self, batch: "Batch") -> "Batch":
        """The batch on this process's device, with what the tower makes of its pictures."""
        batch = to_device(batch, self.accelerator.device)
        if self.features is not None:
            with self.accelerator.autocast():
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
            done.batches.append(fed.batch)
            with memory_explained(self.config, fed.batch), self.accelerator.accumulate(self.objective):
                batch = self.seen(fed.batch)
                with attention(self.accelerator):
                    out = self.objective(batch)
                    self.accelerator.backward(out.loss)
                done.numbers.append(out.numbers() | {"wait_sec": waited})
                done.works.append(self._work(batch, done.numbers[-1]["depth_frames"]))
                if self.accelerator.sync_gradients:
                    self._update(done)
        return done

    def _update(self, done: StepOut) -> None:
        limit = self.config.optim.max_grad_norm
        done.norm = float(self.accelerator.clip_grad_norm_(self.objective.parameters(), limit))
        # The gradient is the same in every process, and so is its norm: all of them skip an update, or none.
        if done.finite:
            losses = [numbers.get("loss", math.nan) for numbers in done.numbers]
            own = torch.tensor(sum(losses) / len(losses), device=self.accelerator.device)
            done.spike = self.guard.look(loss=float(self.accelerator.reduce(own, reduction="mean")), norm=done.norm)
        wanted = done.finite and (done.spike is None or self.config.guards.spike_action == "warn")
        if wanted or is_sharded(self.accelerator):
            self._wrapped.step()
        self._wrapped.zero_grad()

    def _work(self, batch: "Batch", depth_frames: float) -> Work:
        rows, _, steps = batch.codes.shape
        tokens = 0 if self.origin.model.projector is None else 1
        if batch.features is not None:
            frames, width = int(torch.bincount(batch.picture_rows).max()), batch.features.shape[1]
            tokens = frames * self.origin.model.projector.count(width)
        lm = self.origin.config.lm
        codebooks = self.config.loss.depth_codebooks or lm.num_codebooks
        return Work(rows, steps, tokens, depth_frames * codebooks / lm.num_codebooks)
