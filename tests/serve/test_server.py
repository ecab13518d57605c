"""The server over real sockets: who comes in, what a call gives, how it ends."""

import asyncio
import contextlib
import json

import aiohttp
import numpy as np
import pytest
import torch
from calling import FRAME, Client, connected, pcm16, png, serving

from mmspeech.serve.protocol import Kind, OpusSound, pack
from mmspeech.serve.session import Session


def test_a_call_is_what_the_session_gives(small_bundle):
    rng = np.random.default_rng(1)
    sound = [(0.1 * rng.standard_normal(FRAME)).clip(-1, 1).astype(np.float32) for _ in range(8)]
    heard = [np.frombuffer(pcm16(frame), "<i2").astype(np.float32) / 32768 for frame in sound]
    greedy = "?audio=pcm16&text_temperature=0&audio_temperature=0"

    async def call() -> Client:
        async with serving(small_bundle) as (_, address), connected(address, greedy) as client:
            await client.send(Kind.IMAGE, png("red"))
            await client.until(Kind.HANDSHAKE)
            for frame in sound:
                await client.send(Kind.AUDIO, pcm16(frame))
                await client.until(Kind.AUDIO)
            return client

    client = asyncio.run(call())
    from mmspeech.config import GenerationConfig

    session = Session(small_bundle, GenerationConfig(text_temperature=0, audio_temperature=0), picture=png("red"))
    expected = [session.step(torch.from_numpy(frame)) for frame in heard]
    assert client.sound == [pcm16(step.pcm.numpy().clip(-1, 1)) for step in expected]
    words = [(Kind.COLOURED_TEXT, step.text) for step in expected if step.text is not None]
    assert [(kind, payload[1:].decode()) for kind, payload in client.text] == words[: len(client.text)]
    assert client.metadata[0]["model"] == "small-random" and not client.errors


def test_opus_in_and_out(small_bundle):
    async def call() -> int:
        codec, replies = OpusSound(), OpusSound()
        async with serving(small_bundle) as (_, address), connected(address, "") as client:
            await client.until(Kind.HANDSHAKE)  # no picture: it is not waited for for long
            for _ in range(8):
                await client.send(Kind.AUDIO, codec.encode(np.zeros(FRAME, np.float32)))
                await asyncio.sleep(0.08)
            await client.until(Kind.AUDIO, count=4)
            return sum(len(replies.decode(payload)) for payload in client.sound)

    assert asyncio.run(call()) >= 3 * FRAME


def test_bad_messages_get_words_and_the_call_goes_on(small_bundle):
    async def call() -> Client:
        async with serving(small_bundle) as (desk, address), connected(address) as client:
            await client.until(Kind.HANDSHAKE)
            await client.socket.send_bytes(b"")
            await client.socket.send_str("hello")
            await client.send(Kind.IMAGE, b"not a picture")
            await client.send(0x77, b"unknown kinds are passed over")
            await client.send(Kind.AUDIO, bytes(70_000))
            await client.until(Kind.ERROR, count=4)
            await client.send(Kind.PING)
            await client.until(Kind.PING)
            await client.talk(4)
            assert desk.worker.num_calls == 1
            return client

    errors = " | ".join(asyncio.run(call()).errors)
    for words in ("an empty message", "expected binary ones", "picture: ", "at most 65536"):
        assert words in errors, errors


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("?audio=mp3", "audio: expected one of opus, pcm16"),
        ("?text_temperature=-1", "text_temperature"),
        ("?text_topk=many", "text_top_k"),
        ("?pad_mult=loud", "pad_mult"),
        ("?seed=x", "seed: expected a whole number"),
        ("?text_prompt=" + "a" * 501, "text_prompt: 501 characters; at most 500 are taken"),
        ("?text_prompt=%20", "text_prompt: expected words"),
    ],
)
def test_bad_queries_are_refused_in_words(small_bundle, query, words):
    async def call() -> str:
        async with serving(small_bundle) as (_, address), connected(address, query) as client:
            return (await client.until(Kind.ERROR)).decode()

    assert words in asyncio.run(call())


def test_who_may_come_in(small_bundle):
    async def ask() -> dict[str, int]:
        async with serving(small_bundle, token="secret") as (_, address), aiohttp.ClientSession() as http:
            found = {}
            for name, path, headers in (
                ("page", "/", {}),
                ("no token", "/api/chat", {}),
                ("wrong", "/api/chat?token=secre", {}),
                ("foreign page", "/api/chat?token=secret", {"Origin": "http://elsewhere.example"}),
                ("own page", "/metrics?token=secret", {"Origin": address}),
                ("bearer", "/metrics", {"Authorization": "Bearer secret"}),
                ("above the folder", "/web/../server.py", {}),
                ("health", "/health", {}),
            ):
                async with http.get(address + path, headers=headers) as response:
                    found[name] = response.status
            return found

    assert asyncio.run(ask()) == {
        "page": 200, "no token": 403, "wrong": 403, "foreign page": 403, "own page": 200, "bearer": 200,
        "above the folder": 404, "health": 200,
    }  # fmt: skip


def test_when_full_callers_wait_in_order_and_get_the_place(small_bundle):
    async def calls() -> list:
        async with serving(small_bundle, places=1, queue=1) as (_, address), contextlib.AsyncExitStack() as stack:
            first, second, third = [await stack.enter_async_context(connected(address)) for _ in range(3)]
            await first.until(Kind.HANDSHAKE)
            await second.until(Kind.METADATA)
            refused = (await third.until(Kind.ERROR)).decode()
            await first.talk(2)
            await first.socket.close()
            await second.until(Kind.HANDSHAKE)
            await second.talk(3)
            return [second.metadata[0], refused]

    place, refused = asyncio.run(calls())
    assert place == {"queue": 1} and "all 1 places and the queue are full" in refused


