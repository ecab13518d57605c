"""Several processes, really launched: they take the steps one would, and go on from each other's checkpoints."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
import yaml
from safetensors.torch import load_file

from mmspeech.checkpoint import MODEL, load_model
from mmspeech.config import ConfigError
from train.checkpointing import STATE
from train.recipe import train

ROOT = Path(__file__).resolve().parents[2]
SHARDED = ("zero1", "zero2", "zero3", "zero2_offload", "zero3_offload")
# A constant rate, so that a run of two steps is the first half of one of four; eps keeps Adam from making much of the
# last bits of gradients that are almost nothing.
OPTIM = {"learning_rate": 1e-3, "warmup_steps": 1, "eps": 1e-6, "schedule": "wsd", "decay_share": 0.01}


def command(config, mode: str, folder: Path) -> list[str]:
    """The command that runs `config` alone (`one`) or in two processes."""
    file = folder / f"{config.run}_{mode}_{config.max_steps}.yaml"
    file.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    run = ["-m", "train", "--config", str(file)]
    if mode in SHARDED:
        run.append(f"deepspeed={ROOT / 'configs/deepspeed'}/{mode}.json")
    if mode == "one":
        return [sys.executable, *run]
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", *run]


def launch(config, mode: str, folder: Path) -> Path:
    """Run it and return the checkpoint it ends with."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command(config, mode, folder), env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-4000:]
    return config.run_dir / "checkpoints" / f"step_{config.max_steps:08d}"


def furthest(first: Path, second: Path) -> float:
    """The largest difference between the weights of two checkpoints, and between what their optimisers remember."""
    one, two = load_file(first / MODEL), load_file(second / MODEL)
    assert one.keys() == two.keys()
    differences = [(one[name] - two[name]).abs().max() for name in one]
    one, two = (torch.load(folder / STATE, weights_only=True) for folder in (first, second))
    assert one["position"] == two["position"] and one["moments"].keys() == two["moments"].keys()
    for name, moments in one["moments"].items():
        differences += [(value - two["moments"][name][key]).abs().max() for key, value in moments.items()]
    return float(torch.stack(differences).max())


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """Filled by the first test that needs the uninterrupted run of one process."""
    return {}


SLOW = [
    pytest.param(mode, marks=pytest.mark.slow) for mode in ("ddp", "zero1", "zero2", "zero2_offload", "zero3_offload")
]


@pytest.mark.parametrize("mode", ["zero3", *SLOW])
def test_two_processes_take_the_steps_of_one_and_one_goes_on_from_theirs(
    mode, make_config, small_checkpoint, reference, tmp_path
):
    settings = {"precision": "no", "batches_per_step": 4, "optim": OPTIM, "trainable": ["adapters", "lm.depth.*"]}
    settings |= {"loss": {"plan": 0.5}}
    sampled = {"sample_every_steps": 2, "sample_calls": 1}
    if "whole" not in reference:
        reference["whole"] = launch(make_config(run="whole", **settings, **sampled), "one", tmp_path)
    # What spares memory meets the others' parameters again in the backward pass, and changes nothing.
    settings |= {"recompute_layers": True, "loss": {"plan": 0.5, "pieces": 3}}
    half = make_config(run=mode, max_steps=2, **settings, **sampled)
    launch(half, mode, tmp_path)
    heard = [folder / "samples/step_00000002/000.json" for folder in (half.run_dir, reference["whole"].parents[1])]
    said = [json.loads(file.read_text())["said"] for file in heard]
    assert said[0] and [word["piece"] for word in said[0]] == [word["piece"] for word in said[1]]
    shutil.copytree(half.run_dir, tmp_path / "alone")
    whole = launch(make_config(run=mode, **settings), mode, tmp_path)
    assert furthest(whole, reference["whole"]) < 1e-5
    alone = launch(make_config(run="alone", **settings), "one", tmp_path)
    assert furthest(alone, reference["whole"]) < 1e-5
    before, after = (load_file(folder / MODEL) for folder in (small_checkpoint, whole))
    still = [name for name in before if name.startswith("lm.temporal.transformer.")]
    assert still and all(torch.equal(before[name], after[name]) for name in still)


