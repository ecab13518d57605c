"""Roles, voices, tools and what is told, through the server: a call is what the session in Python gives."""

import asyncio
import base64
import json
import queue

import aiohttp
import numpy as np
import pytest
import torch
from calling import FRAME, Client, connected, pcm16, serving
from typer.testing import CliRunner

from mmspeech.audio.waveform import write_wav
from mmspeech.cli import app
from mmspeech.config import ConfigError, GenerationConfig
from mmspeech.serve.call import Call, CallEnd
from mmspeech.serve.crew import Crew
from mmspeech.serve.prompt import Prompt, PromptError
from mmspeech.serve.protocol import Kind
from mmspeech.serve.session import Session, StepOut
from mmspeech.serve.settings import Manner
from mmspeech.serve.tools import load_tools
from mmspeech.serve.worker import Worker

GREEDY = GenerationConfig(text_temperature=0, audio_temperature=0)
ROLE, FACT, TELL_AT, STEPS = "the circle is red", "the square", 3, 14
PATIENCE_SEC = 60
SOUND = (0.1 * np.random.default_rng(1).standard_normal((STEPS, FRAME))).clip(-1, 1).astype(np.float32)
HEARD = [np.frombuffer(pcm16(frame), "<i2").astype(np.float32) / 32768 for frame in SOUND]


def in_python(bundle, *, role: str | None = None, fact: str | None = None, voice=None) -> list[StepOut]:
    prompt = None if role is None and voice is None else Prompt(role, voice)
    session, steps = Session(bundle, GREEDY, prompt=prompt), []
    for step, frame in enumerate(HEARD):
        if step == TELL_AT and fact is not None:
            session.tell(fact)
        steps.append(session.step(torch.from_numpy(frame)))
    return steps


def called(worker, *, role: str | None = None, fact: str | None = None, lead: int = 0) -> list[StepOut | CallEnd]:
    """The steps of a call that is silent for `lead` frames (which are left out) and then says its own."""
    given = queue.Queue()
    call = Call(given.put)
    worker.open(call)
    call.sampling, call.role = GREEDY, role  # until it begins, a caller may change both
    steps = []
    for number in range(-lead, STEPS):
        if number == TELL_AT and fact is not None:
            call.tell(fact)
        call.feed(HEARD[number] if number >= 0 else np.zeros(FRAME, np.float32))
        steps.append(given.get(timeout=PATIENCE_SEC))
        if isinstance(steps[-1], CallEnd):
            return steps
    worker.close(call)
    return steps[lead:]


def prompt_frames(bundle, *, role: str | None = None, voice=None) -> int:
    return len(Prompt(role, voice).frames(bundle).text_ids)


def assert_same(found: list, expected: list[StepOut]) -> None:
    assert len(found) == len(expected)
    for own, other in zip(found, expected, strict=True):
        torch.testing.assert_close(own.pcm, other.pcm, atol=1e-5, rtol=1e-4)
        assert (own.text, own.told, own.frame, own.start_sec) == (other.text, other.told, other.frame, other.start_sec)


@pytest.fixture
def working(small_bundle):
    """Makes workers, which are stopped when the test is over."""
    started = []

    def working(**manner) -> Worker:
        started.append(Worker(small_bundle, places=2, manner=Manner(**manner)))
        started[-1].start()
        return started[-1]

    yield working
    for worker in started:
        worker.stop()


def test_a_role_and_what_is_told_are_as_in_python(small_bundle, working):
    worker, lead = working(), prompt_frames(small_bundle, role=ROLE)
    expected = in_python(small_bundle, role=ROLE, fact=FACT)
    assert any(step.told for step in expected)
    assert_same(called(worker, role=ROLE, fact=FACT, lead=lead), expected)
    assert_same(called(worker), in_python(small_bundle))  # nothing of it is left for the next one


def test_the_servers_role_and_voice_are_for_all_who_bring_none(small_bundle, working, tmp_path):
    pytest.importorskip("pyloudnorm")
    times = np.arange(24_000) / 24_000
    voice = (0.3 * np.sin(2 * np.pi * 180 * times)).astype(np.float32)
    write_wav(tmp_path / "voice.wav", voice, 24_000)
    worker = working(role=ROLE, voice=tmp_path / "voice.wav")
    for role in (None, "hello"):
        asked = {"role": role or ROLE, "voice": tmp_path / "voice.wav"}
        lead = prompt_frames(small_bundle, **asked)
        assert_same(called(worker, role=role, lead=lead), in_python(small_bundle, **asked))


def test_a_crew_passes_it_on(small_bundle, small_checkpoint):
    crew = Crew(small_checkpoint, places=2, processes=2, manner=Manner(role="hello"))
    crew.start()
    try:
        lead = prompt_frames(small_bundle, role=ROLE)
        expected = in_python(small_bundle, role=ROLE, fact=FACT)
        assert_same(called(crew, role=ROLE, fact=FACT, lead=lead), expected)
        lead = prompt_frames(small_bundle, role="hello")
        assert_same(called(crew, lead=lead), in_python(small_bundle, role="hello"))
    finally:
        crew.stop()


