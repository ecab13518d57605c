"""The server as replicas on Ray Serve (extra `ray`): `serve run mmspeech.serve.ray_app:build replicas=2`.

Each replica holds a model and its places, and runs the server of mmspeech/serve/server.py on a port of its own machine
that nobody else reaches; what Ray sends it is passed on. A call is one WebSocket, which Ray leaves with the replica
that took it: so calls stay where their state is, and a replica that is full or gone costs nobody else anything.
"""

import asyncio
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import aiohttp
from aiohttp import web
from pydantic import Field

from mmspeech.config import ConfigError, parse_config
from mmspeech.serve.settings import ServeConfig

if TYPE_CHECKING:
    from ray.serve import Application

START_SEC = 120.0
# Those of one connection, which are not passed on to another.
_OWN_HEADERS = {"connection", "upgrade", "keep-alive", "transfer-encoding", "content-length", "content-encoding", "te"}
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


class RayConfig(ServeConfig):
    """The server's settings, and how many replicas of which model run where. All callers come from Ray's proxy, so
    `per_address` is not asked here. `cpus`, `gpus`: of each replica."""

    model: str | None = None
    device: str = "cpu"
    replicas: int = Field(1, ge=1)
    cpus: float = Field(1.0, ge=0)
    gpus: float = Field(0.0, ge=0)


class Relay:
    """An ASGI application that passes all it is sent on to the server of this process, at `address`.

    Ray sends a copy of the application to each replica, which finds its address here all the same: a class is sent by
    its name.
    """

    address: ClassVar[str] = ""

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":  # the replica itself decides on what is started and stopped
            while (message := await receive())["type"] != "lifespan.shutdown":
                await send({"type": f"{message['type']}.complete"})
            await send({"type": "lifespan.shutdown.complete"})
            return
        query = scope.get("query_string", b"").decode()
        url = f"{self.address}{scope['path']}" + (f"?{query}" if query else "")
        headers = [(name.decode(), value.decode("latin-1")) for name, value in scope.get("headers", [])]
        headers = [pair for pair in headers if pair[0].lower() not in _OWN_HEADERS]
        async with aiohttp.ClientSession(auto_decompress=False) as http:
            if scope["type"] == "websocket":
                headers = [pair for pair in headers if not pair[0].lower().startswith("sec-websocket")]
                await _relay_socket(http, url, headers, receive, send)
            else:
                await _relay_request(http, scope["method"], url, headers, send)


async def _relay_request(http: aiohttp.ClientSession, method: str, url: str, headers: list, send: Send) -> None:
    async with http.request(method, url, headers=headers) as response:
        body = await response.read()
        kept = [(k.encode(), v.encode("latin-1")) for k, v in response.headers.items() if k.lower() not in _OWN_HEADERS]
        await send({"type": "http.response.start", "status": response.status, "headers": kept})
        await send({"type": "http.response.body", "body": body})


async def _relay_socket(http: aiohttp.ClientSession, url: str, headers: list, receive: Receive, send: Send) -> None:
    await receive()  # websocket.connect
    try:
        inner = await http.ws_connect(url, headers=headers, max_msg_size=0)
    except aiohttp.WSServerHandshakeError:
        await send({"type": "websocket.close", "code": 1008, "reason": "refused"})
        return
    await send({"type": "websocket.accept"})

    async def inward() -> None:
        while (message := await receive())["type"] == "websocket.receive":
            if message.get("bytes") is not None:
                await inner.send_bytes(message["bytes"])
            else:
                await inner.send_str(message["text"])
        await inner.close()

    async def outward() -> None:
        async for message in inner:
            kind = "bytes" if message.type == aiohttp.WSMsgType.BINARY else "text"
            await send({"type": "websocket.send", kind: message.data})
        await send({"type": "websocket.close", "code": inner.close_code or 1000})

    tasks = [asyncio.create_task(inward()), asyncio.create_task(outward())]
    _, going = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    await inner.close()
    for task in going:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


class Replica:
    """A model with its places, as Ray holds it."""

    def __init__(self, settings: dict[str, Any]):
        from mmspeech.checkpoint import load_model
        from mmspeech.serve.server import Desk
        from mmspeech.serve.worker import Worker

        config = parse_config(RayConfig, settings, source="ray")
        shared = ServeConfig(**config.model_dump(include=set(ServeConfig.model_fields)))
        worker = Worker(load_model(config.model, device=config.device), places=config.places, manner=config)
        self._desk = Desk(worker, shared.model_copy(update={"per_address": config.places + config.queue}))
        self._loop, self._stop, ready = asyncio.new_event_loop(), asyncio.Event(), threading.Event()
        self._thread = threading.Thread(
            target=lambda: self._loop.run_until_complete(self._serve(ready)), name="server", daemon=True
        )
        self._thread.start()
        if not ready.wait(START_SEC):
            raise RuntimeError(f"the replica's server did not start within {START_SEC:g} s")

    async def _serve(self, ready: threading.Event) -> None:
        from mmspeech.serve.server import build_app

        runner = web.AppRunner(build_app(self._desk))
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        Relay.address = f"http://127.0.0.1:{runner.addresses[0][1]}"
        ready.set()
        await self._stop.wait()
        await runner.cleanup()

    def check_health(self) -> None:
        """Ray replaces a replica whose model has stopped."""
        if not self._desk.worker.alive:
            raise RuntimeError("the model's thread has ended")

    def __del__(self):
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)


def build(settings: dict[str, Any]) -> "Application":
    """The application of `serve run`; settings: those of RayConfig. ConfigError for wrong ones, and without Ray."""
    try:
        from ray import serve
    except ModuleNotFoundError as error:
        raise ConfigError(f"{error.name} is not installed; Ray Serve needs it: pip install 'mmspeech[ray]'") from error
    config = parse_config(RayConfig, {name: _number(value) for name, value in settings.items()}, source="ray")
    if config.record is not None:
        Path(config.record).mkdir(parents=True, exist_ok=True)
    return (
        serve.deployment(serve.ingress(Relay())(Replica))
        .options(
            num_replicas=config.replicas,
            max_ongoing_requests=config.places + config.queue + 8,  # beside calls: the page, health, metrics
            ray_actor_options={"num_cpus": config.cpus, "num_gpus": config.gpus},
        )
        .bind(config.model_dump(mode="json"))
    )


def _number(value: Any) -> Any:
    """`serve run` gives all values as text."""
    if not isinstance(value, str):
        return value
    try:
        return int(value) if value.lstrip("-").isdigit() else float(value)
    except ValueError:
        return value
