"""`mmspeech config ls | cp`: the configurations that come with the project."""

from pathlib import Path

from rich.console import Console
from rich.table import Table

from mmspeech.presets import copy_preset, list_presets


def run_ls() -> None:
    """Print every configuration with one line on what it is."""
    table = Table("name", "what it is")
    for preset in list_presets():
        table.add_row(preset.name, preset.description)
    Console().print(table)


def run_cp(name: str, dst: Path) -> None:
    """Copy one to edit."""
    Console().print(f"wrote {copy_preset(name, dst)}", highlight=False, soft_wrap=True)
