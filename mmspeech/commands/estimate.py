"""`mmspeech estimate`: memory and time of a training run before it costs money."""

import json
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field
from rich.console import Console
from rich.table import Table

from mmspeech.checkpoint import CONFIG, newest_checkpoint
from mmspeech.config import ConfigError, ModelConfig, apply_overrides, load_config, parse_config, read_mapping
from mmspeech.estimate import (
    RESERVE,
    SHARINGS,
    Memory,
    Plan,
    batch_work,
    count_tower_tokens,
    empty_model,
    footprints,
    measure_sizes,
    process_memory,
    speed,
    step_flops,
    warnings,
)
from mmspeech.flops import peak_tflops
from mmspeech.lm.loss import enough_pieces
from mmspeech.lm.trainable import lora_names, trainable_names
from mmspeech.presets import find_file


class _Needed(BaseModel):
    """The settings of a training configuration that memory and time depend on; others are not looked at."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class InitNeeds(_Needed):
    checkpoint: str | None = None
    model: str | None = None
    blind: bool = False


class SourceNeeds(_Needed):
    join_frames: int | None = Field(None, gt=0)


class DataNeeds(_Needed):
    sources: dict[str, SourceNeeds] = Field(default_factory=dict)
    batch_frames: int = Field(4000, gt=0)
    max_frames: int = Field(400, gt=0)
    cached_pictures: int = Field(1000, ge=0)

    @property
    def longest_frames(self) -> int:
        """Of a call, or of several that are joined."""
        return max([self.max_frames, *(source.join_frames or 0 for source in self.sources.values())])


class LossNeeds(_Needed):
    depth_frames_share: float = Field(1.0, gt=0, le=1)
    depth_codebooks: int | None = Field(None, gt=0)
    pieces: int | None = Field(None, gt=0)
    plan: float = Field(0.0, ge=0)
    plan_tokens: int = Field(24, gt=0)


class LoraNeeds(_Needed):
    rank: int = Field(16, gt=0)
    targets: list[str] = Field(["lm.temporal.*", "lm.depth.*"], min_length=1)


class TrainNeeds(_Needed):
    root: str = "data"
    init: InitNeeds
    trainable: list[str]
    lora: LoraNeeds | None = None
    data: DataNeeds = DataNeeds()
    loss: LossNeeds = LossNeeds()
    batches_per_step: int = Field(1, gt=0)
    recompute_layers: bool = False
    frozen_precision: Literal["auto", "no", "bf16"] = "auto"
    precision: Literal["auto", "no", "bf16"] = "auto"
    peak_tflops: float | None = Field(None, gt=0)


@dataclass(frozen=True)
class EstimateOptions:
    """`gpu_memory_gb` in 1e9 bytes; `run`: a run directory whose log gives the speed instead of `mfu`."""

    config: Path
    overrides: list[str]
    gpus: int
    gpu_memory_gb: float
    gpu: str | None
    peak_tflops: float | None
    mfu: float
    run: Path | None


def run_estimate(options: EstimateOptions) -> None:
    """Print memory per part and process, time, and what would go wrong."""
    data = apply_overrides(read_mapping(options.config), options.overrides)
    needs = parse_config(TrainNeeds, data, source=str(options.config))
    rate, said = reached_flops(options, needs)
    plan = make_plan(needs)
    console = Console()
    work = batch_work(plan)
    console.print(
        f"{plan.model.name}: {options.gpus} GPUs of {options.gpu_memory_gb:g} GB; a batch is {work.rows} calls of "
        f"{work.steps} frames, {work.visual_tokens} visual tokens each",
        highlight=False, soft_wrap=True,
    )  # fmt: skip
    memories = _memories(plan, options.gpus)
    usable = options.gpu_memory_gb * 1e9 * (1 - RESERVE)
    for recompute, by_name in memories.items():
        mark = " (as configured)" if recompute == plan.recompute else ""
        console.print(_table(f"GB per process, recompute_layers: {str(recompute).lower()}{mark}", by_name, usable))
    flops = step_flops(plan) / plan.batches_per_step
    per_frame = flops / (work.rows * work.steps)
    console.print(f"operations of a batch: {flops / 1e12:.3g} T, {per_frame / 1e9:.3g} G a frame", highlight=False)
    if rate is None:
        console.print("time: not known; give --gpu or --peak-tflops, or --run with the log of an earlier run")
    else:
        found = speed(plan, flops_per_sec=rate * options.gpus)
        console.print(
            f"time at {said}: {found.step_sec:.2f} s a step, {found.frames_per_sec:,.0f} frames/s, "
            f"{found.steps_per_day:,.0f} steps a day",
            highlight=False, soft_wrap=True,
        )  # fmt: skip
    totals = {name: memory.total for name, memory in memories[plan.recompute].items()}
    for text in warnings(plan, processes=options.gpus, totals=totals, usable=usable):
        console.print(f"warning: {text}", style="yellow", highlight=False, markup=False, soft_wrap=True)


def make_plan(needs: TrainNeeds) -> Plan:
    """The run of a training configuration. Raises ConfigError when its model is not to be found."""
    model = _model_config(needs)
    empty, lora = empty_model(model), needs.lora
    trainable = trainable_names(empty, needs.trainable) if needs.trainable else []
    wrapped = [] if lora is None else lora_names(empty, lora.targets)
    draws = {
        "depth_frames_share": needs.loss.depth_frames_share,
        "depth_codebooks": needs.loss.depth_codebooks,
        "plan_tokens": needs.loss.plan_tokens if needs.loss.plan else 0,
    }
    pieces = needs.loss.pieces or enough_pieces(model.lm, frames=needs.data.batch_frames, **draws)
    precision = half_or_full(needs)
    lower = {"auto": precision == "bf16", "no": False, "bf16": True}[needs.frozen_precision]
    return Plan(
        model=model,
        trainable=[name for name in trainable if name not in wrapped],
        wrapped=wrapped,
        lora_rank=0 if lora is None else lora.rank,
        frames_per_batch=needs.data.batch_frames,
        max_frames=needs.data.longest_frames,
        batches_per_step=needs.batches_per_step,
        **draws,
        pieces=pieces,
        lower_frozen=lower,
        cached_pictures=needs.data.cached_pictures,
        recompute=needs.recompute_layers,
        precision=precision,
        tower_tokens=count_tower_tokens(model),
    )


def half_or_full(needs: TrainNeeds) -> Literal["bf16", "no"]:
    """What a GPU computes in: all that are worth an estimate have bfloat16."""
    return "no" if needs.precision == "no" else "bf16"


def reached_flops(options: EstimateOptions, needs: TrainNeeds) -> tuple[float | None, str]:
    """Operations a second of one process, and where that is known from."""
    peak = options.peak_tflops or needs.peak_tflops
    if peak is None and options.gpu is not None:
        peak = peak_tflops(options.gpu, precision=half_or_full(needs))
        if peak is None:
            raise ConfigError(f"--gpu {options.gpu!r}: its peak is not known here; give --peak-tflops")
    if options.run is None:
        return None if peak is None else options.mfu * peak * 1e12, f"{100 * options.mfu:.0f} % MFU (given)"
    measured = measured_speed(options.run)
    if "mfu" in measured and peak is not None:
        return measured["mfu"] * peak * 1e12, f"{100 * measured['mfu']:.1f} % MFU (measured in {options.run})"
    rate = measured["tflops_per_sec"]
    return rate * 1e12, f"{rate:.3g} TFLOP/s per process (measured in {options.run})"


def measured_speed(run: Path) -> dict[str, float]:
    """Medians of `mfu` and `tflops_per_sec` over the second half of a run's log, which leaves the start out."""
    log = run / "metrics.jsonl"
    if not log.is_file():
        raise ConfigError(f"{run}: no metrics.jsonl here; expected the directory of a training run")
    lines = []
    for line in log.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            continue  # cut off by a kill
    rows = [line for line in lines if line.get("kind") == "train" and "tflops_per_sec" in line]
    if not rows:
        raise ConfigError(f"{log}: no line says tflops_per_sec; expected the log of a run of this version")
    late = rows[len(rows) // 2 :]
    names = [name for name in ("mfu", "tflops_per_sec") if all(name in row for row in late)]
    return {name: median(row[name] for row in late) for name in names}


def _model_config(needs: TrainNeeds) -> ModelConfig:
    init = needs.init
    if init.model is not None:
        config = load_config(ModelConfig, find_file(init.model))
        if init.blind:
            config = config.model_copy(update={"vision": None, "lm": config.lm.model_copy(update={"fusion": None})})
        return config
    if init.checkpoint is None:
        raise ConfigError("init: neither model nor checkpoint is given; set init.model=configs/model/NAME.yaml")
    folder = Path(needs.root) / init.checkpoint
    folder = folder if (folder / CONFIG).is_file() else newest_checkpoint(folder) or folder
    if not (folder / CONFIG).is_file():
        raise ConfigError(f"{folder}: no checkpoint here yet; name its shapes with init.model=configs/model/NAME.yaml")
    return load_config(ModelConfig, folder / CONFIG)


def _memories(plan: Plan, gpus: int) -> dict[bool, dict[str, Memory]]:
    sizes = measure_sizes(plan)
    kept = {sharded: footprints(plan, sharded=sharded) for sharded in (False, True)}
    return {
        recompute: {
            sharing.name: process_memory(plan, sizes, sharing, kept[sharing.stage > 0][recompute], processes=gpus)
            for sharing in SHARINGS
        }
        for recompute in (plan.recompute, not plan.recompute)
    }


def _table(title: str, memories: dict[str, Memory], usable: float) -> Table:
    table = Table("part", *memories, title=title)
    for column in table.columns[1:]:
        column.justify = "right"
    parts = list(dict.fromkeys(part for memory in memories.values() for part in memory.gpu))
    for part in parts:
        values = [memory.gpu.get(part, 0.0) for memory in memories.values()]
        if any(values):
            table.add_row(part, *(f"{value / 1e9:.2f}" for value in values))
    table.add_section()
    table.add_row("total", *(f"{memory.total / 1e9:.2f}" for memory in memories.values()))
    table.add_row("fits", *("yes" if memory.total <= usable else "no" for memory in memories.values()))
    table.add_row("on the host", *(f"{memory.host / 1e9:.2f}" for memory in memories.values()))
    return table
