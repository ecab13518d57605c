"""Waveforms on disk and in memory."""

import os
import struct
from pathlib import Path

import numpy as np
import soundfile
import soxr
import torch
from torch import Tensor

from mmspeech.config import ConfigError
from mmspeech.frames import FRAME_SAMPLES, SAMPLE_RATE_HZ

_READABLE = "wav, flac, ogg, mp3 or aiff"
_BLOCK_SAMPLES = 1 << 20
_UNKNOWN_SAMPLES = 1 << 62
_UNKNOWN_WAV_SIZES = (0, 0xFFFFFFFF)
_OGG_MAX_PAGE_BYTES = 65_307


class AudioError(ConfigError):
    """An audio file or waveform the user can mend; the message is one line that names the file."""


def read_audio(path: str | Path, sample_rate_hz: int = SAMPLE_RATE_HZ) -> Tensor:
    """Read a whole file (any format of libsndfile, any rate, any number of channels) as mono: [1, N] float32.

    Channels are averaged. Samples of float files may exceed 1 and are kept. Raises AudioError when the file is missing,
    empty, truncated, not audio, without samples, or holds NaN or infinity.
    """
    path = Path(path)
    _check_complete(path)
    try:
        with soundfile.SoundFile(str(path)) as file:
            expected_samples, rate_hz = file.frames, file.samplerate
            blocks = []
            while len(block := file.read(_BLOCK_SAMPLES, dtype="float32", always_2d=True)):
                blocks.append(block.mean(axis=1))
    except soundfile.LibsndfileError as error:
        raise AudioError(f"{path}: not audio, truncated or damaged; expected a whole {_READABLE} file") from error
    wave = np.concatenate(blocks) if blocks else np.zeros(0, np.float32)
    if len(wave) < expected_samples < _UNKNOWN_SAMPLES:
        raise AudioError(f"{path}: truncated audio, {len(wave)} of {expected_samples} samples are there; copy it again")
    if not len(wave):
        raise AudioError(f"{path}: audio without samples; expected at least one, record or export it again")
    if not np.isfinite(wave).all():
        raise AudioError(f"{path}: samples that are NaN or infinite; expected finite numbers, export it again")
    mono = resample(torch.from_numpy(wave)[None], rate_hz, sample_rate_hz)
    if not mono.shape[-1]:
        raise AudioError(f"{path}: too short, {len(wave)} samples at {rate_hz} Hz are none at {sample_rate_hz} Hz")
    return mono


def write_wav(path: str | Path, wave: Tensor | np.ndarray, sample_rate_hz: int = SAMPLE_RATE_HZ) -> None:
    """Write [N], [1, N] mono or [2, N] stereo floats as 16-bit WAV; values beyond -1..1 are clipped.

    The file appears whole or not at all; missing parent folders are made. Raises AudioError for other shapes and for
    NaN or infinite samples.
    """
    path = Path(path)
    samples = torch.as_tensor(wave).detach().to("cpu", torch.float64).numpy()
    samples = samples[None] if samples.ndim == 1 else samples
    if samples.ndim != 2 or samples.shape[0] not in (1, 2):
        raise AudioError(
            f"{path}: cannot write shape {tuple(samples.shape)}; expected [N] or [1, N] mono, [2, N] stereo"
        )
    if not np.isfinite(samples).all():
        raise AudioError(f"{path}: not written, the waveform has samples that are NaN or infinite")
    pcm = np.clip(np.rint(samples * 32_768), -32_768, 32_767).astype(np.int16)
    if path.is_dir():
        raise AudioError(f"{path}: is a folder; expected the name of a wav file to write")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _write_whole(path, pcm.T, sample_rate_hz)
    except (OSError, soundfile.LibsndfileError) as error:
        raise AudioError(f"{path}: cannot be written ({error}); check the folder and free space") from error


def _write_whole(path: Path, pcm: np.ndarray, sample_rate_hz: int) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        soundfile.write(str(temporary), pcm, sample_rate_hz, format="WAV", subtype="PCM_16")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def resample(wave: Tensor, from_hz: int, to_hz: int) -> Tensor:
    """Change the rate of [..., N] samples -> [..., round(N * to_hz / from_hz)] float32, on the CPU."""
    if from_hz == to_hz:
        return wave.float()
    flat = wave.detach().to("cpu", torch.float32).reshape(-1, wave.shape[-1])
    out = [torch.from_numpy(soxr.resample(row.numpy(), from_hz, to_hz, quality="HQ")) for row in flat]
    return torch.stack(out).reshape(*wave.shape[:-1], -1)


def in_frames(wave: Tensor | np.ndarray) -> Tensor:
    """Samples [N] at 24 kHz -> [T, 1920], one row per 80 ms frame; the last is filled up with silence."""
    wave = torch.as_tensor(wave)
    return torch.nn.functional.pad(wave, (0, -len(wave) % FRAME_SAMPLES)).view(-1, FRAME_SAMPLES)


def _check_complete(path: Path) -> None:
    """Raise AudioError for what libsndfile reports badly or, for cut wav and ogg files, not at all."""
    if path.is_dir():
        raise AudioError(f"{path}: is a folder; expected one audio file ({_READABLE})")
    if not path.is_file():
        raise AudioError(f"{path}: no such audio file; check the path (relative to {Path.cwd()})")
    if path.suffix.lower() == ".raw":
        raise AudioError(f"{path}: headerless samples; expected a {_READABLE} file, convert it first")
    try:
        with path.open("rb") as file:
            size_bytes = os.fstat(file.fileno()).st_size
            if not size_bytes:
                raise AudioError(f"{path}: empty file (0 bytes); expected {_READABLE}, copy or record it again")
            head = file.read(12)
            missing = 0
            if head[:4] == b"RIFF" and head[8:12] == b"WAVE":
                missing = _missing_wav_bytes(file, size_bytes)
            elif head[:4] == b"OggS":
                missing = _missing_ogg_bytes(file, size_bytes)
            elif head[:4] == b"FORM" and len(head) == 12:
                missing = 8 + struct.unpack(">I", head[4:8])[0] - size_bytes
    except OSError as error:
        raise AudioError(f"{path}: cannot be opened ({error.strerror}); check its permissions") from error
    if missing > 0:
        raise AudioError(f"{path}: truncated audio, at least {missing} bytes are missing at its end; copy it again")


def _missing_wav_bytes(file, size_bytes: int) -> int:
    """Bytes by which the data chunk of a RIFF file is longer than the file; unknown sizes (written to a pipe) are 0."""
    position = 12
    while position + 8 <= size_bytes:
        file.seek(position)
        name, chunk_bytes = struct.unpack("<4sI", file.read(8))
        if name == b"data":
            return 0 if chunk_bytes in _UNKNOWN_WAV_SIZES else max(0, position + 8 + chunk_bytes - size_bytes)
        position += 8 + chunk_bytes + chunk_bytes % 2
    return max(0, position + 8 - size_bytes)


def _missing_ogg_bytes(file, size_bytes: int) -> int:
    """Bytes by which the last Ogg page is longer than the file."""
    file.seek(max(0, size_bytes - _OGG_MAX_PAGE_BYTES))
    tail = file.read()
    page = tail[max(0, tail.rfind(b"OggS")) :]
    if len(page) < 27 or len(page) < 27 + page[26]:
        return 1
    return max(0, 27 + page[26] + sum(page[27 : 27 + page[26]]) - len(page))
