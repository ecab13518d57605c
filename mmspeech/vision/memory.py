"""Which frames are seen when: one schedule for training, with whole calls laid out, and for calls frame by frame.

A row's frames are numbered as they come. The newest `frames` are seen; frame i leaves when frame i + frames comes.
Where there are summary slots, frames that leave form groups of `group` in order: group g is the mean of its frames,
seen from the moment the last of them leaves until group g + slots is complete.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mmspeech.config import FusionConfig
from mmspeech.frames import seconds_to_frames
from mmspeech.types import VisualContext

NEVER = VisualContext.NEVER


@dataclass(frozen=True)
class Memory:
    """`frames` of the newest frames, and `slots` summaries of `group` frames each that have left."""

    frames: int = 1
    slots: int = 0
    group: int = 4

    @classmethod
    def of(cls, config: FusionConfig) -> "Memory":
        return cls(config.memory_frames, config.summary_slots, config.summary_group)

    @property
    def places(self) -> int:
        """How many frames and summaries there is room for."""
        return self.frames + self.slots

    def place(self, index: Tensor) -> Tensor:
        """Where frame number `index` [R] long lies in a ring."""
        return index % self.frames

    def leaving(self, index: Tensor) -> Tensor:
        """The number of the frame that leaves when frame `index` [R] long comes; negative: none."""
        return index - self.frames

    def summary_place(self, index: Tensor) -> Tensor:
        """Where the summary lies that frame `index` [R] long is part of."""
        return self.frames + (index // self.group) % self.slots

    def begins_summary(self, index: Tensor) -> Tensor:
        """Whether frame `index` [R] long is the first of its group."""
        return index % self.group == 0

    def ends_summary(self, index: Tensor) -> Tensor:
        """Whether frame `index` [R] long is the last of its group, which is seen when it has left."""
        return index % self.group == self.group - 1

    def until(self, onset_frames: Tensor) -> Tensor:
        """When each frame leaves: onset_frames [B, F] long in ascending order, NEVER behind a row's last -> [B, F]."""
        return _later(onset_frames, self.frames)

    def summaries(self, onset_frames: Tensor) -> tuple[Tensor, Tensor]:
        """From when until when each whole group is seen: onset_frames as for `until` -> two of [B, F // group]."""
        complete = self.until(onset_frames)[:, self.group - 1 :: self.group]
        return complete, _later(complete, self.slots)

    def forgotten(self, onset_frames: Sequence[int], *, at_frame: int) -> int:
        """How many of a call's first frames (onsets in order) leave nothing that is seen at `at_frame` or later.

        Whole groups, so that those after them stay the same.
        """
        onsets = torch.tensor(onset_frames, dtype=torch.long)[None]
        if not self.slots:
            return int((self.until(onsets) <= at_frame).sum())
        return self.group * int((self.summaries(onsets)[1] <= at_frame).sum())


def _later(times: Tensor, count: int) -> Tensor:
    """times [B, F] of the entry `count` places on, NEVER where there is none."""
    return torch.cat([times, times.new_full((len(times), count), NEVER)], dim=1)[:, count:]


def onset_of(at_sec: float) -> int:
    """The first frame of a call at or after a time; whatever is seen at that time is seen from this frame on."""
    return seconds_to_frames(at_sec, round_up=True)
