"""What happens to a voice on its way to the microphone: room, telephone band, noise, level."""

import numpy as np
from scipy import signal

from mmspeech.frames import SAMPLE_RATE_HZ

SPEECH_RMS = 0.08  # of a synthesised voice at peak 0.5


def through_a_room(wave: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A short decaying tail after every sound: [N] -> [N]."""
    length = int(rng.uniform(0.03, 0.2) * SAMPLE_RATE_HZ)
    tail = rng.standard_normal(length) * np.exp(-5 * np.arange(length) / length)
    tail *= rng.uniform(0.05, 0.25) / np.sqrt(np.square(tail).sum())
    tail[0] = 1.0
    return signal.fftconvolve(wave, tail)[: len(wave)]


def through_a_telephone(wave: np.ndarray) -> np.ndarray:
    """The band from 300 to 3400 Hz."""
    band = signal.butter(3, [300, 3400], "band", fs=SAMPLE_RATE_HZ, output="sos")
    return signal.sosfilt(band, wave)


def noise(length: int, rng: np.random.Generator) -> np.ndarray:
    """White or low-pass noise of rms 1."""
    samples = rng.standard_normal(length)
    if rng.random() < 0.6:
        samples = signal.lfilter([1.0], [1.0, -rng.uniform(0.5, 0.97)], samples)
    return samples / samples.std()


def gated(wave: np.ndarray, speech: np.ndarray, hold_sec: float) -> np.ndarray:
    """`wave` silenced where `speech` (both [N]) has been quiet for `hold_sec`, as noise suppression does."""
    step = SAMPLE_RATE_HZ // 100
    pieces = np.abs(speech[: len(speech) // step * step]).reshape(-1, step).max(axis=1) > 0.005
    hold = max(1, round(hold_sec * 100))
    opened = np.convolve(pieces, np.ones(2 * hold + 1), mode="same") > 0.5
    envelope = np.repeat(np.convolve(opened, np.ones(3) / 3, mode="same"), step)
    return wave * np.pad(envelope, (0, len(wave) - len(envelope)))


def loudness(wave: np.ndarray, wanted_lufs: float) -> np.ndarray:
    """[N] at that loudness (ITU-R BS.1770, by pyloudnorm), its peaks below 1; silence, and less than its window of
    0.4 s, stay as they are."""
    import pyloudnorm

    if len(wave) < 0.4 * SAMPLE_RATE_HZ:
        return wave
    found = pyloudnorm.Meter(SAMPLE_RATE_HZ).integrated_loudness(wave.astype(np.float64))
    if not np.isfinite(found):
        return wave
    gain = min(10 ** ((wanted_lufs - found) / 20), 0.99 / float(np.abs(wave).max()))
    return (wave * gain).astype(np.float32)


def user_channel(wave: np.ndarray, rng: np.random.Generator, *, clean: bool = False) -> np.ndarray:
    """The user's side as a microphone gives it: [N] -> [N] float32 in -1..1. `clean`: only the level changes."""
    if not clean:
        speech = wave
        if rng.random() < 0.4:
            wave = through_a_room(wave, rng)
        if rng.random() < 0.15:
            wave = through_a_telephone(wave)
        if rng.random() < 0.7:
            wave = wave + noise(len(wave), rng) * SPEECH_RMS * 10 ** (-rng.uniform(12, 45) / 20)
            if rng.random() < 0.4:
                wave = gated(wave, speech, hold_sec=rng.uniform(0.05, 0.4))
    return np.clip(wave * 10 ** rng.uniform(-0.4, 0.15), -0.99, 0.99).astype(np.float32)
