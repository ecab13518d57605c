"""The training recipe, from top to bottom. What differs between stages is in the configuration."""

import itertools
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml

from mmspeech.audio.codec import codec_hash
from mmspeech.config import ConfigError, Problems
from mmspeech.data.collate import Layout, PictureFormat
from mmspeech.data.shards import ShardSet
from mmspeech.flops import peak_tflops
from mmspeech.frames import frames_to_seconds
from mmspeech.lm.plan import add_planner
from mmspeech.lm.trainable import trainable_names
from train import machine
from train.boards import check_wandb
from train.checkpointing import TrainState, find_checkpoint, load_moments, load_weights, only_here, save_checkpoint
from train.curves import draw_curves
from train.feed import (
    CallBatches,
    Planner,
    build_layout,
    open_sources,
    own_share,
    share_past,
    training_loader,
    validation_plans,
)
from train.gap import gaps, sighted_and_blind
from train.guards import HandedPlans, StallGuard
from train.learner import Learner, StepOut
from train.lora import add_lora
from train.metrics import Mean, MetricsLog, ProgressBar, Rate
from train.optim import freeze_all_but, learning_rate
from train.parts import Origin, build_origin
from train.samples import Samples, write_samples
from train.settings import TrainConfig
from train.whole import whole_model

if TYPE_CHECKING:
    from accelerate import Accelerator

LEAST_SHARE_PAST = 0.02  # of the frames that a model learns from

SampleHook = Callable[[Origin, ShardSet, Path, TrainConfig], Samples]
"""(origin, validation calls, folder, configuration) -> what to log; called in the first process."""


def train(config: TrainConfig, *, sample: SampleHook = write_samples) -> Path:
    """Run or resume one stage; returns the newest checkpoint's directory. Raises ConfigError before the first step.

    Every process of a launch calls it; all take the same steps, each with its share of the batches.
    """
    accelerator = machine.start(config)
    checkpoint = _train(config, accelerator, sample)
    machine.finish(accelerator)
    return checkpoint


def _train(config: TrainConfig, accelerator: "Accelerator", sample: SampleHook) -> Path:
    learner, data = set_up(config, accelerator)
    with only_here(config.run_dir, accelerator):
        return _run(config, learner, data, sample)


