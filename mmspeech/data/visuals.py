"""Pictures and clips of a call -> the frames it sees, decoded, each with the frame of speech from which it is seen."""

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
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
    """A picture, seen from `onset_frame` on (negative: since before the call begins). `key` names its content.
    in_windows_only: it is forgotten when the call begins, and only a clip encoder still looks at it."""

    picture: "Image"
    onset_frame: int
    key: str
    in_windows_only: bool = False


@dataclass(frozen=True)
class PictureFormat:
    """What the tower expects (see `mmspeech.vision.image.to_pixels`; `window`: of a clip encoder), and how much of it
    the model remembers."""

    size_px: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    memory: Memory = Memory()
    window: Window | None = None


@dataclass
class Pictures:
    """What calls see, as a Batch holds it."""

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


def see_visuals(
    visuals: Sequence[Visual], *, num_frames: int, memory: Memory, window: Window | None = None
) -> list[SeenFrame]:
    """What a call of `num_frames` sees of `visuals`, in the order it comes; start_sec below 0 is before the call.

    Only what is seen is decoded: nothing that memory has lost before the call begins (beside what a window still
    holds), nothing after its end, and of several frames that come at once the newest. Raises ImageError or VideoError
    for what cannot be read.
    """
    videos = {place: _open(visual) for place, visual in enumerate(visuals) if visual.kind == "clip"}
    coming = sorted(_coming(visuals, videos), key=lambda frame: frame.onset_frame)
    newest = {frame.onset_frame: frame for frame in coming if frame.onset_frame < num_frames}
    onsets = list(newest)
    forgotten = memory.forgotten(onsets, at_frame=0)
    before = _still_in_windows(onsets, forgotten, window)
    coming = [frame for place, frame in enumerate(newest.values()) if place >= forgotten or place in before]
    pictures = {}
    for place, visual in enumerate(visuals):
        wanted = [frame for frame in coming if frame.place == place]
        if wanted:
            pictures |= dict(zip(wanted, _decoded(visual, videos.get(place), wanted), strict=True))
    return [replace(pictures[frame], in_windows_only=place < len(before)) for place, frame in enumerate(coming)]


def lay_pictures(calls: Sequence[Sequence[SeenFrame]], form: PictureFormat) -> Pictures:
    """The frames of several calls (some must have one), row by row in the order they come."""
    from mmspeech.vision.image import to_pixels

    every = [frame for frames in calls for frame in frames]
    seen = torch.tensor([not frame.in_windows_only for frame in every])
    rows = torch.tensor([row for row, frames in enumerate(calls) for _ in frames])
    onsets = torch.tensor([frame.onset_frame for frame in every])
    pixels = torch.stack([to_pixels(frame.picture, form.size_px, form.mean, form.std) for frame in every])
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


def _open(visual: Visual) -> "Video":
    from mmspeech.vision.video import Video

    return Video(visual.data)


def _coming(visuals: Sequence[Visual], videos: dict[int, "Video"]) -> Iterator[_Coming]:
    for place, visual in enumerate(visuals):
        count = 1 if visual.kind == "image" else math.ceil(round(videos[place].duration_sec * visual.fps, 6))
        for number in range(count):
            clip_sec = number / visual.fps
            yield _Coming(onset_of(visual.start_sec + clip_sec), place, clip_sec)


def _decoded(visual: Visual, video: "Video | None", wanted: list[_Coming]) -> list[SeenFrame]:
    name = hashlib.sha1(visual.data).hexdigest()
    if video is None:
        from mmspeech.vision.image import load_image

        return [SeenFrame(load_image(visual.data), wanted[0].onset_frame, name)]
    frames = video.frames([frame.clip_sec for frame in wanted])
    return [
        SeenFrame(frame.picture, coming.onset_frame, f"{name}@{frame.stamp_sec:.6f}")
        for frame, coming in zip(frames, wanted, strict=True)
    ]
