"""Frames of real clips: the right one for every time, from any container, and one line for what is broken."""

import math
import subprocess
import sys
from fractions import Fraction
from itertools import islice

import numpy as np
import pytest
from clips import number_in, numbered_picture, png, turned, write_clip, write_sound
from long_clip import write_long

from mmspeech.vision.video import Video, VideoError

av = pytest.importorskip("av")

UNEVEN_SEC = [0, 0.1, 0.15, 0.5, 0.51, 0.9, 2.0, 2.04, 3.5, 3.6, *(4 + k / 20 for k in range(50))]
B_FRAMES = {"preset": "fast", "bf": "3", "x264-params": "scenecut=0"}
OPEN_GOPS = {"preset": "fast", "bf": "3", "x264-params": "open-gop=1:scenecut=0:b-adapt=0"}
HEVC = {"preset": "fast", "x265-params": "open-gop=1:keyint=12:min-keyint=12:bframes=3:log-level=none"}
CLIPS = {
    "10 Hz": {"rate_hz": 10},
    "25 Hz": {"rate_hz": 25},
    "29.97 Hz": {"rate_hz": Fraction(30_000, 1001)},
    "60 Hz": {"rate_hz": 60},
    "uneven": {"stamps_sec": UNEVEN_SEC},
    "a late start": {"stamps_sec": [1.5 + k / 25 for k in range(60)]},
    "frames that lead": {"options": B_FRAMES},
    "open groups": {"options": OPEN_GOPS},
    "open groups, HEVC": {"codec": "libx265", "options": HEVC},
    "one key frame": {"gop_frames": 250, "options": B_FRAMES},
    "key frames only": {"gop_frames": 1},
    "groups of 3": {"gop_frames": 3, "options": B_FRAMES},
    "matroska": {"suffix": "mkv", "options": B_FRAMES},
    "webm": {"suffix": "webm", "codec": "libvpx-vp9", "options": {"deadline": "realtime"}},
    "recorded live": {"suffix": "webm", "codec": "libvpx", "options": {"deadline": "realtime"}, "live": True},
    "quicktime": {"suffix": "mov"},
    "flash": {"suffix": "flv", "options": B_FRAMES},
}


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """The clip of that name; written once."""
    folder = tmp_path_factory.mktemp("clips")

    def get(name="25 Hz"):
        settings = dict(CLIPS[name])
        path = folder / f"{name}.{settings.pop('suffix', 'mp4')}"
        return path if path.exists() else write_clip(path, **settings)

    return get


def true_stamps(name):
    """As PyAV reads them, from the first frame on."""
    with av.open(str(name)) as container:
        return np.array(sorted(float(frame.pts * frame.time_base) for frame in container.decode(video=0)))


@pytest.mark.parametrize("name", CLIPS)
def test_a_frame_has_the_newest_stamp_up_to_its_time(clip, name):
    """Whatever the order the times are asked in, and whether by path or as bytes."""
    path = clip(name)
    stamps = true_stamps(path)
    stamps -= stamps[0]
    asked = np.random.default_rng(0).uniform(0, stamps[-1] + 1, 30)
    for source in (path, path.read_bytes()):
        video = Video(source)
        assert np.allclose(video.stamps_sec, stamps, rtol=0, atol=1e-4)
        assert stamps[-1] < video.duration_sec < stamps[-1] + 0.2
        for at_sec, frame in zip(asked, video.frames(asked), strict=True):
            newest = int((video.stamps_sec <= at_sec).sum()) - 1
            assert frame.stamp_sec == video.stamps_sec[newest]
            assert number_in(frame.picture) == newest
        (frame,) = video.frames(asked[:1])
        assert number_in(frame.picture) == int((video.stamps_sec <= asked[0]).sum()) - 1


@pytest.mark.parametrize("name", ["29.97 Hz", "uneven", "open groups, HEVC", "matroska"])
@pytest.mark.parametrize("fps", [2, 12.5, 60])
def test_sampling_gives_one_frame_for_each_time(clip, name, fps):
    video = Video(clip(name))
    found = list(video.sample(fps))
    assert len(found) == math.ceil(round(video.duration_sec * fps, 6))
    for index, frame in enumerate(found):
        assert number_in(frame.picture) == int((video.stamps_sec <= index / fps + 1e-6).sum()) - 1
    part = list(video.sample(fps, start_sec=0.5, end_sec=1.0))
    assert [frame.stamp_sec for frame in part] == [
        frame.stamp_sec for frame in video.frames([0.5 + index / fps for index in range(len(part))])
    ]
    assert len(part) == math.ceil(0.5 * fps)


def test_small_batches_join_without_a_seam(clip, monkeypatch):
    video = Video(clip("frames that lead"))
    monkeypatch.setattr("mmspeech.vision.video._BATCH_BYTES", 5 * 3 * 96 * 64)
    list(islice(video.sample(25), 1))  # it has learned how large its frames are
    assert [number_in(frame.picture) for frame in video.sample(25)] == list(range(60))


