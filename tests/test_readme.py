"""README is true: its commands are ones the programs take, its first command runs, its file tree is the disk."""

import json
import re
import shlex
import subprocess
from pathlib import Path

import pytest
from command_lines import check

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
GUIDE = (ROOT / "train" / "README.md").read_text(encoding="utf-8")
EMBEDDED = ROOT / "mmspeech" / "pretrained" / "tiny" / "config.json"


def blocks(language: str, *, document: str = README) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", document, flags=re.MULTILINE | re.DOTALL)


def commands(document: str = README) -> list[str]:
    lines = [line for block in blocks("bash", document=document) for line in block.splitlines() if line.strip()]
    return [part.strip() for line in lines for part in line.split("&&")]


def talks() -> list[list[str]]:
    """README's commands that talk with the embedded model in one process, from `talk` on."""
    found = [shlex.split(command)[3:] for command in commands() if "mmspeech talk" in command]
    return [words for words in found if "--tensor-parallel" not in words]


@pytest.mark.parametrize("command", commands() + commands(GUIDE))
def test_every_command_is_one_the_programs_take(command):
    if command == "pip install uv":
        return
    words = shlex.split(command)
    assert words[:2] == ["uv", "run"], f"{command}: README's commands run with uv"
    if words[2:] == ["pytest"]:
        return
    check(words[2:])


@pytest.mark.parametrize("command", re.findall(r"`((?:python|torchrun|accelerate) [^`]+)`", GUIDE))
def test_every_launch_is_one_the_launchers_take(command):
    check(shlex.split(command))


def test_the_first_screen_is_two_commands():
    assert [command.split()[:3] for command in commands()[:4]] == [
        ["pip", "install", "uv"], ["uv", "run", "mmspeech"], ["pip", "install", "uv"], ["uv", "run", "pytest"],
    ]  # fmt: skip
    assert "pip install uv && uv run pytest" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


ANSWERS = {
    "examples/what_colour.wav": "red",
    "examples/right_now.wav": "red circle",
    "examples/which_way.wav": "moves right",
}


@pytest.mark.skipif(not EMBEDDED.is_file(), reason="no embedded model in this checkout")
@pytest.mark.parametrize("words", talks(), ids=" ".join)
def test_talking_as_shown_gives_the_right_answer(words, tmp_path, monkeypatch):
    from typer.testing import CliRunner

    from mmspeech.cli import app

    words = [*words, "--json"]
    for option in {"--out", "--plot"} & set(words):
        place = words.index(option) + 1
        words[place] = str(tmp_path / words[place])
    monkeypatch.chdir(ROOT)
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    assert (tmp_path / "reply.wav").stat().st_size > 10_000
    assert ANSWERS[words[words.index("--audio") + 1]] in json.loads(result.stdout)["text"]


@pytest.mark.skipif(not EMBEDDED.is_file(), reason="no embedded model in this checkout")
@pytest.mark.parametrize("block", blocks("python"))
def test_python_examples_run(block, monkeypatch):
    monkeypatch.chdir(ROOT)
    exec(compile(block, "README.md", "exec"), {})


def test_the_file_tree_is_the_disk():
    tree = next(block for block in blocks("text") if block.startswith("pyproject.toml"))
    listed, top = set(), ""
    for line in tree.splitlines():
        name = line.split()[0]
        top = top if line.startswith(" ") else name
        listed.add(f"{top}/{name}" if line.startswith(" ") else name)
    missing = [name for name in listed if not (ROOT / name).exists()]
    assert not missing, f"README lists what is not there: {missing}"
    kept = [name.split("/") for name in files_of_git()]
    there = {parts[0] for parts in kept if not parts[0].startswith(".")}
    there |= {"/".join(parts[:2]) for parts in kept if parts[0] == "mmspeech"}
    assert there <= listed, f"README lacks {sorted(there - listed)}"


def files_of_git() -> list[str]:
    """The files of the repository: not what README's own commands left beside them. Empty where there is no git."""
    try:
        done = subprocess.run(["git", "-C", str(ROOT), "ls-files"], check=False, capture_output=True, text=True)
    except OSError:
        return []
    return done.stdout.splitlines() if done.returncode == 0 else []


def test_every_number_is_filled_in():
    assert not re.findall(r"TBD[\w-]*", README)


def test_the_licence_is_whole():
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Apache License" in text and "END OF TERMS AND CONDITIONS" in text
