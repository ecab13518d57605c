"""Calls that come and go in one batch: each is what it is alone, whoever is beside it."""

import copy
import random

import numpy as np
import pytest
import torch
from PIL import Image

from mmspeech.config import GenerationConfig
from mmspeech.nn.cuda_graph import record_cuda_graph
from mmspeech.serve.call import Call
from mmspeech.serve.engine import CallBatch
from mmspeech.serve.worker import PATIENCE_SEC, Worker
from tests.tape import read_all_slots, record_on_tape

GREEDY = GenerationConfig(text_temperature=0.0, audio_temperature=0.0)
LOOSE = GenerationConfig(text_temperature=0.9, text_top_k=5, audio_temperature=0.7, audio_top_k=12, pad_mult=-1.5)
PLACES = 4


class Caller:
    """A call with its own sound, pictures, settings and seed."""

    def __init__(self, number: int, *, sampling: GenerationConfig):
        rng = random.Random(number)
        self.seed, self.sampling = number, sampling
        self.num_steps = rng.randint(5, 14)
        self.sound = 0.1 * torch.randn(self.num_steps, 1920, generator=torch.Generator().manual_seed(number))
        colours = [tuple(rng.randrange(256) for _ in range(3)) for _ in range(3)]
        self.pictures = {rng.randrange(self.num_steps): Image.new("RGB", (40, 30), colour) for colour in colours}
        self.forgets = rng.randrange(20)
        self.heard: list[tuple[list[int], torch.Tensor]] = []

    def before(self, calls: CallBatch, row: int, step: int) -> None:
        if step == 0:
            calls.begin(row, sampling=self.sampling, seed=self.seed)
        if step == self.forgets:
            calls.forget([row])
        if step in self.pictures:
            calls.show(self.pictures[step], row)

    def take(self, result, row: int) -> None:
        codes = [] if result.out is None else [int(result.out.text_ids[row]), *result.out.codes[row].tolist()]
        self.heard.append(([] if codes[:1] == [-1] else codes, result.wave[row].clone()))


def alone(bundle, caller: Caller) -> list:
    twin = Caller(caller.seed, sampling=caller.sampling)
    calls = CallBatch(bundle, batch_size=1)
    for step, pcm in enumerate(twin.sound):
        twin.before(calls, 0, step)
        twin.take(calls.step(pcm[None]), 0)
    return twin.heard


@pytest.mark.parametrize("sampling", [GREEDY, LOOSE], ids=["greedy", "sampled"])
def test_calls_that_come_and_go_are_what_they_are_alone(remembering_bundle, sampling):
    come_and_go(remembering_bundle, sampling)


def test_also_without_memory(small_bundle):
    come_and_go(small_bundle, GREEDY)


def test_also_with_eyes_that_see_motion(clip_bundle):
    come_and_go(clip_bundle, GREEDY)


@pytest.mark.parametrize("sampling", [GREEDY, LOOSE], ids=["greedy", "sampled"])
def test_also_when_steps_are_recorded(remembering_bundle, sampling, monkeypatch):
    read_all_slots(monkeypatch)
    come_and_go(remembering_bundle, sampling, record=record_on_tape)


def test_few_numbers_of_places_are_recorded(small_bundle):
    recorded, plain = (CallBatch(small_bundle, batch_size=6, record=record) for record in (record_on_tape, None))
    assert [recorded.enough_places(count) for count in range(1, 7)] == [1, 2, 4, 4, 6, 6]
    assert [plain.enough_places(count) for count in range(1, 7)] == [1, 2, 3, 4, 5, 6]


@pytest.mark.gpu
def test_also_as_cuda_graphs(remembering_bundle):
    bundle = copy.deepcopy(remembering_bundle)
    bundle.model.to("cuda"), bundle.codec.to("cuda")
    come_and_go(bundle, GREEDY, record=record_cuda_graph)


def come_and_go(bundle, sampling, record=None):
    rng, calls = random.Random(1), CallBatch(bundle, batch_size=PLACES, record=record)
    others = {2: GenerationConfig(text_top_k=3, audio_top_k=2), 5: GREEDY}
    waiting = [Caller(number, sampling=others.get(number, sampling)) for number in range(10)]
    everyone, there = list(waiting), {}
    while waiting or there:
        for row in range(PLACES):
            if row not in there and waiting and rng.random() < 0.5:
                there[row] = (waiting.pop(0), 0)
        if not there:
            continue
        count = max(there) + 1
        pcm = torch.zeros(count, 1920)
        for row, (caller, step) in there.items():
            caller.before(calls, row, step)
            pcm[row] = caller.sound[step]
        result = calls.step(pcm)
        for row, (caller, step) in list(there.items()):
            caller.take(result, row)
            there[row] = (caller, step + 1)
            if step + 1 == caller.num_steps:
                del there[row]
    for caller in everyone:
        for step, ((codes, wave), (own_codes, own_wave)) in enumerate(
            zip(caller.heard, alone(bundle, caller), strict=True)
        ):
            assert codes == own_codes, (caller.seed, step)
            torch.testing.assert_close(wave, own_wave, atol=1e-5, rtol=1e-4)


def test_places_behind_the_first_stay_as_they_are(small_bundle):
    calls = CallBatch(small_bundle, batch_size=3, seed=4)
    calls.step(torch.zeros(3, 1920))
    before = [tensor.clone() for tensor in calls.codec_rows.tensors() + calls.generator.rows.tensors()]
    calls.step(0.1 * torch.randn(2, 1920))
    after = calls.codec_rows.tensors() + calls.generator.rows.tensors()
    assert all(torch.equal(one[2:], two[2:]) for one, two in zip(before, after, strict=True))
    assert any(not torch.equal(one[:2], two[:2]) for one, two in zip(before, after, strict=True))
    assert calls.generator.steps == [2, 2, 1]


def test_one_that_stalls_is_waited_for_once(small_bundle):
    worker = Worker(small_bundle, places=2)
    here, stalled = (Call(deliver=lambda step: None, seed=seed) for seed in (1, 2))
    for call in (here, stalled):
        worker.open(call)
        call.feed(np.zeros(1920, np.float32))
    worker._step(dict(worker._calls))
    here.feed(np.zeros(1920, np.float32))
    assert 0 < worker._wait_sec() <= PATIENCE_SEC
    worker._step(dict(worker._calls))
    assert (here.counts.starved, stalled.counts.starved) == (0, 1)
    here.feed(np.zeros(1920, np.float32))
    assert worker._wait_sec() == 0
    worker._step(dict(worker._calls))
    for call in (here, stalled):
        call.feed(np.zeros(1920, np.float32))
    worker._step(dict(worker._calls))
    here.feed(np.zeros(1920, np.float32))
    assert worker._wait_sec() > 0  # it is back


def test_a_frame_that_comes_too_late_is_skipped_and_the_delay_does_not_grow(small_bundle):
    worker = Worker(small_bundle, places=1)
    call = Call(deliver=lambda step: None, seed=1)
    worker.open(call)
    frames = [np.full(1920, value, np.float32) for value in (0.1, 0.2, 0.3, 0.4)]
    call.feed(frames[0])
    worker._step(dict(worker._calls))
    worker._step(dict(worker._calls))  # the second one is late
    call.feed(frames[1])
    call.feed(frames[2])
    assert call.take()[0] == np.float32(0.3) and call.waiting()[0] == 0
    assert (call.counts.starved, call.counts.skipped) == (1, 1)
    call.feed(frames[3])
    assert call.take()[0] == np.float32(0.4) and call.counts.skipped == 1
