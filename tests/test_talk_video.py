"""`mmspeech talk --video`: the clip runs on the clock of the call."""

import json

import numpy as np
import pytest
import soundfile
from clips import number_in, write_clip
from test_cli import RATE_HZ, assert_one_line_error, files_in, mmspeech

pytest.importorskip("av")


@pytest.fixture
def question(tmp_path):
    soundfile.write(tmp_path / "q.wav", 0.1 * np.sin(np.arange(RATE_HZ) * 0.1), RATE_HZ)
    return tmp_path / "q.wav"


def talk(model, question, out, *flags):
    return mmspeech("talk", "--audio", question, "--model", model, "--out", out, "--greedy", "--json", *flags)


@pytest.fixture
def shown(monkeypatch):
    """(step, number, its time) of every picture a session is shown, in order."""
    from mmspeech.serve.session import Session

    seen, see = [], Session.see

    def spy(session, picture, at_sec=None):
        seen.append((session._calls.generator.steps[0], number_in(picture), at_sec))
        see(session, picture, at_sec)

    monkeypatch.setattr(Session, "see", spy)
    return seen


def test_frames_enter_while_the_question_streams(small_checkpoint, question, tmp_path, shown):
    clip = write_clip(tmp_path / "c.mp4", num_frames=75)
    result = talk(small_checkpoint, question, tmp_path / "r.wav", "--video", clip, "--fps", 4, "--max-sec", 9)
    assert result.exit_code == 0, result.output
    summary = json.loads(result.stdout)
    # 4 per second on a grid of 12.5 steps: each at the first step at or after its time.
    assert shown == [(int(np.ceil(k / 4 * 12.5)), int(k / 4 * 25), k / 4) for k in range(12)]
    assert summary["pictures"] == {"shown": 12, "dropped": 0, "broken": 0} and summary["frames"] >= 3.0 * 12.5


def test_the_reply_depends_on_the_clip(small_checkpoint, question, tmp_path):
    replies = []
    for number, frames in enumerate((10, 60)):
        clip = write_clip(tmp_path / f"{number}.mp4", num_frames=frames)
        out = tmp_path / f"{number}.wav"
        assert talk(small_checkpoint, question, out, "--video", clip, "--max-sec", 0.5).exit_code == 0
        replies.append(out.read_bytes())
    assert replies[0] != replies[1]


def test_a_long_clip_does_not_hold_the_call(small_checkpoint, question, tmp_path):
    clip = write_clip(tmp_path / "c.mp4", num_frames=80, rate_hz=1)
    result = talk(small_checkpoint, question, tmp_path / "r.wav", "--video", clip, "--max-sec", 0.8)
    assert json.loads(result.stdout)["frames"] <= round(1.8 * 12.5) + 1


def test_a_broken_tail_is_told_and_the_call_goes_on(small_checkpoint, question, tmp_path):
    clip = write_clip(tmp_path / "c.mp4")
    data = clip.read_bytes()
    clip.write_bytes(data[: len(data) * 6 // 10] + bytes(len(data) - len(data) * 6 // 10))
    result = talk(small_checkpoint, question, tmp_path / "r.wav", "--video", clip, "--fps", 10, "--max-sec", 2)
    assert result.exit_code == 0 and result.stderr.count("dropped: ") == 1, result.stderr
    assert "cannot be decoded at" in result.stderr and json.loads(result.stdout)["pictures"]["shown"] >= 4


@pytest.mark.parametrize("spoil", ["missing", "empty", "text", "list"])
def test_mistakes_are_one_line(small_checkpoint, question, tmp_path, spoil):
    path = tmp_path / ("bad.json" if spoil == "list" else "bad.mp4")
    if spoil != "missing":
        path.write_text({"empty": "", "text": "hello", "list": "[1]"}[spoil])
    before = files_in(tmp_path)
    assert_one_line_error(talk(small_checkpoint, question, tmp_path / "r.wav", "--video", path), path)
    assert files_in(tmp_path) == before
