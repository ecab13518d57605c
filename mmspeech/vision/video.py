"""Clips: frames at given seconds with their true time stamps, whatever the container and the rate.

decord reads, with three of its habits worked around: it loses count after seeking where frames lead their key frame
(open groups of pictures), it hands out memory that was never written for frames it could not decode, and it queues
compressed and decoded frames without a limit. So nothing here seeks inside a reader. One pass over the packets, which
decodes nothing, gives the time stamps; then each batch of frames is read by a short-lived reader of just the stretch
of the file that holds it, from its key frame on, named by a playlist in FFmpeg's concat format.
"""

import importlib
import math
import shutil
import sys
import tempfile
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from PIL import Image

from mmspeech.config import ConfigError

# How files with pictures that move begin. decord writes a line of its own on stderr for any other.
_STARTS = (
    b"\x1aE\xdf\xa3", b"FLV", b"RIFF", b"OggS", b"GIF8", b"\x00\x00\x01\xba", b"\x00\x00\x01\xb3",
    b"0&\xb2u", b"DKIF", b"YUV4MPEG2", b"\x06\x0e+4",
)  # fmt: skip
_BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot")
_BATCH_BYTES = 128_000_000  # of decoded pictures at a time
_FAR_FRAMES = 64  # opening a new stretch costs about as much as decoding this many frames of 720p
_CLOCK_SEC = 1000.0  # where a playlist's second entry stands on its clock, to tell its stamps from the first one's
_REORDER_FRAMES = 17  # codecs move a frame by at most 16 places
_NEAR_KEYS = 20  # so many key frames away the demuxer may have started
_NO_SUBSTITUTES = "0.000001"  # the share of frames that decord may replace by their neighbours: none


class VideoError(ConfigError):
    """A clip that cannot be used; one line naming it, what was expected and what to do."""


class _NoLengthError(VideoError):
    """The file does not say how long it is."""


@dataclass
class Frame:
    """picture: RGB, upright. stamp_sec: when it begins to be shown; the clip's first frame has 0."""

    picture: Image.Image
    stamp_sec: float


