"""`python -m train.bench`: how fast training steps are, and what memory they take.

Whole steps of our recipe's own parts (loss, gradients, clipping, AdamW) on random calls and random weights. With
`--reference`, next to the model code that Kyutai's moshi-finetune trains (`pip install moshi`), in turns in the same
run, so that a busy machine slows both.
"""

import argparse
import gc
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from mmspeech.config import ConfigError, LMConfig, ModelConfig, load_config
from mmspeech.flops import peak_tflops
from mmspeech.lm.model import VisionSpeechModel
from mmspeech.lm.trainable import trainable_names
from mmspeech.types import Batch
from train.optim import build_optimizer, freeze_all_but
from train.parts import Objective, lower_frozen
from train.settings import LossConfig, OptimConfig

MODEL_7B = "configs/model/moshivis_7b.yaml"
VISUAL_TOKENS = {"7b": 1024, "small": 64}
LORA_ALPHA_PER_RANK = 2.0  # moshi-finetune's scaling
WARM_UP_STEPS = 2
SHORTEST_CALL = 0.2  # of the longest, where calls differ in length


@dataclass(frozen=True)
class Work:
    """What is trained, and on what. `rows` calls of `frames` frames; precision: bf16 or no (float32)."""

    shape: str
    rows: int
    frames: int
    device: torch.device
    precision: str
    recompute: bool = False
    compile: bool = False
    lora_rank: int = 16


@dataclass
class Side:
    """One way of training. `step()` takes one step on `frames` frames of calls; `flops`: what the step needs."""

    name: str
    step: Callable[[], object]
    frames: int
    flops: float
    held_bytes: Callable[[], int]


def model_config(shape: str, *, eyes: bool) -> ModelConfig:
    """`7b`: Kyutai's MoshiVis; `small`: a sixteenth as wide in the depth transformer, an eighth in the temporal one."""
    config = load_config(ModelConfig, MODEL_7B)
    lm, vision = config.lm, config.vision
    if shape == "small":
        temporal = {"dim": 512, "num_heads": 8, "num_layers": 6, "ffn_dim": 1408}
        depth = {"dim": 128, "num_heads": 4, "ffn_dim": 352, "norm": "rms"}
        lm = lm.model_copy(
            update={
                "text_card": 8000,
                "temporal": lm.temporal.model_copy(update=temporal),
                "depth": lm.depth.model_copy(update=depth),
            }
        )
        vision = vision.model_copy(update={"tower_dim": 128})
    if not eyes:
        lm, vision = lm.model_copy(update={"fusion": None}), None
    return config.model_copy(update={"lm": lm, "vision": vision})


def random_codes(lm: LMConfig, *, rows: int, frames: int, seed: int = 0) -> Tensor:
    """[B, 1 + 2K, T], two thirds of the text PAD, as in calls."""
    draw = torch.Generator().manual_seed(seed)
    text = torch.randint(lm.text_card, (rows, 1, frames), generator=draw)
    silent = torch.rand(text.shape, generator=draw) < 2 / 3
    audio = torch.randint(lm.audio_card, (rows, 2 * lm.num_codebooks, frames), generator=draw)
    return torch.cat([text.masked_fill(silent, lm.text_pad_id), audio], dim=1)


def random_batch(config: ModelConfig, work: Work) -> Batch:
    """Calls with one picture each, seen from the start, where the model has eyes; the tower's features are given."""
    codes = random_codes(config.lm, rows=work.rows, frames=work.frames).to(work.device)
    ones = torch.ones(work.rows, work.frames, device=work.device)
    batch = Batch(codes=codes, text_weight=ones, audio_weight=ones, seed=0)
    if config.vision is not None:
        size = (work.rows, VISUAL_TOKENS[work.shape], config.vision.feature_dim)
        batch.features = torch.randn(size, generator=torch.Generator().manual_seed(1)).to(work.device)
        batch.pixels = torch.zeros(work.rows, 3, 1, 1, device=work.device)
        batch.picture_rows = torch.arange(work.rows, device=work.device)
        batch.onset_frames = torch.zeros(work.rows, dtype=torch.long, device=work.device)
    return batch