def _run(config: TrainConfig, learner: Learner, data: "Data", sample: SampleHook) -> Path:
    # 1. Where the run stands
    accelerator, run_dir = learner.accelerator, config.run_dir
    main = accelerator.is_main_process
    found = find_checkpoint(run_dir, config.resume, accelerator)
    state = TrainState() if found is None else load_weights(found, learner)
    learner.wrap()
    clock = Clock(config, state)
    planner = Planner(data.sources, config=config.data, seed=config.seed, progress_of=clock.progress_after_batches)
    if found is not None:
        if machine.is_sharded(accelerator):
            learner.step(itertools.repeat(data.train[next(planner.plans(state.position))]), number=0, rate=0.0)
        load_moments(found, learner)

    # 2. What goes in, and what is told
    share = {"rank": accelerator.process_index, "world": accelerator.num_processes, "per_step": config.batches_per_step}
    plans = own_share(planner.plans(state.position), **share)
    plans = HandedPlans(plans)
    loader = training_loader(data.train, plans, workers=config.data.workers)
    feed = StallGuard(loader, plans, config.guards, config.data)
    evaluation = Evaluation(config, learner, data)
    if main:
        _write_description(run_dir, config, learner)
    log = MetricsLog(run_dir, step=state.step, writes=main, wandb=config.log.wandb)
    means, rate = Mean(), build_rate(config, learner)
    bad_in_a_row, saved = 0, found

    # 3. Steps
    with (
        ProgressBar(run_dir.name, total=config.max_steps, done=state.step, shown=main) as bar,
        StopSignals() as signals,
    ):
        bar.line("trainable:\n" + learner.listing.rstrip())
        trained = f"{len(learner.trainable)} trainable tensors, {learner.trained_numbers:,} numbers"
        bar.line(f"{run_dir}: {trained}; step {state.step}")
        for warning in _unlearnt_lengths(config, learner, data):
            bar.line(warning)
        stop = signals.asked
        while state.step < config.max_steps and not clock.time_is_up() and not stop:
            # 3.1 Learn
            now = learning_rate(config.optim, step=state.step, progress=clock.progress())
            out = learner.step(feed, number=state.step, rate=now)
            clock.tick()
            stop, state.minutes, bad_calls = machine.agree(
                accelerator, stop=signals.asked, minutes=state.minutes, bad_calls=len(out.problems)
            )
            state.step, state.position = state.step + 1, out.after
            means.add(*out.numbers, {"grad_norm": out.norm} if out.finite else {})
            rate.add(out)
            bar.advance()

            # 3.2 Guard
            if bad_calls:
                state.bad_calls += bad_calls
                for problem in itertools.chain(*machine.together(accelerator, out.problems)):
                    bar.line(problem)
                    log.write("event", state.step, {"skipped_call": problem})
                if config.data.max_bad_calls is not None and state.bad_calls > config.data.max_bad_calls:
                    raise ConfigError(f"{run_dir}: {state.bad_calls} calls could not be read; see data.max_bad_calls")
            if out.spike:
                text = f"step {state.step}: {out.spike} (spike_action {config.guards.spike_action})"
                text += f"; calls {_calls(accelerator, out)}"
                log.write("event", state.step, {"spike": text})
                bar.line(text)
                if config.guards.spike_action == "stop":
                    raise ConfigError(f"{run_dir}: stopped at {text}")
            bad_in_a_row = 0 if out.finite else bad_in_a_row + 1
            if not out.finite:
                state.bad_steps += 1
                bar.line(f"step {state.step}: the gradient is not finite; skipped ({state.bad_steps} so far)")
                log.write("event", state.step, {"bad_step": state.bad_steps, "calls": _calls(accelerator, out)})
            if bad_in_a_row >= (1 if machine.is_sharded(accelerator) else config.max_bad_steps):
                raise ConfigError(f"{run_dir}: {bad_in_a_row} steps in a row were not finite; lower the learning rate")

            # 3.3 Tell
            last = state.step == config.max_steps or clock.time_is_up() or stop
            if state.step % config.log_every_steps == 0 or last:
                numbers = means.take(accelerator) | rate.take(accelerator)
                numbers |= {"learning_rate": now, "minutes": state.minutes, "bad_calls": state.bad_calls}
                log.write("train", state.step, numbers)
                bar.note(state.step, _summary(numbers))
            evaluates = state.step % config.eval_every_steps == 0 or last
            if evaluates:
                for name, numbers in evaluation.run().items():
                    log.write(f"eval/{name}", state.step, numbers)
                    bar.line(f"step {state.step} eval {name}: {_summary(numbers)}")
                rate.restart()
            if data.valid and _samples_now(config, state.step, evaluates=evaluates):
                for problem in _sample(learner, data.valid, state.step, sample, log):
                    bar.line(problem)
                    log.write("event", state.step, {"not_sampled": problem})
                rate.restart()

            # 3.4 Keep
            if state.step % config.save_every_steps == 0 or last:
                saved = save_checkpoint(run_dir, learner, state, keep_last=config.keep_last)

    # 4. Result
    log.close()
    if main:
        draw_curves(run_dir)
    return saved


def _unlearnt_lengths(config: TrainConfig, learner: Learner, data: "Data") -> Iterator[str]:
    """A warning where self-attention learns from calls that are too short for what it remembers."""
    context = learner.origin.config.lm.temporal.context
    attends = any(name.startswith("lm.temporal.") and ".self_attn." in name for name in learner.trainable)
    share = share_past(data.sources, config=config.data, context_frames=context)
    if attends and share < LEAST_SHARE_PAST:
        yield (
            f"warning: the model remembers {context} frames ({frames_to_seconds(context):g} s), and {share:.1%} of "
            "what it learns from lies past that; in longer calls it may fall silent: give sources join_frames, or "
            "lower lm.temporal.context, and see `eval --tasks long_call`"
        )


@dataclass
class Data:
    """Calls to train on, the sources and, laid out, `train`; and calls to evaluate on, with how they are laid out."""

    sources: list
    valid: list
    train: CallBatches
    valid_layout: Layout
    pictures: PictureFormat | None


def set_up(config: TrainConfig, accelerator: "Accelerator") -> tuple[Learner, Data]:
    """Model, codec, tokenizer, what trains, and the calls. Raises one ConfigError that lists all that does not fit."""
    torch.set_flush_denormal(True)
    problems, origin, stamp = Problems(), None, None
    with problems.noted():
        if config.log.wandb is not None:
            check_wandb()
    with problems.noted():
        origin = build_origin(config, accelerator.device)
        stamp = codec_hash(origin.codec)
    with problems.noted():
        trainable = [] if origin is None else _choose_trainable(origin, config)
    with problems.noted():
        sources = open_sources(config.data.sources, at=config.at, codec_hash=stamp)
    with problems.noted():
        valid = open_sources(config.data.valid, at=config.at, codec_hash=stamp)
    problems.tell()
    freeze_all_but(origin.model, trainable)
    origin.model.lm.temporal.transformer.recompute = config.recompute_layers
    if config.compile_layers:
        origin.model.lm.temporal.transformer.compile_layers()
    learner = Learner(accelerator, origin, config, trainable)
    pictures = learner.pictures
    layouts = [
        build_layout(config.data, tokenizer=origin.tokenizer, stamp=sources[0][0].info.codec, training=training)
        for training in (True, False)
    ]
    data = Data(sources, valid, CallBatches(sources, layout=layouts[0], pictures=pictures), layouts[1], pictures)
    return learner, data


