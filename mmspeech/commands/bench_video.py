"""`mmspeech bench --video`: how fast frames of a clip are decoded, beside PyAV reading the same file in the same run.

Each reads in a process of its own, so that its peak memory is its own; they take turns, so that a busy machine slows
both. Heavy modules are imported in functions: the reading processes must not carry them.
"""

import json
import math
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL.Image import Image

_READERS = ("mmspeech", "pyav")


def run_bench_video(video: Path, *, fps: float, out: Path | None) -> None:
    """Decode `fps` pictures per second of the whole clip with each reader; print, and write JSON."""
    from rich.console import Console
    from rich.table import Table

    from mmspeech.commands.common import check_output, whole_file
    from mmspeech.vision.video import Video

    if out is not None:
        check_output(out, (".json",))
    duration_sec = Video(video).duration_sec
    console = Console()
    table = Table(f"{fps:g} frames per second of {duration_sec:.0f} s", "x real time", "x by CPU time", "peak MB")
    rows = {}
    for name in _READERS:
        with Console(stderr=True).status(f"decoding with {name}"):
            rows[name] = row = _measure(name, video, fps)
        if "error" in row:
            table.add_row(name, row["error"], "", "")
            continue
        row |= {kind: round(duration_sec / row[f"{kind}_sec"], 2) for kind in ("wall", "cpu")}
        table.add_row(name, f"{row['wall']:.1f}", f"{row['cpu']:.1f}", f"{row['peak_mb']:.0f}")
    console.print(table)
    if out is not None:
        with whole_file(out) as temporary:
            result = {"video": str(video), "duration_sec": duration_sec, "fps": fps, "readers": rows}
            temporary.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def _measure(name: str, video: Path, fps: float) -> dict[str, Any]:
    code = "from mmspeech.commands.bench_video import read_alone; read_alone()"
    done = subprocess.run(
        [sys.executable, "-c", code, name, str(video), str(fps)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        return {"error": (done.stderr.strip().splitlines() or ["it ended without a word"])[-1]}
    return json.loads(done.stdout)


def read_alone() -> None:
    """What a reading process does: decode, and print its numbers as JSON."""
    name, video, fps = sys.argv[1], Path(sys.argv[2]), float(sys.argv[3])
    began = time.perf_counter()
    num_frames = sum(1 for _ in (_with_pyav(video, fps) if name == "pyav" else _with_mmspeech(video, fps)))
    used = resource.getrusage(resource.RUSAGE_SELF)
    numbers = {
        "frames": num_frames, "wall_sec": time.perf_counter() - began, "cpu_sec": used.ru_utime + used.ru_stime,
        "peak_mb": peak_bytes() / 1e6,
    }  # fmt: skip
    print(json.dumps(numbers))


def peak_bytes() -> int:
    """The most memory this process has held."""
    status = Path("/proc/self/status")
    if status.exists():  # what getrusage says here began with the parent's, before exec
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _with_mmspeech(video: Path, fps: float) -> Iterator["Image"]:
    from mmspeech.vision.video import Video

    return (frame.picture for frame in Video(video).sample(fps))


def _with_pyav(video: Path, fps: float) -> Iterator["Image"]:
    """The newest picture at 0, 1 / fps ... : every frame decoded, those in use turned into RGB."""
    import av

    with av.open(str(video)) as container:
        stream = container.streams.video[0]
        start, index, newest = None, 0, None
        for frame in container.decode(stream):
            start = frame.time if start is None else start
            while newest is not None and frame.time - start > index / fps + 1e-6:
                yield newest.to_image()
                index += 1
            newest = frame
        last_sec = newest.time - start + float(1 / (stream.average_rate or 25))
        for _ in range(index, math.ceil(round(last_sec * fps, 4))):
            yield newest.to_image()
