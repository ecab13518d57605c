"""`mmspeech bench --calls N`: a real server in a process of its own, and N callers at the pace of speech over sockets.

Each caller talks in frames of 80 ms that begin at a time of its own, is shown a picture and then another one, and notes
when every frame of the reply comes. Mouth to ear is what a caller waits from when a sound is made until what the model
says in answer to it is there: the frame has to be spoken (80 ms), the server answers (measured), and the model's sound
comes a frame later than its text (the delay of its streams) and the codec's own delay after that.
"""

import asyncio
import contextlib
import io
import json
import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from mmspeech.commands.common import check_output, whole_file
from mmspeech.config import ConfigError
from mmspeech.frames import FRAME_RATE_HZ, FRAME_SAMPLES
from mmspeech.serve.protocol import Kind, pack

FRAME_SEC = 1 / FRAME_RATE_HZ
START_SEC = 60.0
WARM_UP_FRAMES = 25
_COUNTED = ("starved_frames_total", "skipped_frames_total", "memory_bytes")
KEPT_SHARE = 0.99  # of the frames must be answered within a frame's time for a number of calls to be held


@dataclass
class Caller:
    """What one caller noted: seconds from each frame's end to its reply, and what went wrong."""

    reply_sec: list[float] = field(default_factory=list)
    sent: int = 0
    problems: list[str] = field(default_factory=list)


def run_bench_calls(model: str | None, *, calls: int, seconds: float, find_max: bool, out: Path | None) -> None:
    """Print a table of tick and reply times for `calls` callers; or (`find_max`) for more and more of them until they
    are too many, all in one process, and then again with a process for each call. Writes JSON."""
    if out is not None:
        check_output(out, (".json",))
    console = Console()
    if find_max:
        together, apart = (_find_max(model, seconds, alone=alone, console=console) for alone in (False, True))
        rows = [*together, *apart]
        held = [max((row["calls"] for row in found if row["held"]), default=0) for found in (together, apart)]
        within = f"{KEPT_SHARE:.0%} of the steps within {1000 * FRAME_SEC:.0f} ms"
        console.print(
            f"one process holds {held[0]} calls, a process for each call {held[1]}; {within}", highlight=False
        )
    else:
        rows = [asyncio.run(_measure(model, calls, seconds, processes=1))]
    console.print(_table(rows))
    if out is not None:
        with whole_file(out) as temporary:
            how = {"seconds": seconds, "cpus": os.cpu_count(), "transport": "websocket on loopback, 16-bit samples"}
            temporary.write_text(json.dumps({"how": how, "rows": rows}, indent=1) + "\n", encoding="utf-8")


def _find_max(model: str | None, seconds: float, *, alone: bool, console: Console) -> list[dict[str, Any]]:
    """What was measured for one call, two calls ... up to the first number that is too many."""
    rows: list[dict[str, Any]] = []
    while not rows or rows[-1]["held"]:
        count = len(rows) + 1
        rows.append(asyncio.run(_measure(model, count, seconds, processes=count if alone else 1)))
        console.print(_line(rows[-1]), highlight=False)
    return rows


