"""Pictures and clips become the frames a call sees: each at its time, none that is not seen decoded."""

import numpy as np
import pytest
import torch
from clips import number_in, numbered_picture, png, write_clip

from mmspeech.data.collate import PictureFormat, Row, crop, stack
from mmspeech.data.visuals import see_visuals
from mmspeech.types import Sample, Visual, Word
from mmspeech.vision.image import ImageError
from mmspeech.vision.memory import Memory
from mmspeech.vision.video import Video, VideoError

pytest.importorskip("av")
SIZE_PX = (96, 64)
ALL = Memory(99)


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> bytes:
    """3 s of 25 numbered frames a second."""
    return write_clip(tmp_path_factory.mktemp("clip") / "c.mp4", num_frames=75).read_bytes()


def picture(number: int, start_sec: float) -> Visual:
    return Visual(png(numbered_picture(number, SIZE_PX)), start_sec)


def numbers(visuals: list[Visual], *, num_frames: int = 400, memory: Memory = ALL) -> list[tuple[int, int]]:
    """(onset frame, number in the picture) of what is seen."""
    form = PictureFormat(32, (0.5,) * 3, (0.5,) * 3, memory)
    frames = see_visuals(visuals, num_frames=num_frames, form=form)
    return [(frame.onset_frame, number_in(frame.picture)) for frame in frames]


def test_frames_of_clips_enter_at_their_own_times_among_pictures(clip):
    visuals = [picture(200, 3.0), Visual(clip, 1.0, "clip", fps=2.0), picture(201, 0.0)]
    frames = [(0, 201), (13, 0), (19, 12), (25, 25), (32, 37), (38, 62)]
    # The clip's frame of 2 s and the picture come at once, and the clip stands later in the list.
    assert numbers([visuals[1], visuals[2]]) == [*frames[:-1], (38, 50), (44, 62)]
    assert numbers(visuals[1:] + visuals[:1]) == [*frames[:-1], (38, 200), (44, 62)]
    assert numbers(visuals, num_frames=33) == frames[:-1]


def test_more_frames_than_frames_of_speech_are_thinned(clip):
    seen = numbers([Visual(clip, 0.0, "clip", fps=50.0)])
    assert seen[:-1] == [(onset, onset * 2) for onset in range(38)] and seen[-1] == (38, 74)


@pytest.mark.parametrize(
    ("memory", "first"),
    [
        (Memory(1), 3),
        (Memory(2), 2),
        (Memory(9), 0),
        (Memory(1, slots=1, group=2), 0),
        (Memory(2, slots=1, group=1), 1),
    ],
    ids=str,
)
def test_what_is_forgotten_before_a_crop_is_not_decoded(clip, monkeypatch, memory, first):
    """The others keep their age: their time is below 0."""
    asked = []
    frames = Video.frames
    monkeypatch.setattr(Video, "frames", lambda video, at_sec: asked.extend(at_sec) or frames(video, at_sec))
    seen = numbers([Visual(clip, -1.7, "clip", fps=2.0)], memory=memory)
    expected = [(-21, 0), (-15, 12), (-8, 25), (-2, 37), (4, 50), (10, 62)][first:]
    assert seen == expected and asked == [k / 2 for k in range(first, 6)]


def test_a_crop_cuts_sound_and_frames_together(clip):
    """It begins at frame 25; of what came before, what is remembered stays, as old as it is."""
    visuals = [Visual(clip, 1.0, "clip"), picture(99, 5.0), picture(98, 20.0)]
    words = [Word("yes", 1.0, 2.0), Word("what", 2.0, 2.5, "user")]
    cut = crop(Sample("call", torch.zeros(4, 400), words, visuals), max_frames=50, rng=np.random.default_rng(0))
    assert [word.start_sec for word in cut.words] == [0.0]
    seen = numbers(cut.visuals, num_frames=50, memory=Memory(2))
    assert seen == [(-6, 12), (0, 25), (7, 37), (13, 50), (19, 62), (38, 99)]
    whole = dict(numbers(visuals))
    assert all(whole[onset + 25] == number for onset, number in seen)


def test_a_batch_holds_the_frames_of_all_rows(clip):
    codes, weight = torch.zeros(5, 40, dtype=torch.long), torch.ones(40)
    rows = [
        Row("a", codes, weight, weight, [Visual(clip, 0.0, "clip", 1.0)]),
        Row("b", codes, weight, weight, []),
        Row("c", codes, weight, weight, [picture(7, 0.0), picture(8, 1.0)]),
    ]
    batch = stack(rows, pictures=PictureFormat(16, (0.5,) * 3, (0.5,) * 3, Memory(4)))
    assert batch.pixels.shape == (5, 3, 16, 16) and batch.picture_rows.tolist() == [0, 0, 0, 2, 2]
    assert batch.onset_frames.tolist() == [0, 13, 25, 0, 13] and len(set(batch.picture_keys)) == 5
    again = stack(rows[::-1], pictures=PictureFormat(16, (0.5,) * 3, (0.5,) * 3, Memory(4)))
    assert sorted(again.picture_keys) == sorted(batch.picture_keys)


def test_what_cannot_be_read_is_one_line(clip):
    with pytest.raises(VideoError, match="^clip: "):
        numbers([Visual(b"no clip", 0.0, "clip")])
    with pytest.raises(VideoError, match="cannot be decoded at"):
        numbers([Visual(clip[: len(clip) // 2] + bytes(len(clip) - len(clip) // 2), 0.0, "clip")])
    with pytest.raises(ImageError, match="^picture: "):
        numbers([Visual(b"no picture")])
