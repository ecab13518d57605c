"""LoRA: what learns and what stays, checkpoints that are models like any other, exact resume, refusals in words."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_recipe import run_killed, same, weights

from mmspeech.checkpoint import MODEL, load_model
from mmspeech.config import ConfigError
from train import learner
from train.checkpointing import STATE
from train.lora import LORA, add_lora
from train.recipe import train
from train.settings import LoraSettings

SMALL = {"rank": 4, "alpha": 8}


def listed(folder: Path) -> set[str]:
    """What the run says that it trains."""
    return {line.split()[0] for line in (folder.parents[1] / "trainable.txt").read_text().splitlines()}


def test_only_pairs_and_what_is_named_learn(make_config, small_checkpoint, monkeypatch):
    seen = {}

    def spy(model, config):
        seen["model"] = model
        return build(model, config)

    build = learner.build_optimizer
    monkeypatch.setattr(learner, "build_optimizer", spy)
    monkeypatch.setattr(torch.optim.Optimizer, "zero_grad", lambda self, set_to_none=True: None)
    lora = SMALL | {"targets": ["lm.temporal.*", "!lm.temporal.text_linear"]}
    folder = train(make_config(trainable=["adapters", "lm.*emb*"], lora=lora, max_steps=2))
    before, after = load_file(small_checkpoint / MODEL), weights(folder)
    assert before.keys() == after.keys()
    moved = {name for name in after if not torch.equal(after[name], before[name])}
    adapters = set(load_model(small_checkpoint).model.adapter_names())
    named = adapters | {name for name in before if "emb" in name}
    wrapped = {name for name in before if name.startswith("lm.temporal.transformer.") and "norm" not in name}
    assert len(wrapped) == 8 and wrapped <= moved <= wrapped | named
    pairs = {name.removesuffix("weight") + f"lora_{side}.default.weight" for name in wrapped for side in "AB"}
    assert listed(folder) == named | pairs
    assert torch.load(folder / STATE, weights_only=True)["moments"].keys() == named | pairs
    for name, parameter in seen["model"].named_parameters():
        assert (parameter.grad is not None) == (name in named | pairs), name
        if ".base_layer." in name:
            assert torch.equal(parameter, before[name.replace(".base_layer.", ".")]), name


def test_all_with_lora_is_all_but_the_wrapped_matrices(make_config, small_checkpoint):
    folder = train(make_config(trainable=["all"], lora=SMALL | {"targets": ["lm.depth.*"]}, max_steps=1))
    before = load_file(small_checkpoint / MODEL)
    wrapped = {name for name in before if name.startswith("lm.depth.") and before[name].ndim == 3}
    rest = {name for name in listed(folder) if ".lora_" not in name}
    assert rest == before.keys() - wrapped and len(listed(folder)) == len(rest) + 2 * len(wrapped)
    assert all(not torch.equal(before[name], weights(folder)[name]) for name in wrapped)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"lora": SMALL}, id="both", marks=pytest.mark.slow),
        pytest.param(
            {"lora": SMALL | {"dropout": 0.2, "targets": ["lm.temporal.*"]}, "recompute_layers": True}, id="dropout"
        ),
        pytest.param({"lora": SMALL, "frozen_precision": "bf16"}, id="frozen in bf16", marks=pytest.mark.slow),
    ],
)
def test_four_steps_equal_two_a_kill_and_two_more(change, make_config):
    settings = {"trainable": ["adapters"]} | change
    whole = train(make_config(run="whole", **settings))
    run_killed(make_config(run="killed", sample_every_steps=3, **settings))  # after step 3, with a checkpoint of step 2
    resumed = train(make_config(run="killed", **settings))
    assert same(weights(resumed), weights(whole))
    assert same(load_file(resumed / LORA), load_file(whole / LORA))
    states = [torch.load(folder / STATE, weights_only=True) for folder in (whole, resumed)]
    for name, moments in states[0]["moments"].items():
        assert same(moments, states[1]["moments"][name])


def test_the_merged_model_says_what_the_trained_one_says(small_checkpoint):
    model = load_model(small_checkpoint).model
    codes = torch.randint(0, 32, (2, 7, 9), generator=torch.Generator().manual_seed(0))

    def heard(model) -> tuple[torch.Tensor, ...]:
        out = model.lm(codes)
        return out.text_logits, model.lm.depth_logits(out.hidden, codes[:, 0], codes[:, 1:4])

    with torch.no_grad():
        before = heard(model)
        lora = add_lora(model, LoraSettings(**SMALL), seed=0)
        assert all(torch.equal(*pair) for pair in zip(before, heard(model), strict=True))
        for name, parameter in model.named_parameters():
            if ".lora_B." in name:
                parameter.normal_(std=0.1)
        trained = heard(model)
        own = {name: value.clone() for name, value in model.state_dict().items()}
        plain = load_model(small_checkpoint).model
        plain.load_state_dict(lora.merged(model.state_dict()), strict=False)
        merged = heard(plain)
    assert same(own, model.state_dict())
    for first, second, third in zip(before, trained, merged, strict=True):
        assert (second - first).abs().max() > 0.1 and (second - third).abs().max() < 1e-5


def test_a_checkpoint_of_lora_begins_a_run_of_another_kind(make_config):
    first = train(make_config(run="first", trainable=[], lora=SMALL, max_steps=1))
    init = {"checkpoint": "first"}
    second = train(make_config(run="second", init=init, trainable=["adapters"], max_steps=1))
    assert not (second / LORA).exists()
    speech = [name for name in weights(first) if name.startswith("lm.depth.")]
    assert all(torch.equal(weights(first)[name], weights(second)[name]) for name in speech)


def test_a_resume_beside_other_weights_or_settings_is_refused(make_config, small_checkpoint, tmp_path):
    begin = tmp_path / "begin"
    shutil.copytree(small_checkpoint, begin)
    settings = {"init": {"checkpoint": str(begin)}, "trainable": ["adapters"]}
    train(make_config(lora=SMALL, max_steps=1, **settings))
    with pytest.raises(ConfigError, match=r"lora.alpha was 8.0, now 9.0; begin a new run"):
        train(make_config(lora=SMALL | {"alpha": 9}, **settings))
    with pytest.raises(ConfigError, match=r"lora.rank was 4, now 5"):
        train(make_config(lora=SMALL | {"rank": 5}, **settings))
    with pytest.raises(ConfigError, match="begin a new run"):
        train(make_config(**settings))
    tensors = load_file(begin / MODEL)
    tensors["lm.temporal.transformer.layers.1.ffn.linear_out.weight"][0, 0] += 1
    save_file(tensors, begin / MODEL)
    with pytest.raises(ConfigError, match="learnt beside other weights than init gives now"):
        train(make_config(lora=SMALL, **settings))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"targets": ["eyes"]}, "lora.targets: 'eyes' matches no parameter"),
        (
            {"targets": ["lm.temporal.text_emb"]},
            "'lm.temporal.text_emb' is lm.temporal.text_emb.weight, which LoRA can",
        ),
        ({"targets": ["adapters"]}, "can not wrap; it wraps matrices of lm.depth.audio_linear, lm.depth.hidden_in, lm"),
        ({"targets": ["lm.depth.*", "!lm.depth.*"]}, "leaves no matrix to wrap"),
        ({"dropout": 0.1}, "lora.dropout 0.1: not for lm.depth.hidden_in.weight, which is one matrix per codebook"),
    ],
)
def test_refusals(change, message, make_config):
    with pytest.raises(ConfigError, match=message):
        train(make_config(lora=SMALL | change))


def test_a_run_in_which_nothing_learns_is_refused(make_config):
    with pytest.raises(ValueError, match="nothing is to learn"):
        make_config(trainable=[])


def test_losses_are_told(make_config):
    folder = train(make_config(trainable=[], lora=SMALL))
    lines = [json.loads(line) for line in (folder.parents[1] / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if line["kind"] == "train"]
    assert len(losses) == 4 and losses[-1] < losses[0]
