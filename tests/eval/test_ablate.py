"""The table of ablations: forced gates, pictures taken away, and rows that are trained first."""

import shutil
from pathlib import Path

import pytest
import torch
import yaml
from questions import write_questions
from rich.console import Console

from eval import ablate
from eval.ablate import Places, forced_gates, slug
from eval.ablate import ablate as run_plan
from eval.task import Settings
from mmspeech.config import ConfigError
from mmspeech.serve.session import Session

QUICK = Settings(recogniser="none")


@pytest.fixture
def data(tmp_path):
    from PIL import Image

    folder = tmp_path / "data" / "questions"
    folder.mkdir(parents=True)
    Image.new("RGB", (32, 32), "red").save(folder / "p.png")
    write_questions(folder, count=2, name="known", image="p.png")
    return tmp_path / "data"


def plan_of(tmp_path, *rows, **extra):
    file = tmp_path / "plan.yaml"
    file.write_text(yaml.safe_dump({"columns": {"pictures": "questions/known.jsonl"}, "rows": list(rows)} | extra))
    return file


def said(bundle, picture):
    session = Session(bundle, seed=3, picture=picture)
    torch.manual_seed(0)
    return torch.stack([session.step(0.1 * torch.randn(1920)).pcm for _ in range(8)])


def test_closed_gates_are_no_eyes_and_hooks_go_away(small_bundle):
    from PIL import Image

    picture = Image.new("RGB", (32, 32), "blue")
    learned, blind = said(small_bundle, picture), said(small_bundle, None)
    with forced_gates(small_bundle, "closed"):
        closed = said(small_bundle, picture)
    with forced_gates(small_bundle, "open"):
        opened = said(small_bundle, picture)
    assert torch.equal(closed, blind) and not torch.equal(learned, opened)
    assert torch.equal(said(small_bundle, picture), learned)


def test_each_row_is_a_condition(small_checkpoint, data, tmp_path):
    model = str(small_checkpoint)
    rows = [
        {"name": "as it is", "model": model},
        {"name": "gate open", "model": model, "gate": "open"},
        {"name": "gate closed", "model": model, "gate": "closed"},
        {"name": "picture gone", "model": model, "pictures": "none"},
    ]
    console = Console(record=True, width=140)
    places = Places(data, None, tmp_path / "out")
    found = run_plan(plan_of(tmp_path, *rows), places, QUICK, batch_size=2, console=console)
    assert [row[0] for row in found] == [row["name"] for row in rows]
    gates = {row[0]: row[2] for row in found if row[2] is not None}
    assert gates.get("gate open", 1.0) == 1.0 and gates.get("gate closed", 0.0) == 0.0
    assert "| gate open" in console.export_text()
    again = run_plan(plan_of(tmp_path, *rows), places, QUICK, batch_size=2, console=console)
    assert again == found


def test_rows_that_are_trained_run_the_trainer_with_their_change(small_checkpoint, data, tmp_path, monkeypatch):
    commands = []

    def train(command):
        commands.append(command)
        run = next(word.removeprefix("run=") for word in command if word.startswith("run="))
        shutil.copytree(small_checkpoint, tmp_path / "runs" / run)
        return 0

    monkeypatch.setattr(ablate, "run_command", train)
    plan = plan_of(tmp_path, {"name": "A, 0 %", "set": {"data.x.weight": 0.0}}, train="configs/train/ablation.yaml")
    places = Places(data, tmp_path / "runs", tmp_path / "out")
    (row,) = run_plan(plan, places, QUICK, batch_size=2, console=Console())
    assert row[0] == "A, 0 %" and slug(row[0]) == "a_0"
    assert commands[0][-3:] == ["run=ablation_a_0", f"root={tmp_path / 'runs'}", "data.x.weight=0.0"]
    monkeypatch.setattr(ablate, "run_command", lambda command: 2)
    with pytest.raises(ConfigError, match="A, 0 %: training ended with exit code 2"):
        run_plan(plan, places, QUICK, batch_size=2, console=Console())


def test_what_cannot_be_run_is_told(small_checkpoint, data, tmp_path):
    places = Places(data, None, tmp_path / "out")
    trained = plan_of(tmp_path, {"name": "a", "set": {}}, train="x.yaml")
    console = Console(record=True, width=140)
    assert run_plan(trained, places, QUICK, batch_size=2, console=console) == []
    assert "a: left out" in console.export_text()
    with pytest.raises(ConfigError, match="need `train`"):
        run_plan(plan_of(tmp_path, {"name": "a", "set": {}}), places, QUICK, batch_size=2, console=console)
    with pytest.raises(ConfigError, match="gate"):
        run_plan(plan_of(tmp_path, {"name": "a", "gate": "ajar"}), places, QUICK, batch_size=2, console=console)


def test_the_plan_that_ships_names_what_is_there():
    root = Path(__file__).resolve().parents[2]
    plan = ablate.load_config(ablate.Plan, root / "configs/eval/ablation.yaml")
    from train.settings import TrainConfig

    for row in plan.rows:
        if row.set is not None:
            words = [f"{key}={value}" for key, value in row.set.items()]
            ablate.load_config(TrainConfig, root / plan.train, overrides=words)
