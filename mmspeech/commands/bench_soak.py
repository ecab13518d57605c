"""`mmspeech bench --soak`: callers come and go for minutes, with pictures and live frames, some without a goodbye; does
anything leak, drift or get stuck?"""

import asyncio
import json
import os
import random
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from mmspeech.commands.callers import Notes, call, percentiles_ms, server, told, until_ready
from mmspeech.commands.common import check_output, whole_file
from mmspeech.frames import FRAME_RATE_HZ

CALL_SEC = (5.0, 60.0)
PAUSE_SEC = (0.0, 5.0)
LIVE_SHARE, VANISH_SHARE = 0.5, 0.2
SAMPLE_SEC = 5.0
WARM_UP_SHARE = 0.2
FREE_SEC = 3.0  # after the last call, every place must be free


@dataclass
class Diary:
    """What was seen of the server, every SAMPLE_SEC: minute, resident bytes, calls that are on."""

    minutes: list[float] = field(default_factory=list)
    memory_bytes: list[float] = field(default_factory=list)
    calls: list[int] = field(default_factory=list)


def run_bench_soak(model: str | None, *, calls: int, processes: int, minutes: float, out: Path | None) -> None:
    """Print what became of memory, latency and places while up to `calls` callers came and went; writes JSON."""
    if out is not None:
        check_output(out, (".json",))
    report = asyncio.run(_soak(model, calls, processes, minutes))
    table = Table("", "after the warm-up", "at the end", title=f"{report['calls_made']} calls in {minutes:g} minutes")
    for name, key in (("memory MB", "memory_mb"), ("reply p50 ms", "reply_p50_ms"), ("reply p99 ms", "reply_p99_ms")):
        table.add_row(name, *(f"{value:.1f}" for value in report[key]))
    console = Console()
    console.print(table)
    console.print(
        f"memory {report['memory_growth']:+.2%}; at most {report['most_calls']} calls at once, {report['left']} left "
        f"at the end; {report['failures']:.0f} failures; problems: {report['problems'] or 'none'}",
        highlight=False,
    )
    if out is not None:
        with whole_file(out) as temporary:
            temporary.write_text(json.dumps(report | {"cpus": os.cpu_count()}, indent=1) + "\n", encoding="utf-8")


async def _soak(model: str | None, places: int, processes: int, minutes: float) -> dict[str, Any]:
    began, diary = time.monotonic(), Diary()
    until = began + 60 * minutes
    with server(model, places, processes) as (address, process):
        async with aiohttp.ClientSession() as http:
            await until_ready(http, address, process)
            watcher = asyncio.create_task(_watch(http, address, diary, until))
            lines = await asyncio.gather(*(_caller(http, address, number, until) for number in range(places)))
            await watcher
            await asyncio.sleep(FREE_SEC)
            state, counters = await told(http, address)
    timed = sorted(pair for line in lines for pair in line)
    replies = [part for _, notes in timed for part in notes.reply_sec]
    first = [r for at, notes in timed if WARM_UP_SHARE <= (at - began) / (60 * minutes) < 0.4 for r in notes.reply_sec]
    last = [r for at, notes in timed if (at - began) / (60 * minutes) >= 0.8 for r in notes.reply_sec]
    memory = _around_warm_up(diary, minutes)
    return {
        "calls_made": len(timed),
        "frames": len(replies),
        "memory_mb": [round(value / 1e6, 1) for value in memory],
        "memory_growth": memory[1] / memory[0] - 1,
        "reply_p50_ms": [percentiles_ms(part).get("p50", 0.0) for part in (first, last)],
        "reply_p99_ms": [percentiles_ms(part).get("p99", 0.0) for part in (first, last)],
        "most_calls": max(diary.calls),
        "left": state["calls"],
        "failures": counters["mmspeech_failures_total"],
        "problems": sorted({problem for _, notes in timed for problem in notes.problems}),
        "diary": vars(diary),
    }


async def _caller(http, address: str, number: int, until: float) -> list[tuple[float, Notes]]:
    """One call after the other: when each began, and what was noted."""
    rng, made = random.Random(number), []
    while (left_sec := until - time.monotonic()) > CALL_SEC[0]:
        made.append((time.monotonic(), notes := Notes()))
        frames = int(min(rng.uniform(*CALL_SEC), left_sec) * FRAME_RATE_HZ)
        live, vanish = rng.random() < LIVE_SHARE, rng.random() < VANISH_SHARE
        seed = number + 1000 * len(made)
        await call(http, address, notes, seed=seed, frames=frames, live=live, vanish=vanish)
        await asyncio.sleep(rng.uniform(*PAUSE_SEC))
    return made


async def _watch(http, address: str, diary: Diary, until: float) -> None:
    began = time.monotonic()
    with Progress(transient=True) as progress:
        task = progress.add_task("soak", total=until - began)
        while time.monotonic() < until:
            await asyncio.sleep(SAMPLE_SEC)
            state, counters = await told(http, address)
            diary.minutes.append((time.monotonic() - began) / 60)
            diary.memory_bytes.append(counters["mmspeech_memory_bytes"])
            diary.calls.append(state["calls"])
            progress.update(task, completed=time.monotonic() - began)


def _around_warm_up(diary: Diary, minutes: float) -> tuple[float, float]:
    """Median memory of a tenth of the time after the warm-up, and of the last tenth."""
    at, memory = np.array(diary.minutes) / minutes, np.array(diary.memory_bytes)
    after = memory[(at >= WARM_UP_SHARE) & (at < WARM_UP_SHARE + 0.1)]
    return tuple(float(np.median(part if len(part) else memory[-1:])) for part in (after, memory[at >= 0.9]))
