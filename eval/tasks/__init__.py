"""The tasks by name; one task, one file."""

from importlib import import_module
from pkgutil import iter_modules

from eval.task import TaskBuilder
from mmspeech.config import ConfigError

NAMES = tuple(sorted(module.name for module in iter_modules(__path__)))


def find(name: str) -> TaskBuilder:
    """The builder of a task; ConfigError lists the names there are."""
    if name not in NAMES:
        raise ConfigError(f"unknown task {name!r}; expected one of {', '.join(NAMES)}, or all")
    return import_module(f"eval.tasks.{name}").build


def describe(name: str) -> str:
    """The first line of a task's docstring."""
    return (import_module(f"eval.tasks.{name}").__doc__ or "").strip().splitlines()[0]
