"""What a call is shown over time: in order, at its time, lazily; mistakes are one line."""

import json

import pytest
from clips import number_in, numbered_picture, png, write_clip

from mmspeech.config import ConfigError
from mmspeech.vision.timeline import Timeline

pytest.importorskip("av")


def write_list(folder, pairs):
    for number in range(3):
        (folder / f"{number}.png").write_bytes(png(numbered_picture(number, (96, 64))))
    path = folder / "seen.json"
    path.write_text(json.dumps(pairs))
    return path


def given(timeline, times_sec):
    return [[(at_sec, number_in(picture)) for at_sec, picture in timeline.due(now_sec)] for now_sec in times_sec]


def test_frames_of_a_clip_enter_at_their_times(tmp_path):
    timeline = Timeline(write_clip(tmp_path / "a.mp4", num_frames=50), fps=5)
    assert timeline.duration_sec == pytest.approx(2.0)
    assert given(timeline, [0.0, 0.16, 0.24, 0.72, 9.0]) == [
        [(0.0, 0)], [], [(0.2, 5)], [(0.4, 10), (0.6, 15)],
        [(pytest.approx(0.2 * k), 5 * k) for k in range(4, 10)],
    ]  # fmt: skip
    assert timeline.due(99.0) == [] and timeline.problems == []


def test_listed_pictures_enter_at_their_times(tmp_path):
    timeline = Timeline(write_list(tmp_path, [[0, "2.png"], [0.5, "0.png"], [3.0, "2.png"]]))
    assert given(timeline, [0.0, 0.48, 0.56, 3.04]) == [[(0.0, 2)], [], [(0.5, 0)], [(3.0, 2)]]
    assert timeline.duration_sec == 3.0


def test_what_breaks_during_the_call_is_dropped_and_told(tmp_path):
    path = write_list(tmp_path, [[0, "0.png"], [1, "1.png"], [2, "2.png"]])
    (tmp_path / "1.png").write_bytes(b"no picture")
    timeline = Timeline(path)
    assert given(timeline, [5.0]) == [[(0.0, 0), (2.0, 2)]]
    (problem,) = timeline.problems
    assert "1.png: is not a picture" in problem
    data = write_clip(tmp_path / "a.mp4").read_bytes()
    (tmp_path / "a.mp4").write_bytes(data[: len(data) * 6 // 10])
    timeline = Timeline(tmp_path / "a.mp4", fps=25)
    (shown,) = given(timeline, [9.0])
    assert len(shown) >= 12 and shown == [(pytest.approx(k / 25), k) for k in range(len(shown))]
    assert "cannot be decoded" in timeline.problems[0]


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([], "expected a list of pairs"),
        ({"0": "0.png"}, "expected a list of pairs"),
        ([[0, "0.png"], ["1", "1.png"]], r"pair 2 is \['1', '1.png'\], expected \[seconds, \"picture\"\]"),
        ([[0, "0.png", 1]], "pair 1 is"),
        ([[True, "0.png"]], "pair 1 is"),
        ([[-1, "0.png"]], "pair 1 is at -1 s, expected a time from 0 s on"),
        ([[1, "0.png"], [0.5, "1.png"]], "pair 2 is at 0.5 s, after one at 1 s; list them in order"),
        ([[1, "0.png"], [1, "1.png"]], "pair 2 is at 1 s, after one at 1 s; list them in order"),
        ([[0, "9.png"]], "9.png: no such file"),
    ],
)
def test_mistakes_in_a_list(tmp_path, pairs, message):
    with pytest.raises(ConfigError, match=f"seen.json: .*{message}" if "9.png" in message else message) as caught:
        Timeline(write_list(tmp_path, pairs))
    assert "\n" not in str(caught.value)


def test_files_that_are_none(tmp_path):
    (tmp_path / "a.json").write_text("[[")
    (tmp_path / "bad.png").write_bytes(b"x")
    (tmp_path / "b.json").write_text('[[0, "bad.png"]]')
    for name, message in (("a.json", "not valid JSON"), ("c.json", "no such file"), ("b.json", "bad.png: is not a")):
        with pytest.raises(ConfigError, match=message):
            Timeline(tmp_path / name)
    with pytest.raises(ConfigError, match="fps is -1"):
        Timeline(write_clip(tmp_path / "a.mp4", num_frames=3), fps=-1)