def test_a_role_that_cannot_be_ends_its_own_call_only(small_bundle, working):
    worker = working()
    other = queue.Queue()
    going_on = Call(other.put, sampling=GREEDY)
    worker.open(going_on)
    (end,) = called(worker, role="東京")
    assert "no letter of it" in end.reason
    (end,) = called(worker, role="a " * 100)
    assert "the model remembers 50; shorten" in end.reason
    going_on.feed(HEARD[0])
    assert isinstance(other.get(timeout=PATIENCE_SEC), StepOut) and worker.num_calls == 1
    with pytest.raises(PromptError, match="no letter of it"):
        Worker(small_bundle, places=1, manner=Manner(role="東京"))


def test_tools_of_a_server_are_called_for_each_caller(small_bundle, working, tmp_path):
    file = tmp_path / "tools.py"
    file.write_text(
        "from mmspeech.serve.tools import Tools\ntools = Tools([(r'\\S', lambda match: 'circle')], timeout_sec=30)\n"
    )  # whatever the model says
    worker, given = working(tools=file), queue.Queue()
    call = Call(given.put, sampling=GREEDY)
    worker.open(call)
    told = []
    for number in range(400):
        call.feed(HEARD[number % STEPS])
        told.append(given.get(timeout=PATIENCE_SEC).told)
        if any(told):
            break
    assert any(told)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("tools = 1", r"expected `tools = Tools\(.*got int"),
        ("x = 1", "got NoneType"),
        ("tools = (", "SyntaxError"),
        ("from mmspeech.serve.tools import Tools\ntools = Tools([('(', print)])", "ValueError"),
    ],
)
def test_tools_that_cannot_be_are_told_before_anybody_calls(tmp_path, text, words):
    file = tmp_path / "tools.py"
    file.write_text(text)
    with pytest.raises(ConfigError, match=words):
        load_tools(file)


def test_a_missing_tools_file_is_one_line_of_the_command(small_checkpoint):
    done = CliRunner().invoke(app, ["serve", "--model", str(small_checkpoint), "--tools", "nowhere.py", "--port", "9"])
    assert done.exit_code == 2 and "nowhere.py: FileNotFoundError" in done.output


def test_both_protocols_take_a_role_and_words(small_bundle):
    lead = prompt_frames(small_bundle, role=ROLE)
    expected = [pcm16(step.pcm.numpy().clip(-1, 1)) for step in in_python(small_bundle, role=ROLE, fact=FACT)]
    query = f"?audio=pcm16&text_temperature=0&audio_temperature=0&text_prompt={ROLE}"

    async def chat(address: str) -> list[bytes]:
        async with connected(address, query) as client:
            await client.until(Kind.HANDSHAKE)
            await client.talk(lead)
            for number, frame in enumerate(SOUND):
                if number == TELL_AT:
                    await client.send(Kind.TEXT, FACT.encode())
                await client.send(Kind.AUDIO, pcm16(frame))
                await client.until(Kind.AUDIO)
            return client.sound[lead:]

    async def realtime(address: str) -> list[bytes]:
        sound: list[bytes] = []
        async with aiohttp.ClientSession() as http, http.ws_connect(f"{address}/v1/realtime") as socket:
            settings = {"temperature": 0, "instructions": ROLE}
            await socket.send_json({"type": "session.update", "session": settings})
            for number in range(-lead, STEPS):
                if number == TELL_AT:
                    item = {"type": "message", "content": [{"type": "input_text", "text": FACT}]}
                    await socket.send_json({"type": "conversation.item.create", "item": item})
                said = pcm16(SOUND[number]) if number >= 0 else bytes(2 * FRAME)
                event = {"type": "input_audio_buffer.append", "audio": base64.b64encode(said).decode()}
                await socket.send_json(event)
                while (got := json.loads((await socket.receive(timeout=20)).data))["type"] != "response.audio.delta":
                    assert got["type"] != "error", got
                sound.append(base64.b64decode(got["delta"]))
        return sound[lead:]

    async def both() -> list[list[bytes]]:
        async with serving(small_bundle) as (_, address):
            return [await chat(address), await realtime(address)]

    for found in asyncio.run(both()):
        difference = np.frombuffer(b"".join(found), "<i2").astype(int) - np.frombuffer(b"".join(expected), "<i2")
        assert np.abs(difference).max() <= 1


def test_more_than_can_be_taken_in_is_refused_and_nothing_is_lost(small_bundle):
    async def call() -> Client:
        async with serving(small_bundle, told_characters=20) as (_, address), connected(address) as client:
            await client.until(Kind.HANDSHAKE)
            for words in ("", "x" * 21, "the circle", "the square", "is red"):
                await client.send(Kind.TEXT, words.encode())
            await client.until(Kind.ERROR, count=3)
            await client.talk(2)
            return client

    errors = asyncio.run(call()).errors
    assert "text: expected words" in errors[0] and "21 characters; at most 20" in errors[1]
    assert "still being told what came before" in errors[2]
