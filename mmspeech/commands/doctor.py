"""`mmspeech doctor`: what this machine has, what is missing, and what that would be for."""

import ctypes.util
import os
import platform
import shutil
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mmspeech.checkpoint import CONFIG, EMBEDDED


@dataclass(frozen=True)
class Check:
    """One row: what was looked for, what was found (None: missing), what it is for and how to get it."""

    name: str
    found: str | None
    purpose: str
    remedy: str = ""
    required: bool = False


_PACKAGES = (
    # distribution, module, purpose, remedy
    ("transformers", "transformers", "vision towers named hf:…", "pip install transformers"),
    ("timm", "timm", "vision towers named timm:…", "pip install timm"),
    ("matplotlib", "matplotlib", "talk --plot", "pip install matplotlib"),
    ("datasets", "datasets", "shards: training and data_prep", "pip install 'mmspeech[train]'"),
    ("accelerate", "accelerate", "training", "pip install 'mmspeech[train]'"),
    ("deepspeed", "deepspeed", "ZeRO; --tensor-parallel", "pip install 'mmspeech[train]'"),
    ("peft", "peft", "LoRA", "pip install 'mmspeech[train]'"),
    ("tensorboard", "tensorboard", "training curves", "pip install 'mmspeech[train]'"),
    ("jiwer", "jiwer", "evaluation: word error", "pip install 'mmspeech[eval]'"),
    ("pocketsphinx", "pocketsphinx", "evaluation: recognising replies", "pip install 'mmspeech[eval]'"),
)


def run_doctor() -> int:
    """Print the checks; 0 when everything a conversation needs is there, else 1."""
    checks = [*_machine(), *_optional()]
    table = Table("", "what", "found", "for")
    for check in checks:
        absent = "[red]missing[/red]" if check.required else "[yellow]–[/yellow]"
        table.add_row("[green]ok[/green]" if check.found else absent, check.name, *_texts(check))
    console = Console()
    console.print(table)
    missing = [check for check in checks if check.required and not check.found]
    for check in missing:
        console.print(f"missing: {check.name}, needed for {check.purpose}: {check.remedy}", style="red", markup=False)
    if not missing:
        console.print("everything a conversation needs is here")
    return 1 if missing else 0


def _texts(check: Check) -> tuple[Text, Text]:
    return Text(check.found or check.remedy), Text(check.purpose)


def _machine() -> list[Check]:
    threads = f"{os.cpu_count()} CPUs, torch uses {torch.get_num_threads()} threads"
    return [
        Check("Python", platform.python_version(), "everything", required=True),
        Check("torch", torch.__version__, "everything", required=True),
        Check("CPU", threads, "the small model runs in real time here"),
        Check("CUDA", _cuda(), "large models, training", "no CUDA device"),
        Check("MPS", "yes" if torch.backends.mps.is_available() else None, "large models on Apple machines", "none"),
        Check(
            "embedded model", str(EMBEDDED) if (EMBEDDED / CONFIG).is_file() else None, "commands without --model",
            "reinstall mmspeech, or give --model", required=True,
        ),
    ]  # fmt: skip


def _cuda() -> str | None:
    if not torch.cuda.is_available():
        return None
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return ", ".join(names)


def _optional() -> list[Check]:
    packages = [
        Check(distribution, _version(distribution) if find_spec(module) else None, purpose, remedy)
        for distribution, module, purpose, remedy in _PACKAGES
    ]
    return [
        *packages,
        Check("flite", _library("flite"), "data_prep: voices", "apt install libflite1"),
        Check("espeak-ng", _library("espeak-ng"), "data_prep: voices", "apt install libespeak-ng1"),
        Check("ffmpeg", shutil.which("ffmpeg"), "your own conversions of rare audio formats", "apt install ffmpeg"),
    ]


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "installed"


def _library(name: str) -> str | None:
    return ctypes.util.find_library(name)
