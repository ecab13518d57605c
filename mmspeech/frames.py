"""The frame grid, and the only conversions between seconds, samples and frames."""

import math

SAMPLE_RATE_HZ = 24_000
FRAME_RATE_HZ = 12.5
FRAME_SAMPLES = 1920


def seconds_to_samples(time_sec: float, sample_rate_hz: int = SAMPLE_RATE_HZ) -> int:
    """The nearest sample to a time."""
    return round(time_sec * sample_rate_hz)


def samples_to_seconds(num_samples: int, sample_rate_hz: int = SAMPLE_RATE_HZ) -> float:
    """How long samples last."""
    return num_samples / sample_rate_hz


def seconds_to_frames(time_sec: float, *, round_up: bool = False) -> int:
    """The frame a time falls into; with `round_up`, how many frames hold that much time."""
    # A time that is a whole number of frames up to rounding errors must not slip into a neighbour.
    frames = round(time_sec * FRAME_RATE_HZ, 6)
    return math.ceil(frames) if round_up else math.floor(frames)


def frames_to_seconds(num_frames: int) -> float:
    """When a frame starts, or how long that many frames last."""
    return num_frames / FRAME_RATE_HZ


def samples_to_frames(num_samples: int) -> int:
    """How many whole frames hold that many samples at 24 kHz (the last one padded)."""
    return -(-num_samples // FRAME_SAMPLES)
