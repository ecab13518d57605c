"""The web server: the page, calls in two protocols, health and metrics. The model is never run in its event loop."""

import asyncio
import contextlib
import hmac
import json
import logging
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from socket import SO_SNDBUF, SOL_SOCKET
from typing import Any
from urllib.parse import urlsplit

from aiohttp import web

from mmspeech.config import GenerationConfig
from mmspeech.serve import protocol
from mmspeech.serve.chat import Chat
from mmspeech.serve.crew import Crew
from mmspeech.serve.line import Line
from mmspeech.serve.lobby import Lobby
from mmspeech.serve.metrics import Metrics, step_quantiles
from mmspeech.serve.realtime import Realtime
from mmspeech.serve.record import recording
from mmspeech.serve.settings import ServeConfig
from mmspeech.serve.worker import Worker

WEB = Path(__file__).parent / "web"
POOL_THREADS = 2
SEND_BUFFER_BYTES = 64 * 1024
# Nothing from elsewhere runs in the page, and nothing else shows it in a frame.
PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:; media-src 'self' blob:; "
    "connect-src 'self' ws: wss:; frame-ancestors 'none'; base-uri 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}

log = logging.getLogger("mmspeech.serve")


class Desk:
    """What all connections of a server share."""

    def __init__(self, worker: Worker | Crew, config: ServeConfig):
        self.worker, self.config = worker, config
        self.lobby = Lobby(config)
        self.metrics = Metrics(self.worker, self.lobby)
        self.pool = ThreadPoolExecutor(POOL_THREADS, thread_name_prefix="pictures")
        self.sockets: set[web.WebSocketResponse] = set()

    def sampling(self, query: Mapping[str, str]) -> GenerationConfig:
        """What a client asks for, within limits. MessageError."""
        return protocol.sampling_of(query, self.worker.model.generation, top_k_limit=self.config.top_k_limit)

    def seed(self, query: Mapping[str, str]) -> int:
        """A client's, or a new one. MessageError."""
        given = protocol.seed_of(query)
        return secrets.randbits(31) if given is None else given

    def words(self, given: object, name: str) -> str:
        """A client's role, or what it tells the model. MessageError."""
        return protocol.words_of(given, name, limit=self.config.told_characters)

    @contextlib.asynccontextmanager
    async def call(
        self,
        address: str,
        *,
        sampling: GenerationConfig,
        seed: int,
        role: str | None = None,
        tell_place: Callable[[int], Awaitable[None]],
        complain: Callable[[str], Awaitable[None]],
    ) -> AsyncIterator[Line]:
        """A call, once there is a place for it; `tell_place` hears how many are in front. FullError."""
        async with (
            self.lobby.place(address, tell_place),
            Line(
                self.worker, self.config, pool=self.pool, sampling=sampling, seed=seed, role=role, complain=complain
            ) as line,
        ):
            with self.audit(line, address):
                yield line

    def describe(self, sampling: GenerationConfig, seed: int) -> dict[str, Any]:
        """What a client is told of its call."""
        own = sampling.model_dump()
        return {
            "model": self.worker.model.name,
            "instance_name": "mmspeech",
            "sees": self.worker.model.vision is not None,
            "recorded": self.config.record is not None,
            "seed": seed,
            "text_temperature": own["text_temperature"],
            "text_topk": own["text_top_k"],
            "audio_temperature": own["audio_temperature"],
            "audio_topk": own["audio_top_k"],
            "pad_mult": own["pad_mult"],
        }

    @contextlib.contextmanager
    def audit(self, line: Line, address: str) -> Iterator[None]:
        """Around a call: counts it, writes its line to the log, and keeps it where that is wanted."""
        self.metrics.calls.inc()
        with recording(line, self.config.record):
            try:
                yield
            finally:
                counts = line.call.counts
                self.metrics.starved.inc(counts.starved)
                self.metrics.skipped.inc(counts.skipped)
                for what in ("shown", "dropped", "broken"):
                    self.metrics.pictures.labels(what).inc(getattr(line, what))
                said = {"event": "call", "address": address, "sec": round(time.monotonic() - line.began, 1)}
                pictures = {"pictures": line.shown, "dropped": line.dropped, "broken": line.broken}
                log.info(json.dumps(said | vars(counts) | pictures))


def examples_folder() -> Path:
    """Pictures and questions for the page: in a wheel they lie beside it, in a clone at its top."""
    packed = WEB / "examples"
    return packed if packed.is_dir() else Path(__file__).resolve().parents[2] / "examples"


DESK = web.AppKey("desk", Desk)


