"""The training recipe, from top to bottom. What differs between stages is in the configuration."""

import math
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml

from mmspeech.checkpoint import codec_hash
from mmspeech.config import ConfigError
from mmspeech.data.collate import PictureFormat
from mmspeech.data.shards import ShardSet
from train.checkpointing import Parts, TrainState, find_checkpoint, load_checkpoint, save_checkpoint
from train.feed import CallBatches, Planner, build_layout, open_sources, training_loader, validation_plans
from train.metrics import Mean, MetricsLog, ProgressBar, Rate
from train.optim import build_optimizer, freeze_all_but, learning_rate, set_learning_rate, trainable_names
from train.parts import FeatureCache, Objective, Origin, build_origin, to_device
from train.samples import write_samples
from train.settings import TrainConfig

SampleHook = Callable[[Origin, ShardSet, Path, int], dict[str, float]]
"""(origin, validation calls, folder, how many) -> numbers to log; called every `sample_every_steps`."""


def train(config: TrainConfig, *, sample: SampleHook = write_samples) -> Path:
    """Run or resume one stage; returns the newest checkpoint's directory. Raises ConfigError before the first step."""
    from accelerate import Accelerator

    # 1. The machine
    torch.set_flush_denormal(True)
    torch.manual_seed(config.seed)
    accelerator = Accelerator(mixed_precision=config.precision, cpu=config.device == "cpu")
    run_dir = config.run_dir
    found = find_checkpoint(run_dir, config.resume)

    # 2. Model, codec, tokenizer, and what trains
    origin = build_origin(config)
    trainable = trainable_names(origin.model, config.trainable)
    freeze_all_but(origin.model, trainable)
    origin.codec.to(accelerator.device)
    objective = Objective(origin.model.to(accelerator.device), config.loss)
    optimizer = build_optimizer(origin.model, config.optim)

    # 3. Data
    pictures = _picture_format(origin)
    stamp = codec_hash(origin.codec)
    sources = open_sources(config.data.sources, at=config.at, codec_hash=stamp)
    valid = open_sources(config.data.valid, at=config.at, codec_hash=stamp)
    codec_stamp = sources[0][0].info.codec
    layout = build_layout(config.data, tokenizer=origin.tokenizer, stamp=codec_stamp, training=True)
    dataset = CallBatches(sources, layout=layout, pictures=pictures)
    features = FeatureCache(origin.model.tower, size=config.data.cached_pictures) if pictures else None
    evaluation = Evaluation(config, origin, valid, pictures=pictures, features=features, stamp=codec_stamp)

    # 4. Where it stands
    parts = Parts(origin.model, origin.codec, origin.tokenizer_file, origin.config, optimizer)
    state = TrainState() if found is None else load_checkpoint(found, parts, trainable=trainable)
    objective, optimizer = accelerator.prepare(objective, optimizer)
    _write_description(run_dir, config, origin, trainable)
    clock = Clock(config, state)
    planner = Planner(sources, config=config.data, seed=config.seed, progress_of=clock.progress_after_batches)
    feed = training_loader(dataset, planner.plans(state.position), workers=config.data.workers)
    log = MetricsLog(run_dir, step=state.step)
    means, rate, bad_in_a_row = Mean(), Rate(), 0
    saved = found

    # 5. Steps
    with ProgressBar(run_dir.name, total=config.max_steps, done=state.step) as bar, StopSignals() as stop:
        bar.line("trainable:\n" + _listed(origin.model, trainable).rstrip())
        bar.line(f"{run_dir}: {len(trainable)} trainable tensors, {_count(origin.model):,} numbers; step {state.step}")
        while state.step < config.max_steps and not clock.time_is_up() and not stop.asked:
            # 5.1 Learn from `accumulate` batches
            objective.train()
            set_learning_rate(optimizer, learning_rate(config.optim, step=state.step, progress=clock.progress()))
            finite = True
            for _ in range(config.accumulate):
                waited = time.monotonic()
                fed = next(feed)
                means.add({"wait_sec": time.monotonic() - waited})
                state.position = fed.after
                for problem in fed.problems:
                    bar.line(problem)
                    log.write("event", state.step, {"skipped_call": problem})
                batch = to_device(fed.batch, accelerator.device)
                if features is not None:
                    features.fill(batch)
                out = objective(batch)
                if out.loss.requires_grad:  # not where only the eyes learn and no call of the batch has a picture
                    accelerator.backward(out.loss / config.accumulate)
                finite = finite and math.isfinite(out.loss.item())
                means.add(_numbers(out))
                rate.add(int((batch.codes[:, 0] >= 0).sum()))
            norm = float(accelerator.clip_grad_norm_(objective.parameters(), config.optim.max_grad_norm))
            if finite and math.isfinite(norm):
                optimizer.step()
                means.add({"grad_norm": norm})
                bad_in_a_row = 0
            else:
                state.bad_steps, bad_in_a_row = state.bad_steps + 1, bad_in_a_row + 1
                bar.line(f"step {state.step + 1}: loss or gradient is not finite; skipped ({state.bad_steps} so far)")
                log.write("event", state.step + 1, {"bad_step": state.bad_steps, "calls": " ".join(batch.ids[:8])})
                if bad_in_a_row >= config.max_bad_steps:
                    raise ConfigError(
                        f"{run_dir}: {bad_in_a_row} steps in a row were not finite; lower the learning rate"
                    )
            optimizer.zero_grad(set_to_none=True)
            state.step += 1
            clock.tick()
            bar.advance()

            # 5.2 Tell
            last = state.step == config.max_steps or clock.time_is_up() or stop.asked
            if state.step % config.log_every_steps == 0 or last:
                numbers = means.take() | {
                    "frames_per_sec": rate.take(),
                    "learning_rate": optimizer.param_groups[0]["lr"],
                    "minutes": state.minutes,
                }
                log.write("train", state.step, numbers)
                bar.note(state.step, _summary(numbers))
            if state.step % config.eval_every_steps == 0 or last:
                for name, numbers in evaluation.run(objective, accelerator.device).items():
                    log.write(f"eval/{name}", state.step, numbers)
                    bar.line(f"step {state.step} eval {name}: {_summary(numbers)}")
                rate.take()
            if config.sample_every_steps and valid and state.step % config.sample_every_steps == 0:
                folder = run_dir / "samples" / f"step_{state.step:08d}"
                log.write("samples", state.step, sample(origin, valid[0][0], folder, config.sample_calls))
                rate.take()

            # 5.3 Keep
            if state.step % config.save_every_steps == 0 or last:
                clock.tick()
                saved = save_checkpoint(run_dir, parts, state, trainable=trainable, keep_last=config.keep_last)

    # 6. Result
    log.close()
    return saved


