"""Who has the turn: what the model says as utterances, and which of them take the turn.

After Full-Duplex-Bench (Lin et al. 2025, arXiv 2503.04721): an utterance of a second or more, or of more than three
words, takes the turn; a shorter one is a backchannel.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from eval.scoring import is_active
from mmspeech.serve.session import SpokenWord

TAKES_SEC, BACKCHANNEL_WORDS = 1.0, 3
_GAP_SEC = 0.8  # a longer silence between words parts two utterances
_WORD_SEC = 0.25  # how long the last word lasts: its end is not told
_ACTIVITY_SEC = 0.02


@dataclass(frozen=True)
class Utterance:
    """Words without a long silence between them, in seconds of the call."""

    start_sec: float
    end_sec: float
    words: int

    @property
    def takes_turn(self) -> bool:
        return self.end_sec - self.start_sec >= TAKES_SEC or self.words > BACKCHANNEL_WORDS


def utterances(words: Sequence[SpokenWord]) -> list[Utterance]:
    """The model's words -> its utterances, in order."""
    found: list[Utterance] = []
    for word in sorted((word for word in words if word.text), key=lambda word: word.start_sec):
        end_sec = word.start_sec + _WORD_SEC
        if found and word.start_sec - found[-1].end_sec < _GAP_SEC:
            found[-1] = Utterance(found[-1].start_sec, end_sec, found[-1].words + 1)
        else:
            found.append(Utterance(word.start_sec, end_sec, 1))
    return found


def takeover_in(said: Sequence[Utterance], begin_sec: float, end_sec: float) -> Utterance | None:
    """The first utterance that begins in [begin, end) and takes the turn."""
    return next((one for one in said if begin_sec <= one.start_sec < end_sec and one.takes_turn), None)


def backchannels_in(said: Sequence[Utterance], begin_sec: float, end_sec: float) -> int:
    """How many utterances begin in [begin, end) and leave the turn where it is."""
    return sum(begin_sec <= one.start_sec < end_sec and not one.takes_turn for one in said)


def longest_pause(wave: np.ndarray, rate_hz: int) -> tuple[float, float] | None:
    """Start and end in seconds of the longest silence between the first and the last sound; None without one."""
    active = np.flatnonzero(is_active(wave, rate_hz))
    if len(active) < 2:
        return None
    gaps = np.diff(active)
    widest = int(gaps.argmax())
    if gaps[widest] < 2:
        return None
    return (active[widest] + 1) * _ACTIVITY_SEC, active[widest + 1] * _ACTIVITY_SEC


def overlap_share(one: np.ndarray, other: np.ndarray, rate_hz: int) -> float:
    """The share of the time in which both waves sound."""
    first, second = is_active(one, rate_hz), is_active(other, rate_hz)
    length = max(len(first), len(second))
    both = np.pad(first, (0, length - len(first))) & np.pad(second, (0, length - len(second)))
    return float(both.mean()) if length else 0.0
