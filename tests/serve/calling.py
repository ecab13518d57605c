"""A server on a free port, and callers of it, for tests."""

import asyncio
import contextlib
import io
import json

import aiohttp
import numpy as np
from aiohttp import web
from PIL import Image

from mmspeech.serve.protocol import Kind
from mmspeech.serve.server import Desk, build_app
from mmspeech.serve.settings import ServeConfig
from mmspeech.serve.worker import Worker

FRAME = 1920


def png(colour: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (40, 30), colour).save(buffer, format="PNG")
    return buffer.getvalue()


def pcm16(wave: np.ndarray) -> bytes:
    return (wave * 32767).astype("<i2").tobytes()


@contextlib.asynccontextmanager
async def serving(bundle, **options):
    """A server on a free port of this machine: its desk and address."""
    config = ServeConfig(**options)
    async with serving_with(Worker(bundle, places=config.places), config) as there:
        yield there


@contextlib.asynccontextmanager
async def serving_with(worker, config: ServeConfig):
    """The same around a worker."""
    desk = Desk(worker, config)
    runner = web.AppRunner(build_app(desk))
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    try:
        yield desk, f"http://127.0.0.1:{port}"
    finally:
        await runner.cleanup()


class Client:
    """A connection to /api/chat."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse):
        self.socket = socket
        self.errors, self.metadata, self.text, self.sound = [], [], [], []

    async def send(self, kind: int, payload: bytes = b"") -> None:
        await self.socket.send_bytes(bytes([kind]) + payload)

    async def until(self, kind: Kind, *, count: int = 1) -> bytes:
        """Take messages until so many of that kind have come; the last one's payload."""
        while True:
            async with asyncio.timeout(20):
                message = await self.socket.receive()
            if message.type != aiohttp.WSMsgType.BINARY:
                raise ConnectionError(f"{message.type}: {self.errors}")
            got, payload = Kind(message.data[0]), message.data[1:]
            if got is Kind.ERROR:
                self.errors.append(payload.decode())
            elif got is Kind.METADATA:
                self.metadata.append(json.loads(payload))
            elif got is Kind.AUDIO:
                self.sound.append(payload)
            elif got in (Kind.TEXT, Kind.COLOURED_TEXT):
                self.text.append((got, payload))
            count -= got is kind
            if not count:
                return payload

    async def talk(self, frames: int, *, level: float = 0.0) -> None:
        """So many frames of sound, and the reply to each before the next."""
        rng = np.random.default_rng(0)
        for _ in range(frames):
            await self.send(Kind.AUDIO, pcm16(level * rng.standard_normal(FRAME).clip(-1, 1)))
            await self.until(Kind.AUDIO)


@contextlib.asynccontextmanager
async def connected(address: str, query: str = "?audio=pcm16", **options):
    async with aiohttp.ClientSession() as http, http.ws_connect(f"{address}/api/chat{query}", **options) as socket:
        yield Client(socket)