@pytest.mark.slow
def test_zero3_holds_its_share_and_one_layer(make_config, small_checkpoint, tmp_path):
    """With nothing fetched ahead or kept: what a process holds beside its share is one layer at a time."""
    strict = tmp_path / "zero3.json"
    now = {
        "max_live_parameters": 0,
        "max_reuse_distance": 0,
        "prefetch_bucket_size": 0,
        "param_persistence_threshold": 0,
    }
    settings = {"stage": 3} | {f"stage3_{name}": value for name, value in now.items()}
    strict.write_text(json.dumps({"zero_optimization": settings}))
    run = command(make_config(batches_per_step=2, precision="no"), "ddp", tmp_path)
    run += [f"deepspeed={strict}", "--dry-run"]
    done = subprocess.run(run, env=os.environ | {"OMP_NUM_THREADS": "1"}, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    held = {name: int(n.replace(",", "")) for name, n in re.findall(r"(parameters[a-z ]*?) *│ *([\d,]+)", done.stdout)}
    assert held.keys() == {"parameters", "parameters of this process", "parameters whole at once"}
    model = load_model(small_checkpoint).model
    assert held["parameters"] == sum(p.numel() for name, p in model.named_parameters() if "tower." not in name)
    assert held["parameters of this process"] <= held["parameters"] / 2 + len(list(model.parameters()))
    layers = [*model.lm.temporal.transformer.layers, *model.lm.depth.children(), *model.lm.temporal.children()]
    assert held["parameters whole at once"] <= max(sum(p.numel() for p in layer.parameters()) for layer in layers)


def test_a_killed_launch_goes_on(make_config, tmp_path):
    config = make_config(
        run="killed", max_steps=100_000, save_every_steps=1, batches_per_step=2, eval_every_steps=10**6
    )
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    run = subprocess.Popen(
        command(config, "ddp", tmp_path), env=environment, cwd=ROOT, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    until = time.monotonic() + 120
    while not (config.run_dir / "checkpoints/step_00000004").is_dir() and time.monotonic() < until:
        time.sleep(0.01)
    workers = psutil.Process(run.pid).children(recursive=True)
    run.kill()
    run.wait()
    further = make_config(run="killed", max_steps=5, batches_per_step=2)
    with pytest.raises(ConfigError, match=r"killed: process \d+ on .* trains here; wait for it or stop it"):
        train(further)  # the launcher is gone, but not those that it started
    for worker in workers:
        worker.kill()
    psutil.wait_procs(workers)
    reached = int(load_model(config.run_dir).path.name.removeprefix("step_"))
    assert reached >= 4
    further = make_config(run="killed", max_steps=reached + 2, save_every_steps=1, batches_per_step=2)
    assert launch(further, "ddp", tmp_path).is_dir()


def test_processes_that_can_not_share_the_batches_are_refused(make_config, tmp_path):
    run = command(make_config(batches_per_step=3), "ddp", tmp_path)
    done = subprocess.run(run, env=os.environ | {"OMP_NUM_THREADS": "1"}, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode and "batches_per_step 3 can not be shared by 2 processes; set a multiple of 2" in done.stderr


def test_a_deepspeed_file_that_says_otherwise_is_refused(make_config, tmp_path):
    file = tmp_path / "ds.json"
    file.write_text('{"gradient_clipping": 7, "optimizer": {"type": "Adam"}, "zero_optimization": {"stage": 2}}')
    with pytest.raises(ConfigError, match="gradient_clipping is 7, but the run's is 1.0; 'optimizer' is the run's"):
        train(make_config(deepspeed=str(file)))