def build_app(desk: Desk) -> web.Application:
    """The application around a desk; it starts the worker, and at the end lets calls finish their sentence."""
    app = web.Application(middlewares=[_guard])
    app[DESK] = desk
    app.add_routes(
        [
            web.get("/", _page),
            web.get("/health", _health),
            web.get("/ready", _ready),
            web.get("/metrics", _metrics),
            web.get("/api/chat", _socket_of(Chat)),
            web.get("/v1/realtime", _socket_of(Realtime)),
            web.static("/web/examples", examples_folder()),
            web.static("/web", WEB),
        ]
    )
    app.on_startup.append(_start)
    app.on_shutdown.append(_drain)
    return app


async def _start(app: web.Application) -> None:
    app[DESK].worker.start()


async def _drain(app: web.Application) -> None:
    """Nobody comes in any more; who is on hears why the call ends."""
    desk = app[DESK]
    await desk.lobby.close()
    await asyncio.to_thread(desk.worker.stop)
    for socket in list(desk.sockets):
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(2.0):
                await socket.close(code=1001, message=b"the server is shutting down")
    desk.pool.shutdown(wait=False, cancel_futures=True)


@web.middleware
async def _guard(request: web.Request, handler: Callable) -> web.StreamResponse:
    """Who may not come gets words and a status."""
    desk = request.app[DESK]
    if request.path.startswith(("/api/", "/v1/", "/metrics")):
        why = _stranger(request, desk.config)
        if why:
            desk.metrics.refused.labels("token" if "token" in why else "origin").inc()
            return web.json_response({"error": why}, status=403)
    response = await handler(request)
    if not isinstance(response, web.WebSocketResponse):
        response.headers.update(PAGE_HEADERS)
    return response


def _stranger(request: web.Request, config: ServeConfig) -> str | None:
    """Why a request may not come in; None: it may."""
    if config.token is not None:
        bearer = request.headers.get("Authorization", "").removeprefix("Bearer ")
        given = request.query.get("token") or request.query.get("worker_auth_id") or bearer
        if not hmac.compare_digest(given.encode(), config.token.encode()):
            return "the token is missing or wrong; open the page with ?token=..., as the server printed it"
    origin = request.headers.get("Origin")
    if origin is None or "*" in config.origins or origin in config.origins:
        return None
    if urlsplit(origin).netloc != request.host:
        return f"a page of {origin} may not call here; the server's --origin names those that may"
    return None


async def _page(request: web.Request) -> web.FileResponse:
    return web.FileResponse(WEB / "index.html")


async def _health(request: web.Request) -> web.Response:
    """Alive as long as the model's threads are."""
    alive = request.app[DESK].worker.alive
    status = "ok" if alive else "the model's thread has ended"
    return web.json_response({"status": status}, status=200 if alive else 503)


async def _ready(request: web.Request) -> web.Response:
    """Whether a new caller would get a place or a number."""
    desk = request.app[DESK]
    ready = desk.worker.alive and not desk.lobby.closed
    state = {
        "ready": ready,
        "model": desk.worker.model.name,
        "calls": desk.worker.num_calls,
        "places": desk.worker.places,
        "queue": desk.lobby.num_waiting,
        "step_sec": step_quantiles(list(desk.worker.step_sec)),
        "delay_sec": desk.worker.delay_sec,
    }
    return web.json_response(state, status=200 if ready else 503)


async def _metrics(request: web.Request) -> web.Response:
    return web.Response(body=request.app[DESK].metrics.text(), headers={"Content-Type": "text/plain; version=0.0.4"})


def _socket_of(talk: type[Chat] | type[Realtime]) -> Callable:
    """A handler that lets a kind of conversation have the socket, and closes it whatever happens."""

    async def handle(request: web.Request) -> web.WebSocketResponse:
        desk = request.app[DESK]
        longest = desk.config.picture_bytes * talk.WIRE_FACTOR + 1024
        socket = web.WebSocketResponse(max_msg_size=int(longest), heartbeat=10.0, autoping=True, compress=False)
        await socket.prepare(request)
        # What the kernel would hold for a reader that does not read is minutes of sound.
        request.transport.get_extra_info("socket").setsockopt(SOL_SOCKET, SO_SNDBUF, SEND_BUFFER_BYTES)
        desk.sockets.add(socket)
        try:
            await talk(desk, socket, request).run()
        finally:
            desk.sockets.discard(socket)
            with contextlib.suppress(TimeoutError, ConnectionError):
                async with asyncio.timeout(2.0):
                    await socket.close()
        return socket

    return handle
