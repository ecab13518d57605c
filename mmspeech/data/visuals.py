"""Pictures and clips of a call -> the frames it sees, decoded, each with the frame of speech from which it is seen."""

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mmspeech.types import Visual
from mmspeech.vision.memory import Memory, onset_of
from mmspeech.vision.window import Window

if TYPE_CHECKING:
    from PIL.Image import Image

    from mmspeech.vision.video import Video


@dataclass(frozen=True)
class SeenFrame:
    """A picture, seen from `onset_frame` on (negative: since before the call begins); None where its features are kept.
    `key` names its content. in_windows_only: it is forgotten when the call begins, and only a clip encoder still looks
    at it. duration_sec: of the clip it is of."""

    picture: "Image | None"
    onset_frame: int
    key: str
    in_windows_only: bool = False
    duration_sec: float | None = None

    @property
    def content_name(self) -> str:
        """Of the picture or clip it is of."""
        return self.key.partition("@")[0]


@dataclass(frozen=True)
class Kept:
    """Whose features are kept, so that nothing has to be decoded: keys of SeenFrames; durations_sec of clips, by the
    name of their content."""

    keys: frozenset[str] = frozenset()
    durations_sec: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class PictureFormat:
    """What the tower expects (see `mmspeech.vision.image.to_pixels`; `window`: of a clip encoder), how much of it the
    model remembers, and what need not be decoded."""

    size_px: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    memory: Memory = Memory()
    window: Window | None = None
    kept: Kept = Kept()


@dataclass
class Pictures:
    """What calls see, as a Batch holds it. The pixels of what was not decoded are zeros."""

    pixels: Tensor
    picture_rows: Tensor
    onset_frames: Tensor
    windows: Tensor | None
    picture_keys: list[str]


@dataclass(frozen=True)
class _Coming:
    """A frame not yet decoded: of a picture, or at `clip_sec` of a clip (number `place` of the call's visuals)."""

    onset_frame: int
    place: int
    clip_sec: float


@dataclass(frozen=True)
class _Shown:
    """A visual that is opened and decoded when it has to be."""

    visual: Visual
    kept: Kept

    @cached_property
    def name(self) -> str:
        return hashlib.sha1(self.visual.data).hexdigest()

    @cached_property
    def video(self) -> "Video":
        from mmspeech.vision.video import Video

        return Video(self.visual.data)

    @cached_property
    def duration_sec(self) -> float | None:
        if self.visual.kind == "image":
            return None
        known_sec = self.kept.durations_sec.get(self.name)
        return self.video.duration_sec if known_sec is None else known_sec

    @property
    def num_frames(self) -> int:
        return 1 if self.duration_sec is None else math.ceil(round(self.duration_sec * self.visual.fps, 6))

    def frames(self, wanted: list[_Coming]) -> list[SeenFrame]:
        keys = [self.name if self.visual.kind == "image" else f"{self.name}@{frame.clip_sec:.6f}" for frame in wanted]
        new = [frame.clip_sec for frame, key in zip(wanted, keys, strict=True) if key not in self.kept.keys]
        decoded = iter(self._decoded(new) if new else ())
        return [
            SeenFrame(
                None if key in self.kept.keys else next(decoded), frame.onset_frame, key, duration_sec=self.duration_sec
            )
            for frame, key in zip(wanted, keys, strict=True)
        ]

    def _decoded(self, clip_secs: list[float]) -> "list[Image]":
        if self.visual.kind == "image":
            from mmspeech.vision.image import load_image

            return [load_image(self.visual.data)]
        return [frame.picture for frame in self.video.frames(clip_secs)]


def see_visuals(visuals: Sequence[Visual], *, num_frames: int, form: PictureFormat) -> list[SeenFrame]:
    """What a call of `num_frames` sees of `visuals`, in the order it comes; start_sec below 0 is before the call.

    Only what is seen is decoded: nothing that memory has lost before the call begins (beside what a window still
    holds), nothing after its end, of several frames that come at once the newest, and nothing whose features are kept.
    Raises ImageError or VideoError for what cannot be read.
    """
    shown = [_Shown(visual, form.kept) for visual in visuals]
    coming = sorted(_coming(shown), key=lambda frame: frame.onset_frame)
    newest = {frame.onset_frame: frame for frame in coming if frame.onset_frame < num_frames}
    onsets = list(newest)
    forgotten = form.memory.forgotten(onsets, at_frame=0)
    before = _still_in_windows(onsets, forgotten, form.window)
    coming = [frame for place, frame in enumerate(newest.values()) if place >= forgotten or place in before]
    pictures = {}
    for place, visual in enumerate(shown):
        wanted = [frame for frame in coming if frame.place == place]
        if wanted:
            pictures |= dict(zip(wanted, visual.frames(wanted), strict=True))
    return [replace(pictures[frame], in_windows_only=place < len(before)) for place, frame in enumerate(coming)]


def lay_pictures(calls: Sequence[Sequence[SeenFrame]], form: PictureFormat) -> Pictures:
    """The frames of several calls (some must have one), row by row in the order they come."""
    from mmspeech.vision.image import to_pixels

    every = [frame for frames in calls for frame in frames]
    seen = torch.tensor([not frame.in_windows_only for frame in every])
    rows = torch.tensor([row for row, frames in enumerate(calls) for _ in frames])
    onsets = torch.tensor([frame.onset_frame for frame in every])
    nothing = torch.zeros(3, form.size_px, form.size_px)
    pixels = torch.stack(
        [nothing if one.picture is None else to_pixels(one.picture, form.size_px, form.mean, form.std) for one in every]
    )
    windows = None
    if form.window is not None:
        first = torch.searchsorted(rows, rows)
        places = [form.window.places(onsets[rows == row]) for row in rows.unique()]
        windows = (torch.cat(places) + first[:, None])[seen]
    return Pictures(pixels, rows[seen], onsets[seen], windows, [frame.key for frame in every])


def _still_in_windows(onsets: Sequence[int], forgotten: int, window: Window | None) -> set[int]:
    """Which of a call's first `forgotten` frames are in windows of later ones."""
    if window is None or forgotten == len(onsets):
        return set()
    places = window.places(torch.tensor(onsets))[forgotten:]
    return set(places[places < forgotten].tolist())


def _coming(shown: Sequence[_Shown]) -> Iterator[_Coming]:
    for place, one in enumerate(shown):
        for number in range(one.num_frames):
            clip_sec = number / one.visual.fps
            yield _Coming(onset_of(one.visual.start_sec + clip_sec), place, clip_sec)
