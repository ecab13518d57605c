"""Models in processes of their own: the server and its callers can not tell, but for what it costs when one dies."""

import asyncio
import os
import queue
import shutil
import signal
import time

import pytest
import torch
from calling import connected, png, serving_with
from PIL import Image

from mmspeech.checkpoint import MODEL
from mmspeech.config import ConfigError, GenerationConfig
from mmspeech.serve.call import Call, CallEnd
from mmspeech.serve.crew import Crew
from mmspeech.serve.protocol import Kind
from mmspeech.serve.session import Session
from mmspeech.serve.settings import ServeConfig
from mmspeech.serve.worker import FullError

LOOSE = GenerationConfig(text_temperature=0.9, text_top_k=5, audio_temperature=0.7, audio_top_k=12)
PATIENCE_SEC = 60


@pytest.fixture(scope="module")
def crew(small_checkpoint):
    crew = Crew(small_checkpoint, places=4, processes=2)
    crew.start()
    yield crew
    crew.stop()
    assert crew.num_calls == 0 and not crew.alive


@pytest.fixture
def calling(crew):
    """Makes callers, who hang up when the test is over."""
    callers = []

    def calling(seed: int) -> "Caller":
        callers.append(Caller(crew, seed))
        return callers[-1]

    yield calling
    for caller in callers:
        crew.close(caller.call)


class Caller:
    """Someone with a picture, who says a frame and waits for the answer."""

    def __init__(self, crew: Crew, seed: int):
        self.seed, self.given = seed, queue.Queue()
        self.sound = 0.1 * torch.randn(12, 1920, generator=torch.Generator().manual_seed(seed))
        self.picture = Image.new("RGB", (40, 30), (seed * 50 % 256, 80, 30))
        self.call = Call(self.given.put, sampling=LOOSE, seed=seed)
        crew.open(self.call)

    def say(self, step: int) -> None:
        if step == 3:
            self.call.see(self.picture)
        if step == 9:
            self.call.forget()
        self.call.feed(self.sound[step].numpy())

    def hear(self):
        return self.given.get(timeout=PATIENCE_SEC)


def alone(bundle, caller: Caller) -> list:
    session, heard = Session(bundle, sampling=LOOSE, seed=caller.seed), []
    for step, pcm in enumerate(caller.sound):
        if step == 3:
            session.see(caller.picture)
        if step == 9:
            session.forget()
        heard.append(session.step(pcm))
    return heard


def test_calls_are_what_they_are_in_one_process(crew, calling, small_bundle):
    callers = [calling(seed) for seed in (1, 2)]  # one in each process: nobody is late for another's step
    heard = {caller.seed: [] for caller in callers}
    for step in range(12):
        for caller in callers:
            caller.say(step)
        for caller in callers:
            heard[caller.seed].append(caller.hear())
    for caller in callers:
        for out, own in zip(heard[caller.seed], alone(small_bundle, caller), strict=True):
            torch.testing.assert_close(out.pcm, own.pcm, atol=1e-5, rtol=1e-4)
            assert (out.text, out.frame, out.start_sec) == (own.text, own.frame, own.start_sec)
            assert torch.equal(out.heard, own.heard) and abs(out.gate - own.gate) < 1e-5
        assert caller.call.counts.steps == 12
        crew.close(caller.call)
        assert caller.hear() == CallEnd("the caller hung up")
    assert crew.steps >= 12 and len(crew.step_sec) == crew.steps


def test_both_processes_are_used_and_no_more_than_fit_come_in(crew, calling):
    callers = [calling(seed) for seed in range(4)]
    assert [member.num_calls for member in crew._members] == [2, 2]
    with pytest.raises(FullError, match="all 4 places"):
        calling(9)
    crew.close(callers[0].call)
    assert crew.num_calls == 3
    late = calling(10)
    late.say(0)
    assert late.hear().frame is not None


def test_a_call_that_ended_takes_no_place_though_sound_still_comes(crew, calling):
    for spoke in (False, True):
        gone = [calling(seed) for seed in range(4)]
        for caller in gone:
            if spoke:
                caller.say(0)
                caller.hear()
            crew.close(caller.call)
            caller.say(1)
    callers = [calling(seed) for seed in range(4)]
    for caller in callers:
        caller.say(0)
    assert all(caller.hear().frame is not None for caller in callers) and crew.failures == 0


def test_a_process_that_dies_costs_its_own_calls_and_comes_back(crew, calling):
    callers = [calling(seed) for seed in (1, 2)]
    for caller in callers:
        caller.say(0)
        caller.hear()
    steps = crew.steps
    os.kill(crew.process_ids[1], signal.SIGKILL)
    ended = callers[0].hear()
    assert ended.fault and "call again" in ended.reason
    callers[1].say(1)
    assert callers[1].hear().frame is not None
    until = time.monotonic() + PATIENCE_SEC
    while sum(member.num_free for member in crew._members) < 3 and time.monotonic() < until:
        time.sleep(0.05)
    again = calling(1)
    again.say(0)
    assert again.hear().frame is not None
    assert crew.failures == 1 and crew.alive
    assert crew.steps >= steps  # what a dead process counted stays counted; the last steps may not be reported yet


def test_what_can_not_begin_says_why(small_checkpoint, tmp_path):
    with pytest.raises(ConfigError, match="2 processes for 1 places"):
        Crew(small_checkpoint, places=1, processes=2)
    broken = shutil.copytree(small_checkpoint, tmp_path / "broken")
    (broken / MODEL).write_bytes(b"no weights")
    crew = Crew(broken, places=2, processes=2)
    with pytest.raises(ConfigError, match=MODEL):
        crew.start()
    crew.stop()


def test_a_server_around_a_crew(small_checkpoint):
    async def run() -> tuple[int, str, list[str]]:
        config = ServeConfig(places=2)
        crew = Crew(small_checkpoint, places=2, processes=2)
        async with serving_with(crew, config) as (desk, address), connected(address) as line:
            await line.send(Kind.IMAGE, png("red"))
            await line.until(Kind.HANDSHAKE)
            await line.talk(4)
            text = desk.metrics.text().decode()
            crew.close(next(iter(crew._members[0]._calls.values())), "enough")
            await line.until(Kind.ERROR)
        return crew.steps, text, line.errors

    steps, text, errors = asyncio.run(run())
    # The last frames may be on their way when the call is ended.
    assert steps > 0 and "mmspeech_sessions 1.0" in text and "enough" in errors[0]