async def _measure(model: str | None, count: int, seconds: float, *, processes: int) -> dict[str, Any]:
    """`count` callers of so many servers, which share them equally."""
    import aiohttp

    with contextlib.ExitStack() as servers:
        started = [servers.enter_context(_server(model, count // processes)) for _ in range(processes)]
        callers = [Caller() for _ in range(count)]
        async with aiohttp.ClientSession() as http:
            await asyncio.gather(*(_until_ready(http, address, process) for address, process in started))
            frames = int(seconds * FRAME_RATE_HZ)
            lines = (_call(http, started[k % processes][0], caller, k, frames) for k, caller in enumerate(callers))
            await asyncio.gather(*lines)
            await asyncio.sleep(0.5)  # for the calls to end
            told = [await _told(http, address) for address, _ in started]
    reply_ms = 1000 * np.array([value for caller in callers for value in caller.reply_sec])
    if not len(reply_ms):
        raise ConfigError(f"nobody was answered: {callers[0].problems[:1]}")
    steps_sec = {name: max(state["step_sec"][name] for state, _ in told) for name in told[0][0]["step_sec"]}
    ticks = {f"p{float(name) * 100:g}": round(1000 * value, 1) for name, value in steps_sec.items()}
    counted = {name: sum(counters.get(f"mmspeech_{name}", 0.0) for _, counters in told) for name in _COUNTED}
    answered = len(reply_ms) / sum(caller.sent - WARM_UP_FRAMES for caller in callers)
    return {
        "calls": count,
        "processes": processes,
        "tick_ms": ticks,
        "reply_ms": _percentiles(reply_ms),
        "mouth_to_ear_ms": _percentiles(reply_ms + 1000 * (FRAME_SEC + told[0][0]["delay_sec"])),
        "answered": round(answered, 4),
        "starved": counted["starved_frames_total"],
        "skipped": counted["skipped_frames_total"],
        "memory_mb": round(counted["memory_bytes"] / 1e6, 1),
        "held": bool(ticks["p99"] <= 1000 * FRAME_SEC and answered >= KEPT_SHARE),
        "problems": sorted({problem for caller in callers for problem in caller.problems}),
    }


async def _told(http, address: str) -> tuple[dict[str, Any], dict[str, float]]:
    """What a server says of itself: its state and its counters."""
    async with http.get(f"{address}/ready") as response:
        state = await response.json()
    async with http.get(f"{address}/metrics") as response:
        return state, _counters(await response.text())


async def _call(http, address: str, caller: Caller, number: int, frames: int) -> None:
    """One caller; when its frame k is spoken, the k-th reply is waited for elsewhere."""
    rng = random.Random(number)
    await asyncio.sleep(rng.random())
    async with http.ws_connect(f"{address}/api/chat?audio=pcm16&seed={number}") as line:
        await line.send_bytes(pack(Kind.IMAGE, _picture(rng)))
        while (await line.receive()).data[:1] != bytes([Kind.HANDSHAKE]):
            pass
        ends: list[float] = []
        reader = asyncio.create_task(_listen(line, caller, ends))
        sound = np.random.default_rng(number).normal(0, 600, (16, FRAME_SAMPLES)).astype("<i2")
        began = time.monotonic()
        for frame in range(frames):
            await asyncio.sleep(max(0.0, began + (frame + 1) * FRAME_SEC - time.monotonic()))
            ends.append(time.monotonic())
            await line.send_bytes(pack(Kind.AUDIO, sound[frame % 16].tobytes()))
            caller.sent += 1
            if frame == frames // 2:
                await line.send_bytes(pack(Kind.IMAGE, _picture(rng)))
        await asyncio.sleep(0.5)
        reader.cancel()


async def _listen(line, caller: Caller, ends: list[float]) -> None:
    answered = 0
    async for message in line:
        kind = message.data[0]
        if kind == Kind.AUDIO:
            answered += 1
            if WARM_UP_FRAMES < answered <= len(ends):
                caller.reply_sec.append(time.monotonic() - ends[answered - 1])
        elif kind == Kind.ERROR:
            caller.problems.append(message.data[1:].decode())


@contextlib.contextmanager
def _server(model: str | None, places: int) -> Iterator[tuple[str, subprocess.Popen]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["--port", str(port), "--places", str(places), "--per-address", str(places)]
    command = [sys.executable, "-m", "mmspeech.cli", "serve", *options, *([] if model is None else ["--model", model])]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        yield f"http://127.0.0.1:{port}", process
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=15)
        process.kill()


async def _until_ready(http, address: str, process: subprocess.Popen) -> None:
    import aiohttp

    until = time.monotonic() + START_SEC
    while time.monotonic() < until:
        if process.poll() is not None:
            raise ConfigError(f"the server ended: {process.stderr.read().decode().strip().splitlines()[-1:]}")
        with contextlib.suppress(aiohttp.ClientError):
            async with http.get(f"{address}/ready") as response:
                if response.status == 200:
                    return
        await asyncio.sleep(0.2)
    raise ConfigError(f"the server did not start within {START_SEC:g} s")


def _counters(text: str) -> dict[str, float]:
    lines = [line.rpartition(" ") for line in text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in lines}


def _percentiles(values_ms: np.ndarray) -> dict[str, float]:
    return {f"p{q}": round(float(np.percentile(values_ms, q)), 1) for q in (50, 95, 99)}


def _picture(rng: random.Random) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGB", (96, 96), tuple(rng.randrange(256) for _ in range(3))).save(buffer, format="PNG")
    return buffer.getvalue()


def _line(row: dict[str, Any]) -> str:
    return f"{row['calls']} calls in {row['processes']} processes: step {row['tick_ms']}, reply {row['reply_ms']}" + (
        "" if row["held"] else " (too many)"
    )


def _table(rows: list[dict[str, Any]]) -> Table:
    table = Table(
        "calls", "processes", "step p50/p95/p99 ms", "mouth to ear p50/p95/p99 ms", "starved", "skipped", "MB"
    )
    for row in rows:
        ticks, ears = (
            "/".join(f"{value:.0f}" for value in row[key].values()) for key in ("tick_ms", "mouth_to_ear_ms")
        )
        table.add_row(
            str(row["calls"]),
            str(row["processes"]),
            ticks,
            ears,
            f"{row['starved']:.0f}",
            f"{row['skipped']:.0f}",
            str(row["memory_mb"]),
        )
    return table