@pytest.mark.parametrize("size_px", [(97, 131), (131, 97), (96, 64), (64, 130), (34, 2), (322, 242)])
def test_odd_sizes(tmp_path, size_px):
    path = write_clip(tmp_path / "odd.mp4", num_frames=4, size_px=size_px)
    (frame,) = Video(path).frames([0.1])
    assert frame.picture.size == size_px and frame.picture.mode == "RGB"
    off = np.abs(np.asarray(frame.picture).astype(int) - numbered_picture(2, size_px))
    assert np.median(off) < 12


@pytest.mark.parametrize(("degrees", "turn"), [(90, 3), (180, 2), (270, 1)])
def test_pictures_are_upright(clip, degrees, turn):
    data = clip().read_bytes()
    upright = np.asarray(Video(data).frames([1.0])[0].picture)
    found = np.asarray(Video(turned(data, degrees)).frames([1.0])[0].picture)
    expected = np.rot90(upright, turn)
    assert found.shape == expected.shape
    assert np.abs(found.astype(int) - expected).mean() < 3


def cut(data: bytes) -> bytes:
    return data[: int(0.6 * len(data))]


def junk(data: bytes) -> bytes:
    start = cut(data)
    return start + np.random.default_rng(0).bytes(len(data) - len(start))


@pytest.mark.parametrize("spoil", [cut, junk, lambda data: cut(data) + bytes(len(data) - len(cut(data)))])
def test_what_comes_before_a_broken_tail_is_given(clip, spoil):
    video = Video(spoil(clip().read_bytes()))
    found = []
    with pytest.raises(VideoError, match=r"clip: cannot be decoded at [01]\.\d\d s of .* \(cut off") as caught:
        for frame in video.sample(25):
            found.append(number_in(frame.picture))
    assert "\n" not in str(caught.value)
    assert len(found) >= 12 and found == list(range(len(found)))
    assert number_in(video.frames([0.4])[0].picture) == 10  # and later on, too


def test_a_matroska_file_cut_off_is_a_shorter_clip(clip):
    video = Video(cut(clip("matroska").read_bytes()))
    found = [number_in(frame.picture) for frame in video.sample(25)]
    assert 20 < len(found) < 50 and found[:-3] == list(range(len(found) - 3))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "no such file"),
        (lambda path: path.mkdir(), "is a directory"),
        (lambda path: path.touch(), r"is empty \(0 bytes\)"),
        (lambda path: path.write_text("hello " * 50), "is not a clip; expected mp4"),
        (lambda path: path.write_bytes(png(numbered_picture(0, (8, 8)))), "is not a clip; expected mp4"),
        (write_sound, "has no video stream"),
        (lambda path: path.write_bytes(write_clip(path).read_bytes()[:20]), "was cut off before its index"),
        (lambda path: write_clip(path.with_suffix(".ts")).rename(path), "is an MPEG transport stream.* convert it"),
        (lambda path: write_clip(path.with_suffix(".avi")).rename(path), "has no time stamps; convert it"),
    ],
)
def test_what_is_no_clip_is_one_line(tmp_path, make, message, capfd):
    path = tmp_path / "bad.mp4"
    make(path)
    with pytest.raises(VideoError, match=f"bad.mp4: {message}") as caught:
        Video(path)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")  # decord says nothing of its own


def test_a_clip_cut_off_after_its_index(clip):
    data = clip().read_bytes()
    with pytest.raises(VideoError, match="clip: holds no frames"):
        Video(data[: data.index(b"mdat") + 4])


def test_a_clip_without_frames(tmp_path):
    path = tmp_path / "none.mp4"
    with av.open(str(path), "w", options={"movflags": "frag_keyframe+empty_moov"}) as out:
        stream = out.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        out.start_encoding()
    with pytest.raises(VideoError, match="none.mp4: holds no frames"):
        Video(path)


@pytest.mark.parametrize("at_sec", [-0.1, float("nan"), float("inf")])
def test_times_that_are_none(clip, at_sec):
    with pytest.raises(VideoError, match="expected a time from 0 s on"):
        Video(clip()).frames([at_sec])
    with pytest.raises(VideoError, match="expected frames per second above 0"):
        next(Video(clip()).sample(0))


def test_importing_decord_loads_no_cuda_libraries(clip):
    script = (
        "import sys\nfrom mmspeech.vision.video import Video\n"
        f"Video({str(clip())!r}).frames([0.5])\n"
        "print('nvidia' in sys.modules, any('cublas' in line for line in open('/proc/self/maps')))\n"
    )
    if not sys.platform.startswith("linux"):
        pytest.skip("/proc is Linux's")
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


@pytest.mark.slow
def test_memory_does_not_grow_with_the_clip(tmp_path):
    """Two minutes of 720p at 2 frames per second: 660 MB as pictures."""
    write_long(tmp_path / "long.mp4", minutes=2)
    script = (
        "from mmspeech.commands.bench_video import peak_bytes\nfrom mmspeech.vision.video import Video\n"
        f"print(sum(1 for _ in Video({str(tmp_path / 'long.mp4')!r}).sample(2)))\n"
        "print(peak_bytes())\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    num_frames, peak_bytes = map(int, done.stdout.split())
    assert num_frames == 240 and peak_bytes < 450e6
