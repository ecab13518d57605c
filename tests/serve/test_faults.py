"""What goes wrong on one line stays on that line: the call ends with a reason, its place is free, the rest go on."""

import asyncio
import contextlib
import io
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time

import aiohttp
import numpy as np
import psutil
import pytest
from calling import FRAME, connected, pcm16, png, serving
from PIL import Image

from mmspeech.serve.protocol import Kind, OpusSound

SILENCE = bytes(2 * FRAME)


async def until(true, *, sec: float = 1.0) -> None:
    """Until something is true, for a second at most."""
    async with asyncio.timeout(sec):
        while not true():
            await asyncio.sleep(0.02)


@contextlib.asynccontextmanager
async def beside(bundle, **options):
    """A server with a caller who talks all the time; at the end it must have been answered all the time."""
    async with serving(bundle, **options) as (desk, address), connected(address) as other:
        await other.until(Kind.HANDSHAKE)
        stop = asyncio.Event()

        async def talk() -> int:
            frames = 0
            while not stop.is_set():
                await other.talk(1)
                await asyncio.sleep(0.03)
                frames += 1
            return frames

        talking = asyncio.create_task(talk())
        yield desk, address
        stop.set()
        await talking
        await other.talk(2)
        assert not other.errors


def test_a_client_that_vanishes_in_the_middle_of_a_message(small_bundle):
    async def run() -> None:
        async with beside(small_bundle) as (desk, address):
            reader, writer = await asyncio.open_connection(*address.removeprefix("http://").split(":"))
            writer.write(
                b"GET /api/chat?audio=pcm16 HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
            )
            await reader.readuntil(b"\r\n\r\n")
            await until(lambda: desk.worker.num_calls == 2)
            writer.write(b"\x82\xfe\x0f\x01" + b"\x00" * 100)  # a frame of 3841 bytes begins
            await writer.drain()
            writer.transport.abort()
            await until(lambda: desk.worker.num_calls == 1)

    asyncio.run(run())


def test_a_reader_that_does_not_read_is_hung_up_on(small_bundle):
    async def run() -> None:
        async with beside(small_bundle) as (desk, address), aiohttp.ClientSession() as http:
            line = await http.ws_connect(f"{address}/api/chat?audio=pcm16", receive_timeout=60)
            sock = line._response.connection.transport.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            line._response.connection.transport.pause_reading()
            for _ in range(400):
                if desk.worker.num_calls == 1:
                    break
                await line.send_bytes(bytes([Kind.AUDIO]) + SILENCE)
                await asyncio.sleep(0.02)
            await until(lambda: desk.worker.num_calls == 1, sec=10)
            line._response.connection.transport.abort()

    asyncio.run(run())


def test_a_sender_that_is_much_too_fast_is_not_answered_later_and_later(small_bundle):
    async def run() -> tuple[int, int]:
        async with beside(small_bundle) as (desk, address), connected(address) as fast:
            await fast.until(Kind.HANDSHAKE)
            for _ in range(100):
                await fast.send(Kind.AUDIO, SILENCE)
                await asyncio.sleep(0)
            await fast.until(Kind.AUDIO, count=5)
            call = max(desk.worker._calls.values(), key=lambda call: call.counts.skipped)
            return call.waiting()[0], call.counts.skipped

    waiting, skipped = asyncio.run(run())
    assert waiting <= 4 and skipped > 10


def test_two_hundred_at_once(small_bundle):
    async def run() -> tuple[int, int]:
        async with serving(small_bundle, places=2, queue=8, per_address=300) as (desk, address):

            async def one() -> str:
                async with connected(address) as line:
                    with contextlib.suppress(ConnectionError, TimeoutError):
                        await line.until(Kind.HANDSHAKE)
                        await line.talk(1)
                        return "answered"
                return line.errors[0]

            found = await asyncio.gather(*(one() for _ in range(200)))
            await until(lambda: desk.worker.num_calls == 0)
            return found.count("answered"), sum("the queue are full" in words for words in found)

    answered, refused = asyncio.run(run())
    assert answered >= 2 and answered + refused == 200


@pytest.mark.parametrize("what", ["noise", "cut", "changed"])
def test_broken_opus_gets_words(small_bundle, what):
    stream = OpusSound()
    whole = b"".join(stream.encode(np.zeros(FRAME, np.float32)) for _ in range(6))
    rng = random.Random(3)
    broken = {
        "noise": bytes(rng.randrange(256) for _ in range(400)),
        "cut": whole[:60] + whole[200:],
        "changed": whole[:30] + bytes(30) + whole[60:],
    }[what]

    async def run() -> str:
        async with beside(small_bundle) as (desk, address), connected(address, "") as line:
            await line.until(Kind.HANDSHAKE)
            await line.send(Kind.AUDIO, broken)
            await line.send(Kind.PING)
            await line.until(Kind.PING)
            return " ".join(line.errors)

    words = asyncio.run(run())
    assert "no Ogg/Opus stream" in words or (what == "cut" and not words)


