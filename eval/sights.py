"""What a line's call is shown, and the other things it may be shown instead, to see what the answers come from."""

import random
from pathlib import Path
from typing import TYPE_CHECKING

from eval.manifest import Line
from eval.task import Pictures
from mmspeech.config import ConfigError

if TYPE_CHECKING:
    from PIL.Image import Image

    Frames = list[tuple[float, Image]]


def last_pictures(video: Path, *, until_sec: float, window_sec: float, fps: float) -> "Frames":
    """What was to be seen in the last `window_sec` before a moment of a video (its end, if that comes first), `fps` a
    second, the last at the moment itself; their times begin at 0. Raises ConfigError."""
    from mmspeech.vision.video import Video

    opened = Video(video)
    last_sec = min(until_sec, opened.duration_sec)
    count = int(min(window_sec, last_sec) * fps) + 1
    times_sec = [max(0.0, last_sec - (count - 1 - number) / fps) for number in range(count)]
    return [(number / fps, frame.picture) for number, frame in enumerate(opened.frames(times_sec))]


class Sights:
    """The pictures and clips of the lines, as `pictures` asks.

    given: as is; none; swapped: all pictures change places, and so do all clips, seeded, none stays unless it is alone;
    shuffled: a clip's frames change places in time, seeded; frozen: a clip shows its first frame all the time.
    """

    def __init__(self, lines: list[Line], *, pictures: Pictures, seed: int):
        self._pictures, self._seed = pictures, seed
        self._images = {line.id: line.image for line in lines}
        self._videos = {line.id: line.video for line in lines}
        if pictures == "none":
            self._images, self._videos = dict.fromkeys(self._images), dict.fromkeys(self._videos)
        elif pictures == "swapped":
            self._images, self._videos = (_swapped(own, seed) for own in (self._images, self._videos))

    def paths(self, line: Line) -> list[Path]:
        """The files that the line's call is shown, a picture before a clip."""
        return [path for path in (self._images[line.id], self._videos[line.id]) if path is not None]

    def frames(self, line: Line, *, until_sec: float) -> "Frames":
        """What the call sees and when, in seconds of the call, in order, up to `until_sec`. Raises ConfigError."""
        from mmspeech.vision.image import load_image

        image, video = self._images[line.id], self._videos[line.id]
        frames = [] if image is None else [(0.0, load_image(image))]
        return frames if video is None else frames + self._moving(line, video, until_sec)

    def _moving(self, line: Line, video: Path, until_sec: float) -> "Frames":
        from mmspeech.vision.timeline import Timeline

        timeline = Timeline(video, fps=line.fps)
        due = timeline.due(until_sec - line.start_sec)
        if timeline.problems:
            raise ConfigError(timeline.problems[0])
        pictures = [picture for _, picture in due]
        if self._pictures == "shuffled":
            random.Random(f"{self._seed} {line.id}").shuffle(pictures)
        elif self._pictures == "frozen":
            pictures = pictures[:1] * len(pictures)
        return [(line.start_sec + at_sec, picture) for (at_sec, _), picture in zip(due, pictures, strict=True)]


def _swapped(own: dict[str, Path | None], seed: int) -> dict[str, Path | None]:
    others = sorted({path for path in own.values() if path is not None})
    random.Random(seed).shuffle(others)
    following = {path: others[(index + 1) % len(others)] for index, path in enumerate(others)}
    return {key: None if path is None else following[path] for key, path in own.items()}
