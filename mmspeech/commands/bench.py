"""`mmspeech bench`: how long one frame of a call takes, and what it would take without streaming state.

The reference is a loop that keeps nothing between frames: for every frame it encodes, thinks through and decodes
the last `REFERENCE_FRAMES` frames again. Both are timed in turns in the same run, so that a busy machine slows both.
"""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from mmspeech.commands.common import check_device, check_output, whole_file
from mmspeech.frames import FRAME_RATE_HZ, FRAME_SAMPLES, frames_to_seconds
from mmspeech.serve.engine import CallBatch, settle_threads

if TYPE_CHECKING:
    from mmspeech.checkpoint import Bundle

REFERENCE_FRAMES = 50
_WARM_UP_FRAMES = 10
_REFERENCE_EVERY = 10
BUDGET_MS = 1000 / FRAME_RATE_HZ


def run_bench(model: str | None, *, num_frames: int, out: Path | None, device: str) -> None:
    """Time `num_frames` frames of one call with a picture (where the model has eyes); print, and write JSON."""
    from mmspeech.checkpoint import load_model

    if out is not None:
        check_output(out, (".json",))
    bundle = load_model(model, device=check_device(device))
    settle_threads(bundle.model)
    times_sec = time_frames(bundle, num_frames=num_frames)
    rows = {name: summarise(values) for name, values in times_sec.items()}
    threads = torch.get_num_threads()
    result = {
        "model": str(bundle.path), "device": device, "threads": threads, "frames": num_frames,
        "budget_ms": BUDGET_MS, "reference_frames": REFERENCE_FRAMES, "ms": rows,
    }  # fmt: skip
    table = Table("ms per 80 ms frame", "p50", "p99")
    for name, row in rows.items():
        table.add_row(name, f"{row['p50']:.2f}", f"{row['p99']:.2f}")
    console = Console()
    console.print(f"{bundle.config.name} on {device}, {threads} threads, {num_frames} frames", highlight=False)
    console.print(table)
    if out is not None:
        with whole_file(out) as temporary:
            temporary.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def time_frames(bundle: "Bundle", *, num_frames: int) -> dict[str, list[float]]:
    """Seconds of every frame, for each part and for the whole, and of the reference (every tenth frame)."""
    calls = CallBatch(bundle)
    if bundle.config.vision is not None:
        from PIL import Image

        size = (bundle.config.vision.image_size_px,) * 2
        calls.see([Image.new("RGB", size, (90, 120, 200))])
    sound = 0.05 * torch.randn(
        _WARM_UP_FRAMES + num_frames, 1, FRAME_SAMPLES, generator=torch.Generator().manual_seed(0)
    )
    times: dict[str, list[float]] = {name: [] for name in ("whole frame", "encode", "think", "decode", "reference")}
    for index, pcm in enumerate(track(sound, description="timing", console=Console(stderr=True), transient=True)):
        codes, encode_sec = _timed(lambda pcm=pcm: calls.listen(pcm), calls.device)
        out, think_sec = _timed(lambda codes=codes: calls.think(codes), calls.device)
        _, decode_sec = _timed(lambda out=out: calls.speak(out), calls.device)
        if index < _WARM_UP_FRAMES:
            continue
        parts = {"encode": encode_sec, "think": think_sec, "decode": decode_sec}
        for name, value in {**parts, "whole frame": sum(parts.values())}.items():
            times[name].append(value)
        if index % _REFERENCE_EVERY == 0:
            times["reference"].append(_timed(lambda: _reference_frame(bundle, calls), calls.device)[1])
    label = f"whole frame without state ({frames_to_seconds(REFERENCE_FRAMES):.0f} s again each time)"
    times[label] = times.pop("reference")
    return times


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