def _choose_trainable(origin: Origin, config: TrainConfig) -> list[str]:
    """Names of what learns; LoRA and the planner, where asked for, are put into the model."""
    trainable = trainable_names(origin.model, config.trainable) if config.trainable else []
    if config.lora is not None:
        origin.lora = add_lora(origin.model, config.lora, seed=config.seed)
        trainable = origin.lora.trainable(origin.model, trainable)
    return trainable + add_planner(origin.model, num_tokens=config.loss.planned_tokens)


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
        return self.progress_after_batches(self.state.step * self.config.batches_per_step)

    def progress_after_batches(self, batches: int) -> float:
        by_steps = batches / (self.config.max_steps * self.config.batches_per_step)
        by_time = 0.0 if self.config.max_minutes is None else self.state.minutes / self.config.max_minutes
        return min(1.0, max(by_steps, by_time))


class Evaluation:
    """Loss parts and teacher-forced accuracies on the validation sets: always the same batches, shared by processes."""

    def __init__(self, config: TrainConfig, learner: Learner, data: Data):
        self.learner = learner
        self.sets, self.pairs = {}, sighted_and_blind(config.data.valid)
        for name, (shards, source) in zip(config.data.valid, data.valid, strict=True):
            dataset = CallBatches([(shards, source)], layout=data.valid_layout, pictures=data.pictures)
            plans = validation_plans(shards, source, config=config.data, batches=config.eval_batches)
            self.sets[name] = dataset, plans

    @torch.no_grad()
    def run(self) -> dict[str, dict[str, float]]:
        """Means over the batches of each set, by the set's name; and what seeing is worth (train.gap)."""
        learner, results = self.learner, {}
        rank, world = learner.accelerator.process_index, learner.accelerator.num_processes
        learner.objective.eval()
        for name, (dataset, plans) in self.sets.items():
            means = Mean()
            for first in range(0, len(plans), world):
                # All processes run the model together; one without a batch of its own runs the first again, uncounted.
                own = plans[first + rank] if first + rank < len(plans) else plans[0]
                numbers = learner.objective(learner.seen(dataset[own].batch)).numbers()
                if first + rank < len(plans):
                    means.add(numbers)
            results[name] = means.take(learner.accelerator)
        return results | gaps(results, self.pairs)


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


def build_rate(config: TrainConfig, learner: Learner) -> Rate:
    """Counts operations, against the device's peak where that is known."""
    peak = config.peak_tflops
    if peak is None and learner.accelerator.device.type == "cuda":
        peak = peak_tflops(torch.cuda.get_device_name(), precision=learner.accelerator.mixed_precision)
    return Rate(learner.flops, peak_tflops=peak)


def _calls(accelerator: "Accelerator", out: StepOut) -> str:
    """Ids of the first calls of every batch of a step, of all processes; all must call it."""
    own = [call for batch in out.batches for call in batch.ids[:8]]
    return " ".join(itertools.chain(*machine.together(accelerator, own)))


def _samples_now(config: TrainConfig, step: int, *, evaluates: bool) -> bool:
    every = config.sample_every_steps
    return evaluates if every is None else every > 0 and step % every == 0


def _sample(learner: Learner, valid: list, step: int, sample: SampleHook, log: MetricsLog) -> list[str]:
    """Sample from the first validation set that has pictures, or else the first; all processes call it, the first one
    does it. Returns what went wrong."""
    shards = next((shards for shards, source in valid if source.visuals == "keep"), valid[0][0])
    folder = learner.config.run_dir / "samples" / f"step_{step:08d}"
    with whole_model(learner):
        if not learner.accelerator.is_main_process:
            return []
        drawn = sample(learner.origin, shards, folder, learner.config)
    log.write("samples", step, drawn.numbers)
    for shown in drawn.shown:
        log.show("samples", step, shown)
    return drawn.problems


def _summary(numbers: dict[str, float]) -> str:
    shown = {"loss": ".3f", "text_loss": ".3f", "audio_loss": ".3f", "word_acc": ".3f", "semantic_acc": ".3f"}
    shown |= {"gate": ".3f", "grad_norm": ".2f", "learning_rate": ".1e", "frames_per_sec": ",.0f"}
    shown |= {"mfu": ".3f", "minutes": ".1f"}
    return "  ".join(f"{name} {numbers[name]:{form}}" for name, form in shown.items() if name in numbers)


def _write_description(run_dir: Path, config: TrainConfig, learner: Learner) -> None:
    run_dir.mkdir(parents=True, exist_ok=True)
    (run_dir / "config.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
    (run_dir / "trainable.txt").write_text(learner.listing)
