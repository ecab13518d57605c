"""Write a long 720p mp4 for `mmspeech bench --video`: a scene of some seconds, encoded once and repeated.

python tests/long_clip.py long.mp4 --minutes 60
"""

import argparse
import io
from fractions import Fraction
from pathlib import Path

import numpy as np

SIZE_PX = (1280, 720)


def scene(num_frames: int, rate_hz: int, gop_frames: int) -> bytes:
    """An mp4 of a camera that stands before a textured wall and pans a quarter of the time; something crosses it."""
    import av

    width, height = SIZE_PX
    random = np.random.default_rng(0)
    wall = sum(
        np.kron(random.integers(0, 60, (2 * height // side, 2 * width // side, 3)), np.ones((side, side, 1)))
        for side in (4, 16, 80)
    ).astype(np.uint8)
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as out:
        stream = out.add_stream("libx264", rate=rate_hz, options={"preset": "ultrafast", "crf": "28"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.gop_size = gop_frames
        shift = 0
        for index in range(num_frames):
            shift += 2 * (index % 100 >= 75)
            picture = wall[shift : shift + height, 2 * shift : 2 * shift + width].copy()
            left = 8 * index % (width - 100)
            picture[300:400, left : left + 100] = (220, 40, 40)
            out.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        out.mux(stream.encode())
    return file.getvalue()


def write_long(path: Path, *, minutes: float, rate_hz: int = 25, gop_frames: int = 50, scene_sec: int = 20) -> None:
    """The scene again and again, its packets copied with later time stamps."""
    import av

    data = scene(scene_sec * rate_hz, rate_hz, gop_frames)
    with av.open(str(path), "w") as out:
        stream = None
        for turn in range(max(1, round(minutes * 60 / scene_sec))):
            with av.open(io.BytesIO(data)) as once:
                source = once.streams.video[0]
                stream = stream or out.add_stream_from_template(source)
                shift = turn * scene_sec / Fraction(source.time_base)
                for packet in once.demux(source):
                    if packet.dts is None:
                        continue
                    packet.pts, packet.dts = packet.pts + int(shift), packet.dts + int(shift)
                    packet.stream = stream
                    out.mux(packet)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--minutes", type=float, default=60.0)
    options = parser.parse_args()
    write_long(options.out, minutes=options.minutes)
    print(f"{options.out}: {options.out.stat().st_size / 1e6:.0f} MB")