def our_side(name: str, train: str, work: Work, loss: LossConfig) -> Side:
    """`train`: adapters (with a picture per call), or without eyes lora (matrices of the temporal layers) or all."""
    config = model_config(work.shape, eyes=train == "adapters")
    torch.manual_seed(0)
    lowered = work.precision == "bf16" and train != "all"
    before = torch.get_default_dtype()
    # Drawn where and as they stay: 7B weights in float32 would fill the device for nothing.
    torch.set_default_dtype(torch.bfloat16 if lowered else torch.float32)
    with work.device:
        model = VisionSpeechModel(config)
    torch.set_default_dtype(before)
    freeze_all_but(model, _learning(model, train, work.lora_rank))
    for parameter in model.parameters():
        if parameter.requires_grad or parameter.ndim < 2:
            parameter.data = parameter.data.float()
    if lowered:
        lower_frozen(model)
    objective = Objective(model, loss, batch_frames=work.rows * work.frames).to(work.device).train()
    optimizer = build_optimizer(model, OptimConfig())
    batch = random_batch(config, work)
    whole = objective.weights
    one = replace(work, rows=1)
    one_batch = random_batch(config, one)

    def learn(batch: Batch) -> None:
        with torch.autocast(work.device.type, torch.bfloat16, enabled=work.precision == "bf16"):
            out = objective(batch)
        out.loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        out.numbers()

    objective.weights = replace(whole, pieces=1)
    flops = work.rows * count_flops(lambda: learn(one_batch))
    objective.weights = whole
    transformer = model.lm.temporal.transformer
    transformer.recompute = work.recompute
    if work.compile:
        transformer.compile_layers()
    return Side(name, lambda: learn(batch), work.rows * work.frames, flops, lambda: held_bytes(model, optimizer))


def _learning(model: VisionSpeechModel, train: str, rank: int) -> list[str]:
    if train != "lora":
        return trainable_names(model, [train])
    from train.lora import add_lora
    from train.settings import LoraSettings

    settings = LoraSettings(rank=rank, alpha=LORA_ALPHA_PER_RANK * rank, targets=["lm.temporal.transformer.*"])
    return add_lora(model, settings, seed=0).trainable(model, [])


def count_flops(step: Callable[[], object]) -> float:
    """Operations of the matrix products and attention of one step, as torch counts them: two per multiply-add."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        step()
    return float(counter.get_total_flops())


def held_bytes(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Weights and optimiser state: what stays between steps."""
    tensors = [*model.parameters(), *(tensor for group in optimizer.param_groups for tensor in group["params"])]
    tensors += [value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]
    # Some are one memory under two names.
    sizes = {tensor.data_ptr(): tensor.numel() * tensor.element_size() for tensor in tensors}
    return sum(sizes.values())


