"""LoRA in two processes, really launched: the steps of one, also where every weight is split between them."""

import json
import shutil

import pytest
from safetensors.torch import load_file
from test_processes import OPTIM, furthest, launch

from train.lora import LORA
from train.recipe import train

SETTINGS = {
    "precision": "no",
    "batches_per_step": 4,
    "optim": OPTIM,
    "loss": {"plan": 0.5},
    "trainable": ["adapters"],
    "lora": {"rank": 4, "alpha": 8},
}
MODES = ["ddp", "zero2", "zero3"]


@pytest.mark.timeout(600)
@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_two_processes_take_the_steps_of_one_and_one_goes_on_from_theirs(mode, make_config, tmp_path):
    deepspeed = None
    if mode == "zero3":
        deepspeed = str(tmp_path / "zero3.json")
        # Weights as small as these would stay whole in every process.
        split = {"stage": 3, "stage3_param_persistence_threshold": 0}
        (tmp_path / "zero3.json").write_text(json.dumps({"zero_optimization": split}))
        mode = "ddp"
    whole = train(make_config(run="whole", **SETTINGS))
    launch(make_config(run="two", max_steps=2, deepspeed=deepspeed, **SETTINGS), mode, tmp_path)
    shutil.copytree(tmp_path / "two", tmp_path / "alone")
    two = launch(make_config(run="two", deepspeed=deepspeed, **SETTINGS), mode, tmp_path)
    alone = train(make_config(run="alone", **SETTINGS))
    expected = load_file(whole / LORA)
    for folder in (two, alone):
        assert furthest(folder, whole) < 1e-5
        pairs = load_file(folder / LORA)
        assert pairs.keys() == expected.keys()
        assert all((pairs[name] - expected[name]).abs().max() < 1e-5 for name in pairs)
