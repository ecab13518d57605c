"""The sliding window of frames that a clip encoder looks at, at a steady rate whatever the rate frames come at.

Time is cut into slots of 1 / fps seconds. A slot holds the newest frame that came in it, or, where none did, what the
slot before it holds; before the first frame, the first frame. So the window has a constant size and span.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from mmspeech.frames import FRAME_RATE_HZ
from mmspeech.nn.streaming import State


@dataclass(frozen=True)
class Window:
    """What a clip encoder looks at: the last `frames` slots, `fps` of them a second."""

    frames: int
    fps: float

    def slots(self, onset_frames: Tensor) -> Tensor:
        """The number of the slot that each frame of speech (at 12.5 Hz) begins in, long."""
        # A time on a border must not slip to the slot before.
        return torch.floor(onset_frames.double() * (self.fps / FRAME_RATE_HZ) + 1e-6).long()

    def places(self, onset_frames: Tensor) -> Tensor:
        """The windows of a whole call: its frames come at onset_frames [N] long, in order -> [N, F] long, the numbers
        of those that the window after each one holds, the newest last."""
        slots = self.slots(onset_frames)
        wanted = slots[:, None] - torch.arange(self.frames - 1, -1, -1, device=slots.device)
        newest = torch.searchsorted(slots, wanted.contiguous(), right=True) - 1
        own = torch.arange(len(slots), device=slots.device)[:, None]
        return torch.minimum(newest, own).clamp(min=0)


@dataclass
class WindowState(State):
    """The last slots of B streams: frames [B, F, ...] as `VisionTower.see_frames` gives them, the newest last, and its
    number slot [B] long (-1: none)."""

    frames: Tensor
    slot: Tensor = field(metadata={"reset_value": -1})

    @classmethod
    def empty(cls, batch_size: int, *, window: Window, frame: Tensor) -> "WindowState":
        """Windows that no frame has entered; they hold what is like `frame`."""
        frames = frame.new_zeros(batch_size, window.frames, *frame.shape)
        return cls(frames, torch.full((batch_size,), -1, device=frame.device))

    @torch.no_grad()
    def push(self, frame: Tensor, onset_frames: Tensor, rows: Tensor, *, window: Window) -> Tensor:
        """Frames [R, ...] that come at onset_frames [R] long enter the streams rows [R] long, in place; their windows
        after that [R, F, ...].

        A time before the newest slot counts as that slot.
        """
        last = self.slot[rows]
        slot = torch.maximum(window.slots(onset_frames), last)
        first = last < 0
        places = torch.arange(window.frames, device=slot.device) + (slot - last)[:, None]
        frames = self.frames[rows[:, None], places.clamp(max=window.frames - 1)]
        frames = torch.where(first.view(-1, *[1] * frame.dim()), frame[:, None], frames)
        frames[:, -1] = frame
        self.frames[rows], self.slot[rows] = frames, slot
        return frames


def windowed(pixels: Tensor, windows: Tensor | None) -> Tensor:
    """What a tower is given: pixels [P, 3, H, W] as they are, or windows [P, F] long of them, [P, F, 3, H, W]."""
    return pixels if windows is None else pixels[windows]