def peak_bytes(side: Side, device: torch.device) -> int:
    """What stays between steps, and the most that one step takes beside it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        side.step()
        return side.held_bytes() + torch.cuda.max_memory_allocated(device) - before
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        side.step()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    taken = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        taken += event.nbytes()
        most = max(most, taken)
    return side.held_bytes() + most


def run_sides(sides: list[Side], *, steps: int, device: torch.device, precision: str) -> list[dict]:
    """Steps in turns; a result per side. CPU time is that of this process: it does not grow when others are busy."""
    wall: list[list[float]] = [[] for _ in sides]
    cpu: list[list[float]] = [[] for _ in sides]
    for turn in range(WARM_UP_STEPS + steps):
        for index, side in enumerate(sides):
            began, began_cpu = time.perf_counter(), time.process_time()
            side.step()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if turn >= WARM_UP_STEPS:
                wall[index].append(time.perf_counter() - began)
                cpu[index].append(time.process_time() - began_cpu)
    return [_result(side, *times, device, precision) for side, *times in zip(sides, wall, cpu, strict=True)]


def _result(side: Side, wall_sec: list[float], cpu_sec: list[float], device: torch.device, precision: str) -> dict:
    median = statistics.median(wall_sec)
    quantiles = statistics.quantiles(wall_sec, n=100, method="inclusive") if len(wall_sec) > 1 else wall_sec
    on_gpu = device.type == "cuda"
    peak = peak_tflops(torch.cuda.get_device_name(device), precision=precision) if on_gpu else None
    return {
        "name": side.name,
        "frames": side.frames,
        "step_sec": median,
        "step_sec_p99": quantiles[-1],
        "frames_per_sec": side.frames / median,
        "frames_per_cpu_sec": side.frames / statistics.median(cpu_sec),
        "tflops": side.flops / median / 1e12,
        "mfu": None if peak is None else side.flops / median / 1e12 / peak,
        "peak_gib": peak_bytes(side, device) / 2**30,
    }


def compare(work: Work, *, steps: int, share: float) -> list[dict]:
    """Rows of ours beside theirs: first the same work, then what each of our savings gives."""
    from train.bench_reference import reference_side

    same = LossConfig(text_pad=0.5, first_codebook=100.0)
    sampled = same.model_copy(update={"depth_frames_share": share})
    spread = [SHORTEST_CALL + (1 - SHORTEST_CALL) * (row + 0.5) / work.rows for row in range(work.rows)]
    lengths = [round(part * work.frames) for part in spread]
    even = replace(work, frames=round(sum(lengths) / work.rows))
    full = [work.frames] * work.rows
    rows = [
        ("the same work: all parameters", "all", work, same, "all", full),
        ("the same work: LoRA on the temporal layers", "lora", work, same, "temporal", full),
        ("vision adapters; theirs LoRA on all layers", "adapters", work, same, "lora", full),
        (f"... and a share of {share} of the depth frames", "adapters", work, sampled, "lora", full),
        ("... and calls of many lengths: ours by length, theirs padded", "adapters", even, sampled, "lora", lengths),
    ]
    results = []
    for title, train, own_work, loss, their_train, their_lengths in rows:
        sides = [our_side("ours", train, own_work, loss), reference_side(their_train, work, lengths=their_lengths)]
        ours, theirs = run_sides(sides, steps=steps, device=work.device, precision=work.precision)
        times = {f"times_{key}": ours[key] / theirs[key] for key in ("frames_per_sec", "frames_per_cpu_sec")}
        results.append({"row": title, "ours": ours, "theirs": theirs} | times)
        _print_row(results[-1])
        del sides
        gc.collect()
    return results


def _print_row(row: dict) -> None:
    wall, cpu = row["times_frames_per_sec"], row["times_frames_per_cpu_sec"]
    print(f"{row['row']}: {wall:.2f} times theirs ({cpu:.2f} by CPU time)")
    for side in (row["ours"], row["theirs"]):
        print("  " + _line(side), flush=True)


def _line(side: dict) -> str:
    mfu = "" if side["mfu"] is None else f"   MFU {100 * side['mfu']:.1f} %"
    return (
        f"{side['name']:<12} {side['frames_per_sec']:>9,.1f} frames/s   step {side['step_sec']:.3f} s "
        f"(p99 {side['step_sec_p99']:.3f})   {side['tflops']:.3f} TFLOP/s{mfu}   peak {side['peak_gib']:.2f} GiB"
    )


def main(argv: list[str] | None = None) -> int:
    """Exit status 0, or 2 after one line on what to mend."""
    parser = argparse.ArgumentParser(prog="python -m train.bench", description="Time training steps.")
    parser.add_argument("--shape", choices=("small", "7b"), default="small")
    parser.add_argument("--train", choices=("adapters", "lora", "all"), default="adapters")
    parser.add_argument("--reference", action="store_true", help="compare with moshi's own model (pip install moshi)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--precision", choices=("bf16", "no"), help="default: bf16 on a GPU, no on a CPU")
    parser.add_argument("--frames", type=int, default=1250, help="per call; 12.5 a second")
    parser.add_argument("--calls", type=int, default=2, help="calls in a batch")
    parser.add_argument("--steps", type=int, default=10, help="timed steps of each side")
    parser.add_argument("--share", type=float, default=0.25, help="loss.depth_frames_share, where it is used")
    parser.add_argument("--rank", type=int, help="of LoRA; default: a 32nd of the width, 128 for 7b")
    parser.add_argument("--recompute", action="store_true", help="recompute_layers (and gradient checkpointing there)")
    parser.add_argument("--compile", action="store_true", help="compile_layers")
    parser.add_argument("--threads", type=int, help="default: as torch finds")
    parser.add_argument("--out", type=Path, help="write the results as JSON")
    args = parser.parse_args(argv)
    try:
        result = _run(args)
    except (ConfigError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    if args.out is not None:
        args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0


def _run(args: argparse.Namespace) -> dict:
    there = torch.cuda.is_available()
    if args.device == "cuda" and not there:
        raise ConfigError("--device cuda: torch finds no GPU here; use --device cpu")
    device = torch.device("cpu" if args.device == "cpu" or not there else "cuda")
    rank = model_config(args.shape, eyes=False).lm.temporal.dim // 32 if args.rank is None else args.rank
    if min(args.frames, args.calls, args.steps, rank) < 1:
        raise ConfigError("--frames, --calls, --steps and --rank: expected whole numbers above 0")
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    torch.set_flush_denormal(True)
    precision = args.precision or ("no" if device.type == "cpu" else "bf16")
    work = Work(args.shape, args.calls, args.frames, device, precision, args.recompute, args.compile, rank)
    about = {
        "shape": args.shape, "device": _device_name(device), "threads": torch.get_num_threads(), "precision": precision,
        "calls": args.calls, "frames": args.frames, "recompute": args.recompute, "compile": args.compile,
        "lora_rank": rank, "steps": args.steps, "torch": torch.__version__,
    }  # fmt: skip
    print("  ".join(f"{key} {value}" for key, value in about.items()), flush=True)
    if args.reference:
        return about | {"rows": compare(work, steps=args.steps, share=args.share)}
    loss = LossConfig(first_codebook=100.0, depth_frames_share=args.share)
    side = our_side(args.train, args.train, work, loss)
    (result,) = run_sides([side], steps=args.steps, device=device, precision=precision)
    print(_line(result))
    return about | {"train": args.train, "share": args.share, "result": result}


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


if __name__ == "__main__":
    sys.exit(main())
