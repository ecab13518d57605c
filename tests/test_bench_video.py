"""`mmspeech bench --video`: both readers give the same frames, in processes of their own."""

import json

import numpy as np
import pytest
from clips import number_in, write_clip
from test_cli import assert_one_line_error, mmspeech

from mmspeech.commands import bench_video

pytest.importorskip("av")


@pytest.mark.parametrize("fps", [2, 7, 40])
def test_both_readers_give_the_same_frames(tmp_path, fps):
    clip = write_clip(tmp_path / "c.mp4", stamps_sec=[0.04 * k + 0.02 * (k % 2) for k in range(60)])
    ours = [number_in(picture) for picture in bench_video._with_mmspeech(clip, fps)]
    theirs = [number_in(picture) for picture in bench_video._with_pyav(clip, fps)]
    length = min(len(ours), len(theirs))
    assert ours[:length] == theirs[:length] and abs(len(ours) - len(theirs)) <= 1 + fps / 20
    assert np.all(np.diff(ours) >= 0) and length >= 2 * fps


def test_the_command_prints_and_writes_both(tmp_path):
    clip, out = write_clip(tmp_path / "c.mp4"), tmp_path / "b.json"
    result = mmspeech("bench", "--video", clip, "--fps", 5, "--out", out)
    assert result.exit_code == 0, result.output
    numbers = json.loads(out.read_text())
    assert numbers["fps"] == 5 and numbers["duration_sec"] == pytest.approx(2.4)
    for name in ("mmspeech", "pyav"):
        row = numbers["readers"][name]
        assert name in result.stdout and row["frames"] == 12 and row["wall"] > 0 and row["cpu"] > 0
        assert 10 < row["peak_mb"] < 400  # neither carries torch


def test_mistakes(tmp_path):
    assert_one_line_error(mmspeech("bench", "--video", tmp_path / "no.mp4"), "no.mp4: no such file")
