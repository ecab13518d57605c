"""One side of a call while it grows."""

from dataclasses import dataclass, field

import numpy as np

from data_prep.tts import Utterance
from mmspeech.frames import SAMPLE_RATE_HZ

FADE_SEC = 0.05


@dataclass
class Track:
    """One side of a call while it grows: pieces of sound with their start, words and phones with times in seconds."""

    pieces: list[tuple[float, np.ndarray]] = field(default_factory=list)
    words: list[tuple[str, float, float]] = field(default_factory=list)
    phones: list[tuple[str, float, float]] = field(default_factory=list)

    def add(self, utterance: Utterance, start_sec: float, *, until_sec: float | None = None) -> float:
        """Lay an utterance down, faded out at `until_sec` if that comes first; returns where it ends."""
        wave, end_sec = utterance.wave, start_sec + utterance.duration_sec
        if until_sec is not None and until_sec < end_sec:
            keep, fade = int((until_sec - start_sec) * SAMPLE_RATE_HZ), int(FADE_SEC * SAMPLE_RATE_HZ)
            wave, end_sec = wave[:keep].copy(), until_sec
            wave[-fade:] *= np.linspace(1, 0, min(fade, keep), dtype=np.float32)
        self.pieces.append((start_sec, wave))
        for target, items in ((self.words, utterance.words), (self.phones, utterance.phones)):
            shifted = [(name, start_sec + a, min(start_sec + b, end_sec)) for name, a, b in items]
            target += [item for item in shifted if item[1] < end_sec]
        return end_sec

    def join(self, other: "Track", by_sec: float) -> None:
        """Lay down what another track holds, `by_sec` later than there."""
        self.pieces += [(start_sec + by_sec, wave) for start_sec, wave in other.pieces]
        self.words += [(name, a + by_sec, b + by_sec) for name, a, b in other.words]
        self.phones += [(name, a + by_sec, b + by_sec) for name, a, b in other.phones]

    def wave(self, length: int) -> np.ndarray:
        """The whole side as float32 [length] at 24 kHz."""
        out = np.zeros(length, np.float32)
        for start_sec, piece in self.pieces:
            start = int(start_sec * SAMPLE_RATE_HZ)
            out[start : start + len(piece)] += piece[: length - start]
        return out
