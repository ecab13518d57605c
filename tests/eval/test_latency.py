"""Times of a real, small model: they are there, and of the right things."""

import pytest
from questions import measure

from eval.task import MissingDataError, Settings
from eval.tasks import find, latency


def test_a_model_is_timed_with_and_without_sight(small_bundle, tmp_path, monkeypatch):
    monkeypatch.setattr(latency, "LENGTHS_SEC", (5, 8))
    task = find("latency")(Settings(), small_bundle)
    assert task.alone
    summary = measure(task, tmp_path / "o", who="silent")
    assert summary["all"]["score"] is None and set(summary["by_kind"]) == {"with sight", "without sight"}
    for numbers in summary["by_kind"].values():
        assert 0 < numbers["step_at_5_sec_p50_ms"] <= numbers["step_at_5_sec_p99_ms"]
        assert numbers["step_at_8_sec_p50_ms"] > 0 and numbers["memory_mb"] > 100
        assert numbers["real_time_factor"] > 0 and numbers["state_mb"] > 0


def test_a_script_takes_no_time():
    with pytest.raises(MissingDataError, match="a script takes no time"):
        find("latency")(Settings(), None)
