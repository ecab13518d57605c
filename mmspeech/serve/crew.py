"""Several Workers, each with the model in a process of its own: to the server they are one.

One thread steps a small model, and one core is all that it uses. A crew of N uses N cores, keeps the model's work out
of the process that holds the sockets, and when a process dies only its own calls end; another takes its place.
"""

import logging
import multiprocessing
import os
import threading
from collections import deque
from contextlib import suppress
from functools import partial
from pathlib import Path
from queue import Full, Queue

from mmspeech.checkpoint import CONFIG, resolve
from mmspeech.config import ConfigError, ModelConfig, parse_config, read_mapping
from mmspeech.serve.call import Call, CallEnd
from mmspeech.serve.member import Order, Ready, Refused, Report, run_member, unpacked
from mmspeech.serve.settings import Manner
from mmspeech.serve.worker import RECENT_STEPS, FullError

START_SEC = 600.0  # to load a large model
WAITING_ORDERS = 4096  # more wait only for a process that has stopped reading

log = logging.getLogger("mmspeech.serve")


class Crew:
    """As a Worker, with `places` shared evenly by `processes` of them."""

    def __init__(
        self,
        path_or_id: str | Path | None,
        *,
        places: int,
        processes: int,
        device: str = "cpu",
        manner: Manner | None = None,
    ):
        path = resolve(path_or_id)
        self.model = parse_config(ModelConfig, read_mapping(path / CONFIG), source=str(path / CONFIG))
        self.places = places
        if places < processes:
            raise ConfigError(f"{processes} processes for {places} places: each needs one at least; lower --processes")
        shares = [places // processes + (number < places % processes) for number in range(processes)]
        self._members = [_Member(path, device, share, processes, manner) for share in shares]
        self._where: dict[int, _Member] = {}  # by id of the call
        self._lock = threading.Lock()

    def start(self) -> None:
        """Load all models at once; returns when they are there. ConfigError when one can not be loaded."""
        for member in self._members:
            member.start()
        for member in self._members:
            member.wait_until_ready()

    def stop(self) -> None:
        """End all calls and processes."""
        for member in self._members:
            member.stop()

    @property
    def alive(self) -> bool:
        return all(member.alive for member in self._members)

    @property
    def delay_sec(self) -> float:
        return self._members[0].delay_sec

    @property
    def num_calls(self) -> int:
        return sum(member.num_calls for member in self._members)

    @property
    def step_sec(self) -> list[float]:
        return [value for member in self._members for value in list(member.step_sec)]

    @property
    def steps(self) -> int:
        return sum(member.steps for member in self._members)

    @property
    def overruns(self) -> int:
        return sum(member.overruns for member in self._members)

    @property
    def failures(self) -> int:
        return sum(member.failures for member in self._members)

    @property
    def process_ids(self) -> list[int]:
        """Of the server and its workers."""
        return [os.getpid()] + [pid for member in self._members if (pid := member.process_id) is not None]

    def open(self, call: Call) -> None:
        """Give a call to who has least to do; FullError when there is no place."""
        with self._lock:
            member = max(self._members, key=lambda member: member.num_free)
            if member.num_free <= 0:
                raise FullError(f"all {self.places} places are taken")
            member.open(call)
            self._where[id(call)] = member

    def close(self, call: Call, reason: str = "the caller hung up") -> None:
        """End a call, if it has not ended."""
        with self._lock:
            member = self._where.pop(id(call), None)
        if member is not None:
            member.close(call, reason)


class _Member:
    """A process with a Worker, and the threads that write to it and read from it."""

    def __init__(self, path: Path, device: str, places: int, num_processes: int, manner: Manner | None):
        self._what = (path, device, places, num_processes, manner)
        self.places, self.delay_sec = places, 0.0
        self.step_sec: deque[float] = deque(maxlen=RECENT_STEPS)
        self.steps = self.overruns = self.failures = 0
        self._calls: dict[int, Call] = {}
        self._next = 0
        self._lock = threading.Lock()
        self._ready, self._problem = threading.Event(), ""
        self._stopping = False
        self._process: multiprocessing.process.BaseProcess | None = None
        self._pipe = None
        self._orders: Queue[Order | None] = Queue(WAITING_ORDERS)
        self._thread = threading.Thread(target=self._run, name="mmspeech crew", daemon=True)

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    @property
    def num_calls(self) -> int:
        return len(self._calls)

    @property
    def num_free(self) -> int:
        return self.places - len(self._calls) if self._ready.is_set() and not self._stopping and self.alive else 0

    @property
    def process_id(self) -> int | None:
        return None if self._process is None else self._process.pid

    def start(self) -> None:
        self._thread.start()

    def wait_until_ready(self) -> None:
        if not self._ready.wait(START_SEC):
            raise ConfigError(f"a model's process did not start within {START_SEC:g} s")
        if self._problem:
            raise ConfigError(self._problem)

    def stop(self) -> None:
        self._stopping = True
        with suppress(Full):
            self._orders.put_nowait(None)
        if self._process is not None:
            self._process.join(5)
            self._process.kill()
        self._end_all(CallEnd("the server is shutting down"))

    def open(self, call: Call) -> None:
        with self._lock:
            number, self._next = self._next, self._next + 1
            self._calls[number] = call
        call.bind(partial(self._begin, number, call))

    def close(self, call: Call, reason: str) -> None:
        with self._lock:
            number = next((number for number, other in self._calls.items() if other is call), None)
            self._calls.pop(number, None)
        if number is not None:
            self._order(Order(number, "close"))
            call.deliver(CallEnd(reason))

    def _begin(self, number: int, call: Call) -> None:
        """The first sound of a call has come. Only now is it opened there: until then its caller may change it."""
        with self._lock:
            if number not in self._calls:  # it has ended already, and nobody would close it again
                return
            self._order(Order(number, "open", (call.sampling, call.seed, call.role)))
        call.bind(partial(self._pass_on, number, call))
        self._pass_on(number, call)

    def _pass_on(self, number: int, call: Call) -> None:
        """Sound of a call has come."""
        for text in call.told():
            self._order(Order(number, "tell", text))
        for wish in call.wishes():
            self._order(Order(number, "see", wish))
        while (frame := call.take()) is not None:
            if not self._order(Order(number, "hear", frame)):
                call.counts.skipped += 1

    def _order(self, order: Order) -> bool:
        """Whether it will be sent. A process that has stopped reading never holds up who asks."""
        try:
            self._orders.put_nowait(order)
        except Full:
            return False
        return True

    def _run(self) -> None:
        """One process after the other, should they die; one that can not begin is the last."""
        context = multiprocessing.get_context("spawn")
        while not self._stopping:
            self._pipe, theirs = context.Pipe()
            self._orders = Queue(WAITING_ORDERS)
            self._process = context.Process(target=run_member, args=(theirs, *self._what), daemon=True)
            self._process.start()
            theirs.close()
            writer = threading.Thread(target=_write, args=(self._pipe, self._orders), daemon=True)
            writer.start()
            was_ready = self._read()
            self._orders.put(None)
            if self._stopping or not was_ready:
                break
            self.failures += 1
            log.error("a model's process ended (exit code %s); %d calls end", self._process.exitcode, self.num_calls)
            self._end_all(CallEnd("the model's process ended; please call again", fault=True))
        self._problem = self._problem or "a model's process ended before it was ready"
        self._ready.set()

    def _read(self) -> bool:
        """Take what comes until the process has ended; whether it ever was ready."""
        ready = False
        try:
            while True:
                message = self._pipe.recv()
                if isinstance(message, Report):
                    self._take(message)
                elif isinstance(message, Refused):
                    self._problem = message.reason
                elif isinstance(message, Ready):
                    self.delay_sec, ready = message.delay_sec, True
                    self._ready.set()
        except (EOFError, OSError):
            self._ready.clear()
            return ready

    def _take(self, report: Report) -> None:
        self.step_sec.extend(report.step_sec)
        self.steps += report.steps
        self.overruns += report.overruns
        self.failures += report.failures
        for given in report.given:
            call = self._calls.get(given.number)
            if call is None:  # it was hung up meanwhile
                continue
            call.counts = given.counts
            if isinstance(given.event, CallEnd):
                with self._lock:
                    self._calls.pop(given.number, None)
            call.deliver(unpacked(given.event))

    def _end_all(self, end: CallEnd) -> None:
        with self._lock:
            ended, self._calls = list(self._calls.values()), {}
        for call in ended:
            call.deliver(end)


def _write(pipe, orders: Queue) -> None:
    """Send orders, None as the last, or until nobody reads them."""
    with suppress(OSError):
        while True:
            order = orders.get()
            pipe.send(order)
            if order is None:
                return
