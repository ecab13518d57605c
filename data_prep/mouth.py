"""The model's own voice, as its codec hears it: answers for calls that are put together and not recorded."""

import torch
from torch import Tensor

from data_prep.model_voice import model_says
from data_prep.world_speak import Track
from mmspeech.audio.codec import Codec
from mmspeech.frames import seconds_to_frames
from mmspeech.types import Word

LEAD_SEC, TAIL_SEC = 0.2, 0.6  # silence around what is said
# Silence that the codec hears before an answer and that is cut off again: its first frames after a start are unlike
# those of a silence that lasts, and would tell the model that an answer comes.
SETTLE_FRAMES = 25
SENTENCES = 3000  # distinct ones that are spoken: descriptions are endless, and each takes a tenth of a second


class Mouth:
    """Speaks in the model's voice: the first `limit` distinct sentences it is asked for."""

    def __init__(self, codec: Codec, *, limit: int = SENTENCES):
        self.codec, self.limit = codec, limit
        self._said: dict[str, tuple[Tensor, list[Word]]] = {}

    def can_say(self, text: str) -> bool:
        """Whether the sentence is, or can still become, one of those."""
        return text in self._said or len(self._said) < self.limit

    def say(self, text: str) -> tuple[Tensor, list[Word]]:
        """Codes [K, T] and words in seconds from the first frame. Raises ValueError beyond the limit."""
        if not self.can_say(text):
            raise ValueError(f"{text!r}: {self.limit} other sentences were said already")
        if text not in self._said:
            self._said[text] = self._speak(text)
        return self._said[text]

    def break_off(self, text: str, *, until_sec: float) -> tuple[Tensor, list[Word]]:
        """As `say`, but the voice stops at `until_sec` of what is returned; words it has begun are told."""
        return self._speak(text, until_sec=until_sec)

    def _speak(self, text: str, *, until_sec: float | None = None) -> tuple[Tensor, list[Word]]:
        track = Track()
        end_sec = track.add(model_says(text), LEAD_SEC, until_sec=until_sec)
        samples = self.codec.frame_samples
        sound = track.wave(seconds_to_frames(end_sec + TAIL_SEC, round_up=True) * samples)
        wave = torch.cat([torch.zeros(SETTLE_FRAMES * samples), torch.from_numpy(sound)])
        words = [Word(*word) for word in track.words]
        return self.codec.encode(wave[None, None])[0, :, SETTLE_FRAMES:].to(torch.int16), words
