"""Pictures and clips of a call -> the frames it sees, decoded, each with the frame of speech from which it is seen."""

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mmspeech.types import Visual
from mmspeech.vision.memory import Memory, onset_of
from mmspeech.vision.window import members_of

if TYPE_CHECKING:
    from PIL.Image import Image

    from mmspeech.vision.video import Video


@dataclass(frozen=True)
class SeenFrame:
    """A picture, seen from `onset_frame` on (negative: since before the call begins). `window`: for clip encoders, all
    that it is seen with, itself last. `key` names the content of either."""

    picture: "Image"
    onset_frame: int
    key: str
    window: tuple["Image", ...] = ()


@dataclass(frozen=True)
class PictureFormat:
    """What the tower expects (see `mmspeech.vision.image.to_pixels`), and how much of it the model remembers.

    `window_frames` and `window_fps`: of clip encoders; see mmspeech/vision/window.py.
    """

    size_px: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    memory: Memory = Memory()
    window_frames: int | None = None
    window_fps: float | None = None

    def pixels(self, frames: Sequence[SeenFrame]) -> Tensor:
        """[P, 3, H, W], or for clip encoders [P, F, 3, H, W]."""
        from mmspeech.vision.image import to_pixels

        pictures = {id(picture): picture for frame in frames for picture in (frame.window or (frame.picture,))}
        made = {key: to_pixels(picture, self.size_px, self.mean, self.std) for key, picture in pictures.items()}
        if self.window_frames is None:
            return torch.stack([made[id(frame.picture)] for frame in frames])
        return torch.stack([torch.stack([made[id(picture)] for picture in frame.window]) for frame in frames])


@dataclass(frozen=True)
class _Coming:
    """A frame not yet decoded: of a picture, or at `clip_sec` of a clip (number `place` of the call's visuals).
    `stamp_sec`: when it comes, on the clock of the call."""

    onset_frame: int
    stamp_sec: float
    place: int
    clip_sec: float


def see_visuals(visuals: Sequence[Visual], *, num_frames: int, form: PictureFormat) -> list[SeenFrame]:
    """What a call of `num_frames` sees of `visuals`, in the order it comes; start_sec below 0 is before the call.

    Only what is seen is decoded: nothing that memory has lost before the call begins, nothing after its end, and of
    several frames that come at once the newest. Raises ImageError or VideoError for what cannot be read.
    """
    videos = {place: _open(visual) for place, visual in enumerate(visuals) if visual.kind == "clip"}
    coming = sorted(_coming(visuals, videos), key=lambda frame: frame.onset_frame)
    coming = list({frame.onset_frame: frame for frame in coming if frame.onset_frame < num_frames}.values())
    first = form.memory.forgotten([frame.onset_frame for frame in coming], at_frame=0)
    members = _members(coming, form)[first:]
    wanted = [coming[number] for number in sorted({number for own in members for number in own})]
    pictures = {}
    for place, visual in enumerate(visuals):
        own = [frame for frame in wanted if frame.place == place]
        if own:
            pictures |= dict(zip(own, _decoded(visual, videos.get(place), own), strict=True))
    return [_seen([pictures[coming[number]] for number in own], form) for own in members]


def _members(coming: Sequence[_Coming], form: PictureFormat) -> list[list[int]]:
    """For each frame the numbers of those it is seen with, itself last."""
    if form.window_frames is None or not coming:
        return [[number] for number in range(len(coming))]
    at_sec = torch.tensor([frame.stamp_sec for frame in coming], dtype=torch.float64)
    return members_of(at_sec, window_frames=form.window_frames, fps=form.window_fps).tolist()


def _seen(frames: Sequence[SeenFrame], form: PictureFormat) -> SeenFrame:
    newest = frames[-1]
    if form.window_frames is None:
        return newest
    key = hashlib.sha1(" ".join(frame.key for frame in frames).encode()).hexdigest()
    return SeenFrame(newest.picture, newest.onset_frame, key, tuple(frame.picture for frame in frames))


def _open(visual: Visual) -> "Video":
    from mmspeech.vision.video import Video

    return Video(visual.data)


def _coming(visuals: Sequence[Visual], videos: dict[int, "Video"]) -> Iterator[_Coming]:
    for place, visual in enumerate(visuals):
        count = 1 if visual.kind == "image" else math.ceil(round(videos[place].duration_sec * visual.fps, 6))
        for number in range(count):
            clip_sec = number / visual.fps
            stamp_sec = visual.start_sec + clip_sec
            yield _Coming(onset_of(stamp_sec), stamp_sec, place, clip_sec)


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
