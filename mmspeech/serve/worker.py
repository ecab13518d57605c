"""The thread that owns the model: all calls of a machine in one batch, a step for all of them every 80 ms.

A step is taken when every caller's next frame is there. A frame waits for those of others for at most PATIENCE_SEC, and
not at all once a second one waits behind it: then who is late hears silence for that step, and is not waited for until
sound comes again. So the steps follow the callers' own clocks, calls need not begin at the same time of a frame, and
one that stalls holds up nobody.
"""

import logging
import os
import threading
import time
from collections import deque
from typing import TYPE_CHECKING

import numpy as np
import torch

from mmspeech.config import ConfigError
from mmspeech.frames import FRAME_RATE_HZ, FRAME_SAMPLES
from mmspeech.nn.cuda_graph import Record
from mmspeech.serve.call import Call, CallEnd
from mmspeech.serve.engine import CallBatch, settle_threads
from mmspeech.serve.prompt import Prompt, Prompter, PromptError
from mmspeech.serve.session import TextReader
from mmspeech.serve.settings import Manner
from mmspeech.serve.tools import ToolCalls, load_tools

if TYPE_CHECKING:
    from mmspeech.checkpoint import Bundle
    from mmspeech.config import ModelConfig

PATIENCE_SEC = 0.1
RECENT_STEPS = 4096

log = logging.getLogger("mmspeech.serve")


class FullError(ConfigError):
    """No place is free."""


