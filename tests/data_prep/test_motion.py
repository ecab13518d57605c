"""The moving world: what is said of a clip is what its frames show, when they have shown it."""

import itertools
import json
import re

import numpy as np
import pytest

from data_prep.film import film
from data_prep.happenings import HURRIED_APART_SEC, KINDS, random_clip
from data_prep.motion import SEEN_FPS, Clip, load_clip
from data_prep.motion_dialogue import (
    ASKED_BEFORE_SEC,
    BRIEFLY_SEC,
    GROUPS,
    TimedTurn,
    clip_turns,
    commentary,
    draw_turn,
)
from data_prep.world_dialogue import Turn
from mmspeech.config import ConfigError

STEP_SEC = 0.1
WAYS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
SAID = {
    "which_way": re.compile(r"(?P<name>.+) moves (?P<way>left|right|up|down)"),
    "colour_before": re.compile(r"(?P<name>.+) was (?P<colour>\w+)"),
    "how_often": re.compile(r"(?P<name>.+) blinks (?P<count>zero|one|two|three) times?"),
    "grew": re.compile(r"(?P<name>.+) (?P<how>grows|shrinks)"),
    "appeared": re.compile(r"what appeared is an? (?P<colour>\w+) (?P<shape>\w+)"),
    "vanished": re.compile(r"what vanished is the (?P<colour>\w+) (?P<shape>\w+)"),
}


@pytest.fixture(scope="module")
def clips() -> list[Clip]:
    rng = np.random.default_rng(0)
    return [random_clip(rng, split="train") for _ in range(60)]


def looks(clip: Clip, number: int) -> list:
    """How an object looks, ten times a second; None where it is not there."""
    return [clip.state(step * STEP_SEC)[number] for step in range(int(clip.duration_sec / STEP_SEC))]


def named(clip: Clip, name: str) -> list[list]:
    """The looks over time of all that can be meant: "it" is anything."""
    words = name.removeprefix("now ").removeprefix("the ").split()
    found = []
    for number in range(clip.num_objects):
        own = looks(clip, number)
        called = {word for look in own if look for word in (look.shape, look.colour)}
        if name.endswith("it") or set(words) <= called:
            found.append(own)
    return found


def test_what_is_said_is_what_the_frames_show(clips):
    checked = dict.fromkeys(SAID, 0)
    for clip in clips:
        for timed in clip_turns(clip, np.random.default_rng(1), tries=60):
            turn = timed.turn
            assert any(answer in turn.answer for answer in turn.answers)
            if turn.kind in SAID:
                told = SAID[turn.kind].fullmatch(turn.answer)
                assert told, turn
                assert TRUE[turn.kind](clip, told), (turn, clip.events)
                checked[turn.kind] += 1
    assert min(checked.values()) >= 10, checked


def moved(clip: Clip, told) -> bool:
    there = [[look for look in own if look] for own in named(clip, told["name"])]
    ways = [(own[-1].x - own[0].x, own[-1].y - own[0].y) for own in there]
    return any(np.dot(way, WAYS[told["way"]]) > 0.05 for way in ways)


def was(clip: Clip, told) -> bool:
    there = [[look.colour for look in own if look] for own in named(clip, told["name"])]
    return any(own[0] == told["colour"] != own[-1] for own in there)


def blinked(clip: Clip, told) -> bool:
    wanted = ("zero", "one", "two", "three").index(told["count"])
    # Gone and back again; what appears or vanishes changes once.
    counts = [
        sum(a is not None and b is None for a, b in zip(own, own[1:], strict=False))
        for own in named(clip, told["name"])
    ]
    gone = [own[-1] is None for own in named(clip, told["name"])]
    return any(count - left == wanted for count, left in zip(counts, gone, strict=True))


def resized(clip: Clip, told) -> bool:
    there = [[look.radius for look in own if look] for own in named(clip, told["name"])]
    return any((own[-1] > own[0]) if told["how"] == "grows" else (own[-1] < own[0]) for own in there)


def came(clip: Clip, told) -> bool:
    every = [looks(clip, number) for number in range(clip.num_objects)]
    new = [next(look for look in own if look) for own in every if own[0] is None and any(own)]
    return any((look.colour, look.shape) == (told["colour"], told["shape"]) for look in new)


def went(clip: Clip, told) -> bool:
    gone = [own for number in range(clip.num_objects) if (own := looks(clip, number))[-1] is None and any(own)]
    last = [[look for look in own if look][-1] for own in gone]
    return any((look.colour, look.shape) == (told["colour"], told["shape"]) for look in last)


