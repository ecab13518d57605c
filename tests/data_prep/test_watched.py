"""What a watcher knows of a clip: true of its picture at that time, and of what has happened before."""

import json

import pytest

from data_prep.happenings import random_clip
from data_prep.motion import Clip
from data_prep.scenes import item_rng
from data_prep.watched import Watched, make_watched, watch, watch_clip
from mmspeech.config import ConfigError

THINGS = [
    {"shape": "star", "colour": "red", "size": "small", "x": 0.2, "y": 0.2},
    {"shape": "circle", "colour": "blue", "size": "small", "x": 0.2, "y": 0.8},
]
EVENTS = [
    {"kind": "move", "object": 0, "way": "right", "to": 0.8, "start_sec": 1.0, "end_sec": 2.0},
    {"kind": "blink", "object": 1, "times": 2, "start_sec": 2.5, "end_sec": 4.0},
    {"kind": "recolour", "object": 0, "colour": "green", "start_sec": 5.0},
    {"kind": "vanish", "object": 1, "start_sec": 6.0},
]


@pytest.fixture(scope="module")
def clip() -> Clip:
    start = {"objects": THINGS, "background": {"tone": "light", "kind": "plain"}, "seed": 1}
    return Clip.model_validate_json(json.dumps({"start": start, "events": EVENTS, "duration_sec": 7.0}))


def test_a_clip_as_it_goes_on(clip):
    star, circle = watch(clip, 0.5)
    assert (star.moving, star.moved, star.first, star.event) == (None, None, 0, None)
    star, _ = watch(clip, 1.5)
    assert (star.moving, star.moved, star.event) == ("right", "right", None) and 0.4 < star.x < 0.6
    star, _ = watch(clip, 2.0)
    assert (star.moving, star.moved, star.event, star.ago_sec) == ("right", "right", "move right", 0.0)
    star, circle = watch(clip, 2.5)  # the first time away
    assert star.moving is None and (circle.there, circle.gone, circle.blinks) == (False, False, 1)
    assert [watch(clip, sec)[1].blinks for sec in (3.0, 3.5, 4.0, 6.5)] == [1, 2, 2, 2]
    star, circle = watch(clip, 5.0)
    assert (star.colour, star.was, star.event, star.ago_sec) == ("green", "red", "recolour", 0.0)
    assert (star.latest, star.event_before) == (True, "move right")
    assert (circle.event, circle.ago_sec, circle.latest) == ("blink 2", 1.0, False)  # something else happened after it
    star, circle = watch(clip, 6.5)
    assert (circle.there, circle.gone, circle.colour, circle.event, circle.ago_sec, circle.event_before) == (
        False, True, "blue", "vanish", 0.5, "blink 2",
    )  # fmt: skip


@pytest.mark.parametrize("number", range(30))
def test_what_is_there_is_what_is_shown(number):
    clip = random_clip(item_rng(3, "train", number, "watched"), split="train")
    for frame, known in enumerate(watch_clip(clip)):
        shown = [look for look in clip.state(frame / 2) if look is not None]
        there = [item for item in known if item.there]
        assert [(look.shape, look.colour) for look in shown] == [(item.shape, item.colour) for item in there]
        assert all(abs(look.x - item.x) < 1e-3 for look, item in zip(shown, there, strict=True))


def test_files_can_be_made_again_and_killed(tmp_path):
    make_watched(tmp_path, count=2, seed=4, split="valid")
    first = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert sorted(first) == [f"00000{n}.{kind}" for n in (0, 1) for kind in ("json", "mp4", "watched.json")]
    (tmp_path / "000001.watched.json").unlink()
    (tmp_path / "000001.mp4").write_bytes(b"half")
    make_watched(tmp_path, count=2, seed=4, split="valid")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == first
    told = json.loads(first["000000.watched.json"])
    clip = Clip.model_validate_json(first["000000.json"])
    assert [[Watched(**item) for item in frame] for frame in told["frames"]] == watch_clip(clip)
    with pytest.raises(ConfigError, match="split"):
        make_watched(tmp_path, count=1, seed=4, split="nowhere")
