"""Records that cross folders. B batch, T frames (12.5 Hz), N samples, K codebooks, S visual tokens, D width."""

from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor


@dataclass
class VisualContext:
    """What is seen, as keys and values ready for attention.

    keys, values: one pair for all layers (shared projections) or one per looking layer; each [B, S, D].
    onset_frames, until_frames: [B, S] long: the positions (frames of the call) that may look at a token, from the first
    up to, not including, the last; until_frames None: no token ever leaves. A token no position may see (padding, or a
    row without a picture) has onset NEVER. stamp_frames [B, S] long: what a token's age counts from, where that is not
    its onset (None: it is). at_once: all tokens of a row have the same onset and none leaves (a promise, which spares
    attention its mask). frame_tokens: so many tokens each lie side by side and belong to one picture, and pictures come
    and leave in the order in which they lie (None: nothing is promised).
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    onset_frames: Tensor
    until_frames: Tensor | None = None
    stamp_frames: Tensor | None = None
    at_once: bool = False
    frame_tokens: int | None = None

    NEVER = torch.iinfo(torch.int64).max

    def first(self, count: int) -> "VisualContext":
        """The same memory, of the first `count` rows only."""
        keys, values = (tuple(tensor[:count] for tensor in pair) for pair in (self.keys, self.values))
        times = (self.onset_frames, self.until_frames, self.stamp_frames)
        return VisualContext(keys, values, *(time if time is None else time[:count] for time in times), self.at_once)


@dataclass
class Visual:
    """A picture or a clip of a sample.

    data: an encoded picture (PNG, JPEG ...), seen from start_sec on, or a whole encoded clip (mp4 ...), whose frames
    are seen from start_sec + k / fps on.
    """

    data: bytes
    start_sec: float = 0.0
    kind: Literal["image", "clip"] = "image"
    fps: float = 2.0

    def later(self, by_sec: float) -> "Visual":
        """The same picture or clip, moved in time."""
        return replace(self, start_sec=self.start_sec + by_sec)


@dataclass
class Word:
    """A spoken word with its times in seconds; `speaker` is "main" (the model) or "user"."""

    text: str
    start_sec: float
    end_sec: float
    speaker: str = "main"

    def later(self, by_sec: float) -> "Word":
        """The same word, moved in time."""
        return replace(self, start_sec=self.start_sec + by_sec, end_sec=self.end_sec + by_sec)


@dataclass
class Sample:
    """One call as it lies in a shard.

    codes: [2K, T] int16, the model's K rows first, then the user's; -1 where there is no audio ("speechless").
    meta: free JSON (turns, voice, split, source).
    """

    id: str
    codes: Tensor
    words: list[Word]
    visuals: list[Visual] = field(default_factory=list)
    meta: dict[str, Any] = field(default_factory=dict)


@dataclass
class Batch:
    """What the model trains on, before delays.

    codes: [B, 1 + 2K, T] long, aligned in time (undelayed): text, own codebooks, user codebooks; -1 is "nothing here"
    (embedded as zeros, never a target). text_weight [B, T] and audio_weight [B, T]: float loss weights per frame.
    pixels: [P, 3, H, W] float or None: the batch's pictures and frames of clips; picture_rows [P] long says which row
    each belongs to and onset_frames [P] long from which frame on it is seen (negative: since before the row begins).
    windows [P, F] long, for clip encoders: which pictures each one is seen with, the newest last; pixels may hold more
    than P then, those that are in windows alone.
    picture_keys name the content of pixels; features [P, S, Dv] (with features_mask [P, S] bool or None), when set,
    stand for what the tower makes of the pixels.
    seed: of what the loss draws at random (None: from torch's own state).
    """

    codes: Tensor
    text_weight: Tensor
    audio_weight: Tensor
    pixels: Tensor | None = None
    picture_rows: Tensor | None = None
    onset_frames: Tensor | None = None
    windows: Tensor | None = None
    ids: list[str] = field(default_factory=list)
    picture_keys: list[str] = field(default_factory=list)
    features: Tensor | None = None
    features_mask: Tensor | None = None
    seed: int | None = None


@dataclass
class FrameOut:
    """What one generated frame gives, all aligned to the same frame of the call.

    frame: index of the 80 ms frame. text_ids [B] long; codes [B, K] long: the model's own audio; gate [B] float
    in 0..1 (0 without a picture): the gate when this text token was chosen, and layer_gates [B, L] the same for each
    gated layer (-1..1 where gates are tanh).
    """

    frame: int
    text_ids: Tensor
    codes: Tensor
    gate: Tensor
    layer_gates: Tensor
