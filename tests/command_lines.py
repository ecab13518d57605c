"""Is a command line in a document one that the programs would take? Asked of each program's own help."""

import contextlib
import io
import os
import re
import runpy
import sys
import warnings
from pathlib import Path
from unittest import mock

ROOT = Path(__file__).resolve().parent.parent
VERBS = ("mmspeech", "mmspeech.cli", "data_prep", "eval")  # a first word that is no option is a verb with its own
LAUNCHERS = {"torchrun": "torch.distributed.run", "accelerate": "accelerate.commands.launch"}
OUR_FOLDERS = ("configs/", "examples/", "tests/")


def check(words: list[str]) -> None:
    """Raise AssertionError when the program, the verb, an option or a file of ours does not exist.

    `words` starts with mmspeech, with python -m and the name of a module, or with a launcher that is given -m.
    """
    if words[0] in LAUNCHERS:
        module = words.index("-m")
        check(["python", "-m", LAUNCHERS[words[0]], *(word for word in words[1:module] if word != "launch")])
        words = ["python", *words[module:]]
    program, rest = (words[0], words[1:]) if words[0] != "python" else (words[2], words[3:])
    verb = rest[:1] if program in VERBS and not rest[0].startswith("-") else []
    known = set(re.findall(r"--[a-z][a-z_-]*", help_text(program, verb)))
    for word in rest[len(verb) :]:
        option = word.partition("=")[0]
        assert not option.startswith("--") or option in known, f"{' '.join(words)}: no option {option}"
        value = word.rpartition("=")[2]
        if value.startswith(OUR_FOLDERS):
            assert (ROOT / value).exists(), f"{' '.join(words)}: {value} does not exist"


def help_text(program: str, verb: list[str]) -> str:
    """What `python -m program verb --help` prints, without a new process."""
    module = "mmspeech.cli" if program == "mmspeech" else program
    printed = io.StringIO()
    with (
        mock.patch.object(sys, "argv", [program, *verb, "--help"]),
        mock.patch.dict(os.environ, {"COLUMNS": "200", "TERM": "dumb"}),
        contextlib.redirect_stdout(printed),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")  # runpy: the module is imported already
        try:
            runpy.run_module(module, run_name="__main__", alter_sys=False)
        except SystemExit as end:
            assert not end.code, f"python -m {program} {' '.join(verb)} --help failed"
    return printed.getvalue()