def test_a_failing_model_ends_calls_in_words_and_takes_new_ones(small_bundle, monkeypatch):
    async def calls() -> str:
        async with serving(small_bundle) as (desk, address), connected(address) as client:
            await client.until(Kind.HANDSHAKE)
            await client.talk(2)
            step = desk.worker._batch.step
            monkeypatch.setattr(desk.worker._batch, "step", lambda pcm: step(pcm[:, :5]))
            await client.send(Kind.AUDIO, bytes(2 * FRAME))
            words = (await client.until(Kind.ERROR)).decode()
            async with connected(address) as other:
                await other.until(Kind.HANDSHAKE)
                await other.talk(3)
            return words

    assert "the model failed (ValueError); please call again" in asyncio.run(calls())


def test_silence_and_long_calls_end_with_a_reason(small_bundle):
    async def calls(**options) -> str:
        async with serving(small_bundle, handshake_sec=0.1, **options) as (desk, address), connected(address) as client:
            await client.until(Kind.HANDSHAKE)
            await client.talk(1)
            words = (await client.until(Kind.ERROR)).decode()
            with pytest.raises(ConnectionError):
                await client.until(Kind.PING)
            assert desk.worker.num_calls == 0
            return words

    assert "no sound came for 0.5 s" in asyncio.run(calls(idle_sec=0.5))
    assert "calls last 0.5 s at most" in asyncio.run(calls(call_sec=0.5))


def test_metrics_and_ready_tell_of_calls(small_bundle):
    async def ask() -> tuple[str, dict]:
        async with serving(small_bundle) as (_, address), aiohttp.ClientSession() as http:
            async with connected(address) as client:
                await client.send(Kind.IMAGE, png("blue"))
                await client.until(Kind.HANDSHAKE)
                await client.talk(3)
                async with http.get(f"{address}/ready") as response:
                    ready = await response.json()
            await asyncio.sleep(0.3)
            async with http.get(f"{address}/metrics") as response:
                return await response.text(), ready

    text, ready = asyncio.run(ask())
    assert ready["calls"] == 1 and ready["ready"] and set(ready["step_sec"]) == {"0.5", "0.95", "0.99"}
    for line in ("mmspeech_calls_total 1.0", 'mmspeech_pictures_total{what="shown"} 1.0', "mmspeech_sessions 0.0"):
        assert line in text, text


def test_calls_are_kept_only_where_that_is_wanted(small_bundle, tmp_path):
    async def call() -> dict:
        async with serving(small_bundle, record=tmp_path / "calls") as (_, address), connected(address) as client:
            await client.until(Kind.HANDSHAKE)
            await client.talk(5, level=0.1)
            return client.metadata[0]

    assert asyncio.run(call())["recorded"] is True
    import soundfile

    (wav,) = (tmp_path / "calls").glob("*.wav")
    wave, rate_hz = soundfile.read(wav)
    assert rate_hz == 24_000 and wave.shape == (5 * FRAME, 2) and wave[:, 1].std() > 0.05
    assert "words" in json.loads(wav.with_suffix(".json").read_text())


def test_pack_is_a_byte_and_a_payload():
    assert pack(Kind.TEXT, b"hi") == b"\x02hi"


def test_realtime_events(small_bundle):
    import base64

    frame = base64.b64encode(bytes(2 * FRAME)).decode()

    async def call() -> list[dict]:
        events: list[dict] = []
        async with (
            serving(small_bundle) as (_, address),
            aiohttp.ClientSession() as http,
            http.ws_connect(f"{address}/v1/realtime") as socket,
        ):

            async def until(kind: str) -> None:
                async with asyncio.timeout(20):
                    while not events or events[-1]["type"] != kind:
                        events.append(json.loads((await socket.receive()).data))

            await until("session.created")
            await socket.send_json({"type": "session.update", "session": {"temperature": 0, "top_k": 3}})
            await until("session.updated")
            events.append({"type": "sent"})
            await socket.send_json({"type": "session.update", "session": {"seed": 7}})  # the rest stays
            await until("session.updated")
            await socket.send_json({"type": "input_image", "image": base64.b64encode(png("red")).decode()})
            for _ in range(5):
                await socket.send_json({"type": "input_audio_buffer.append", "audio": frame})
                await until("response.audio.delta")
                events.append({"type": "sent"})
            for bad in (
                "{",
                "[]",
                '{"type": "x"}',
                '{"type": "response.create"}',
                '{"type": "input_image", "image": "!"}',
            ):
                await socket.send_str(bad)
                await until("error")
                events.append({"type": "sent"})
            await socket.send_json({"type": "session.update", "session": {"seed": 1}})
            await until("error")
        return events

    events = asyncio.run(call())
    updated = [event["session"] for event in events if event["type"] == "session.updated"][-1]
    assert (updated["text_temperature"], updated["audio_topk"], updated["seed"]) == (0, 3, 7)
    errors = [event["error"]["message"] for event in events if event["type"] == "error"]
    for words, error in zip(
        ("not JSON", "with a `type`", "no such event", "there are no turns", "not base64", "the call has begun"),
        errors,
        strict=True,
    ):
        assert words in error
    sound = [event for event in events if event["type"] == "response.audio.delta"]
    assert all(len(base64.b64decode(event["delta"])) == 2 * FRAME for event in sound)
