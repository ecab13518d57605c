"""Two replicas on Ray Serve: calls go to both, stay where they are, and the page comes through."""

import asyncio

import aiohttp
import pytest
from calling import connected

from mmspeech.config import ConfigError
from mmspeech.serve.protocol import Kind
from mmspeech.serve.ray_app import build

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
PORT = 18_273


@pytest.fixture(scope="module")
def address(small_checkpoint):
    serve = pytest.importorskip("ray.serve", reason="needs Ray: pip install 'mmspeech[ray]'")
    import ray

    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": PORT})
    serve.run(build({"model": str(small_checkpoint), "replicas": 2, "places": 1, "queue": 0}))
    yield f"http://127.0.0.1:{PORT}"
    serve.shutdown()
    ray.shutdown()


def test_each_replica_has_its_calls(address):
    async def run() -> list[int]:
        async with aiohttp.ClientSession() as http, http.get(f"{address}/") as response:
            assert response.status == 200 and "mmspeech" in await response.text()
        talked = []
        async with connected(address, "?audio=pcm16") as one, connected(address, "?audio=pcm16") as two:
            for line in (one, two):
                await line.until(Kind.HANDSHAKE)
            for _ in range(3):
                for line in (one, two):
                    await line.talk(2)
            talked += [len(line.sound) for line in (one, two)]
            assert not one.errors and not two.errors
        return talked

    assert min(asyncio.run(run())) >= 4


def test_settings_are_checked():
    pytest.importorskip("ray.serve", reason="needs Ray: pip install 'mmspeech[ray]'")
    with pytest.raises(ConfigError, match="unknown key 'replica'"):
        build({"replica": 2})