class Clock:
    """How far the run is: by steps, or by minutes of work when those are bounded and nearer to their end."""

    def __init__(self, config: TrainConfig, state: TrainState):
        self.config, self.state = config, state
        self._minutes_before, self._began_sec = state.minutes, time.monotonic()

    def tick(self) -> None:
        """Bring `state.minutes` up to date."""
        self.state.minutes = self._minutes_before + (time.monotonic() - self._began_sec) / 60

    def time_is_up(self) -> bool:
        return self.config.max_minutes is not None and self.state.minutes >= self.config.max_minutes

    def progress(self) -> float:
        return self.progress_after_batches(self.state.step * self.config.accumulate)

    def progress_after_batches(self, batches: int) -> float:
        by_steps = batches / (self.config.max_steps * self.config.accumulate)
        by_time = 0.0 if self.config.max_minutes is None else self.state.minutes / self.config.max_minutes
        return min(1.0, max(by_steps, by_time))


class Evaluation:
    """Loss parts and teacher-forced accuracies on the validation sets; always the same batches."""

    def __init__(self, config: TrainConfig, origin: Origin, valid: list, *, pictures, features, stamp):
        layout = build_layout(config.data, tokenizer=origin.tokenizer, stamp=stamp, training=False)
        self.features = features
        self.sets = {}
        for name, (shards, source) in zip(config.data.valid, valid, strict=True):
            dataset = CallBatches([(shards, source)], layout=layout, pictures=pictures)
            plans = validation_plans(shards, source, config=config.data, batches=config.eval_batches)
            self.sets[name] = dataset, plans

    @torch.no_grad()
    def run(self, objective: torch.nn.Module, device: torch.device) -> dict[str, dict[str, float]]:
        """Means over the batches of each set, by the set's name."""
        objective.eval()
        results = {}
        for name, (dataset, plans) in self.sets.items():
            means = Mean()
            for plan in plans:
                batch = to_device(dataset[plan].batch, device)
                if self.features is not None:
                    self.features.fill(batch)
                means.add(_numbers(objective(batch)))
            results[name] = means.take()
        return results


class StopSignals:
    """SIGINT or SIGTERM ends the run after its step, with a checkpoint; a second one ends it at once."""

    def __init__(self):
        self.asked = False

    def __enter__(self) -> "StopSignals":
        self._before = {number: signal.signal(number, self._ask) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, kind, error, trace) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: Any) -> None:
        self.asked = True
        signal.signal(number, signal.SIG_DFL)


def _picture_format(origin: Origin) -> PictureFormat | None:
    tower = origin.model.tower
    return None if tower is None else PictureFormat(tower.image_size_px, tower.mean, tower.std)


def _numbers(out: Any) -> dict[str, float]:
    """The parts of a LossOut as floats; what a batch had none of is left out."""
    parts = {"loss": out.loss, "text_loss": out.text_loss, "audio_loss": out.audio_loss, **out.metrics}
    values = {name: float(value.detach()) for name, value in parts.items()}
    return {name: value for name, value in values.items() if math.isfinite(value)}


def _count(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def _summary(numbers: dict[str, float]) -> str:
    shown = {"loss": ".3f", "text_loss": ".3f", "audio_loss": ".3f", "word_acc": ".3f", "semantic_acc": ".3f"}
    shown |= {"gate": ".3f", "grad_norm": ".2f", "learning_rate": ".1e", "frames_per_sec": ",.0f", "minutes": ".1f"}
    return "  ".join(f"{name} {numbers[name]:{form}}" for name, form in shown.items() if name in numbers)


def _write_description(run_dir: Path, config: TrainConfig, origin: Origin, trainable: list[str]) -> None:
    run_dir.mkdir(parents=True, exist_ok=True)
    (run_dir / "config.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
    (run_dir / "trainable.txt").write_text(_listed(origin.model, trainable))


def _listed(model: torch.nn.Module, names: list[str]) -> str:
    """A line for each name: the name and its shape."""
    shapes = {name: list(parameter.shape) for name, parameter in model.named_parameters()}
    return "".join(f"{name} {shapes[name]}\n" for name in names)
