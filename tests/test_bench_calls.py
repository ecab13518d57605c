"""`mmspeech bench --calls` and `--soak`: a real server in a process of its own, and callers over sockets."""

import json

import pytest
from test_cli import mmspeech

from mmspeech.commands import callers
from mmspeech.commands.bench_soak import run_bench_soak

pytest.importorskip("aiohttp", reason="needs the extra serve: pip install 'mmspeech[serve]'")


def test_calls_are_timed_over_sockets(small_checkpoint, tmp_path):
    out = tmp_path / "calls.json"
    result = mmspeech("bench", "--calls", 2, "--seconds", 5, "--model", small_checkpoint, "--out", out)
    assert result.exit_code == 0, result.output
    (row,) = json.loads(out.read_text())["rows"]
    assert row["calls"] == 2 and row["processes"] == 1 and not row["problems"]
    assert 0 < row["answered"] <= 1  # how many depends on the machine
    own_ms = row["mouth_to_ear_ms"]["p50"] - row["reply_ms"]["p50"]
    assert own_ms > 80  # a frame has to be spoken before it can be sent


@pytest.mark.slow
def test_a_soak_leaves_nothing_behind(small_checkpoint, tmp_path, capsys):
    out = tmp_path / "soak.json"
    run_bench_soak(str(small_checkpoint), calls=3, minutes=0.6, out=out)
    report = json.loads(out.read_text())
    assert report["calls_made"] >= 3 and report["left"] == 0 and not report["problems"] and not report["failures"]
    assert "calls in 0.6 minutes" in capsys.readouterr().out


def test_an_asker_asks_waits_and_interrupts(monkeypatch):
    now, notes = [100.0], callers.Notes()
    monkeypatch.setattr(callers.time, "monotonic", lambda: now[0])
    asker = callers.Asker(notes, callers.random.Random(0))
    quiet, loud = asker._noise[0], asker._question[0]
    for frame in range(200):
        said = asker.next_frame()
        now[0] += callers.FRAME_SEC
        answering = frame % 50 > 45 and callers.rms(said) < callers.LOUD
        asker.hear(loud if answering else quiet)
    assert notes.first_sound_sec and all(0 <= value <= callers.PATIENCE_SEC for value in notes.first_sound_sec)
    silent = callers.Asker(left := callers.Notes(), callers.random.Random(0))
    for _ in range(100):
        silent.next_frame()
        now[0] += callers.FRAME_SEC
    assert left.unanswered >= 1 and not left.first_sound_sec
