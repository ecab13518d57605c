"""Guards: spikes are told, skipped or stop the run; stalls name the call; memory and bad calls say what to do."""

import itertools
import json
import time

import numpy as np
import pytest
import torch

from mmspeech.config import ConfigError
from mmspeech.data.shards import SIDECAR, ShardSet, read_info
from train import parts
from train.checkpointing import STATE
from train.feed import CallBatches, Draw, Fed, Plan
from train.guards import HandedPlans, SpikeGuard, StallGuard
from train.recipe import train
from train.settings import GuardConfig


def seen(config, kind: str) -> list[dict]:
    lines = [json.loads(line) for line in (config.run_dir / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == kind]


def steady(count: int) -> list[float]:
    return list(5 + 0.1 * np.random.default_rng(0).standard_normal(count))


def test_a_spike_is_told_from_noise_and_its_memory_survives():
    guard = SpikeGuard(GuardConfig(spike=8.0))
    assert guard.look(loss=1e9, norm=1e9) is None  # too little seen to judge
    assert not [value for value in steady(200) if guard.look(loss=value, norm=1.0)]
    again = SpikeGuard(GuardConfig(spike=8.0), guard.recent)
    for both in (guard, again):
        assert "loss 9 after a median of 5" in both.look(loss=9.0, norm=1.0)
        assert "gradient norm 3 after a median of 1" in both.look(loss=5.0, norm=3.0)
    assert again.recent == guard.recent and 9.0 not in guard.recent["loss"]
    assert SpikeGuard(GuardConfig(spike=None), guard.recent).look(loss=1e9, norm=1e9) is None


@pytest.mark.parametrize("action", ["warn", "skip", "stop"])
def test_a_spike_in_training_is_handled_as_configured(action, make_config, monkeypatch):
    real, count = parts.Objective.forward, itertools.count()

    def forward(self, batch):
        out = real(self, batch)
        if self.training and next(count) == 22:
            out.loss = out.loss * 1e4
        return out

    monkeypatch.setattr(parts.Objective, "forward", forward)
    after = {}
    monkeypatch.setattr(torch.optim.AdamW, "step", _counted(torch.optim.AdamW.step, after))
    config = make_config(
        max_steps=24, guards={"spike": 20.0, "spike_action": action}, optim={"learning_rate": 1e-4, "warmup_steps": 1},
        eval_every_steps=100, save_every_steps=100,
    )  # fmt: skip
    if action == "stop":
        with pytest.raises(ConfigError, match=r"stopped at step 23: .*gradient norm .* after a median"):
            train(config)
        assert after["steps"] == 22 and not list(config.run_dir.glob("checkpoints/*"))
    else:
        folder = train(config)
        assert after["steps"] == (24 if action == "warn" else 23)
        assert len(torch.load(folder / STATE, weights_only=True)["recent"]["loss"]) == 23
    [event] = seen(config, "event")
    assert event["step"] == 23 and "calls 0-" in event["spike"]


def _counted(step, after):
    def counted(self, *args, **options):
        after["steps"] = after.get("steps", 0) + 1
        return step(self, *args, **options)

    return counted


def slow_feed(plans):
    for plan in plans:
        time.sleep(0.5)
        yield Fed(None, plan.after, [])


@pytest.mark.parametrize("action", ["warn", "stop"])
def test_a_stall_names_who_loads_what(action, make_config, capsys):
    data = make_config().data
    plans = HandedPlans(
        iter([Plan((Draw(0, (7,), (0,), 50, "dialogue", (0,)), Draw(0, (9,), (0,), 50, "dialogue", (0,))))])
    )
    guard = StallGuard(slow_feed(plans), plans, GuardConfig(stall_sec=0.1, stall_action=action), data)
    told = "no batch for 0.1 s: this process loads calls 7 9 of source 'calls'"
    if action == "stop":
        with pytest.raises(ConfigError, match=told):
            next(guard)
    else:
        assert isinstance(next(guard), Fed) and told in capsys.readouterr().out
        time.sleep(0.15)  # the alarm is off again


def test_memory_that_runs_out_names_the_batch_and_what_to_change(make_config, monkeypatch):
    def forward(self, batch):
        return torch.empty(1 << 50)

    monkeypatch.setattr(parts.Objective, "forward", forward)
    with pytest.raises(ConfigError) as caught:
        train(make_config(precision="no", init=make_config().init.model_dump()))
    said = str(caught.value)
    assert "calls x" in said and "\n" not in said
    for remedy in ("recompute_layers=true", "precision=bf16", "batch_frames (now 120)", "depth_frames_share", "zero2"):
        assert remedy in said


@pytest.fixture
def broken_calls(calls, tmp_path, monkeypatch):
    """The training shards, of which calls 2 and 3 cannot be read."""
    real = ShardSet.__getitem__

    def read(self, index):
        if self.path.name == "train" and index in (2, 3):
            row = {"id": f"0-{index}", "codes": b"\0\0\0", "num_frames": 20, "words": "[]", "visuals": [], "meta": "{}"}
            self_table, self._table = self._table, {int(index): row}
            try:
                return real(self, index)
            finally:
                self._table = self_table
        return real(self, index)

    monkeypatch.setattr(ShardSet, "__getitem__", read)


def test_broken_calls_are_left_out_counted_and_named(broken_calls, make_config, calls):
    config = make_config(max_steps=6)
    folder = train(config)
    told = [event["skipped_call"] for event in seen(config, "event")]
    count = torch.load(folder / STATE, weights_only=True)["bad_calls"]
    assert len(told) == count > 0 and all("'0-2' is broken" in text or "'0-3' is broken" in text for text in told)
    assert seen(config, "train")[-1]["bad_calls"] == count
    data = config.data.model_dump() | {"max_bad_calls": 0}
    with pytest.raises(ConfigError, match="calls could not be read; see data.max_bad_calls"):
        train(make_config(run="strict", data=data, max_steps=6))


def test_a_batch_of_broken_calls_teaches_nothing(broken_calls, make_config, calls):
    """Every process must take part in a step, so there has to be a batch."""
    shards, source = ShardSet(calls / "train"), make_config().data.sources["calls"]
    plan = Plan((Draw(0, (2,), (0,), 50, "dialogue", (0,)),))
    fed = CallBatches([(shards, source)], layout=None, pictures=None)[plan]
    assert len(fed.problems) == 1 and fed.batch.codes.shape == (1, 7, 1) and (fed.batch.codes == -1).all()
    assert fed.batch.text_weight.sum() == 0


def test_all_that_is_wrong_with_the_input_is_told_at_once(make_config, calls, tmp_path):
    older = tmp_path / "older"
    older.mkdir()
    info = json.loads((calls / "train" / SIDECAR).read_text()) | {"schema_version": 0}
    (older / SIDECAR).write_text(json.dumps(info))
    other = tmp_path / "other"
    other.mkdir()
    for file in (calls / "train").iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    info = read_info(other).model_dump(mode="json")
    info["codec"]["hash"] = "0000"
    (other / SIDECAR).write_text(json.dumps(info))
    sources = {name: {"path": name} for name in ("nowhere", "older", "other")}
    data = make_config().data.model_dump() | {"sources": sources, "valid": {"gone": {"path": "gone"}}}
    with pytest.raises(ConfigError) as caught:
        train(make_config(data=data, trainable=["adaptors", "lm.deptt"]))
    for part in (
        "'adaptors' matches no parameter; did you mean 'adapters'?", "did you mean 'lm.depth'?", "'nowhere': ",
        "no shard set here", "schema version 0, this program reads 3", "encoded with codec 0000", "'gone': ",
    ):  # fmt: skip
        assert part in str(caught.value)
    assert not make_config().run_dir.exists()


def test_launches_that_cannot_work_are_refused_at_once(make_config, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ConfigError) as caught:
        train(make_config(device="auto", deepspeed="none.json", guards={"spike_action": "skip"}))
    for part in ("can not be shared by 3", "3 processes were started here, but there are 2 GPUs", "none.json", "skip"):
        assert part in str(caught.value)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(ConfigError, match="no GPU is here"):
        train(make_config(device="cuda"))


def test_the_log_tells_how_hard_the_machine_works(make_config):
    config = make_config(max_steps=3, peak_tflops=0.5)
    train(config)
    for line in seen(config, "train"):
        assert line["tokens_per_sec"] > 6 * line["frames_per_sec"] * 0.5 and 0 <= line["padding_share"] < 1
        assert line["mfu"] == pytest.approx(line["tflops_per_sec"] / 0.5) and line["peak_memory_mb"] > 50
