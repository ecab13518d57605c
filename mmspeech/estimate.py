"""What a training run would need: memory per process under every way to share it, and time."""

from collections.abc import Collection
from dataclasses import dataclass, field, replace
from math import ceil, prod

import torch
from torch import nn

from mmspeech.audio.codec import build_codec
from mmspeech.config import ModelConfig
from mmspeech.flops import ModelFlops, Work
from mmspeech.footprint import Footprint, Numbers, measure_step
from mmspeech.lm.model import VisionSpeechModel
from mmspeech.vision.encoder import build_tower

FULL, HALF = 4, 2
RESERVE = 0.06  # of a GPU's memory: what the driver holds and what the allocator cannot fill
LEAST_FRAMES = 512
SECONDS_PER_DAY = 86_400


@dataclass(frozen=True)
class Sharing:
    """One way to hold a model on several processes: DDP (stage 0) or a ZeRO stage; what lies on the host instead.
    `gathered`: numbers of split weights that a process holds whole at a time; `bucket`: of gradients on their way."""

    name: str
    stage: int
    offload_optimizer: bool = False
    offload_weights: bool = False
    gathered: int = 1_000_000_000
    bucket: int = 50_000_000


SHARINGS = (
    Sharing("ddp", 0),
    Sharing("zero1", 1),
    Sharing("zero2", 2),
    Sharing("zero2_offload", 2, offload_optimizer=True),
    Sharing("zero3", 3),
    Sharing("zero3_offload", 3, offload_optimizer=True, offload_weights=True),
)


@dataclass(frozen=True)
class Plan:
    """The run to estimate. `frames_per_batch` are rows x frames per row; `trainable`: names of parameters;
    `wrapped`: matrices that learn through LoRA pairs of rank `lora_rank` (0: none do); `plan_tokens`: see
    mmspeech.lm.plan (0: no such loss); `lower_frozen`: what does not
    train is held in bfloat16 where DeepSpeed does not decide."""

    model: ModelConfig
    trainable: Collection[str]
    wrapped: Collection[str]
    lora_rank: int
    frames_per_batch: int
    max_frames: int
    batches_per_step: int
    depth_frames_share: float
    depth_codebooks: int | None
    plan_tokens: int
    pieces: int
    lower_frozen: bool
    cached_pictures: int
    recompute: bool
    precision: str
    tower_tokens: int


@dataclass(frozen=True)
class Sizes:
    """Numbers (not bytes) in the model's parts; `frozen_parts`: codec and tower, whole on every process."""

    weights: int
    trained: int
    frozen_parts: int


@dataclass
class Memory:
    """Bytes of one process, by part, on its GPU and on the host."""

    gpu: dict[str, float] = field(default_factory=dict)
    host: float = 0.0

    @property
    def total(self) -> float:
        return sum(self.gpu.values())


def empty_model(config: ModelConfig) -> VisionSpeechModel:
    """The model without memory, for its names and shapes."""
    with torch.device("meta"):
        return VisionSpeechModel(config)


def count_tower_tokens(config: ModelConfig) -> int:
    """Tokens the tower makes of one picture; 0 for a model without eyes. The tower runs without memory."""
    if config.vision is None:
        return 0
    side = config.vision.image_size_px
    with torch.device("meta"), torch.no_grad():
        features, _ = build_tower(config.vision, pretrained=False)(torch.zeros(1, 3, side, side))
    return features.shape[1]


def shapes_and_pairs(plan: Plan) -> tuple[dict[str, tuple[int, ...]], dict[str, tuple[int, ...]]]:
    """Shapes of the model's parameters, and of the LoRA pairs beside the wrapped ones, by name."""
    shapes = {name: tuple(value.shape) for name, value in empty_model(plan.model).named_parameters()}
    pairs = {}
    for name in plan.wrapped:
        place, (*steps, out_dim, in_dim) = name.removesuffix("weight"), shapes[name]
        pairs[f"{place}lora_A.weight"] = (*steps, plan.lora_rank, in_dim)
        pairs[f"{place}lora_B.weight"] = (*steps, out_dim, plan.lora_rank)
    return shapes, pairs


def measure_sizes(plan: Plan) -> Sizes:
    """Parameters of every part, with what only training has: LoRA's pairs, and what reads the coming words."""
    shapes, pairs = shapes_and_pairs(plan)
    beside = sum(map(prod, pairs.values())) + plan.plan_tokens * plan.model.lm.temporal.dim**2
    with torch.device("meta"):
        parts: list[nn.Module] = [build_codec(plan.model.codec)]
        if plan.model.vision is not None:
            parts.append(build_tower(plan.model.vision, pretrained=False))
    frozen = sum(value.numel() for part in parts for value in part.parameters())
    return Sizes(
        sum(map(prod, shapes.values())) + beside, sum(prod(shapes[name]) for name in plan.trainable) + beside, frozen
    )


