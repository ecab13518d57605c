"""Writing files that are whole or not there, and paths that stay where they belong."""

import errno
import io
from pathlib import Path, PurePosixPath

import numpy as np

from mmspeech.config import ConfigError
from mmspeech.frames import SAMPLE_RATE_HZ

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def write_atomic(path: Path, data: bytes) -> None:
    """Write through a temporary file, so that a file that is there is whole."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        temporary.write_bytes(data)
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)  # a full disk is not to be left fuller
        raise


def write_wav(path: Path, wave: np.ndarray) -> None:
    """Write [N] or [N, channels] float32 at 24 kHz as 16-bit WAV, whole or not at all."""
    import soundfile

    # By way of memory, for libsndfile does not tell a full disk from a broken file.
    held = io.BytesIO()
    soundfile.write(held, wave, SAMPLE_RATE_HZ, subtype="PCM_16", format="WAV")
    write_atomic(path, held.getvalue())


def no_room(error: BaseException) -> bool:
    """Whether it says that the disk is full: then nothing else will work, either, until someone makes room."""
    return isinstance(error, OSError) and error.errno in _NO_ROOM


def inside(root: Path, path: str) -> Path:
    """`root`/`path`; ConfigError for a path that is absolute or leads out of `root` (by its words: links are the
    user's own)."""
    told = PurePosixPath(path.replace("\\", "/"))
    depth = 0
    for part in told.parts:
        depth += -1 if part == ".." else part != "."
        if depth < 0 or told.is_absolute() or ":" in told.parts[0]:
            raise ConfigError(f"path {path!r} leads out of {root}; expected one inside it")
    return root / told
