"""`mmspeech bench`: how long one frame of a call takes, and what it would take without streaming state.

The reference is a loop that keeps nothing between frames: for every frame it encodes, thinks through and decodes
the last `REFERENCE_FRAMES` frames again. Both are timed in turns in the same run, so that a busy machine slows both.
"""

import json
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from mmspeech.commands.common import check_output, followed, opened_model, whole_file
from mmspeech.frames import FRAME_RATE_HZ, FRAME_SAMPLES, frames_to_seconds
from mmspeech.nn.cuda_graph import Record
from mmspeech.serve.engine import CallBatch
from mmspeech.types import FrameOut

if TYPE_CHECKING:
    from mmspeech.checkpoint import Bundle

REFERENCE_FRAMES = 50
_WARM_UP_FRAMES = 10
_REFERENCE_EVERY = 10
PARTS = ("whole frame", "encode", "think", "decode")
BUDGET_MS = 1000 / FRAME_RATE_HZ


def run_bench(model: str | None, *, num_frames: int, out: Path | None, device: str, tensor_parallel: int) -> None:
    """Time `num_frames` frames of one call with a picture (where the model has eyes); print, and write JSON.

    With `tensor_parallel` > 1 the model is split over so many processes, and beside them stands the same model in one.
    """
    if followed(device=device, tensor_parallel=tensor_parallel):
        return
    if out is not None:
        check_output(out, (".json",))
    with opened_model(model, device=device, tensor_parallel=tensor_parallel) as bundle:
        if tensor_parallel > 1:
            result, times_sec = _bench_split(bundle, num_frames=num_frames, num_ranks=tensor_parallel)
        else:
            result, times_sec = {"reference_frames": REFERENCE_FRAMES}, time_frames(bundle, num_frames=num_frames)
    rows = {name: summarise(values) for name, values in times_sec.items()}
    threads = torch.get_num_threads()
    result = {
        "model": str(bundle.path), "device": device, "threads": threads, "frames": num_frames,
        "budget_ms": BUDGET_MS, **result, "ms": rows,
    }  # fmt: skip
    table = Table("ms per 80 ms frame", "p50", "p99")
    for name, row in rows.items():
        table.add_row(name, f"{row['p50']:.2f}", f"{row['p99']:.2f}")
    console = Console()
    console.print(f"{bundle.config.name} on {device}, {threads} threads, {num_frames} frames", highlight=False)
    console.print(table)
    if tensor_parallel > 1:
        equal = result["frames_equal"]
        console.print(f"{equal} of {num_frames} frames have one process's text and codes", highlight=False)
    if out is not None:
        with whole_file(out) as temporary:
            temporary.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def time_frames(bundle: "Bundle", *, num_frames: int) -> dict[str, list[float]]:
    """Seconds of every frame, for each part and for the whole, and of the reference (every tenth frame)."""
    calls = call_with_pictures(bundle)
    times: dict[str, list[float]] = {name: [] for name in (*PARTS, "reference")}
    for index, pcm in enumerate(sound(num_frames)):
        parts, _ = timed_frame(calls, pcm)
        if index < _WARM_UP_FRAMES:
            continue
        for name, value in parts.items():
            times[name].append(value)
        if index % _REFERENCE_EVERY == 0:
            times["reference"].append(_timed(lambda: _reference_frame(bundle, calls), calls.device)[1])
    label = f"whole frame without state ({frames_to_seconds(REFERENCE_FRAMES):.0f} s again each time)"
    times[label] = times.pop("reference")
    return times


def _bench_split(
    bundle: "Bundle", *, num_frames: int, num_ranks: int
) -> tuple[dict[str, object], dict[str, list[float]]]:
    """What the result says of the ranks, and the times of the same call split and in one process."""
    from mmspeech.checkpoint import load_model

    alone = load_model(bundle.path, device=next(bundle.model.parameters()).device)
    names = {f"{num_ranks} processes": bundle, "one process": alone}
    times, frames_equal = time_beside(names, num_frames=num_frames)
    return {"tensor_parallel": num_ranks, "frames_equal": frames_equal}, times


