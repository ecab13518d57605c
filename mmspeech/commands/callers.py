"""Callers for `mmspeech bench`: a server in a process of its own, and people who talk to it over sockets at the pace of
speech. They ask the question of examples/, listen, and now and then ask again in the middle of the answer."""

import asyncio
import contextlib
import io
import random
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mmspeech.config import ConfigError
from mmspeech.frames import FRAME_RATE_HZ, FRAME_SAMPLES
from mmspeech.serve.protocol import Kind, pack
from mmspeech.serve.server import examples_folder

FRAME_SEC = 1 / FRAME_RATE_HZ
START_SEC = 60.0
WARM_UP_FRAMES = 25
TAIL_FRAMES = 6  # a caller goes on until the replies that are counted have come
LIVE_FPS = 2.0
LOUD = 0.01 * 32768  # -40 dB
REST_SEC = 1.0  # of silence before a question
PATIENCE_SEC = 3.0  # with an answer that does not begin
INTERRUPT_SEC = 0.5  # after an answer began
QUIET_SEC = 0.4  # without a loud frame: the answer is over


@dataclass
class Notes:
    """What callers noted. reply_sec: from each frame's end to its reply. first_sound_sec: from the end of a question to
    the first loud frame of the answer. stop_sec: from the beginning of an interruption to the last one. sent: frames
    after the warm-up. unanswered: questions."""

    reply_sec: list[float] = field(default_factory=list)
    first_sound_sec: list[float] = field(default_factory=list)
    stop_sec: list[float] = field(default_factory=list)
    sent: int = 0
    unanswered: int = 0
    problems: list[str] = field(default_factory=list)


class Asker:
    """What a caller says in each frame, from what was heard so far. Every second answer is interrupted."""

    def __init__(self, notes: Notes, rng: random.Random):
        self.notes, self._rng = notes, rng
        self._question, self._noise = question_frames(), noise_frames(rng)
        self._place: int | None = None  # in the question; None: not asking
        self._state, self._since_sec = "resting", time.monotonic()
        self._loud_sec = self._asked_sec = 0.0
        self._round = rng.randrange(2)

    def next_frame(self) -> bytes:
        """16-bit samples of the next 80 ms."""
        self._think(time.monotonic())
        if self._place is None:
            return self._rng.choice(self._noise)
        frame, self._place = self._question[self._place], self._place + 1
        if self._place == len(self._question):
            self._place = None
            self._go("waiting")
        return frame

    def hear(self, frame: bytes) -> None:
        """A frame of the reply has come."""
        now = time.monotonic()
        if rms(frame) < LOUD:
            return
        self._loud_sec = now
        if self._state == "waiting":
            self.notes.first_sound_sec.append(now - self._since_sec)
            self._go("listening")

    def _think(self, now: float) -> None:
        spent_sec, quiet = now - self._since_sec, now - self._loud_sec > QUIET_SEC
        if self._state == "resting" and spent_sec > REST_SEC:
            self._ask(now, "asking")
        elif self._state == "waiting" and spent_sec > PATIENCE_SEC:
            self.notes.unanswered += 1
            self._go("resting")
        elif self._state == "listening" and quiet:
            self._go("resting")
        elif self._state == "listening" and self._round % 2 and spent_sec > INTERRUPT_SEC:
            self._ask(now, "interrupting")
        elif self._state == "interrupting" and quiet:
            self.notes.stop_sec.append(max(0.0, self._loud_sec - self._asked_sec))
            self._state = "asking"

    def _ask(self, now: float, state: str) -> None:
        self._place, self._asked_sec, self._round = 0, now, self._round + 1
        self._go(state)

    def _go(self, state: str) -> None:
        self._state, self._since_sec = state, time.monotonic()


