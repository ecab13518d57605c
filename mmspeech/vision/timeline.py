"""What a call is shown over time: the frames of a clip, or pictures from a list, on the clock of the call."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from mmspeech.config import ConfigError
from mmspeech.vision.image import ImageError, load_image
from mmspeech.vision.video import Video, VideoError


class Timeline:
    """Pictures with the times at which they enter a call, in order.

    path: a clip, `fps` frames of which are shown per second (frame k at k / fps); or a .json file of pairs
    `[[0.0, "a.png"], [2.5, "b.jpg"]]` in order of time, paths relative to the file. Raises ConfigError (one line) for
    what can be told before the call. What turns out broken later is dropped, and one line in `problems` says so.
    """

    def __init__(self, path: str | Path, *, fps: float = 2.0):
        self.problems: list[str] = []
        path = Path(path)
        if path.suffix.lower() == ".json":
            pairs = _read_pairs(path)
            self._coming = self._listed(pairs)
            self.duration_sec = pairs[-1][0]
        else:
            video = Video(path)
            self._coming = self._sampled(video, fps)
            self.duration_sec = video.duration_sec
        self._next = next(self._coming, None)
        if self._next is None:
            raise ConfigError(self.problems[0])

    def due(self, now_sec: float) -> list[tuple[float, Image.Image]]:
        """The pictures that enter up to `now_sec` and were not given before, each with its time."""
        found = []
        while self._next is not None and self._next[0] <= now_sec + 1e-6:
            found.append(self._next)
            self._next = next(self._coming, None)
        return found

    def _sampled(self, video: Video, fps: float) -> Iterator[tuple[float, Image.Image]]:
        try:
            for index, frame in enumerate(video.sample(fps)):
                yield index / fps, frame.picture
        except VideoError as error:
            self.problems.append(str(error))

    def _listed(self, pairs: list[tuple[float, Path]]) -> Iterator[tuple[float, Image.Image]]:
        for at_sec, path in pairs:
            try:
                picture = load_image(path)
            except ImageError as error:
                self.problems.append(str(error))
                continue
            yield at_sec, picture


def _read_pairs(path: Path) -> list[tuple[float, Path]]:
    try:
        pairs = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such file; give a clip, or a .json list of [seconds, picture] pairs") from error
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ConfigError(f"{path}: not valid JSON: {' '.join(str(error).split())}") from error
    if not isinstance(pairs, list) or not pairs:
        raise ConfigError(f'{path}: expected a list of pairs, such as [[0.0, "a.png"], [2.5, "b.png"]]')
    found = [_checked_pair(path, number, pair) for number, pair in enumerate(pairs, 1)]
    for number in range(1, len(found)):
        if found[number][0] <= found[number - 1][0]:
            raise ConfigError(
                f"{path}: pair {number + 1} is at {found[number][0]:g} s, after one at {found[number - 1][0]:g} s; "
                "list them in order of time, one picture at a time"
            )
    return found


def _checked_pair(path: Path, number: int, pair: Any) -> tuple[float, Path]:
    match pair:
        case [int() | float() as at_sec, str() as name] if not isinstance(at_sec, bool):
            picture = path.parent / name
        case _:
            raise ConfigError(f'{path}: pair {number} is {pair!r:.60}, expected [seconds, "picture"]')
    if not (math.isfinite(at_sec) and at_sec >= 0):
        raise ConfigError(f"{path}: pair {number} is at {at_sec} s, expected a time from 0 s on")
    if not picture.is_file():
        raise ConfigError(f"{path}: pair {number}: {picture}: no such file")
    return float(at_sec), picture
