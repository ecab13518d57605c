"""What callers show: pictures with time stamps in, at most one of them waiting for each call, never a queue."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from mmspeech.config import ConfigError
from mmspeech.frames import frames_to_seconds
from mmspeech.types import VisualContext
from mmspeech.vision.image import ImageError, load_image, to_pixels
from mmspeech.vision.memory import onset_of

if TYPE_CHECKING:
    from PIL.Image import Image

    from mmspeech.checkpoint import Bundle
    from mmspeech.vision.window import WindowState

    Picture = Image | bytes


class SightError(ConfigError):
    """A picture was shown to a model that cannot see; the message is one line."""


@dataclass
class FrameCounts:
    """What became of the frames of one call. shown: the model saw them. dropped: a newer one came before their time, or
    they were older than, or as old as, one that was seen or waits. broken: they could not be read."""

    shown: int = 0
    dropped: int = 0
    broken: int = 0


@dataclass(frozen=True)
class _Waiting:
    picture: "Picture"
    stamp_sec: float


class FrameInbox:
    """The frames on their way to one call. Times are seconds of the call; a step begins at its number / 12.5.

    A stamp in the future waits for its time. Of frames that wait only the newest is kept.
    """

    def __init__(self):
        self.counts = FrameCounts()
        self._waiting: _Waiting | None = None
        self._seen_sec = -math.inf

    def put(self, picture: "Picture", *, at_sec: float | None, step: int) -> None:
        """Take a frame with stamp `at_sec`, while `step` is the next step of its call; None: it is the newest, and
        enters then."""
        stamp_sec = frames_to_seconds(step) if at_sec is None else at_sec
        if not math.isfinite(stamp_sec):
            self.counts.broken += 1
            return
        known_sec = self._seen_sec if self._waiting is None else self._waiting.stamp_sec
        if at_sec is not None and stamp_sec <= known_sec:
            self.counts.dropped += 1
            return
        self.counts.dropped += self._waiting is not None
        self._waiting = _Waiting(picture, stamp_sec)

    def take(self, *, step: int) -> "Image | None":
        """The frame that enters at `step`, whole and upright; None when there is none, or it cannot be read."""
        waiting = self._waiting
        if waiting is None or onset_of(waiting.stamp_sec) > step:
            return None
        self._waiting = None
        try:
            picture = load_image(waiting.picture)
        except ImageError:
            self.counts.broken += 1
            return None
        self._seen_sec = waiting.stamp_sec
        self.counts.shown += 1
        return picture

    def clear(self, *, step: int) -> None:
        """What waits, or is of a time before `step`, is not to be seen any more."""
        self.counts.dropped += self._waiting is not None
        self._waiting = None
        self._seen_sec = max(self._seen_sec, frames_to_seconds(step - 1))


def check_sight(bundle: "Bundle") -> None:
    """SightError for a model without eyes."""
    if bundle.config.vision is None or bundle.model.tower is None:
        raise SightError(f"{bundle.path}: this model cannot see (no vision tower); leave the picture out")


def look(
    bundle: "Bundle",
    pictures: "Sequence[Image]",
    *,
    rows: Sequence[int],
    steps: Sequence[int],
    state: "WindowState | None",
) -> VisualContext:
    """Keys and values [R, S, D] of a picture for each of R calls. Clip encoders see them behind the earlier ones of the
    same call: rows (numbers of the calls) in `state`, at its next step. SightError for a model without eyes."""
    check_sight(bundle)
    model, size_px = bundle.model, bundle.config.vision.image_size_px
    weight = next(model.lm.parameters())
    pixels = torch.stack([to_pixels(picture, size_px, model.tower.mean, model.tower.std) for picture in pictures])
    streams, onset_frames = (torch.tensor(numbers, device=weight.device) for numbers in (rows, steps))
    features, mask = model.tower(
        pixels.to(device=weight.device, dtype=weight.dtype), state=state, onset_frames=onset_frames, rows=streams
    )
    # The moment it is seen from is known to the memory it goes into.
    onset = torch.zeros(len(pictures), dtype=torch.long, device=weight.device)
    return model.see(features, onset, mask=mask)
