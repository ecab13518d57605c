"""`mmspeech bench --long`: an hour in small."""

import json

import pytest
import torch
from test_cli import assert_one_line_error, mmspeech

from mmspeech.commands import bench_long


@pytest.fixture(autouse=True)
def short_minutes(monkeypatch):
    monkeypatch.setattr(bench_long, "MINUTE_STEPS", 25)


def test_a_long_call_stays_as_it_is(remembering_checkpoint, tmp_path):
    out = tmp_path / "long.json"
    result = mmspeech("bench", "--long", "--minutes", 4, "--model", remembering_checkpoint, "--out", out)
    assert result.exit_code == 0, result.output
    numbers = json.loads(out.read_text())
    assert numbers["state_growth_bytes"] == 0 and "state +0 bytes" in result.stdout
    # 100 steps are 8 s: pictures at 0, 0.5 ... 7.5 s.
    assert numbers["pictures"] == {"shown": 16, "dropped": 0, "broken": 0}
    assert [minute["minute"] for minute in numbers["per_minute"]] == [1, 2, 3, 4]
    assert all(0 < minute["step_ms_p50"] <= minute["step_ms_p99"] for minute in numbers["per_minute"])
    assert all(minute["rss_bytes"] > 1e8 for minute in numbers["per_minute"])


def test_growth_is_found(remembering_bundle, monkeypatch):
    """Were anything kept of each picture, the numbers would say so."""
    calls = bench_long.CallBatch(remembering_bundle)
    kept, show, tensors = [], calls.show, calls.state_tensors

    def keep(picture, row):
        kept.append(torch.zeros(1000))
        show(picture, row)

    monkeypatch.setattr(calls, "show", keep)
    monkeypatch.setattr(calls, "state_tensors", lambda: tensors() + kept)
    found = bench_long.live_through(calls, minutes=3, fps=2.0)
    assert bench_long.changes(found)["state_growth_bytes"] == 4000 * (len(kept) - 4)


def test_a_blind_model_has_no_long_call(tmp_path, remembering_bundle, monkeypatch):
    from contextlib import nullcontext
    from dataclasses import replace

    blind = replace(remembering_bundle, config=remembering_bundle.config.model_copy(update={"vision": None}))
    monkeypatch.setattr(bench_long, "opened_model", lambda *_, **__: nullcontext(blind))
    assert_one_line_error(mmspeech("bench", "--long"), "cannot see")
