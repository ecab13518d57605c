"""kill -9 at any moment: a run loses nothing, and a save that is cut short harms no earlier checkpoint."""

import multiprocessing
import os
import random
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mmspeech.checkpoint import MODEL, load_model, newest_checkpoint
from train.recipe import train

STEPS = 300


@pytest.fixture(scope="module")
def forks():
    """Processes that begin with everything imported."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["train.recipe", "train.samples", "accelerate", "torch.utils.tensorboard"])
    return context


def run(config) -> None:
    """What a process of its own does: the whole run."""
    torch.set_num_threads(1)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
        train(config)


def finish(process) -> None:
    process.join()
    assert process.exitcode == 0


def same(first: Path, second: Path) -> bool:
    one, two = load_file(first / MODEL), load_file(second / MODEL)
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_fifty_kills_change_nothing(make_config, forks):
    settings = {"max_steps": STEPS, "save_every_steps": 2, "eval_every_steps": STEPS}
    whole, killed = make_config(run="whole", **settings), make_config(run="killed", **settings)
    process = forks.Process(target=run, args=(whole,))
    process.start()
    finish(process)
    moments, steps = random.Random(0), set()
    for number in range(50):
        process = forks.Process(target=run, args=(killed,))
        process.start()
        if number % 5:  # else it dies while it starts
            wait_for_a_save(process, killed.run_dir)
        time.sleep(moments.uniform(0.0, 0.3))
        process.kill()
        process.join()
        newest = newest_checkpoint(killed.run_dir)
        steps.add(None if newest is None else newest.name)
        assert newest is None or newest.name < f"step_{STEPS:08d}", "the run ended before its last kill; make it longer"
    assert len(steps) > 10
    process = forks.Process(target=run, args=(killed,))
    process.start()
    finish(process)
    last = f"checkpoints/step_{STEPS:08d}"
    assert same(whole.run_dir / last, killed.run_dir / last)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_twenty_kills_during_a_save_leave_a_good_checkpoint(make_config, forks):
    config = make_config(max_steps=100_000, save_every_steps=1, eval_every_steps=10**6)
    moments, cut = random.Random(1), 0
    for _ in range(60):
        process = forks.Process(target=run, args=(config,))
        process.start()
        before = newest_checkpoint(config.run_dir)
        while newest_checkpoint(config.run_dir) == before or not half_written(config.run_dir):
            assert process.is_alive()
            time.sleep(0.001)
        time.sleep(moments.uniform(0.0, 0.02))
        process.kill()
        process.join()
        cut += half_written(config.run_dir)
        bundle = load_model(config.run_dir)
        assert before is None or bundle.path.name > before.name
        if cut == 20:
            return
    pytest.fail(f"only {cut} of 60 kills hit a save")


def wait_for_a_save(process, run_dir: Path) -> None:
    before = newest_checkpoint(run_dir)
    while newest_checkpoint(run_dir) == before:
        assert process.is_alive()
        time.sleep(0.005)


def half_written(run_dir: Path) -> bool:
    return any((run_dir / "checkpoints").glob(".step_*"))
