"""Checkpoints of a run: RUN/checkpoints/step_XXXXXXXX is a model directory plus train_state.pt.

Both hold whole tensors under parameter names, however many processes trained and whatever each of them kept: a run
goes on with another number of processes, or another ZeRO stage, from the same files. A checkpoint is written beside its
place and renamed, so a kill at any moment leaves the last good one as it was.
"""

import contextlib
import os
import shutil
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from mmspeech.checkpoint import MODEL, check_keys, newest_checkpoint, read_tensors, replacing_directory, write_parts
from mmspeech.config import ConfigError
from mmspeech.lm.plan import PLANNER_PREFIX
from train.feed import Position
from train.guards import SpikeGuard
from train.machine import is_sharded

if TYPE_CHECKING:
    from accelerate import Accelerator

    from train.learner import Learner

STATE = "train_state.pt"
LOCK = ".training"
MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass
class TrainState:
    """What, beside weights and optimiser, an exact resume needs."""

    step: int = 0
    minutes: float = 0.0
    position: Position = Position()
    bad_steps: int = 0
    bad_calls: int = 0


@contextlib.contextmanager
def only_here(run_dir: Path, accelerator: "Accelerator") -> Iterator[None]:
    """Nothing else trains in `run_dir` meanwhile: ConfigError where something does, such as the processes of a launcher
    that was killed without them. The operating system lets go when this process ends, however it ends."""
    from filelock import FileLock, Timeout

    if not accelerator.is_main_process:
        yield
        return
    run_dir.mkdir(parents=True, exist_ok=True)
    lock = FileLock(run_dir / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        holder = (run_dir / LOCK).read_text(encoding="utf-8").strip() or "another process"
        raise ConfigError(f"{run_dir}: {holder} trains here; wait for it or stop it, or choose another run") from None
    except NotImplementedError:  # a file system without locks
        yield
        return
    with lock:
        (run_dir / LOCK).write_text(f"process {os.getpid()} on {socket.gethostname()}\n", encoding="utf-8")
        yield


def save_checkpoint(run_dir: Path, learner: "Learner", state: TrainState, *, keep_last: int) -> Path:
    """Write the checkpoint of `state.step` and remove all but the newest `keep_last`. Every process must call it; the
    first one writes."""
    folder = run_dir / "checkpoints" / f"step_{state.step:08d}"
    origin, main = learner.origin, learner.accelerator.is_main_process
    tensors, moments = _whole_weights(learner), _whole_moments(learner)
    if main:
        planner = {name: tensors[name] for name in tensors if name.startswith(PLANNER_PREFIX)}
        tensors = {name: tensors[name] for name in tensors if name not in planner}
        saved = {
            "step": state.step,
            "minutes": state.minutes,
            "position": state.position.as_dict(),
            "bad_steps": state.bad_steps,
            "bad_calls": state.bad_calls,
            "recent": learner.guard.recent,
            "trainable": learner.trainable,
            "updates": state.step - state.bad_steps,
            "moments": moments,
            "planner": planner,
        }
        with replacing_directory(folder) as building:
            if origin.lora is not None:
                origin.lora.write(building, tensors)
                tensors = origin.lora.merged(tensors)
            write_parts(
                building,
                tensors=tensors,
                tower=origin.tower,
                codec=origin.codec,
                tokenizer_file=origin.tokenizer_file,
                config=origin.config,
                card=f"# {origin.config.name}\n\nStep {state.step} of the run `{run_dir.name}`.\n",
            )
            torch.save(saved, building / STATE)
        for old in sorted(folder.parent.glob("step_*"))[:-keep_last]:
            shutil.rmtree(old)
    learner.accelerator.wait_for_everyone()
    return folder


def find_checkpoint(run_dir: Path, resume: str, accelerator: "Accelerator") -> Path | None:
    """The checkpoint to continue from, or None; half-written ones are removed."""
    if accelerator.is_main_process:
        for leftover in (run_dir / "checkpoints").glob(".step_*.tmp"):
            shutil.rmtree(leftover)
    accelerator.wait_for_everyone()
    newest = newest_checkpoint(run_dir)
    if newest is not None and resume == "never":
        raise ConfigError(f"{run_dir}: already holds {newest.name}; choose another run folder or set resume=auto")
    return newest


def load_weights(folder: Path, learner: "Learner") -> TrainState:
    """Put the weights of `folder` in place, before anything wraps the model; returns where it stood."""
    saved = torch.load(folder / STATE, map_location="cpu", weights_only=True)
    if saved["trainable"] != learner.trainable:
        before, now = saved["trainable"], learner.trainable
        changed = sorted(set(before) ^ set(now))
        raise ConfigError(
            f"{folder}: trained {len(before)} parameters, now {len(now)} are to train "
            f"(first difference: {changed[0] if changed else 'their order'}); begin a new run from this checkpoint"
        )
    tensors, lora = _stored_weights(folder, learner, saved), learner.origin.lora
    brought = set() if lora is None else lora.frozen()
    own = {name: value for name, value in learner.origin.model.state_dict().items() if name not in brought}
    check_keys(own, tensors, source=folder / MODEL)
    with torch.no_grad():
        for name, value in own.items():
            value.copy_(tensors[name])
    position = Position.from_dict(saved["position"])
    return TrainState(saved["step"], saved["minutes"], position, saved["bad_steps"], saved.get("bad_calls", 0))


def load_moments(folder: Path, learner: "Learner") -> None:
    """Put the optimiser's state, and the spike guard's memory, in place.

    Under DeepSpeed the optimiser must have made a step before, which allots its state, and the trained weights are put
    in place again: in full precision, and as they were before that step.
    """
    saved = torch.load(folder / STATE, map_location="cpu", weights_only=True)
    learner.guard = SpikeGuard(learner.config.guards, saved.get("recent"))  # runs of earlier versions kept none
    if not saved["updates"]:
        return
    parameters = dict(learner.origin.model.named_parameters())
    if not is_sharded(learner.accelerator):
        for name, moments in saved["moments"].items():
            state = {key: value.to(parameters[name].device) for key, value in moments.items()}
            learner.optimizer.state[parameters[name]] = state | {"step": torch.tensor(float(saved["updates"]))}
        return
    from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

    _link_moments(learner)
    weights = _stored_weights(folder, learner, saved)
    for name, moments in saved["moments"].items():
        parameter = parameters[name]
        safe_set_full_fp32_param(parameter, weights[name].to(parameter.device))
        for key, value in moments.items():
            safe_set_full_optimizer_state(parameter, value.to(parameter.device), key)
    for state in learner.optimizer.state.values():
        state["step"] = torch.full_like(torch.as_tensor(state["step"]), float(saved["updates"]))


def _whole_weights(learner: "Learner") -> dict[str, Tensor]:
    """Every tensor of the model, on the first process; what trains in full precision."""
    model = learner.origin.model
    if not is_sharded(learner.accelerator):
        return model.state_dict()
    from deepspeed.utils import safe_get_full_fp32_param

    parameters, tensors = dict(model.named_parameters()), {}
    for name, value in model.state_dict().items():
        parameter = parameters.get(name)
        if parameter is None:
            whole = value
        elif parameter.requires_grad:
            whole = safe_get_full_fp32_param(parameter)
        else:
            whole = _gathered(parameter)
        if learner.accelerator.is_main_process:
            tensors[name] = whole.detach().to("cpu", copy=True)
    return tensors


def _stored_weights(folder: Path, learner: "Learner", saved: dict) -> dict[str, Tensor]:
    lora = learner.origin.lora
    tensors = read_tensors(folder / MODEL) if lora is None else lora.read(folder)
    return tensors | saved.get("planner", {})  # runs of earlier versions had none


def _gathered(parameter: nn.Parameter) -> Tensor:
    if not hasattr(parameter, "ds_id"):
        return parameter
    from deepspeed.runtime.zero import GatheredParameters

    with GatheredParameters([parameter]):
        return parameter.detach().clone()


def _link_moments(learner: "Learner") -> None:
    """Let DeepSpeed find the optimiser's state of every parameter.

    ZeRO 1 and 2 (seen in 0.19) look for it once, after the first parameter group's first update; the second group has
    none yet.
    """
    zero = learner.zero_optimizer
    if hasattr(zero, "_lazy_init_hp_params_optimizer_state"):
        zero._hp_optimizer_states_linked = False
        zero._lazy_init_hp_params_optimizer_state()


def _whole_moments(learner: "Learner") -> dict[str, dict[str, Tensor]]:
    """The optimiser's running means by parameter name, on the first process."""
    parameters = dict(learner.origin.model.named_parameters())
    if not is_sharded(learner.accelerator):
        states = {name: learner.optimizer.state.get(parameters[name], {}) for name in learner.trainable}
        return {name: {key: state[key] for key in MOMENTS} for name, state in states.items() if state}
    from deepspeed.utils import safe_get_full_optimizer_state

    _link_moments(learner)
    moments: dict[str, dict[str, Tensor]] = {}
    for name in learner.trainable:
        whole = {key: safe_get_full_optimizer_state(parameters[name], key) for key in MOMENTS}
        if learner.accelerator.is_main_process:
            moments[name] = {key: value.to("cpu", copy=True) for key, value in whole.items()}
    return moments