TRUE = {
    "which_way": moved, "colour_before": was, "how_often": blinked, "grew": resized, "appeared": came, "vanished": went,
}  # fmt: skip


def test_nothing_is_told_before_a_frame_has_shown_it(clips):
    """Frames come at SEEN_FPS: at the earliest time of a turn one has come that is not as the first was."""
    for clip in clips:
        first = clip.state(0.0)
        for timed in clip_turns(clip, np.random.default_rng(2), tries=40, groups=("motion", "change", "past")):
            if timed.turn.kind in ("did_move", "how_often"):
                continue  # also about what did not happen
            seen = [clip.state(k / SEEN_FPS) for k in range(int(timed.earliest_sec * SEEN_FPS) + 1)]
            assert any(state != first for state in seen), (timed, clip.events)


def test_every_kind_of_question_and_event_comes(clips):
    kinds = {event.kind for clip in clips for event in clip.events}
    assert kinds == set(KINDS)
    for group in GROUPS:
        assert any(list(clip_turns(clip, np.random.default_rng(0), groups=(group,))) for clip in clips)


def test_what_is_true_for_a_moment_is_drawn_more_often_and_no_kind_for_having_many_turns():
    asked = [("happened", BRIEFLY_SEC / 2), *[("happened", 3.0)] * 20, *[("did_move", 3.0)] * 20, ("count_all", 3.0)]
    turns = [
        TimedTurn(Turn(kind, f"question {number}", "answer", ("answer",)), 1.0, 1.0 + long_sec)
        for number, (kind, long_sec) in enumerate(asked)
    ]
    rng = np.random.default_rng(0)
    drawn = [draw_turn(turns, rng) for _ in range(600)]
    assert drawn.count(turns[0]) > 300
    counts = [sum(timed.turn.kind == kind for timed in drawn) for kind in ("did_move", "count_all")]
    assert 0 < counts[0] < 2 * counts[1]


def test_in_a_hurried_clip_one_thing_follows_the_other_at_once():
    rng = np.random.default_rng(1)
    for clip in (random_clip(rng, split="train", hurried=True) for _ in range(30)):
        assert len(clip.events) >= 2
        for event, after in itertools.pairwise(clip.events):
            least_sec, most_sec = HURRIED_APART_SEC
            assert least_sec - 0.06 <= after.start_sec - event.over_sec <= most_sec + 0.06  # rounded to 0.1 s


def test_splits_share_no_clip():
    rng = np.random.default_rng(3)
    for split in ("train", "valid", "test"):
        clip = random_clip(rng, split=split)
        assert clip.split == split == Clip.model_validate_json(clip.model_dump_json()).split


def test_comments_tell_every_event_in_turn(clips):
    for clip in clips:
        timed = commentary(clip, np.random.default_rng(0))
        assert [comment.event_sec for comment in timed.comments] == [event.over_sec for event in clip.events]
        assert timed.latest_sec <= clip.events[0].over_sec - ASKED_BEFORE_SEC
        assert all(any(answer in comment.text for answer in comment.answers) for comment in timed.comments)


def test_a_clip_is_a_real_film(clips, tmp_path):
    av = pytest.importorskip("av")
    from mmspeech.vision.video import Video

    clip = next(clip for clip in clips if any(event.kind == "appear" for event in clip.events))
    (tmp_path / "c.mp4").write_bytes(film(clip, size_px=96))
    with av.open(str(tmp_path / "c.mp4")) as container:
        assert container.streams.video[0].codec_context.name == "h264"
    video = Video(tmp_path / "c.mp4")
    assert video.duration_sec == pytest.approx(clip.duration_sec, abs=0.11)
    event = next(event for event in clip.events if event.kind == "appear")
    before, after = (
        np.asarray(frame.picture, float) for frame in video.frames([event.start_sec - 0.15, event.start_sec + 0.15])
    )
    x, y = (round(value * 96) for value in (event.thing.x, event.thing.y))
    assert np.abs(after - before)[y - 2 : y + 3, x - 2 : x + 3].mean() > 20
    assert np.abs(after - before).mean() < 20


@pytest.mark.parametrize("spoil", [{"events": []}, {"duration_sec": 0.1}, {"start": {}}])
def test_clips_that_cannot_be_are_refused_in_one_line(clips, tmp_path, spoil):
    (tmp_path / "c.json").write_text(json.dumps(json.loads(clips[0].model_dump_json()) | spoil))
    with pytest.raises(ConfigError, match="not a clip: ") as caught:
        load_clip(tmp_path / "c.json")
    assert "\n" not in str(caught.value)
