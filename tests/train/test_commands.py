"""The programs of train/: one line and exit code 2 for what the user can mend; the rebuild goes on."""

import sys
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
STAGES = {
    "train.__main__": "tiny_lm",
    "train.codec": "tiny_codec",
    "train.tower": "tiny_tower",
    "train.window_tower": "tiny_window",
    "train.rebuild": "tiny",
}


def run(program: str, monkeypatch, *args) -> int:
    """The exit status of `python -m program args`, in this process."""
    monkeypatch.setattr(sys, "argv", [program, *map(str, args)])
    try:
        return import_module(program).main() or 0
    except SystemExit as end:
        return end.code or 0


def assert_one_line(capsys, *mentions):
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.startswith("error: ") and printed.err.count("\n") == 1, printed
    for mention in mentions:
        assert str(mention) in printed.err


@pytest.mark.parametrize("program", STAGES)
def test_bad_configurations(program, monkeypatch, capsys, tmp_path):
    extra = ("--root", tmp_path / "root") if program == "train.rebuild" else ()
    assert run(program, monkeypatch, "--config", tmp_path / "none.yaml", *extra) == 2
    assert_one_line(capsys, tmp_path / "none.yaml", "no such configuration file")
    good = (ROOT / "configs" / "train" / f"{STAGES[program]}.yaml").read_text()
    (tmp_path / "typo.yaml").write_text(good + "\nno_such_key: 1\n")
    assert run(program, monkeypatch, "--config", tmp_path / "typo.yaml", *extra) == 2
    assert_one_line(capsys, tmp_path / "typo.yaml", "unknown key 'no_such_key'")
    assert {path.name for path in tmp_path.iterdir()} == {"typo.yaml"}


@pytest.mark.parametrize(
    ("program", "overrides", "message"),
    [
        ("train.__main__", ["root={}", "init.codec=none", "max_steps=1"], "none"),
        ("train.__main__", ["root={}", "max_steps=[1"], "not valid YAML"),
        ("train.codec", ["manifests=[{}/none.jsonl]", "out={}/out"], "no such manifest"),
        ("train.tower", ["scenes={}/none", "held_out={}/none", "out={}/out"], "no scene pairs"),
        ("train.window_tower", ["tower={}/none", "out={}/out"], "none: no safetensors file there"),
    ],
)
def test_data_that_is_not_there(program, overrides, message, monkeypatch, capsys, tmp_path):
    config = ROOT / "configs" / "train" / f"{STAGES[program]}.yaml"
    monkeypatch.chdir(ROOT)
    assert run(program, monkeypatch, "--config", config, *(text.format(tmp_path) for text in overrides)) == 2
    assert_one_line(capsys, message)


def test_a_rebuild_goes_on_after_the_step_that_failed(monkeypatch, capsys, tmp_path):
    """Steps are real processes; `json.tool` copies a file and fails while it is not there."""
    (tmp_path / "a.json").write_text("{}")
    copy = "json.tool {root}/%s.json {root}/%s.json"
    steps = "".join(
        f"  - {{name: {n}, run: '{copy % (a, b)}'}}\n" for n, a, b in (("one", "a", "b"), ("two", "c", "d"))
    )
    (tmp_path / "steps.yaml").write_text("steps:\n" + steps)
    args = ("--config", tmp_path / "steps.yaml", "--root", tmp_path)
    assert run("train.rebuild", monkeypatch, *args) == 2
    assert "step two ended with status 2" in capsys.readouterr().err
    (tmp_path / "b.json").unlink()
    (tmp_path / "c.json").write_text("{}")
    assert run("train.rebuild", monkeypatch, *args) == 0
    assert "one: done before" in capsys.readouterr().err
    assert (tmp_path / "d.json").is_file() and not (tmp_path / "b.json").exists()
