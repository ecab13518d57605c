"""The tasks by name; one task, one file."""

from importlib import import_module

from eval.task import TaskBuilder
from mmspeech.config import ConfigError

NAMES = ("spoken_vqa", "codec_resynthesis")


def find(name: str) -> TaskBuilder:
    """The builder of a task; ConfigError lists the names there are."""
    if name not in NAMES:
        raise ConfigError(f"unknown task {name!r}; expected one of {', '.join(NAMES)}")
    return import_module(f"eval.tasks.{name}").build
