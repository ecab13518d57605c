"""Ablations in one table: what gate, picture, ways of training and shapes of adapters are worth.

A row is a checkpoint under a condition: its gates as learned, open or closed; pictures as they belong, gone or swapped.
Rows with `set` are trained first, by `python -m train` with those settings changed. A column is a set of questions.
Everything is kept under the two folders, so a killed table goes on.
"""

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from rich.console import Console

from eval.console import progress_bar, show_markdown, shown
from eval.measure import Run, measure_tasks
from eval.replies import KeptReplies
from eval.responder import ModelResponder
from eval.results import run_identity
from eval.task import Settings
from eval.tasks import find
from eval.who import REPLIES, reply_identity
from mmspeech.checkpoint import Bundle, load_model
from mmspeech.config import ConfigError, StrictModel, load_config
from mmspeech.serve.engine import settle_threads

GateState = Literal["learned", "open", "closed"]
FORCED = {"open": 1.0, "closed": 0.0}
TASK = "spoken_vqa"


class Row(StrictModel):
    """One line of the table. `model`: a checkpoint (None: the embedded one), unless `set` says what to train."""

    name: str
    model: str | None = None
    set: dict[str, Any] | None = None
    gate: GateState = "learned"
    pictures: Literal["given", "none", "swapped"] = "given"


class Plan(StrictModel):
    """`columns`: name -> a manifest of questions under the data folder; `train`: what rows with `set` change."""

    columns: dict[str, str] = Field(min_length=1)
    train: str | None = None
    rows: list[Row] = Field(min_length=1)


@dataclass(frozen=True)
class Places:
    """data: where the columns' questions are; runs: where rows are trained (shards are there too), None: they are left
    out; out: where replies and results go."""

    data: Path
    runs: Path | None
    out: Path


def ablate(plan_file: Path, places: Places, settings: Settings, *, batch_size: int, console: Console) -> list[tuple]:
    """Print the table of a plan; returns its rows (name, a score for each column, the mean gate over words).

    ConfigError for a plan, checkpoint or manifest that cannot be used, and when a training fails.
    """
    plan = load_config(Plan, plan_file)
    if plan.train is None and any(row.set is not None for row in plan.rows):
        raise ConfigError(f"{plan_file}: rows with `set` need `train`, the configuration that they change")
    found, lines = [], [("", *plan.columns, "gate")]
    for row in plan.rows:
        if row.set is not None and places.runs is None:
            console.print(
                f"{row.name}: left out: it is trained; give the folder of its shards as --runs", style="yellow"
            )
            continue
        bundle = load_model(_trained(row, plan.train, places.runs) if row.set is not None else row.model)
        settle_threads(bundle.model)
        with forced_gates(bundle, row.gate):
            numbers = [_measure(bundle, row, file, places, settings, batch_size) for file in plan.columns.values()]
        gate = numbers[0]["gate"]
        found.append((row.name, *(cell["score"] for cell in numbers), gate))
        lines.append((row.name, *(_cell(cell) for cell in numbers), shown(gate)))
    show_markdown(lines, console=console)
    return found


@contextmanager
def forced_gates(bundle: Bundle, state: GateState) -> Iterator[None]:
    """Hold all gates of the model open (1) or closed (0); `learned` leaves them alone."""
    gates = [] if bundle.model.lm.temporal.fusion is None else bundle.model.lm.temporal.fusion.gates
    if state != "learned" and not len(gates):
        raise ConfigError(f"{bundle.path}: has no gates to hold {state}")
    hooks = []
    if state != "learned":
        value = FORCED[state]
        hooks = [gate.register_forward_hook(lambda _, __, out: torch.full_like(out, value)) for gate in gates]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _measure(
    bundle: Bundle, row: Row, manifest: str, places: Places, settings: Settings, batch_size: int
) -> dict[str, Any]:
    """The numbers of one cell; its results are a run of their own under out."""
    changed = {"data": places.data, "manifest": places.data / manifest, "pictures": row.pictures}
    settings = replace(settings, **changed)
    task = find(TASK)(settings, bundle)
    out = places.out / slug(row.name) / Path(manifest).stem
    identity = run_identity(settings=settings, bundle=bundle, who=row.name, batch_size=batch_size) | {"gate": row.gate}
    sampling = settings.sampling(bundle)
    key = reply_identity(bundle, sampling) | {"gate": row.gate}
    responder = KeptReplies(ModelResponder(bundle, sampling=sampling), out / REPLIES, identity=key)

    def bar(_: str):
        return progress_bar(f"{row.name}, {Path(manifest).stem}")

    return measure_tasks([task], Run(out, identity, bundle), lambda task: responder, progress=bar)[task.name]["all"]


def _trained(row: Row, config: str, runs: Path) -> str:
    """The run directory of a row, trained to its end: one that is finished is only looked at."""
    name = f"ablation_{slug(row.name)}"
    changes = [f"{key}={value}" for key, value in row.set.items()]
    command = [sys.executable, "-m", "train", "--config", config, f"run={name}", f"root={runs}", *changes]
    code = run_command(command)
    if code:
        raise ConfigError(f"{row.name}: training ended with exit code {code}; see above")
    return str(runs / name)


def run_command(command: list[str]) -> int:
    """The exit code of another program, whose output is seen as it comes."""
    return subprocess.run(command, check=False).returncode


def slug(name: str) -> str:
    """A name as a folder's."""
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")


def _cell(numbers: dict[str, Any]) -> str:
    if numbers["score"] is None:
        return shown(None)
    low, high = numbers["score_95"]
    return f"{numbers['score']:.3f} ({low:.3f} to {high:.3f})"
