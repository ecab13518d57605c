"""Checkpoints of a run: RUN/checkpoints/step_XXXXXXXX is a model directory plus train_state.pt.

A checkpoint is written beside its place and renamed, so a kill at any moment leaves the last good one as it was.
"""

import random
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mmspeech.audio.codec import Codec
from mmspeech.checkpoint import MODEL, check_keys, newest_checkpoint, read_tensors, replacing_directory, write_model
from mmspeech.config import ConfigError, ModelConfig
from train.feed import Position

STATE = "train_state.pt"


@dataclass
class TrainState:
    """What, beside weights and optimiser, an exact resume needs."""

    step: int = 0
    minutes: float = 0.0
    position: Position = Position()
    bad_steps: int = 0


@dataclass
class Parts:
    """What a checkpoint is made of."""

    model: Any
    codec: Codec
    tokenizer_file: Path
    config: ModelConfig
    optimizer: torch.optim.Optimizer


def save_checkpoint(run_dir: Path, parts: Parts, state: TrainState, *, trainable: list[str], keep_last: int) -> Path:
    """Write the checkpoint of `state.step` and remove all but the newest `keep_last`."""
    folder = run_dir / "checkpoints" / f"step_{state.step:08d}"
    saved = {
        "step": state.step,
        "minutes": state.minutes,
        "position": state.position.as_dict(),
        "bad_steps": state.bad_steps,
        "optimizer": parts.optimizer.state_dict(),
        "trainable": trainable,
        "rng": _rng_state(),
    }
    with replacing_directory(folder) as building:
        write_model(
            building,
            model=parts.model,
            codec=parts.codec,
            tokenizer_file=parts.tokenizer_file,
            config=parts.config,
            card=f"# {parts.config.name}\n\nStep {state.step} of the run `{run_dir.name}`.\n",
        )
        torch.save(saved, building / STATE)
    for old in sorted(folder.parent.glob("step_*"))[:-keep_last]:
        shutil.rmtree(old)
    return folder


def find_checkpoint(run_dir: Path, resume: str) -> Path | None:
    """The checkpoint to continue from, or None; half-written ones are removed."""
    for leftover in (run_dir / "checkpoints").glob(".step_*.tmp"):
        shutil.rmtree(leftover)
    newest = newest_checkpoint(run_dir)
    if newest is not None and resume == "never":
        raise ConfigError(f"{run_dir}: already holds {newest.name}; choose another run folder or set resume=auto")
    return newest


def load_checkpoint(folder: Path, parts: Parts, *, trainable: list[str]) -> TrainState:
    """Put weights, optimiser and RNG of `folder` in place and return where it stood."""
    saved = torch.load(folder / STATE, map_location="cpu", weights_only=True)
    if saved["trainable"] != trainable:
        changed = sorted(set(saved["trainable"]) ^ set(trainable))
        raise ConfigError(
            f"{folder}: trained {len(saved['trainable'])} parameters, now {len(trainable)} are to train "
            f"(first difference: {changed[0] if changed else 'their order'}); begin a new run from this checkpoint"
        )
    own = {name: value for name, value in parts.model.state_dict().items() if not name.startswith("tower.")}
    tensors = read_tensors(folder / MODEL)
    check_keys(own, tensors, source=folder / MODEL)
    with torch.no_grad():
        for name, value in own.items():
            value.copy_(tensors[name])
    parts.optimizer.load_state_dict(saved["optimizer"])
    _set_rng_state(saved["rng"])
    return TrainState(saved["step"], saved["minutes"], Position.from_dict(saved["position"]), saved["bad_steps"])


def _rng_state() -> dict[str, Any]:
    name, keys, place, has_gauss, gauss = np.random.get_state()
    state = {
        "python": random.getstate(),
        "numpy": (name, keys.tolist(), place, has_gauss, gauss),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def _set_rng_state(state: dict[str, Any]) -> None:
    version, values, gauss = state["python"]
    random.setstate((version, tuple(values), gauss))
    name, keys, place, has_gauss, gauss = state["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), place, has_gauss, gauss))
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])
