"""The recipe: exact resume after a kill, frozen parameters stay, bad steps are skipped, bad input is refused."""

import json
import multiprocessing
import os
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mmspeech.checkpoint import MODEL, load_model
from mmspeech.config import ConfigError
from train import learner, parts
from train.checkpointing import STATE
from train.dry_run import dry_run
from train.recipe import train


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / MODEL)


def kill(origin, shards, folder, config):
    os.kill(os.getpid(), signal.SIGKILL)


def same(first: dict, second: dict) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def run_killed(config) -> None:
    # From a server that has trained nothing: autograd refuses to work in a fork of a process where it has threads.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["train.recipe"])
    process = context.Process(target=train, args=(config,), kwargs={"sample": kill})
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL


def test_four_steps_equal_two_a_kill_and_two_more(make_config):
    planning = {"loss": {"plan": 0.5}}  # what reads the coming words is no part of the model, and goes on, too
    whole = train(make_config(run="whole", **planning))
    killed = make_config(run="killed", sample_every_steps=3, **planning)
    run_killed(killed)  # dies after step 3, with a checkpoint of step 2
    assert [p.name for p in (killed.run_dir / "checkpoints").iterdir()] == ["step_00000002"]
    resumed = train(make_config(run="killed", **planning))
    assert same(weights(resumed), weights(whole))
    states = [torch.load(folder / STATE, weights_only=True) for folder in (whole, resumed)]
    assert states[0]["position"] == states[1]["position"] and states[0]["step"] == 4
    for name, moments in states[0]["moments"].items():
        assert same(moments, states[1]["moments"][name])
    assert states[0]["planner"] and same(states[0]["planner"], states[1]["planner"])
    lines = [json.loads(line) for line in (killed.run_dir / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["kind"] == "train"] == [1, 2, 3, 4]


def test_workers_change_nothing(make_config):
    config = make_config(run="a", max_steps=3)
    data = config.data.model_copy(update={"workers": 2})
    with_workers = config.model_copy(update={"run": "b", "data": data})
    assert same(weights(train(config)), weights(train(with_workers)))


def test_only_adapters_move_and_only_they_have_optimiser_state(make_config, small_checkpoint, capsys):
    before = load_model(small_checkpoint).model
    folder = train(make_config(trainable=["adapters"], max_steps=2))
    after, own = weights(folder), before.state_dict()
    adapters = set(before.adapter_names())
    moved = {name for name in after if not torch.equal(after[name], own[name])}
    assert moved and moved <= adapters
    assert any(name.startswith("projector.") for name in moved) and any("fusion" in name for name in moved)
    listed = {line.split()[0] for line in (folder.parents[1] / "trainable.txt").read_text().splitlines()}
    assert listed == adapters
    printed = capsys.readouterr().out
    assert all(line in printed for line in (folder.parents[1] / "trainable.txt").read_text().splitlines())
    assert torch.load(folder / STATE, weights_only=True)["moments"].keys() == adapters


def test_frozen_parameters_get_no_gradient(make_config, monkeypatch):
    seen = {}

    def spy(model, config):
        seen["model"] = model
        return build(model, config)

    build = learner.build_optimizer
    monkeypatch.setattr(learner, "build_optimizer", spy)
    monkeypatch.setattr(torch.optim.Optimizer, "zero_grad", lambda self, set_to_none=True: None)
    train(make_config(trainable=["speech"], max_steps=1))
    model = seen["model"]
    for name, parameter in model.named_parameters():
        speech = name not in model.adapter_names() and not name.startswith("tower.")
        assert (parameter.grad is not None) == speech, name


def test_a_step_that_is_not_finite_is_skipped_and_counted(make_config, monkeypatch):
    real, calls = parts.Objective.forward, []

    def forward(self, batch):
        out = real(self, batch)
        calls.append(self.training)
        if self.training and calls.count(True) == 2:
            out.loss = out.loss * float("nan")
        return out

    monkeypatch.setattr(parts.Objective, "forward", forward)
    folder = train(make_config(max_steps=3))
    assert torch.load(folder / STATE, weights_only=True)["bad_steps"] == 1
    assert all(value.isfinite().all() for value in weights(folder).values())


def test_too_many_bad_steps_end_the_run_in_words(make_config, monkeypatch):
    real = parts.Objective.forward

    def forward(self, batch):
        out = real(self, batch)
        out.loss = out.loss * float("inf")
        return out

    monkeypatch.setattr(parts.Objective, "forward", forward)
    with pytest.raises(ConfigError, match="2 steps in a row were not finite"):
        train(make_config(max_bad_steps=2))


def test_only_the_newest_checkpoints_are_kept_and_leftovers_go(make_config):
    config = make_config(save_every_steps=1, keep_last=2)
    leftover = config.run_dir / "checkpoints" / ".step_00000001.77.tmp"
    leftover.mkdir(parents=True)
    train(config)
    names = sorted(p.name for p in (config.run_dir / "checkpoints").iterdir())
    assert names == ["step_00000003", "step_00000004"]
    assert load_model(config.run_dir).path.name == "step_00000004"


def test_minutes_bound_the_run(make_config):
    folder = train(make_config(max_steps=100_000, max_minutes=0.01))
    state = torch.load(folder / STATE, weights_only=True)
    assert 0 < state["step"] < 1000 and state["minutes"] >= 0.01
    assert train(make_config(max_steps=100_000, max_minutes=0.01)) == folder  # nothing is left to do


def test_a_fresh_blind_model_and_new_eyes_on_it(make_config, small_checkpoint):
    model = str(small_checkpoint / "config.json")
    files = {"codec": str(small_checkpoint), "tokenizer": str(small_checkpoint / "tokenizer.model")}
    fresh = {"model": model, "blind": True} | files
    speech = train(make_config(run="speech", init=fresh, trainable=["speech"], max_steps=1))
    sighted = {"checkpoint": "speech", "model": model, "tower": str(small_checkpoint)}
    folder = train(make_config(run="sighted", init=sighted, trainable=["adapters"], max_steps=1))
    before, after = weights(speech), weights(folder)
    assert load_model(speech).config.vision is None and before.keys() < after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    tower = "tower.safetensors"
    assert same(load_file(folder / tower), load_file(small_checkpoint / tower))


def test_fresh_adapters_on_a_checkpoint_that_has_eyes(make_config, small_checkpoint, tmp_path):
    settings = json.loads((small_checkpoint / "config.json").read_text())
    settings["lm"]["fusion"]["shared"] = not settings["lm"]["fusion"]["shared"]
    other = tmp_path / "other.json"
    other.write_text(json.dumps(settings))
    before = weights(small_checkpoint)
    for init in ({}, {"model": str(other)}):
        init |= {"checkpoint": str(small_checkpoint), "fresh_adapters": True}
        run = f"fresh{len(init)}"
        folder = train(make_config(run=run, init=init, trainable=["adapters"], max_steps=1))
        after, adapters = weights(folder), set(load_model(folder).model.adapter_names())
        assert all(torch.equal(before[name], after[name]) for name in after.keys() - adapters)
        drawn = [name for name in adapters if name.endswith("kv_proj.weight")]
        assert drawn and not any(torch.equal(before[name], after[name]) for name in drawn if name in before)
        shared = settings["lm"]["fusion"]["shared"]
        assert load_model(folder).config.lm.fusion.shared == (shared if "model" in init else not shared)


def test_refusals_come_before_the_first_step_and_name_all(make_config, calls):
    sources = {"a": {"path": "nowhere"}, "b": {"path": "neither"}}
    data = make_config().data.model_dump() | {"sources": sources}
    with pytest.raises(ConfigError, match="data source 'a': .*nowhere.*data source 'b': .*neither"):
        train(make_config(data=data))
    with pytest.raises(ConfigError, match="'eyes' matches no parameter"):
        train(make_config(trainable=["eyes"]))
    train(make_config(max_steps=1))
    with pytest.raises(ConfigError, match="already holds step_00000001"):
        train(make_config(resume="never"))
    with pytest.raises(ConfigError, match="begin a new run"):
        train(make_config(trainable=["adapters"]))
    assert calls.is_dir()


def test_a_dry_run_shows_a_step_and_writes_nothing(make_config, capsys):
    config = make_config(batches_per_step=2)
    dry_run(config)
    shown = capsys.readouterr().out
    assert "lm.depth.text_emb [65, 16]" in shown and "codes [B, 1 + 2K, T]" in shown and "grad_norm" in shown
    assert not config.run_dir.exists()


def test_a_model_that_remembers_more_than_it_learns_from_is_told(make_config, capsys):
    warning = "warning: the model remembers 50 frames (4 s), and 0.0% of what it learns from lies past that"
    train(make_config(max_steps=1))  # no call is longer
    assert warning in capsys.readouterr().out
    train(make_config(run="adapters", max_steps=1, trainable=["adapters"]))
    joined = make_config(run="joined", max_steps=1)
    joined.data.sources["calls"] = joined.data.sources["calls"].model_copy(update={"join_frames": 100})
    train(joined)
    assert "warning" not in capsys.readouterr().out