def test_pictures_that_are_bombs_are_refused(small_bundle):
    buffer = io.BytesIO()
    Image.new("L", (12_000, 12_000)).save(buffer, format="PNG")  # 144 million pixels in 140 kB

    async def run() -> list[str]:
        async with beside(small_bundle) as (_, address), connected(address) as line:
            await line.until(Kind.HANDSHAKE)
            for data in (buffer.getvalue(), png("red")[:50], bytes(2000)):
                await line.send(Kind.IMAGE, data)
                await line.until(Kind.ERROR)
            await line.talk(2)
            return line.errors

    assert "144" in asyncio.run(run())[0].replace(",", "").replace("_", "")


def mutated(rng: random.Random, seeds: list[bytes]) -> bytes:
    """One of the seeds with a few bytes taken out, put in or changed."""
    message = bytearray(rng.choice(seeds))
    for _ in range(rng.randrange(4)):
        place = rng.randrange(len(message) + 1)
        message[place : place + rng.randrange(3)] = bytes(rng.randrange(256) for _ in range(rng.randrange(4)))
    return bytes(message)


@pytest.mark.parametrize("count", [2_000, pytest.param(100_000, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])])
def test_nothing_of_random_messages_is_fatal(small_bundle, count):
    """Random and changed messages in random order, on both protocols: words for the sender, the server and the others
    go on, and nothing is kept."""
    rng, process = random.Random(7), psutil.Process()
    binary = [bytes([k]) + os.urandom(20) for k in range(12)]
    binary += [bytes([Kind.AUDIO]) + OpusSound().encode(np.zeros(FRAME, np.float32)) for _ in range(3)]
    binary += [bytes([Kind.IMAGE]) + png("red"), bytes([Kind.AUDIO]) + pcm16(np.zeros(FRAME)), b"\x01", b"\x08", b""]
    events = [
        {"type": "session.update", "session": {"seed": 3}}, {"type": "input_audio_buffer.append", "audio": "AAAA"},
        {"type": "input_image", "image": "AAAA"}, {"type": "none"}, {}, [], "text", 3, None,
    ]  # fmt: skip
    texts = [json.dumps(event).encode() for event in events]
    ways = [("/api/chat", binary), ("/api/chat?audio=pcm16", binary), ("/v1/realtime", texts)]

    async def annoy(http: aiohttp.ClientSession, address: str, path: str, seeds: list[bytes]) -> int:
        sent = 0
        async with http.ws_connect(f"{address}{path}") as socket:
            with contextlib.suppress(ConnectionError):
                while sent < 300 and not socket.closed:
                    message = mutated(rng, seeds)
                    if seeds is texts:
                        await socket.send_str(message.decode("utf-8", "replace"))
                    else:
                        await socket.send_bytes(message)
                    sent += 1
        return sent

    async def run() -> tuple[int, list[int]]:
        sent, memory = 0, []
        async with beside(small_bundle) as (desk, address), aiohttp.ClientSession() as http:
            while sent < count:
                sent += await annoy(http, address, *ways[len(memory) % len(ways)])
                memory.append(process.memory_info().rss)
            await until(lambda: desk.worker.num_calls == 1, sec=5)
            return desk.worker.failures, memory

    failures, memory = asyncio.run(run())
    assert failures == 0
    warm = memory[len(memory) // 4]
    assert memory[-1] - warm < 0.02 * warm + 40e6, (warm, memory[-1])


def test_sigterm_ends_calls_with_a_reason(small_checkpoint, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mmspeech.cli", "serve", "--model", str(small_checkpoint), "--port", str(port)]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)

    async def run() -> list[str]:
        address = f"http://127.0.0.1:{port}"
        async with aiohttp.ClientSession() as http:
            for _ in range(200):
                with contextlib.suppress(aiohttp.ClientError):
                    async with http.get(f"{address}/ready") as response:
                        if response.status == 200:
                            break
                await asyncio.sleep(0.2)
        async with connected(address) as line:
            await line.until(Kind.HANDSHAKE)
            await line.talk(3)
            server.send_signal(signal.SIGTERM)
            with contextlib.suppress(ConnectionError):
                await line.until(Kind.PING)
            return line.errors

    try:
        began = time.monotonic()
        assert asyncio.run(run()) == ["the server is shutting down"]
        assert server.wait(20) == 0 and time.monotonic() - began < 120
    finally:
        server.kill()
        server.communicate()
