"""A call as the world sees it: sound and pictures go in at any time from any thread, steps and an end come out."""

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from mmspeech.config import GenerationConfig
from mmspeech.frames import FRAME_SAMPLES

if TYPE_CHECKING:
    from mmspeech.serve.eyes import Picture
    from mmspeech.serve.session import StepOut

BACKLOG_FRAMES = 4  # of sound that waits; more is late, and only the newest frame of it is heard


@dataclass(frozen=True)
class CallEnd:
    """Why a call is over, in words for the caller; `fault`: nobody wanted it."""

    reason: str
    fault: bool = False


@dataclass
class CallCounts:
    """What became of the frames of a call. steps: of the model. starved: steps for which the caller's sound came too
    late, and silence was heard. skipped: frames of sound that were late and never heard."""

    steps: int = 0
    starved: int = 0
    skipped: int = 0


@dataclass
class Wish:
    """Something to be done before the next step: a picture to show from `at_sec` on (None: now), or to forget all."""

    picture: "Picture | None"
    at_sec: float | None = None


@dataclass
class Call:
    """One call of a Worker. `deliver` is called on the worker's thread with each StepOut, and at last with a CallEnd.

    `sampling` None: the checkpoint's own. `role`: what the model is, in words (None: as the server has it). `opened`:
    when, on time.monotonic's clock.
    """

    deliver: "Callable[[StepOut | CallEnd], None]"
    sampling: GenerationConfig | None = None
    seed: int = 0
    role: str | None = None
    counts: CallCounts = field(default_factory=CallCounts)
    opened: float = field(default_factory=time.monotonic)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _frames: deque = field(default_factory=deque)
    _rest: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    _wishes: deque = field(default_factory=lambda: deque(maxlen=8))
    _told: deque = field(default_factory=deque)
    _wake: Callable[[], None] = lambda: None
    _first_came: float = 0.0
    _owed: int = 0  # steps that heard silence in place of a frame that may still come

    def feed(self, pcm: np.ndarray) -> None:
        """What the caller said: float samples [N] at 24 kHz, any N. What comes far too early or too late is skipped."""
        with self._lock:
            samples = np.concatenate([self._rest, np.asarray(pcm, np.float32)])
            whole = len(samples) // FRAME_SAMPLES * FRAME_SAMPLES
            self._rest = samples[whole:]
            if whole and not self._frames:
                self._first_came = time.monotonic()
            self._frames.extend(np.split(samples[:whole], whole // FRAME_SAMPLES) if whole else ())
            if len(self._frames) > BACKLOG_FRAMES:
                self.counts.skipped += len(self._frames) - 1
                self._frames = deque([self._frames[-1]])
        if whole:
            self._wake()

    def see(self, picture: "Picture", at_sec: float | None = None) -> None:
        """Show a picture, as Session.see."""
        self._wishes.append(Wish(picture, at_sec))

    def forget(self) -> None:
        """See nothing from the next step on, until something is shown again."""
        self._wishes.append(Wish(None))

    def tell(self, text: str) -> None:
        """Let the model know something, as Session.tell."""
        self._told.append(text)

    def waiting(self) -> tuple[int, float]:
        """How many frames of sound wait, and since when the oldest does (time.monotonic)."""
        with self._lock:
            return len(self._frames), self._first_came

    def starve(self) -> None:
        """A step has heard silence for want of a frame; should that come late, it is skipped."""
        self.counts.starved += 1
        self._owed = min(self._owed + 1, BACKLOG_FRAMES)

    def take(self) -> np.ndarray | None:
        """The next frame [1920]; None when none has come. Frames that came too late for their step are skipped once
        another one waits behind them, so that the delay does not grow."""
        with self._lock:
            while self._owed and len(self._frames) > 1:
                self._frames.popleft()
                self._owed -= 1
                self.counts.skipped += 1
            if not self._frames:
                return None
            self._first_came = time.monotonic()
            return self._frames.popleft()

    def wishes(self) -> list[Wish]:
        """What to do before the next step."""
        return [self._wishes.popleft() for _ in range(len(self._wishes))]

    def told(self) -> list[str]:
        """What the model is to know from the next step on."""
        return [self._told.popleft() for _ in range(len(self._told))]

    def bind(self, wake: Callable[[], None]) -> None:
        """Whom to wake when sound has come."""
        self._wake = wake
