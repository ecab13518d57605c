"""Scoring of one reply: pure functions from words, times and samples to numbers."""

import re
from collections.abc import Sequence

import numpy as np

_DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_ACTIVE_RMS = 0.01  # -40 dB: quieter than this is silence to a listener
_ACTIVITY_SEC = 0.02


def normalise(text: str) -> list[str]:
    """Lower-case words without punctuation; digits up to ten are spelt ("It's 2!" -> ["it's", "two"])."""
    words = re.findall(r"[a-z']+|\d+", text.lower().replace("\u2019", "'"))
    words = [_DIGITS[int(w)] if w.isdigit() and int(w) < len(_DIGITS) else w.strip("'") for w in words]
    return [word for word in words if word]


def holds_answer(words: Sequence[str], answers: Sequence[str]) -> bool:
    """Whether one of `answers` stands in `words` as whole words, in order and together."""
    for answer in answers:
        wanted = normalise(answer)
        if wanted and any(list(words[i : i + len(wanted)]) == wanted for i in range(len(words) - len(wanted) + 1)):
            return True
    return False


def is_active(wave: np.ndarray, sample_rate_hz: int) -> np.ndarray:
    """[N] samples -> [N / 20 ms] bool: where there is sound."""
    size = int(_ACTIVITY_SEC * sample_rate_hz)
    pieces = wave[: len(wave) // size * size].reshape(-1, size)
    return np.sqrt(np.square(pieces).mean(axis=1)) > _ACTIVE_RMS


def stop_after(wave: np.ndarray, sample_rate_hz: int, moment_sec: float, *, quiet_sec: float = 0.3) -> float | None:
    """Seconds from `moment_sec` until the wave falls silent for `quiet_sec`.

    None when nothing sounded at that moment (there was nothing to stop); infinity when it never stops.
    """
    active = is_active(wave, sample_rate_hz)
    first = round(moment_sec / _ACTIVITY_SEC)
    run = round(quiet_sec / _ACTIVITY_SEC)
    if not active[max(0, first - run) : first + 1].any():
        return None
    quiet = 0
    for index in range(first, len(active)):
        quiet = 0 if active[index] else quiet + 1
        if quiet == run:
            return (index - run + 1 - first) * _ACTIVITY_SEC
    return float("inf")


def mean(values: Sequence[float]) -> float | None:
    """The mean, or None of nothing."""
    return float(np.mean(values)) if len(values) else None


def percentile(values: Sequence[float], q: float) -> float | None:
    """The q-th percentile (one of the values), or None of nothing."""
    return float(np.percentile(values, q, method="inverted_cdf")) if len(values) else None
