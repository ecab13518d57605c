"""A Worker in a process of its own: what its calls are to hear and see comes in through a pipe, their steps go out.

Only this file and crew.py know what goes through the pipe. It joins two processes of one server, never the network, so
pickles are safe there.
"""

import signal
import threading
from contextlib import suppress
from copy import copy
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Literal

import numpy as np
import torch

from mmspeech.checkpoint import load_model
from mmspeech.config import ConfigError, GenerationConfig
from mmspeech.serve.call import Call, CallCounts, CallEnd, Wish
from mmspeech.serve.session import StepOut
from mmspeech.serve.settings import Manner
from mmspeech.serve.worker import Worker


@dataclass(frozen=True)
class Order:
    """What is to be done for the call of that number. value: for `open` its sampling, seed and role, for `hear` a frame
    [1920] float32, for `see` a Wish, for `tell` words."""

    number: int
    what: Literal["open", "hear", "see", "tell", "close"]
    value: "tuple[GenerationConfig | None, int, str | None] | np.ndarray | Wish | str | None" = None


@dataclass(frozen=True)
class Ready:
    """The model is loaded, and how much later than a frame its answer sounds."""

    delay_sec: float


@dataclass(frozen=True)
class Refused:
    """The model can not be loaded: why, in a line."""

    reason: str


@dataclass(frozen=True)
class Given:
    """A step of a call, or its end; counts: of the call so far."""

    number: int
    event: "StepOut | CallEnd"
    counts: CallCounts


@dataclass(frozen=True)
class Report:
    """What the calls are given, and of the worker what was not reported yet: how long steps took, how many there were,
    overruns and failures."""

    given: list[Given]
    step_sec: list[float]
    steps: int
    overruns: int
    failures: int


def run_member(
    pipe: Connection, path: Path, device: str, places: int, num_processes: int, manner: Manner | None
) -> None:
    """The main function of the process; it ends when None comes, or the server is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the server, which then lets calls end with a word
    try:
        bundle = load_model(path, device=device)
        worker = Worker(bundle, places=places, manner=manner, num_processes=num_processes)
    except ConfigError as error:
        pipe.send(Refused(str(error)))
        return
    pipe.send(Ready(worker.delay_sec))
    outbox: SimpleQueue[Given] = SimpleQueue()
    threading.Thread(target=_report, args=(pipe, outbox, worker), daemon=True).start()
    worker.start()
    calls: dict[int, Call] = {}
    with suppress(EOFError, OSError):  # the server is gone
        while worker.alive and (order := pipe.recv()) is not None:
            _obey(order, worker, calls, outbox)
    worker.stop()


def _obey(order: Order, worker: Worker, calls: dict[int, Call], outbox: SimpleQueue) -> None:
    if order.what == "open":
        sampling, seed, role = order.value
        call = Call(partial(_give, order.number, calls, outbox), sampling=sampling, seed=seed, role=role)
        calls[order.number] = call
        worker.open(call)
        return
    call = calls.get(order.number)
    if call is None:  # it has ended meanwhile
        return
    if order.what == "hear":
        call.feed(order.value)
    elif order.what == "see" and order.value.picture is not None:
        call.see(order.value.picture, order.value.at_sec)
    elif order.what == "see":
        call.forget()
    elif order.what == "tell":
        call.tell(order.value)
    else:
        worker.close(call)


def _give(number: int, calls: dict[int, Call], outbox: SimpleQueue, event: StepOut | CallEnd) -> None:
    """On the worker's thread."""
    call = calls.pop(number, None) if isinstance(event, CallEnd) else calls.get(number)
    if call is None:
        return
    if isinstance(event, StepOut):
        # Of the whole batch's sound, only what is this call's.
        event = copy(event)
        event.pcm, event.heard = event.pcm.numpy().copy(), event.heard.numpy().copy()
    outbox.put(Given(number, event, copy(call.counts)))


def _report(pipe: Connection, outbox: SimpleQueue, worker: Worker) -> None:
    """Send what there is, as it comes: the model never waits for who reads it."""
    before = (0, 0, 0)
    while True:
        given = [outbox.get()]
        while True:
            try:
                given.append(outbox.get_nowait())
            except Empty:
                break
        counts = (worker.steps, worker.overruns, worker.failures)
        steps, overruns, failures = (now - then for now, then in zip(counts, before, strict=True))
        recent = list(worker.step_sec)
        try:
            pipe.send(Report(given, recent[len(recent) - min(steps, len(recent)) :], steps, overruns, failures))
        except (BrokenPipeError, OSError):
            return
        before = counts


def unpacked(event: StepOut | CallEnd) -> StepOut | CallEnd:
    """What came through the pipe, as a worker gives it."""
    if isinstance(event, StepOut):
        event.pcm, event.heard = torch.from_numpy(event.pcm), torch.from_numpy(event.heard)
    return event