def time_beside(bundles: "dict[str, Bundle]", *, num_frames: int) -> tuple[dict[str, list[float]], int]:
    """The same call through several bundles, frame by frame in turns: seconds of every frame, for each part of each
    bundle, and how many frames came out with the same text and codes everywhere."""
    calls = {name: call_with_pictures(bundle) for name, bundle in bundles.items()}
    times: dict[str, list[float]] = {f"{part}, {name}": [] for part in PARTS for name in calls}
    frames_equal = 0
    for index, pcm in enumerate(sound(num_frames)):
        outs = []
        for name, call in calls.items():
            parts, out = timed_frame(call, pcm)
            outs.append(out)
            if index >= _WARM_UP_FRAMES:
                for part, value in parts.items():
                    times[f"{part}, {name}"].append(value)
        frames_equal += index >= _WARM_UP_FRAMES and all(_same_frame(outs[0], out) for out in outs)
    return times, frames_equal


def _same_frame(one: FrameOut | None, other: FrameOut | None) -> bool:
    if one is None or other is None:
        return one is other
    return torch.equal(one.text_ids, other.text_ids) and torch.equal(one.codes, other.codes)


def call_with_pictures(bundle: "Bundle", size: int = 1, *, record: Record | None = None) -> CallBatch:
    """So many calls at their beginning, each with a picture where the model has eyes."""
    calls = CallBatch(bundle, batch_size=size, record=record)
    if bundle.config.vision is not None:
        from PIL import Image

        side_px = bundle.config.vision.image_size_px
        calls.see([Image.new("RGB", (side_px, side_px), (90, 120, 200))] * size)
    return calls


def sound(num_frames: int, size: int = 1) -> Iterable[Tensor]:
    """Frames [size, 1920] of noise, the first of them to warm up."""
    noise = 0.05 * torch.randn(
        _WARM_UP_FRAMES + num_frames, size, FRAME_SAMPLES, generator=torch.Generator().manual_seed(0)
    )
    return track(noise, description="timing", console=Console(stderr=True), transient=True)


def timed_frame(calls: CallBatch, pcm: Tensor) -> tuple[dict[str, float], FrameOut | None]:
    """One frame of a call: seconds of the whole and of each part, and what the model gave."""
    codes, encode_sec = _timed(lambda: calls.listen(pcm), calls.device)
    out, think_sec = _timed(lambda: calls.think(codes), calls.device)
    _, decode_sec = _timed(lambda: calls.speak(out, calls.batch_size), calls.device)
    values = (encode_sec + think_sec + decode_sec, encode_sec, think_sec, decode_sec)
    return dict(zip(PARTS, values, strict=True)), out


@torch.no_grad()
def _reference_frame(bundle: "Bundle", calls: CallBatch) -> Tensor:
    """One frame the stateless way: the last frames of the call, all again."""
    lm = bundle.model.lm
    user = bundle.codec.encode(torch.zeros(1, 1, REFERENCE_FRAMES * FRAME_SAMPLES, device=calls.device))
    own = torch.zeros_like(user)
    text = torch.full_like(user[:, :1], bundle.config.lm.text_pad_id)
    hidden = lm(torch.cat([text, own, user], dim=1), visual=calls.generator.visual).hidden[:, -1:]
    lm.depth_logits(hidden, text[:, 0, -1:], own[:, :, -1:])
    return bundle.codec.decode(own)


def _timed(call: Callable, device: torch.device) -> tuple[object, float]:
    began = time.perf_counter()
    result = call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return result, time.perf_counter() - began


def summarise(values_sec: list[float]) -> dict[str, float]:
    """Median and 99th percentile in milliseconds."""
    p50, p99 = np.percentile(np.asarray(values_sec) * 1000, (50, 99))
    return {"p50": round(float(p50), 3), "p99": round(float(p99), 3)}