async def call(http, address: str, notes: Notes, *, seed: int, frames: int, live: bool = False, vanish: bool = False):
    """One call of so many frames; its k-th frame is sent when it would have been spoken.

    A picture is shown at the start and another in the middle, or (`live`) LIVE_FPS a second. `vanish`: no goodbye.
    """
    rng = random.Random(seed)
    pictures = [picture(rng) for _ in range(8)]
    every = round(FRAME_RATE_HZ / LIVE_FPS) if live else max(1, frames // 2)
    async with http.ws_connect(f"{address}/api/chat?audio=pcm16&seed={seed}") as line:
        await line.send_bytes(pack(Kind.IMAGE, pictures[0]))
        while (message := await line.receive()).data[:1] != bytes([Kind.HANDSHAKE]):
            if message.data[:1] == bytes([Kind.ERROR]):
                raise ConfigError(f"the server refused a call: {message.data[1:].decode()}")
        ends: list[float] = []
        asker = Asker(notes, rng)
        reader = asyncio.create_task(_listen(line, asker, ends))
        began = time.monotonic()
        for frame in range(frames + TAIL_FRAMES):
            await asyncio.sleep(max(0.0, began + (frame + 1) * FRAME_SEC - time.monotonic()))
            if frame < frames:
                ends.append(time.monotonic())
            await line.send_bytes(pack(Kind.AUDIO, asker.next_frame()))
            if frame % every == every - 1:
                await line.send_bytes(pack(Kind.IMAGE, rng.choice(pictures)))
        notes.sent += max(0, frames - WARM_UP_FRAMES)
        reader.cancel()
        if vanish:
            line.get_extra_info("socket").shutdown(socket.SHUT_RDWR)


async def _listen(line, asker: Asker, ends: list[float]) -> None:
    answered = 0
    async for message in line:
        kind = message.data[0]
        if kind == Kind.AUDIO:
            answered += 1
            asker.hear(message.data[1:])
            if WARM_UP_FRAMES < answered <= len(ends):
                asker.notes.reply_sec.append(time.monotonic() - ends[answered - 1])
        elif kind == Kind.ERROR:
            asker.notes.problems.append(message.data[1:].decode())


@contextlib.contextmanager
def server(model: str | None, places: int, processes: int = 1) -> Iterator[tuple[str, subprocess.Popen]]:
    """`mmspeech serve` on a free port of this machine, until the end of the block."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["--port", str(port), "--places", str(places), "--per-address", str(places)]
    options += ["--processes", str(processes)]
    command = [sys.executable, "-m", "mmspeech.cli", "serve", *options, *([] if model is None else ["--model", model])]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        yield f"http://127.0.0.1:{port}", process
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=15)
        process.kill()


async def until_ready(http, address: str, process: subprocess.Popen) -> None:
    """Raises ConfigError for a server that does not start."""
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


async def told(http, address: str) -> tuple[dict[str, Any], dict[str, float]]:
    """What a server says of itself: its state and its counters."""
    async with http.get(f"{address}/ready") as response:
        state = await response.json()
    async with http.get(f"{address}/metrics") as response:
        text = await response.text()
    lines = [line.rpartition(" ") for line in text.splitlines() if not line.startswith("#")]
    return state, {name: float(value) for name, _, value in lines}


def percentiles_ms(values_sec: list[float]) -> dict[str, float]:
    """p50, p95 and p99; empty without values."""
    if not values_sec:
        return {}
    return {f"p{q}": round(1000 * float(np.percentile(values_sec, q)), 1) for q in (50, 95, 99)}


def question_frames() -> list[bytes]:
    """The question of examples/, 16-bit, without the silence around it."""
    import soundfile

    wave, _ = soundfile.read(examples_folder() / "what_colour.wav", dtype="int16")
    frames = [wave[at : at + FRAME_SAMPLES].tobytes() for at in range(0, len(wave) - FRAME_SAMPLES + 1, FRAME_SAMPLES)]
    loud = [number for number, frame in enumerate(frames) if rms(frame) >= LOUD]
    return frames[loud[0] : loud[-1] + 1]


def noise_frames(rng: random.Random) -> list[bytes]:
    """A room in which nobody speaks."""
    noise = np.random.default_rng(rng.randrange(2**31)).normal(0, 10, (16, FRAME_SAMPLES))
    return [frame.astype("<i2").tobytes() for frame in noise]


def rms(frame: bytes) -> float:
    """Of 16-bit samples."""
    return float(np.sqrt(np.square(np.frombuffer(frame, "<i2").astype(np.float32)).mean()))


def picture(rng: random.Random) -> bytes:
    """The scene of examples/ with a border of some colour, a PNG."""
    from PIL import Image, ImageOps

    buffer = io.BytesIO()
    with Image.open(examples_folder() / "scene.png") as scene:
        ImageOps.expand(scene.convert("RGB"), 4, tuple(rng.randrange(256) for _ in range(3))).save(buffer, format="PNG")
    return buffer.getvalue()
