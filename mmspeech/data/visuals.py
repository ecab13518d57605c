"""Pictures and clips of a call -> the frames it sees, decoded, each with the frame of speech from which it is seen."""

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mmspeech.types import Visual
from mmspeech.vision.memory import Memory, onset_of

if TYPE_CHECKING:
    from PIL.Image import Image

    from mmspeech.vision.video import Video


@dataclass(frozen=True)
class SeenFrame:
    """A picture, seen from `onset_frame` on (negative: since before the call begins). `key` names its content."""

    picture: "Image"
    onset_frame: int
    key: str


@dataclass(frozen=True)
class _Coming:
    """A frame not yet decoded: of a picture, or at `clip_sec` of a clip (number `place` of the call's visuals)."""

    onset_frame: int
    place: int
    clip_sec: float


def see_visuals(visuals: Sequence[Visual], *, num_frames: int, memory: Memory) -> list[SeenFrame]:
    """What a call of `num_frames` sees of `visuals`, in the order it comes; start_sec below 0 is before the call.

    Only what is seen is decoded: nothing that memory has lost before the call begins, nothing after its end, and of
    several frames that come at once the newest. Raises ImageError or VideoError for what cannot be read.
    """
    videos = {place: _open(visual) for place, visual in enumerate(visuals) if visual.kind == "clip"}
    coming = sorted(_coming(visuals, videos), key=lambda frame: frame.onset_frame)
    newest = {frame.onset_frame: frame for frame in coming if frame.onset_frame < num_frames}
    coming = list(newest.values())[memory.forgotten(list(newest), at_frame=0) :]
    pictures = {}
    for place, visual in enumerate(visuals):
        wanted = [frame for frame in coming if frame.place == place]
        if wanted:
            pictures |= dict(zip(wanted, _decoded(visual, videos.get(place), wanted), strict=True))
    return [pictures[frame] for frame in coming]


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
