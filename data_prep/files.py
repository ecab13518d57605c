"""Writing files that are whole or not there."""

from pathlib import Path

import numpy as np

from mmspeech.frames import SAMPLE_RATE_HZ


def write_atomic(path: Path, data: bytes) -> None:
    """Write through a temporary file, so that a file that is there is whole."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(data)
    temporary.replace(path)


def write_wav(path: Path, wave: np.ndarray) -> None:
    """Write [N] or [N, channels] float32 at 24 kHz as 16-bit WAV, whole or not at all."""
    import soundfile

    temporary = path.with_name(path.name + ".tmp")
    soundfile.write(temporary, wave, SAMPLE_RATE_HZ, subtype="PCM_16", format="WAV")
    temporary.replace(path)
