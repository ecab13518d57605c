"""A clip of the moving world as a real mp4 file (H.264)."""

import io
from pathlib import Path

import numpy as np

from data_prep.files import write_atomic
from data_prep.motion import Clip, load_clip
from data_prep.render import Painter
from mmspeech.config import ConfigError

FILM_FPS = 10  # of the file; every time in a clip drawn at random is a multiple of 1 / FILM_FPS
_OPTIONS = {"preset": "veryfast", "crf": "20", "threads": "1"}  # one thread: the same bytes every time


def film(clip: Clip, *, size_px: int = 96) -> bytes:
    """The clip as the bytes of an mp4 file, yuv420p, FILM_FPS, size_px x size_px; the same clip, the same bytes.

    Raises ConfigError when size_px is odd or outside 96..448.
    """
    import av

    if size_px % 2:
        raise ConfigError(f"size {size_px} px; expected an even number: mp4 files have half as many colours as pixels")
    painter = Painter(clip.start, num_objects=clip.num_objects, size_px=size_px)
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as out:
        stream = out.add_stream("libx264", rate=FILM_FPS, options=_OPTIONS)
        stream.width = stream.height = size_px
        stream.pix_fmt = "yuv420p"
        drawn, frame = None, None
        for number in range(round(clip.duration_sec * FILM_FPS)):
            state = clip.state(number / FILM_FPS)
            if state != drawn:
                picture = np.asarray(painter.picture(state))
                drawn, frame = state, av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts = number
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return buffer.getvalue()


def film_file(clip_path: Path, out: Path, *, size_px: int) -> None:
    """Film the clip of a JSON file into an mp4 file. Raises ConfigError or FileNotFoundError."""
    clip = film(load_clip(clip_path), size_px=size_px)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(out, clip)
