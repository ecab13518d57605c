"""What happens to a voice on its way to the microphone: room, telephone band, noise, level."""

import numpy as np
from scipy import signal

from data_prep.files import SAMPLE_RATE_HZ

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


def user_channel(wave: np.ndarray, rng: np.random.Generator, *, clean: bool = False) -> np.ndarray:
    """The user's side as a microphone gives it: [N] -> [N] float32 in -1..1. `clean`: only the level changes."""
    if not clean:
        if rng.random() < 0.4:
            wave = through_a_room(wave, rng)
        if rng.random() < 0.15:
            wave = through_a_telephone(wave)
        if rng.random() < 0.7:
            wave = wave + noise(len(wave), rng) * SPEECH_RMS * 10 ** (-rng.uniform(12, 45) / 20)
    return np.clip(wave * 10 ** rng.uniform(-0.4, 0.15), -0.99, 0.99).astype(np.float32)