class Worker:
    """Holds up to `places` calls. `open` and `close` may be called from any thread.

    step_sec: how long the last steps took. overruns: steps that took longer than a frame lasts. failures: of the model;
    each ends all calls that were on, and the next begin anew. num_processes: how many share the machine's cores.
    record: see mmspeech.nn.cuda_graph. ConfigError for a manner that cannot be.
    """

    def __init__(
        self,
        bundle: "Bundle",
        *,
        places: int,
        manner: Manner | None = None,
        num_processes: int = 1,
        record: Record | None = None,
    ):
        self.bundle, self.places, self._num_processes, self._record = bundle, places, num_processes, record
        self.step_sec: deque[float] = deque(maxlen=RECENT_STEPS)
        self.overruns = self.failures = self.steps = 0
        self._reader = TextReader(bundle)
        self._batch = CallBatch(bundle, batch_size=places, record=record)
        manner = Manner() if manner is None else manner
        voice = None if manner.voice is None else Prompt(voice=manner.voice).voice
        self._role, self._prompter = manner.role, Prompter(bundle, voice)
        self._prompter.frames(self._role)  # what is wrong with it is told before anybody calls
        self._tools = None if manner.tools is None else load_tools(manner.tools)
        self._tool_calls: dict[int, ToolCalls] = {}
        self._calls: dict[int, Call] = {}
        self._begun: dict[int, Call] = {}  # whose call a row of the batch is
        self._late: set[int] = set()  # rows that heard silence in the last step, for want of sound
        self._ready = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="mmspeech worker", daemon=True)

    def start(self) -> None:
        """Begin to step."""
        self._thread.start()

    def stop(self) -> None:
        """End all calls and the thread."""
        with self._ready:
            self._stopping = True
            self._ready.notify()
        self._thread.join()

    @property
    def model(self) -> "ModelConfig":
        return self.bundle.config

    @property
    def process_ids(self) -> list[int]:
        """Of all that work here."""
        return [os.getpid()]

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    @property
    def delay_sec(self) -> float:
        """How much later than the frame it heard the model's sound for it is: by its streams, and by the codec."""
        codec = self.bundle.codec
        delay_frames = max(self.bundle.config.lm.delays)
        return delay_frames / FRAME_RATE_HZ + codec.decoder_delay_samples / codec.sample_rate_hz

    @property
    def num_calls(self) -> int:
        return len(self._calls)

    def open(self, call: Call) -> None:
        """Give a call the first free place; FullError when there is none. It begins with its first sound."""
        with self._ready:
            free = [row for row in range(self.places) if row not in self._calls]
            if not free or self._stopping:
                raise FullError(f"all {self.places} places are taken" if not self._stopping else "shutting down")
            self._calls[free[0]] = call
        call.bind(self._wake)

    def close(self, call: Call, reason: str = "the caller hung up") -> None:
        """End a call, if it has not ended."""
        with self._ready:
            row = next((row for row, other in self._calls.items() if other is call), None)
            if row is not None:
                del self._calls[row]
        if row is not None:
            call.deliver(CallEnd(reason))

    def _wake(self) -> None:
        with self._ready:
            self._ready.notify()

    def _run(self) -> None:
        settle_threads(self.bundle.model, num_processes=self._num_processes)
        while True:
            with self._ready:
                while not self._stopping and (delay_sec := self._wait_sec()) != 0:
                    self._ready.wait(delay_sec)
                if self._stopping:
                    break
                calls = dict(self._calls)
            try:
                self._step(calls)
            except Exception as error:  # noqa: BLE001 - whatever the model does, the next calls must find it whole
                self._fail(calls, error)
        for call in list(self._calls.values()):
            self.close(call, "the server is shutting down")

    def _wait_sec(self) -> float | None:
        """How long until a step is due: 0 now, None until sound comes."""
        waiting = {row: call.waiting() for row, call in self._calls.items()}
        came = [since for count, since in waiting.values() if count]
        if not came:
            return None
        active = [count for row, (count, _) in waiting.items() if count or self._is_expected(row)]
        if min(active) >= 1 or max(active) >= 2:
            return 0
        return max(0.0, min(came) + PATIENCE_SEC - time.monotonic())

    def _is_expected(self, row: int) -> bool:
        """Whether the next frame of the call there should come now."""
        return self._begun.get(row) is self._calls[row] and row not in self._late

    def _step(self, calls: dict[int, Call]) -> None:
        began = time.monotonic()
        heard = {row: call.take() for row, call in calls.items()}
        there = {row: call for row, call in calls.items() if heard[row] is not None or self._begun.get(row) is call}
        there = {row: call for row, call in there.items() if self._prepare(row, call)}
        if not there:
            return
        self._late = {row for row in there if heard[row] is None}
        count = self._batch.enough_places(max(there) + 1)
        pcm = np.zeros((count, FRAME_SAMPLES), np.float32)
        for row, call in there.items():
            if row in self._late:
                call.starve()
            else:
                pcm[row] = heard[row]
        sound = torch.from_numpy(pcm)
        result = self._batch.step(sound)
        for row, call in there.items():
            call.counts.steps += 1
            step = self._reader.step_of(result, row, heard=sound[row])
            if self._tools is not None:
                self._tool_calls[row].hear(step.text)
            if self._calls.get(row) is call:
                call.deliver(step)
        spent_sec = time.monotonic() - began
        self.steps += 1
        self.step_sec.append(spent_sec)
        self.overruns += spent_sec > 1 / FRAME_RATE_HZ

    def _prepare(self, row: int, call: Call) -> bool:
        """A new call begins; what it wants to be done is done. False for one whose role cannot be: it ends."""
        if self._begun.get(row) is not call:
            try:
                prompt = self._prompter.frames(call.role or self._role)
            except PromptError as error:
                self.close(call, str(error))
                return False
            self._begun[row] = call
            self._batch.begin(row, sampling=call.sampling, seed=call.seed, prompt=prompt)
            if self._tools is not None:
                self._tool_calls[row] = ToolCalls(self._tools)
        for text in call.told():
            self._batch.tell(text, row)
        for result in () if self._tools is None else self._tool_calls[row].results():
            self._batch.tell(result, row, max_pieces=self._tools.max_pieces)
        for wish in call.wishes():
            if wish.picture is None:
                self._batch.forget([row])
            else:
                self._batch.show(wish.picture, row, at_sec=wish.at_sec)
        return True

    def _fail(self, calls: dict[int, Call], error: Exception) -> None:
        self.failures += 1
        log.exception("the model failed; %d calls end", len(calls))
        self._batch = CallBatch(self.bundle, batch_size=self.places, record=self._record)
        with self._ready:
            ended = [call for row, call in calls.items() if self._calls.get(row) is call]
            self._calls = {row: call for row, call in self._calls.items() if call not in ended}
            self._begun.clear()
        for call in ended:
            call.deliver(CallEnd(f"the model failed ({type(error).__name__}); please call again", fault=True))
