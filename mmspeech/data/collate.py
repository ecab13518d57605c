"""Calls -> a Batch: text on the frame grid, crops, loss weights, augmentation, pictures.

A call is laid out as one of three variants:
- dialogue: the call as it is; the model's words on the text stream.
- speechless: no audio at all; the user's words stand on the text stream too, without loss, then the answers with loss.
- transcribe: the text stream holds the user's words a little late, after a BOS token that marks the task; the model's
  own audio is silence.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from mmspeech.data.shards import speaker_rows
from mmspeech.data.visuals import PictureFormat, lay_pictures, see_visuals
from mmspeech.frames import frames_to_seconds, seconds_to_frames
from mmspeech.tokens.text import BOS_ID, TextTokenizer, words_to_frames
from mmspeech.types import Batch, Sample, Visual, Word

Variant = Literal["dialogue", "speechless", "transcribe"]
NOTHING = -1
SPEECH_BEFORE_FRAMES, SPEECH_AFTER_FRAMES = 1, 3  # word times are a little tight, and a voice fades
CROP_PAUSE_FRAMES = 25  # the longest silence a crop begins with


@dataclass(frozen=True)
class Augmentation:
    """How user codes are disturbed, so that unknown voices and noise do not surprise the model.

    With probability `drop_acoustic` a call keeps only its first user codebooks (how many is drawn, at least
    `keep_codebooks`); a share of
    `replace_codes` of the user's codes becomes random ones (in a call, a share drawn from 0 to twice that). With
    probability `mute_gaps` a call has digital silence where the user does not speak, as behind a noise gate or after
    the end of a recording.
    """

    drop_acoustic: float = 0.0
    keep_codebooks: int = 1
    replace_codes: float = 0.0
    mute_gaps: float = 0.0


@dataclass
class Row:
    """One call laid out: codes [1 + 2K, T] long, text_weight and audio_weight [T], pictures and clips."""

    id: str
    codes: Tensor
    text_weight: Tensor
    audio_weight: Tensor
    visuals: list[Visual] = field(default_factory=list)


class Layout:
    """Lays one call out on the frame grid.

    `silence_codes` [K] and `codebook_size` are the codec's.
    Frames where the model is silent take part in the audio loss with probability `silent_share`.
    `transcribe_delay_frames`: how late the user's words come on the text stream of the transcribe variant.
    """

    def __init__(
        self,
        *,
        tokenizer: TextTokenizer,
        silence_codes: tuple[int, ...],
        codebook_size: int,
        silent_share: float = 0.1,
        transcribe_delay_frames: int = 3,
        augmentation: Augmentation | None = None,
    ):
        self.tokenizer = tokenizer
        self.silence_codes = torch.tensor(silence_codes, dtype=torch.long)[:, None]
        self.codebook_size = codebook_size
        self.silent_share = silent_share
        self.transcribe_delay_frames = transcribe_delay_frames
        self.augmentation = augmentation or Augmentation()

    def __call__(
        self, sample: Sample, *, variant: Variant, max_frames: int, keep_visuals: bool, rng: np.random.Generator
    ) -> Row:
        """The call as a Row, cropped to `max_frames`; everything random comes from `rng`."""
        sample = crop(sample, max_frames=max_frames, rng=rng)
        if variant == "speechless":
            row = self._speechless(sample)
        elif variant == "transcribe":
            row = self._transcribe(sample, rng)
        else:
            row = self._dialogue(sample, rng)
        if keep_visuals and variant != "transcribe":
            row.visuals = list(sample.visuals)
        return row

    def _dialogue(self, sample: Sample, rng: np.random.Generator) -> Row:
        own, user = speaker_rows(sample.codes.long())
        text = self._text([w for w in sample.words if w.speaker == "main"], own.shape[1])
        speaking = speaking_frames(sample.words, own.shape[1], speaker="main")
        audio_weight = speaking | torch.from_numpy(rng.random(len(speaking)) < self.silent_share)
        codes = torch.cat([text[None], own, self._disturb(user, sample.words, rng)])
        return Row(sample.id, codes, torch.ones(len(text)), audio_weight.float())

    def _speechless(self, sample: Sample) -> Row:
        rows, num_frames = sample.codes.shape
        answering = speaking_frames(sample.words, num_frames, speaker="main")
        # Where both speak at once the answer stands; a word of the user's would cut it.
        spoken = speaking_frames(sample.words, num_frames, speaker="main", widened=False)
        words = [w for w in sample.words if w.speaker == "main" or not _overlaps(w, spoken)]
        text = self._text(words, num_frames)
        codes = torch.cat([text[None], torch.full((rows, num_frames), NOTHING)])
        return Row(sample.id, codes, answering.float(), torch.zeros(num_frames))

    def _transcribe(self, sample: Sample, rng: np.random.Generator) -> Row:
        _, user = speaker_rows(sample.codes.long())
        num_frames = user.shape[1]
        late_sec = frames_to_seconds(self.transcribe_delay_frames)
        text = self._text([w.later(late_sec) for w in sample.words if w.speaker == "user"], num_frames)
        text[0] = BOS_ID
        text_weight = torch.ones(num_frames)
        text_weight[0] = 0.0  # the task is given, not guessed
        codes = torch.cat(
            [text[None], self.silence_codes.expand(-1, num_frames), self._disturb(user, sample.words, rng)]
        )
        return Row(sample.id, codes, text_weight, torch.zeros(num_frames))

    def _text(self, words: list[Word], num_frames: int) -> Tensor:
        return words_to_frames([replace(w, speaker="main") for w in words], num_frames, self.tokenizer).long()

    def _disturb(self, user: Tensor, words: list[Word], rng: np.random.Generator) -> Tensor:
        """user [K, T] with gaps muted, some codes replaced and, perhaps, only the first codebooks kept."""
        user = user.clone()
        if rng.random() < self.augmentation.mute_gaps:
            speaking = speaking_frames(words, user.shape[1], speaker="user")
            user = torch.where(speaking, user, self.silence_codes)
        if self.augmentation.replace_codes > 0:
            share = rng.uniform(0, 2 * self.augmentation.replace_codes)
            chosen = torch.from_numpy(rng.random(tuple(user.shape)) < share) & (user != NOTHING)
            noise = torch.from_numpy(rng.integers(0, self.codebook_size, tuple(user.shape)))
            user = torch.where(chosen, noise, user)
        least = self.augmentation.keep_codebooks
        if rng.random() < self.augmentation.drop_acoustic and len(user) > least:
            user[rng.integers(least, len(user)) :] = NOTHING
        return user


def joined(samples: Sequence[Sample], silences_frames: Sequence[int], silence_codes: Tensor) -> Sample:
    """Several calls as one, each behind so many frames in which both sides are silent (silence_codes [K, 1]).

    Those in which nothing is seen come first: later on the picture of the call before would still be there.
    """
    if len(samples) == 1 and not silences_frames[0]:
        return samples[0]
    samples = sorted(samples, key=lambda sample: bool(sample.visuals))
    codes, words, visuals, frames = [], [], [], 0
    silence = silence_codes.repeat(2, 1)
    for sample, silent in zip(samples, silences_frames, strict=True):
        start_sec = frames_to_seconds(frames + silent)
        codes += [silence.expand(-1, silent).to(sample.codes.dtype), sample.codes]
        words += [word.later(start_sec) for word in sample.words]
        visuals += [visual.later(start_sec) for visual in sample.visuals]
        frames += silent + sample.codes.shape[1]
    return Sample("+".join(sample.id for sample in samples), torch.cat(codes, dim=1), words, visuals)


def crop(sample: Sample, *, max_frames: int, rng: np.random.Generator) -> Sample:
    """At most `max_frames` frames; words and pictures keep their place in the sound.

    The beginning is drawn from the pauses before the user's turns, so that no answer loses its question. What appeared
    before it keeps its time, below 0: whatever the model still remembers of it is there from frame 0, as old as it is.
    """
    extra = sample.codes.shape[1] - max_frames
    if extra <= 0:
        return sample
    start = int(rng.choice(_turn_starts(sample.words, extra)))
    start_sec, end_sec = frames_to_seconds(start), frames_to_seconds(start + max_frames)
    words = [w.later(-start_sec) for w in sample.words if start_sec <= w.start_sec < end_sec]
    visuals = [v.later(-start_sec) for v in sample.visuals if v.start_sec < end_sec]
    return replace(sample, codes=sample.codes[:, start : start + max_frames], words=words, visuals=visuals)


def _turn_starts(words: list[Word], last_frame: int) -> list[int]:
    """Frames up to `last_frame` shortly before a turn of the user's, after the model's last word (or the beginning)."""
    starts, silent_from_sec, before = [], 0.0, "main"
    for word in sorted(words, key=lambda w: w.start_sec):
        if (before, word.speaker) == ("main", "user"):
            last = seconds_to_frames(word.start_sec)
            first = max(seconds_to_frames(silent_from_sec, round_up=True), last - CROP_PAUSE_FRAMES)
            starts.extend(range(first, min(last, last_frame) + 1))
        silent_from_sec, before = max(silent_from_sec, word.end_sec), word.speaker
    return starts or [0]


def speaking_frames(words: list[Word], num_frames: int, *, speaker: str, widened: bool = True) -> Tensor:
    """[T] bool: frames in which `speaker` speaks, by default a little widened."""
    mask = torch.zeros(num_frames, dtype=torch.bool)
    before, after = (SPEECH_BEFORE_FRAMES, SPEECH_AFTER_FRAMES) if widened else (0, 0)
    for word in words:
        if word.speaker == speaker:
            first = seconds_to_frames(word.start_sec) - before
            mask[max(0, first) : seconds_to_frames(word.end_sec, round_up=True) + after] = True
    return mask


def stack(rows: list[Row], *, pictures: PictureFormat | None = None) -> Batch:
    """Rows of different lengths -> one Batch, padded with NOTHING and weight 0. `pictures` None: none are decoded.

    Raises ImageError or VideoError for a picture or clip that cannot be read.
    """
    from torch.nn.utils.rnn import pad_sequence

    codes = pad_sequence([row.codes.T for row in rows], batch_first=True, padding_value=NOTHING)
    batch = Batch(
        codes=codes.transpose(1, 2).contiguous(),
        text_weight=pad_sequence([row.text_weight for row in rows], batch_first=True),
        audio_weight=pad_sequence([row.audio_weight for row in rows], batch_first=True),
        ids=[row.id for row in rows],
    )
    if pictures is None:
        return batch
    seen = [see_visuals(row.visuals, num_frames=row.codes.shape[1], form=pictures) for row in rows]
    return replace(batch, **vars(lay_pictures(seen, pictures))) if any(seen) else batch


def _overlaps(word: Word, mask: Tensor) -> bool:
    first = seconds_to_frames(word.start_sec)
    return bool(mask[first : seconds_to_frames(word.end_sec, round_up=True)].any())
