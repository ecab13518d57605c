"""`mmspeech bench --calls N`: a real server in a process of its own, and N callers at the pace of speech over sockets.

Each caller talks in frames of 80 ms that begin at a time of its own, and notes when every frame of the reply comes.
Mouth to ear is what a caller waits from when a sound is made until what the model says in answer to it is there: the
frame has to be spoken (80 ms), the server answers (measured), and the model's sound comes a frame later than its text
(the delay of its streams) and the codec's own delay after that.
"""

import asyncio
import contextlib
import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from mmspeech.commands.callers import FRAME_SEC, Notes, call, percentiles_ms, server, told, until_ready
from mmspeech.commands.common import check_output, whole_file
from mmspeech.config import ConfigError
from mmspeech.frames import FRAME_RATE_HZ

_COUNTED = ("starved_frames_total", "skipped_frames_total", "memory_bytes")
KEPT_SHARE = 0.99  # of the frames must be answered within a frame's time for a number of calls to be held


def run_bench_calls(
    model: str | None, *, calls: int, processes: int, seconds: float, find_max: bool, out: Path | None
) -> None:
    """Print a table of tick and reply times for `calls` callers of a server with so many model `processes`; or
    (`find_max`) for more and more callers until they are too many, and then again with a server for each call. Writes
    JSON."""
    if out is not None:
        check_output(out, (".json",))
    console = Console()
    if find_max:
        together = _find_max(lambda count: (1, processes), model, seconds, console)
        apart = _find_max(lambda count: (count, 1), model, seconds, console)
        rows = [*together, *apart]
        held = [max((row["calls"] for row in found if row["held"]), default=0) for found in (together, apart)]
        within = f"{KEPT_SHARE:.0%} of the steps within {1000 * FRAME_SEC:.0f} ms"
        those = "one model process holds" if processes == 1 else f"{processes} model processes hold"
        console.print(f"{those} {held[0]} calls, a server for each call {held[1]}; {within}", highlight=False)
    else:
        rows = [asyncio.run(_measure(model, calls, seconds, servers=1, processes=processes))]
    console.print(_table(rows))
    if out is not None:
        with whole_file(out) as temporary:
            how = {"seconds": seconds, "cpus": os.cpu_count(), "transport": "websocket on loopback, 16-bit samples"}
            temporary.write_text(json.dumps({"how": how, "rows": rows}, indent=1) + "\n", encoding="utf-8")


def _find_max(
    shape: Callable[[int], tuple[int, int]], model: str | None, seconds: float, console: Console
) -> list[dict[str, Any]]:
    """What was measured for 1, 2, 4 ... calls up to the first number that is too many, and between that and the one
    before it, until nothing is between. shape: how many servers, with how many model processes, for so many calls."""
    rows: dict[int, dict[str, Any]] = {}
    held, count = 0, 1
    too_many: int | None = None
    while too_many is None or too_many - held > 1:
        servers, processes = shape(count)
        row = asyncio.run(_measure(model, count, seconds, servers=servers, processes=min(processes, count)))
        rows[count] = row
        console.print(_line(row), highlight=False)
        held, too_many = (count, too_many) if row["held"] else (held, count)
        count = 2 * count if too_many is None else (held + too_many) // 2
    return [rows[count] for count in sorted(rows)]


async def _measure(model: str | None, count: int, seconds: float, *, servers: int, processes: int) -> dict[str, Any]:
    """`count` callers of so many servers, which share them equally, each with so many model processes."""
    with contextlib.ExitStack() as stack:
        started = [stack.enter_context(server(model, count // servers, processes)) for _ in range(servers)]
        notes = Notes()
        async with aiohttp.ClientSession() as http:
            await asyncio.gather(*(until_ready(http, address, process) for address, process in started))
            frames = int(seconds * FRAME_RATE_HZ)
            lines = (_call_later(http, started[k % servers][0], notes, k, frames) for k in range(count))
            await asyncio.gather(*lines)
            await asyncio.sleep(0.5)  # for the calls to end
            states = [await told(http, address) for address, _ in started]
    if not notes.reply_sec:
        raise ConfigError(f"nobody was answered: {notes.problems[:1]}")
    steps_sec = {name: max(state["step_sec"][name] for state, _ in states) for name in states[0][0]["step_sec"]}
    ticks = {f"p{float(name) * 100:g}": round(1000 * value, 1) for name, value in steps_sec.items()}
    counted = {name: sum(counters.get(f"mmspeech_{name}", 0.0) for _, counters in states) for name in _COUNTED}
    answered = len(notes.reply_sec) / notes.sent
    own_sec = FRAME_SEC + states[0][0]["delay_sec"]
    return {
        "calls": count,
        "servers": servers,
        "processes": processes,
        "tick_ms": ticks,
        "reply_ms": percentiles_ms(notes.reply_sec),
        "mouth_to_ear_ms": percentiles_ms([value + own_sec for value in notes.reply_sec]),
        "first_sound_ms": percentiles_ms(notes.first_sound_sec),
        "stop_ms": percentiles_ms(notes.stop_sec),
        "unanswered": notes.unanswered,
        "answered": round(answered, 4),
        "starved": counted["starved_frames_total"],
        "skipped": counted["skipped_frames_total"],
        "memory_mb": round(counted["memory_bytes"] / 1e6, 1),
        "held": bool(ticks["p99"] <= 1000 * FRAME_SEC and answered >= KEPT_SHARE),
        "problems": sorted(set(notes.problems)),
    }


async def _call_later(http, address: str, notes: Notes, number: int, frames: int) -> None:
    """Callers do not begin at the same time of a frame."""
    await asyncio.sleep(random.Random(number).random())
    await call(http, address, notes, seed=number, frames=frames)


def _line(row: dict[str, Any]) -> str:
    who = f"{row['calls']} calls, servers {row['servers']} (models {row['processes']})"
    times = f"step {_percentiles(row['tick_ms'])} ms, reply {_percentiles(row['reply_ms'])} ms"
    return f"{who}: {times}" + ("" if row["held"] else " (too many)")


def _percentiles(times_ms: dict[str, float]) -> str:
    return " ".join(f"{value:.0f}" for value in times_ms.values())


_COLUMNS = {
    "tick_ms": "step ms",
    "mouth_to_ear_ms": "mouth to ear ms",
    "first_sound_ms": "first sound ms",
    "stop_ms": "stops ms",
}


def _table(rows: list[dict[str, Any]]) -> Table:
    head = ("calls", "servers (models)", *_COLUMNS.values(), "starved", "skipped", "MB")
    table = Table(*head, caption="times: p50 p95 p99", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for row in rows:
        times = (_percentiles(row[key]) for key in _COLUMNS)
        counts = (f"{row[key]:.0f}" for key in ("starved", "skipped", "memory_mb"))
        table.add_row(str(row["calls"]), f"{row['servers']} ({row['processes']})", *times, *counts)
    return table