def batch_work(plan: Plan) -> Work:
    """The largest batch: calls of the greatest length, every frame one that the depth transformer may draw."""
    steps = min(plan.max_frames, plan.frames_per_batch)
    rows = max(1, plan.frames_per_batch // steps)
    projector = empty_model(plan.model).projector
    tokens = 0 if projector is None else projector.count(plan.tower_tokens)
    return Work(rows, steps, tokens, rows * steps * plan.depth_frames_share)


def step_flops(plan: Plan) -> float:
    """Operations of one step: all of its batches, on all processes."""
    shapes, pairs = shapes_and_pairs(plan)
    work = batch_work(plan)
    if plan.depth_codebooks is not None:
        share = plan.depth_codebooks / plan.model.lm.num_codebooks
        work = replace(work, depth_frames=work.depth_frames * share)
    return plan.batches_per_step * ModelFlops(plan.model.lm, shapes | pairs, {*plan.trainable, *pairs}).total(work)


def footprints(plan: Plan, *, sharded: bool) -> dict[bool, Footprint]:
    """Activations without and with recomputed layers. `sharded`: as DeepSpeed holds the weights."""
    half = plan.precision == "bf16"
    held = torch.bfloat16 if half and sharded else torch.float32
    frozen = torch.bfloat16 if plan.lower_frozen and not sharded else held
    numbers = Numbers(frozen, held, autocast=half and not sharded)
    work = batch_work(plan)
    return {
        recompute: measure_step(
            plan.model,
            trainable=set(plan.trainable),
            work=work,
            numbers=numbers,
            recompute=recompute,
            wrapped=set(plan.wrapped),
            pieces=plan.pieces,
            depth_codebooks=plan.depth_codebooks,
            plan_tokens=plan.plan_tokens,
        )
        for recompute in (False, True)
    }


def process_memory(plan: Plan, sizes: Sizes, sharing: Sharing, footprint: Footprint, *, processes: int) -> Memory:
    """What one of `processes` holds at the worst moment of a step."""
    size = HALF if sharing.stage and plan.precision == "bf16" else FULL
    frozen_size = HALF if sharing.stage == 0 and plan.lower_frozen else size
    weights = sizes.trained * size + (sizes.weights - sizes.trained) * frozen_size
    gradients = sizes.trained * size
    states = 2 * FULL * sizes.trained
    if sharing.stage:
        # Full-precision weights of what trains, and their gradients while the optimiser steps.
        states = (states + (FULL * sizes.trained if size == HALF else 0) + FULL * sizes.trained) / processes
        if sharing.stage >= 2:
            gradients = gradients / processes + min(sharing.bucket * size, gradients)
    elif processes > 1:
        gradients *= 2  # DDP's buckets
    memory = Memory()
    if sharing.stage == 3:
        memory.gpu["gathered weights"] = min(sharing.gathered * size, weights * (1 - 1 / processes))
        weights /= processes
    for name, value, away in (
        ("weights", weights, sharing.offload_weights),
        ("optimiser", states, sharing.offload_optimizer),
    ):
        memory.gpu[name] = 0.0 if away else value
        memory.host += value if away else 0.0
    memory.gpu |= {
        "weight copies": footprint.weight_copies,
        "gradients": gradients,
        "activations": footprint.projector + footprint.temporal,
        "text logits": footprint.text_logits,
        "depth": footprint.depth,
        "backward workspace": footprint.workspace,
        "codec and tower": FULL * sizes.frozen_parts,
        "picture cache": cache_bytes(plan),
    }
    return memory


def cache_bytes(plan: Plan) -> int:
    """What remembered pictures take when the cache is full."""
    return (
        0
        if plan.model.vision is None
        else (FULL * plan.cached_pictures * plan.tower_tokens * plan.model.vision.feature_dim)
    )


@dataclass(frozen=True)
class Speed:
    """Seconds of a step and what that gives, on all processes together."""

    step_sec: float
    frames_per_sec: float
    steps_per_day: float


def speed(plan: Plan, *, flops_per_sec: float) -> Speed:
    """`flops_per_sec`: what all processes together reach."""
    work = batch_work(plan)
    step_sec = step_flops(plan) / flops_per_sec
    return Speed(step_sec, work.rows * work.steps * plan.batches_per_step / step_sec, SECONDS_PER_DAY / step_sec)


def warnings(plan: Plan, *, processes: int, totals: dict[str, float], usable: float) -> list[str]:
    """What would go wrong or be slow, with what to change. `totals`: bytes of a process by sharing."""
    work, found = batch_work(plan), []
    if plan.batches_per_step % processes:
        better = ceil(plan.batches_per_step / processes) * processes
        found.append(
            f"batches_per_step {plan.batches_per_step} cannot be shared by {processes} GPUs; "
            f"set batches_per_step={better}"
        )
    fitting = [name for name, total in totals.items() if total <= usable]
    if not fitting:
        found.append(
            f"fits in no way: the least is {min(totals.values()) / 1e9:.1f} GB, {usable / 1e9:.1f} GB can be used; "
            "set recompute_layers=true, lower data.batch_frames or loss.depth_frames_share, or take more GPUs"
        )
    elif len(fitting) < len(totals):
        found.append(f"does not fit as {', '.join(name for name in totals if name not in fitting)}; take {fitting[0]}")
    if work.rows * work.steps < LEAST_FRAMES:
        found.append(
            f"a batch has {work.rows * work.steps} frames: below {LEAST_FRAMES} a GPU waits for its memory; "
            "raise data.batch_frames"
        )
    if plan.max_frames > plan.frames_per_batch:
        found.append(f"data.max_frames {plan.max_frames} is more than data.batch_frames {plan.frames_per_batch}")
    if cache_bytes(plan) > 0.05 * usable:
        found.append(
            f"{plan.cached_pictures} remembered pictures take {cache_bytes(plan) / 1e9:.1f} GB when all are there; "
            "lower data.cached_pictures"
        )
    return found
