"""`mmspeech bench --long`: a call of an hour with new pictures all the time. Does it stay as fast and as small?

The call runs as fast as it can. Of every minute of it the step times are kept, and what is held at its end: the bytes
of what the call remembers between steps, and the memory of the whole process.
"""

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from mmspeech.commands.common import check_output, followed, opened_model, whole_file
from mmspeech.config import ConfigError
from mmspeech.frames import FRAME_SAMPLES, frames_to_seconds
from mmspeech.serve.engine import CallBatch

if TYPE_CHECKING:
    from PIL.Image import Image

    from mmspeech.checkpoint import Bundle

MINUTE_STEPS = 750
_SOUND_STEPS = 125  # of noise, over and over: an hour of it would be most of what is held
_PICTURES = 16


@dataclass
class Minute:
    """One minute of the call: its number from 1, step times, and what is held at its end (rss: of this process)."""

    minute: int
    step_ms_p50: float
    step_ms_p99: float
    state_bytes: int
    rss_bytes: int
    cuda_peak_bytes: int


def run_bench_long(
    model: str | None, *, minutes: int, fps: float, out: Path | None, device: str, tensor_parallel: int
) -> None:
    """A call of so many minutes that is shown `fps` pictures a second; print, and write JSON."""
    if followed(device=device, tensor_parallel=tensor_parallel):
        return
    if out is not None:
        check_output(out, (".json",))
    with opened_model(model, device=device, tensor_parallel=tensor_parallel) as bundle:
        if bundle.config.vision is None:
            raise ConfigError(f"{bundle.path}: this model cannot see; --long shows pictures all the time")
        calls = CallBatch(bundle)
        began = time.perf_counter()
        found = live_through(calls, minutes=minutes, fps=fps)
        took_sec = time.perf_counter() - began
    call_sec = frames_to_seconds(minutes * MINUTE_STEPS)
    result = {
        "model": str(bundle.path), "device": device, "threads": torch.get_num_threads(),
        "tensor_parallel": tensor_parallel, "minutes": minutes, "fps": fps,
        "faster_than_real_time": round(call_sec / took_sec, 2), "pictures": asdict(calls.frame_counts[0]),
        **changes(found), "per_minute": [asdict(minute) for minute in found],
    }  # fmt: skip
    _tell(bundle, result, found)
    if out is not None:
        with whole_file(out) as temporary:
            temporary.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def live_through(calls: CallBatch, *, minutes: int, fps: float) -> list[Minute]:
    """Step through the call, with a new picture every 1 / fps seconds."""
    sound = 0.05 * torch.randn(_SOUND_STEPS, 1, FRAME_SAMPLES, generator=torch.Generator().manual_seed(0))
    pictures = _pictures(calls.bundle.config.vision.image_size_px)
    shown, found = 0, []
    took_ms = np.zeros(MINUTE_STEPS)
    for minute in track(range(minutes), description="minutes", console=Console(stderr=True), transient=True):
        for index in range(MINUTE_STEPS):
            step = minute * MINUTE_STEPS + index
            began = time.perf_counter()
            if shown / fps <= frames_to_seconds(step):
                calls.show(pictures[shown % _PICTURES], 0)
                shown += 1
            calls.step(sound[step % _SOUND_STEPS])
            took_ms[index] = 1000 * (time.perf_counter() - began)
        p50, p99 = np.percentile(took_ms, (50, 99))
        found.append(Minute(minute + 1, round(p50, 3), round(p99, 3), *_held(calls)))
    return found


def changes(found: list[Minute]) -> dict[str, float]:
    """From the end of the first minute, and in speed from the second minute, to the last."""
    first, second, last = found[0], found[1], found[-1]
    return {
        "state_growth_bytes": max(minute.state_bytes for minute in found[1:]) - first.state_bytes,
        "rss_growth_percent": round(100 * (last.rss_bytes / first.rss_bytes - 1), 3),
        "step_growth_percent": round(100 * (last.step_ms_p50 / second.step_ms_p50 - 1), 2),
    }


def _held(calls: CallBatch) -> tuple[int, int, int]:
    """Bytes of the call's state, of this process, and the most that was taken on the GPU."""
    state = sum(tensor.nbytes for tensor in calls.state_tensors())
    peak = torch.cuda.max_memory_allocated(calls.device) if calls.device.type == "cuda" else 0
    return state, _rss_bytes(), peak


def _rss_bytes() -> int:
    import resource
    import sys

    status = Path("/proc/self/statm")
    if status.is_file():
        return int(status.read_text(encoding="ascii").split()[1]) * resource.getpagesize()
    # Elsewhere the most it ever was; macOS counts bytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _pictures(size_px: int) -> "list[Image]":
    from PIL import Image

    draw = np.random.default_rng(0)
    return [Image.fromarray(draw.integers(0, 256, (size_px, size_px, 3), dtype=np.uint8)) for _ in range(_PICTURES)]


def _tell(bundle: "Bundle", result: dict, found: list[Minute]) -> None:
    table = Table("minute", "p50 ms", "p99 ms", "state, bytes", "process, MB")
    for number in sorted({0, 1, len(found) // 2, len(found) - 1}):
        minute = found[number]
        times = f"{minute.step_ms_p50:.2f}", f"{minute.step_ms_p99:.2f}"
        table.add_row(str(minute.minute), *times, f"{minute.state_bytes:,}", f"{minute.rss_bytes / 1e6:,.1f}")
    console = Console()
    console.print(
        f"{bundle.config.name} on {result['device']}: {result['minutes']} minutes with {result['fps']:g} pictures a "
        f"second, {result['faster_than_real_time']:g} times faster than real time",
        highlight=False, soft_wrap=True,
    )  # fmt: skip
    console.print(table)
    console.print(
        f"since the first minute: state {result['state_growth_bytes']:+,} bytes, process "
        f"{result['rss_growth_percent']:+.2f} %; a step, since the second: {result['step_growth_percent']:+.1f} %",
        highlight=False, soft_wrap=True,
    )  # fmt: skip