class Video:
    """A clip of any container and codec that FFmpeg reads, from a path or the bytes of a file.

    Opening it reads the time stamps; it decodes nothing. Stamps count from the first frame. `stamps_sec` [F] float64
    holds them all. Raises VideoError for what is missing, empty, no video, or has no time stamps.
    """

    def __init__(self, source: str | Path | bytes):
        self.name = "clip" if isinstance(source, bytes) else str(source)
        self._folder = Path(tempfile.mkdtemp(prefix="mmspeech-clip-"))
        weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        _place(source, self._folder / "clip", self.name)
        reader = self._whole()
        self._key_indices = np.asarray(reader.get_key_indices(), dtype=np.int64)
        try:
            ends_sec = _stamps(reader)
        except IndexError as error:  # its header told of more than there is
            raise VideoError(f"{self.name}: holds no frames; expected a clip with at least one") from error
        self.stamps_sec = _true_stamps(ends_sec[:, 0], reader.get_avg_fps(), self.name)
        self._step_sec = float(np.median(np.diff(self.stamps_sec))) if len(ends_sec) > 1 else 1 / 25
        last_sec = float(ends_sec[-1, 1] - ends_sec[-1, 0])
        if last_sec <= 0 or abs(last_sec - self._step_sec) < 1e-3:
            last_sec = self._step_sec
        self.duration_sec = float(self.stamps_sec[-1]) + last_sec
        self._origin_sec = self._find_origin()
        self._frame_bytes = 3 * 1920 * 1080  # until one is decoded

    def frames(self, at_sec: Sequence[float]) -> list[Frame]:
        """For each time the newest frame with a stamp <= it, in the order asked; after the end, the last frame.

        Raises VideoError for a time before 0 and where the file is broken.
        """
        indices = [self._index(time_sec) for time_sec in at_sec]
        pictures: dict[int, Image.Image] = {}
        for batch in self._batches(sorted(set(indices))):
            pictures |= self._read(batch)
            self._check_whole(batch, pictures)
        return [self._frame(index, pictures) for index in indices]

    def sample(self, fps: float, *, start_sec: float = 0.0, end_sec: float | None = None) -> Iterator[Frame]:
        """The newest frame at start_sec, start_sec + 1 / fps ... before end_sec (None: the end of the clip).

        One frame for each of these times; where the clip has no new one, the same again. Memory does not grow with the
        clip. Where the file is broken, what can be decoded is given first; then VideoError is raised.
        """
        if not (math.isfinite(fps) and fps > 0):
            raise VideoError(f"{self.name}: fps is {fps}, expected frames per second above 0")
        end_sec = self.duration_sec if end_sec is None else end_sec
        count = max(0, math.ceil(round((end_sec - start_sec) * fps, 6)))
        done = 0
        while done < count:
            size = max(1, _BATCH_BYTES // self._frame_bytes)
            indices = [self._index(start_sec + k / fps) for k in range(done, min(done + size + 1, count))]
            indices = self._cut(indices, size)
            pictures: dict[int, Image.Image] = {}
            for batch in self._batches(sorted(set(indices))):
                pictures |= self._read(batch)
            for index in indices:
                self._check_whole([index], pictures)
                yield self._frame(index, pictures)
            done += len(indices)

    def _index(self, time_sec: float) -> int:
        if not (math.isfinite(time_sec) and time_sec >= 0):
            raise VideoError(f"{self.name}: a frame at {time_sec} s was asked for; expected a time from 0 s on")
        slack_sec = 1e-6 + 2e-7 * time_sec  # decord keeps stamps in 32 bits
        return max(0, int(np.searchsorted(self.stamps_sec, time_sec + slack_sec, side="right")) - 1)

    def _frame(self, index: int, pictures: dict[int, Image.Image]) -> Frame:
        return Frame(pictures[index], float(self.stamps_sec[index]))

    def _check_whole(self, wanted: Sequence[int], pictures: dict[int, Image.Image]) -> None:
        missing = [index for index in wanted if index not in pictures]
        if missing:
            raise VideoError(
                f"{self.name}: cannot be decoded at {self.stamps_sec[missing[0]]:.2f} s of {self.duration_sec:.2f} s "
                "(cut off or broken); the frames before can be used, or convert it (ffmpeg -i IN OUT.mp4)"
            )

    def _cut(self, indices: list[int], size: int) -> list[int]:
        """The first of them, at most `size`, such that the next one lies near its key frame."""
        if len(indices) <= size:
            return indices
        ends = range(size, size // 2, -1)
        return indices[: min(ends, key=lambda end: indices[end] - self._key_before(indices[end]))]

    def _batches(self, indices: list[int]) -> Iterator[list[int]]:
        """Sorted indices, split where reading on costs more than starting again at a later key frame."""
        batch: list[int] = []
        for index in indices:
            if batch and self._key_before(index) - batch[-1] > _FAR_FRAMES:
                yield batch
                batch = []
            batch.append(index)
        if batch:
            yield batch

    def _key_before(self, index: int, back: int = 0) -> int:
        """The last key frame's place in the file at or before a frame; `back`: so many key frames earlier."""
        at = int(np.searchsorted(self._key_indices, index, side="right")) - 1 - back
        return int(self._key_indices[at]) if at > 0 else 0

    def _read(self, indices: list[int]) -> dict[int, Image.Image]:
        """Pictures by index, all that can be decoded up to the first that cannot."""
        pictures: dict[int, Image.Image] = {}
        if self._walk(indices, pictures):
            return pictures
        # One bad packet stops the whole reader, however far behind it the frame is that was asked for. So come close to
        # it with stretches that end at the frame.
        for index in indices:
            if index not in pictures and not self._walk([index], pictures):
                break
        return pictures

    def _walk(self, indices: list[int], pictures: dict[int, Image.Image]) -> bool:
        """Decode forward through a stretch, adding to `pictures`; False when it broke off."""
        errors = (_decord().DECORDError, StopIteration, VideoError)
        try:
            reader, first = self._stretch(indices[0], indices[-1])
            position = _advance(reader, 0, indices[0] - first)
            for index, following in pairwise([*indices, None]):
                picture = reader.next()
                if following is not None:
                    # At once: what the reader is not told to pass over it turns into RGB, even if no one takes it.
                    position = _advance(reader, position + 1, following - first)
                pictures[index] = Image.fromarray(_pixels(picture))
        except errors:
            return False
        self._frame_bytes = 3 * math.prod(pictures[indices[0]].size)
        return True

    def _stretch(self, first: int, last: int) -> tuple[Any, int]:
        """A reader of the frames first..last at least, and the index of the frame it gives first."""
        for back in range(len(self._key_indices) + 1):
            key = self._key_before(first, back)
            reader, start = self._from_key(key, last)
            if start <= first:
                return reader, start
            if key == 0:
                break
        raise VideoError(f"{self.name}: no key frame leads to {self.stamps_sec[first]:.2f} s")

    def _from_key(self, key: int, last: int) -> tuple[Any, int]:
        in_sec = self._origin_sec + float(self.stamps_sec[key]) + 1e-4 if key else None
        out_sec = self._end_of(last)
        reader = self._playlist((in_sec, out_sec))
        stamps = _stamps(reader)[:, 0]
        return reader, self._place_of(reader, stamps, key, out_sec - self._origin_sec)

    def _whole(self) -> Any:
        """A reader of the whole file."""
        try:
            return self._opened(self._folder / "clip")
        except _NoLengthError:  # browsers record so; a playlist says how long it is
            return self._playlist((None, None))

    def _playlist(self, *entries: tuple[float | None, float | None]) -> Any:
        """A reader of (from, until) stretches of the file, in seconds of its own clock, `_CLOCK_SEC` apart."""
        lines = ["ffconcat version 1.0"]
        for in_sec, out_sec in entries:
            lines += ["file clip", f"duration {_CLOCK_SEC}"]
            lines += [] if in_sec is None else [f"inpoint {in_sec:.6f}"]
            lines += [] if out_sec is None else [f"outpoint {out_sec:.6f}"]
        path = self._folder / "stretch.ffconcat"
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return self._opened(path)

    def _place_of(self, reader: Any, stamps: np.ndarray, key: int, out_sec: float) -> int:
        """The index of the first frame that a stretch gives, which was to begin at key frame `key`.

        A reader's clock starts at its own key frame, so that a stretch does not say where it lies; the demuxer may have
        taken an earlier key frame or a later one. The distances between stamps and between key frames must fit, and so
        must the number of frames up to `out_sec`, but for those that come early because of their place in the file.
        """
        leading = int((stamps < -1e-4).sum())  # frames that come before their key frame; decoders drop them
        if key == 0:
            return leading
        given = len(stamps) - leading
        until = int(np.searchsorted(self.stamps_sec, out_sec))
        early = min(self._early, len(self.stamps_sec) - until)
        keys = np.asarray(reader.get_key_indices())
        fits = []
        near = int(np.searchsorted(self._key_indices, key))
        for at in range(max(0, near - _NEAR_KEYS), min(near + _NEAR_KEYS, len(self._key_indices))):
            place = self._key_indices[at]
            start = int(place) + leading
            misfit = abs(given - (until - start) - early)
            pattern = self._key_indices[at : at + len(keys)] - place
            if misfit <= _REORDER_FRAMES and np.array_equal(pattern, keys[: len(pattern)]):
                expected = self.stamps_sec[start : start + max(1, given - _REORDER_FRAMES)]
                found = stamps[leading : leading + len(expected)]
                if np.allclose(expected - expected[0], found, rtol=0, atol=2e-3):
                    fits.append((misfit, start))
        if not fits:
            raise VideoError(f"{self.name}: frames before {out_sec:.2f} s are not where their time stamps say")
        return min(fits)[1]

    @cached_property
    def _early(self) -> int:
        """How many frames of a stretch come after its end, because of their place in the file."""
        middle = len(self.stamps_sec) // 2
        reader = self._playlist((None, self._end_of(middle)))
        return len(reader) - (middle + 1)

    def _end_of(self, last: int) -> float:
        """A time after frame `last` and before the next one, on the file's own clock."""
        at_end = last + 1 == len(self.stamps_sec)
        after_sec = self.stamps_sec[last] + self._step_sec if at_end else self.stamps_sec[last + 1]
        return self._origin_sec + float(self.stamps_sec[last] + after_sec) / 2

    def _find_origin(self) -> float:
        """When the first frame is shown on the file's own clock, which decord hides."""
        for until_sec in (10.0, 1.0, 100.0):
            try:
                reader = self._playlist((None, until_sec), (0.0, until_sec))
                stamps = _stamps(reader)[:, 0]
            except (VideoError, IndexError):
                continue
            second = stamps[stamps > stamps[0] + _CLOCK_SEC / 2]
            if len(second):
                return float(second[0]) - _CLOCK_SEC
        return 0.0

    def _opened(self, path: Path) -> Any:
        decord = _decord()
        try:
            return decord.VideoReader(str(path), num_threads=1, fault_tol=_NO_SUBSTITUTES)
        except (decord.DECORDError, RuntimeError, AssertionError) as error:
            kind = _NoLengthError if "frame-count" in str(error) else VideoError
            raise kind(f"{self.name}: {_reason(str(error))}") from error


def _place(source: str | Path | bytes, target: Path, name: str) -> None:
    """The file under a name that a playlist may hold; checks what can be told without decoding."""
    if isinstance(source, bytes):
        target.write_bytes(source)
    else:
        path = Path(source)
        if not path.exists():
            raise VideoError(f"{name}: no such file; give the path of a clip (mp4, webm, mkv, mov ...)")
        if path.is_dir():
            raise VideoError(f"{name}: is a directory; give the path of one clip (mp4, webm, mkv, mov ...)")
        target.symlink_to(path.absolute())
    with target.open("rb") as file:
        head = file.read(377)
    if not head:
        raise VideoError(f"{name}: is empty (0 bytes); expected a clip (mp4, webm, mkv, mov ...)")
    if any(head[at : at + 377 - 188 : 188].count(0x47) == 2 for at in (0, 4)):
        raise VideoError(
            f"{name}: is an MPEG transport stream, in which frames cannot be found by their time; "
            "convert it first (ffmpeg -i IN -c copy OUT.mp4)"
        )
    if not (head.startswith(_STARTS) or head[4:8] in _BOXES):
        raise VideoError(f"{name}: is not a clip; expected mp4, mov, webm, mkv, flv, avi, ogg, mpg, wmv or gif")
    if head[4:8] == b"ftyp" and not _has_index(target):
        raise VideoError(f"{name}: was cut off before its index was written; record or copy it again")


def _has_index(path: Path) -> bool:
    """Whether an mp4 file has its `moov` box."""
    with path.open("rb") as file:
        at, end = 0, path.stat().st_size
        while at + 8 <= end:
            file.seek(at)
            header = file.read(16)
            size = int.from_bytes(header[:4], "big")
            if header[4:8] == b"moov":
                return at + size <= end
            size = int.from_bytes(header[8:16], "big") if size == 1 else size
            if size < 8:
                return False
            at += size
    return False


@cache
def _decord() -> ModuleType:
    """decord, silent. It would load every CUDA library it finds, hundreds of MB, of which its CPU build uses none."""
    hidden = sys.modules.get("nvidia")
    present = "nvidia" in sys.modules
    sys.modules["nvidia"] = None  # type: ignore[assignment]
    try:
        decord = importlib.import_module("decord")
    finally:
        if present:
            sys.modules["nvidia"] = hidden  # type: ignore[assignment]
        else:
            del sys.modules["nvidia"]
    decord.logging.set_level(decord.logging.QUIET)
    return decord


def _advance(reader: Any, position: int, target: int) -> int:
    """Move a reader forward without it seeking, as it would to any key frame on the way: `next` walks across those."""
    keys = reader.get_key_indices()
    for key in (key for key in keys if position < key <= target):
        if key - 1 > position:
            reader.seek_accurate(key - 1)
        reader.next()
        position = key
    if target > position:
        reader.seek_accurate(target)
    return target


def _stamps(reader: Any) -> np.ndarray:
    """Begin and end of every frame, [F, 2] float64, on the reader's clock."""
    return reader.get_frame_timestamp(np.arange(len(reader))).astype(np.float64)


def _true_stamps(stamps: np.ndarray, rate_hz: float, name: str) -> np.ndarray:
    """Stamps [F] from 0 on; those of a constant rate lose what rounding to 32 bits added."""
    if not (np.isfinite(stamps).all() and np.abs(stamps).max() < 1e9) or (len(stamps) > 1 and stamps[-1] <= stamps[0]):
        raise VideoError(f"{name}: has no time stamps; convert it first (ffmpeg -i IN OUT.mp4)")
    stamps = stamps - stamps[0]
    if math.isfinite(rate_hz) and rate_hz > 0:
        even = np.round(stamps * rate_hz) / rate_hz
        if np.abs(even - stamps).max() <= 1e-6 + 2.5e-7 * stamps[-1]:
            return even
    return stamps


def _pixels(array: Any) -> np.ndarray:
    """decord's picture -> [H, W, 3] uint8. It takes rows that are padded to a multiple of the width for channels."""
    pixels = array.asnumpy()
    height, width, channels = pixels.shape
    if channels == 3:
        return pixels
    return pixels.reshape(height, width * channels)[:, : 3 * width].reshape(height, width, 3)


def _reason(message: str) -> str:
    if "cannot find video stream" in message:
        return "has no video stream; expected a clip with pictures"
    if "frame-count" in message or "Invalid frame count" in message or "buffer source" in message:
        return "holds no frames; expected a clip with at least one"
    if "av_read_frame" in message:
        return "is broken; convert it first (ffmpeg -i IN OUT.mp4)"
    return "is not a video that can be read; convert it to mp4 (ffmpeg -i IN OUT.mp4)"
