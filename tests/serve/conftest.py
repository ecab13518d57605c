"""A real server for real clients."""

import asyncio
import threading

import pytest
from aiohttp import web

from mmspeech.checkpoint import load_model
from mmspeech.serve.engine import settle_threads
from mmspeech.serve.server import Desk, build_app
from mmspeech.serve.settings import ServeConfig
from mmspeech.serve.worker import Worker


@pytest.fixture(scope="module")
def served():
    """The address of the demo's server, which runs in a thread."""
    bundle = load_model()
    settle_threads(bundle.model)
    loop, found, stop = asyncio.new_event_loop(), [], asyncio.Event()
    ready = threading.Event()

    async def serve() -> None:
        runner = web.AppRunner(build_app(Desk(Worker(bundle, places=2), ServeConfig(places=2))))
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        found.append(f"http://localhost:{runner.addresses[0][1]}")
        ready.set()
        await stop.wait()
        await runner.cleanup()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
    thread.start()
    assert ready.wait(60)
    yield found[0]
    loop.call_soon_threadsafe(stop.set)
    thread.join(20)
