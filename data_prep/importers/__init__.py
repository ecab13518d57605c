"""Importers of public sets, by name. What an importer is: data_prep/importers/base.py."""

import importlib
from types import ModuleType

from mmspeech.config import ConfigError

_PLACE = "data_prep.importers"
NAMES = {
    "llava": f"{_PLACE}.llava",
    "coco": f"{_PLACE}.coco",
    "vqav2": f"{_PLACE}.vqav2",
    "ocrvqa": f"{_PLACE}.ocrvqa",
    "docci": f"{_PLACE}.docci",
    "pixmo-cap": f"{_PLACE}.pixmo_cap",
    "pixelprose": f"{_PLACE}.pixelprose",
    "tallyqa": f"{_PLACE}.tallyqa",
    "docvqa": f"{_PLACE}.docvqa",
    "rendered-text": f"{_PLACE}.rendered_text",
    "webvid": f"{_PLACE}.webvid",
    "livecc": f"{_PLACE}.livecc",
    "moshi-finetune": f"{_PLACE}.moshi_finetune",
    "dailytalk": f"{_PLACE}.dailytalk",
}


def find(name: str) -> ModuleType:
    """The importer of a set. ConfigError for a name that is none."""
    if name not in NAMES:
        raise ConfigError(f"no importer '{name}'; there are {', '.join(NAMES)}")
    return importlib.import_module(NAMES[name])


def describe(name: str) -> str:
    """What a set is, in a line."""
    return (find(name).__doc__ or "").strip().splitlines()[0]
