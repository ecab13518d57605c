"""The sliding window of frames that a clip encoder looks at, at a steady rate whatever the rate frames come at.

Time is cut into slots of 1 / fps seconds. A slot holds the newest frame that came in it, or, where none did, what the
slot before it holds; before the first frame, the first frame. So the window has a constant size and span.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from mmspeech.nn.streaming import State


@dataclass
class WindowState(State):
    """The last slots of B streams: frames [B, F, 3, H, W], the newest last, and its number slot [B] long (-1: none)."""

    frames: Tensor
    slot: Tensor = field(metadata={"reset_value": -1})

    @classmethod
    def empty(
        cls, batch_size: int, *, window_frames: int, size_px: int, device: torch.device, dtype: torch.dtype
    ) -> "WindowState":
        """A window that no frame has entered."""
        frames = torch.zeros(batch_size, window_frames, 3, size_px, size_px, device=device, dtype=dtype)
        return cls(frames, torch.full((batch_size,), -1, device=device))

    @torch.no_grad()
    def push(self, pixels: Tensor, at_sec: Tensor, *, fps: float) -> Tensor:
        """Frames [B, 3, H, W] that come at at_sec [B] enter, in place; the window after them [B, F, 3, H, W].

        A time before the newest slot counts as that slot.
        """
        window_frames = self.frames.shape[1]
        slot = torch.maximum(slots_of(at_sec.to(self.slot.device), fps), self.slot)
        first = (self.slot < 0)[:, None]
        moved = torch.where(first, window_frames, (slot - self.slot)[:, None])
        places = torch.arange(window_frames, device=moved.device) + moved
        rows = torch.arange(len(places), device=moved.device)[:, None]
        self.frames.copy_(self.frames[rows, places.clamp(max=window_frames - 1)])
        self.frames.copy_(torch.where(first[..., None, None, None], pixels[:, None], self.frames))
        self.frames[:, -1] = pixels
        self.slot.copy_(slot)
        return self.frames


def slots_of(at_sec: Tensor, fps: float) -> Tensor:
    """The number of the slot each time falls into, long."""
    return torch.floor(at_sec.double() * fps + 1e-6).long()  # a time on a border must not slip to the slot before


def windows_of(frames: Tensor, at_sec: Tensor, *, window_frames: int, fps: float) -> Tensor:
    """The window after each frame of a clip: frames [N, 3, H, W] at times at_sec [N], in order -> [N, F, 3, H, W]."""
    slots = slots_of(at_sec, fps)
    wanted = slots[:, None] - torch.arange(window_frames - 1, -1, -1, device=slots.device)
    newest = torch.searchsorted(slots, wanted.contiguous(), right=True) - 1
    own = torch.arange(len(slots), device=slots.device)[:, None]
    return frames[torch.minimum(newest, own).clamp(min=0)]
