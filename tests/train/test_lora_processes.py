"""LoRA in several processes, really launched."""

import shutil

import pytest
from safetensors.torch import load_file
from test_processes import OPTIM, furthest, launch

from train.lora import LORA


@pytest.fixture(scope="module")
def reference() -> dict:
    """Filled by the first test that needs the uninterrupted run of one process."""
    return {}


@pytest.mark.parametrize(
    "mode", ["zero3", pytest.param("ddp", marks=pytest.mark.slow), pytest.param("zero2", marks=pytest.mark.slow)]
)
def test_lora_in_two_processes(mode, make_config, small_checkpoint, reference, tmp_path):
    lora = {"rank": 4, "alpha": 8}
    settings = {"precision": "no", "batches_per_step": 4, "optim": OPTIM, "trainable": ["adapters"], "lora": lora}
    if "lora" not in reference:
        reference["lora"] = launch(make_config(run="whole", **settings), "one", tmp_path)
    half = make_config(run=mode, max_steps=2, **settings)
    launch(half, mode, tmp_path)
    shutil.copytree(half.run_dir, tmp_path / "alone")
    whole = launch(make_config(run=mode, **settings), mode, tmp_path)
    alone = launch(make_config(run="alone", **settings), "one", tmp_path)
    for folder in (whole, alone):
        assert furthest(folder, reference["lora"]) < 1e-5
        pairs, expected = (load_file(checkpoint / LORA) for checkpoint in (folder, reference["lora"]))
        assert pairs.keys() == expected.keys()
        assert all((pairs[name] - expected[name]).abs().max() < 1e-5 for name in pairs)
