"""Small clips whose frames say which one they are, written with PyAV."""

import io
import struct
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
from PIL import Image

SIZE_PX = (96, 64)
_BITS = 8


def numbered_picture(number: int, size_px: tuple[int, int]) -> np.ndarray:
    """Blue, its upper half black and white bars: the bits of `number`, the lowest on the left; [H, W, 3]."""
    width, height = size_px
    picture = np.zeros((height, width, 3), dtype=np.uint8)
    bar_px = width // _BITS
    for bit in range(_BITS):
        picture[: height // 2, bit * bar_px : (bit + 1) * bar_px] = 255 * (number >> bit & 1)
    picture[height // 2 :] = (40, 40, 200)
    return picture


def number_in(picture: Image.Image) -> int:
    """What `numbered_picture` wrote."""
    pixels = np.asarray(picture.convert("L"))
    bar_px = pixels.shape[1] // _BITS
    return sum(int(pixels[len(pixels) // 4, bit * bar_px + bar_px // 2] > 127) << bit for bit in range(_BITS))


def write_clip(
    path: Path,
    *,
    num_frames: int = 60,
    rate_hz: Fraction | int = 25,
    size_px: tuple[int, int] = SIZE_PX,
    stamps_sec: Sequence[float] | None = None,
    gop_frames: int = 12,
    codec: str = "libx264",
    options: dict[str, str] | None = None,
    live: bool = False,
) -> Path:
    """A clip of numbered pictures at a constant rate, or at the given times; its suffix names the container.

    live: as a browser records it, without saying how long it is (webm).
    """
    import av

    clock = Fraction(1, 90_000)
    layout = {"live": "1"} if live else {"movflags": "faststart"} if path.suffix == ".mp4" else {}
    with av.open(str(path), "w", options=layout) as out:
        stream = out.add_stream(codec, rate=Fraction(rate_hz), options=options or {"preset": "ultrafast"})
        stream.width, stream.height = size_px
        stream.pix_fmt = "yuv444p" if size_px[0] % 2 or size_px[1] % 2 else "yuv420p"
        stream.codec_context.gop_size, stream.codec_context.time_base = gop_frames, clock
        stream.thread_count = 1
        for number in range(num_frames):
            frame = av.VideoFrame.from_ndarray(numbered_picture(number, size_px), format="rgb24")
            at_sec = number / Fraction(rate_hz) if stamps_sec is None else stamps_sec[number]
            frame.pts, frame.time_base = round(at_sec / clock), clock
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return path


def write_sound(path: Path) -> Path:
    """An mp4 with a second of silence and no pictures."""
    import av

    with av.open(str(path), "w") as out:
        stream = out.add_stream("aac", rate=24_000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 24_000), dtype=np.float32), format="fltp", layout="mono")
        frame.rate = 24_000
        out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return path


def turned(data: bytes, degrees: int) -> bytes:
    """The mp4 with metadata that have players turn its pictures clockwise by 90, 180 or 270 degrees."""
    at = data.index(b"tkhd") + 4
    at += 4 + (36 if data[at] == 0 else 48)
    cos, sin = {90: (0, 1), 180: (-1, 0), 270: (0, -1)}[degrees]
    one = 1 << 16
    matrix = struct.pack(">9i", cos * one, sin * one, 0, -sin * one, cos * one, 0, 0, 0, 1 << 30)
    return data[:at] + matrix + data[at + 36 :]


def png(picture: np.ndarray) -> bytes:
    """The picture [H, W, 3] as a file."""
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    return file.getvalue()
