"""What a run keeps of its prompts beside the replies, by content: the caller's sound and what was seen last."""

import hashlib
from pathlib import Path

import numpy as np

from eval.task import Prompt
from mmspeech.commands.common import whole_file
from mmspeech.frames import SAMPLE_RATE_HZ

ASKED, SEEN = "asked", "seen"
_SIZE_PX = 160


def keep_prompt(out: Path, prompt: Prompt) -> dict[str, str]:
    """Write `out`/asked/HASH.flac and `out`/seen/HASH.png where they are not there yet; returns those paths, relative
    to `out`, as entries of a record (none for a prompt without sound, or without pictures)."""
    kept = {}
    if len(prompt.wave):
        kept["asked"] = _keep_sound(out, prompt.wave)
    if prompt.pictures:
        kept["picture"] = _keep_picture(out, prompt.pictures[-1][1])
    return kept


def _keep_sound(out: Path, wave: np.ndarray) -> str:
    file = _place(out, ASKED, _pcm16(wave).tobytes(), ".flac")
    if not file.is_file():
        write_flac(file, wave)
    return str(file.relative_to(out))


def write_flac(file: Path, wave: np.ndarray) -> None:
    """A wave [N] at 24 kHz as 16-bit FLAC, there whole or not at all, whoever else writes the same."""
    import soundfile

    with whole_file(file) as temporary:
        soundfile.write(str(temporary), _pcm16(wave), SAMPLE_RATE_HZ, format="FLAC", subtype="PCM_16")


def _pcm16(wave: np.ndarray) -> np.ndarray:
    return (np.asarray(wave).clip(-1, 1) * 32767).round().astype(np.int16)


def _keep_picture(out: Path, picture) -> str:
    small = picture.convert("RGB")
    small.thumbnail((_SIZE_PX, _SIZE_PX))
    file = _place(out, SEEN, small.tobytes(), ".png")
    if not file.is_file():
        with whole_file(file) as temporary:
            small.save(temporary, format="PNG")
    return str(file.relative_to(out))


def _place(out: Path, folder: str, content: bytes, suffix: str) -> Path:
    (out / folder).mkdir(parents=True, exist_ok=True)
    return out / folder / f"{hashlib.sha256(content).hexdigest()[:24]}{suffix}"
