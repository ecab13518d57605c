"""What a model is given before a call: the voice to speak with and the role to play, as frames it seems to have lived.

The order is PersonaPlex's: the voice sample as the model's own sound, then its role as text, half a second of silence
after each; all the while the caller is a steady tone, which nobody's voice is. Codes of the tone and of silence are
those of the codec at hand. (PersonaPlex has fixed ones, which hold for Kyutai's Mimi only.)
"""

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from mmspeech.audio.waveform import read_audio
from mmspeech.config import ConfigError
from mmspeech.frames import FRAME_SAMPLES, SAMPLE_RATE_HZ, samples_to_seconds

if TYPE_CHECKING:
    from mmspeech.audio.codec import Codec
    from mmspeech.checkpoint import Bundle

VOICE_LUFS = -24.0
PAUSE_FRAMES = 6
TONE_HZ, TONE_PEAK = 440.0, 0.5
SETTLED_FRAMES = 25  # by then a codec has forgotten that the sound began
_METER_SEC = 0.4  # the window of ITU-R BS.1770
_PEAK = 0.99


class PromptError(ConfigError):
    """A voice or a role that cannot be used; the message is one line."""


@dataclass
class PromptFrames:
    """T frames of a call. text_ids [T]; own [T, K] and user [T, K]: codes of the model and of the caller."""

    text_ids: list[int]
    own: list[list[int]]
    user: list[list[int]]


class Prompt:
    """`role`: what the model is, in words it was trained to follow. `voice`: a sample of the voice to speak with, a
    file or samples [N] or [1, N] at 24 kHz; it is set to -24 LUFS, less where its peaks would exceed 1.

    PromptError without either, for a sample that is silent or shorter than 0.4 s, and where pyloudnorm is missing;
    AudioError for a file that cannot be read.
    """

    def __init__(self, role: str | None = None, voice: Tensor | str | Path | None = None):
        self.role = None if role is None else role.strip()
        if voice is None and not self.role:
            raise PromptError("a prompt without words: give a role, a voice, or both")
        self.voice: Tensor | None = None
        if voice is not None:
            name = "the voice sample" if isinstance(voice, Tensor) else str(voice)
            self.voice = _levelled(voice if isinstance(voice, Tensor) else read_audio(voice), name)

    def frames(self, bundle: "Bundle") -> PromptFrames:
        """The frames of it for a model; see Prompter."""
        return Prompter(bundle, self.voice).frames(self.role)


class Prompter:
    """Makes the prompts of many calls with one `voice` [N] (None: the model's own), which the codec encodes once."""

    def __init__(self, bundle: "Bundle", voice: Tensor | None = None):
        self._bundle, self._voice = bundle, voice

    def frames(self, role: str | None) -> PromptFrames | None:
        """The frames before a call with that role; None without role and voice. PromptError when the tokenizer has no
        letter of the role, or when they are more than what the model remembers."""
        if role is None and self._voice is None:
            return None
        tokenizer, pad_id = self._bundle.tokenizer, self._bundle.config.lm.text_pad_id
        own = [*self._voice_codes]
        text_ids = [pad_id] * len(own)
        if role:
            if not tokenizer.decode(tokenizer.encode(role)):
                raise PromptError(f"role {role[:40]!r}: no letter of it is in the model's alphabet")
            text_ids += tokenizer.encode(f"<system> {role} <system>") + [pad_id] * PAUSE_FRAMES
            own += [self._silence] * (len(text_ids) - len(own))
        context = self._bundle.config.lm.temporal.context
        if len(text_ids) >= context:
            raise PromptError(
                f"a prompt of {len(text_ids)} frames: the model remembers {context}; shorten the voice or the role"
            )
        return PromptFrames(text_ids, own, [self._tone] * len(text_ids))

    @cached_property
    def _silence(self) -> list[int]:
        return silence_codes(self._bundle.codec)

    @cached_property
    def _tone(self) -> list[int]:
        return tone_codes(self._bundle.codec)

    @cached_property
    def _voice_codes(self) -> list[list[int]]:
        """The voice and the pause behind it."""
        if self._voice is None:
            return []
        codec = self._bundle.codec
        with torch.no_grad():
            codes = codec.encode(self._voice[None, None].to(next(codec.parameters()).device))[0].t().tolist()
        return codes + [self._silence] * PAUSE_FRAMES


def silence_codes(codec: "Codec") -> list[int]:
    """[K]: a frame of lasting silence."""
    return _settled(codec, torch.zeros(SETTLED_FRAMES * FRAME_SAMPLES))


def tone_codes(codec: "Codec") -> list[int]:
    """[K]: a frame of a lasting sine of 440 Hz."""
    times_sec = torch.arange(SETTLED_FRAMES * FRAME_SAMPLES, dtype=torch.float64) / SAMPLE_RATE_HZ
    return _settled(codec, (TONE_PEAK * torch.sin(2 * math.pi * TONE_HZ * times_sec)).float())


@torch.no_grad()
def _settled(codec: "Codec", wave: Tensor) -> list[int]:
    """The codes of the last frame of wave [N]."""
    device = next(codec.parameters()).device
    return codec.encode(wave[None, None].to(device))[0, :, -1].tolist()


def _levelled(voice: Tensor, name: str) -> Tensor:
    """Samples [N] or [1, N] at VOICE_LUFS -> [N]."""
    try:
        import pyloudnorm
    except ImportError as error:
        raise PromptError(
            "a voice sample needs pyloudnorm, which sets its loudness, and it is not installed: "
            "pip install 'mmspeech[eval]'"
        ) from error
    wave = voice.detach().to("cpu", torch.float64).numpy()
    wave = wave[0] if wave.ndim == 2 and len(wave) == 1 else wave
    if wave.ndim != 1 or not np.isfinite(wave).all():
        raise PromptError(f"{name}: expected finite samples [N] or [1, N], got {list(voice.shape)}")
    if len(wave) < _METER_SEC * SAMPLE_RATE_HZ:
        raise PromptError(f"{name}: {samples_to_seconds(len(wave)):.2f} s; a voice needs {_METER_SEC} s at least")
    found_lufs = pyloudnorm.Meter(SAMPLE_RATE_HZ).integrated_loudness(wave)
    if not math.isfinite(found_lufs):
        raise PromptError(f"{name}: nothing is heard in it; record it again")
    gain = min(10 ** ((VOICE_LUFS - found_lufs) / 20), _PEAK / float(np.abs(wave).max()))
    return torch.from_numpy(wave * gain).float()
