"""The configurations that come with the project: in a clone under configs/, in a wheel inside the package."""

import shutil
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from mmspeech.config import ConfigError, read_mapping

PACKAGE = Path(__file__).resolve().parent
SUFFIXES = (".yaml", ".json")


@dataclass(frozen=True)
class Preset:
    """`name` as `mmspeech config cp` takes it (train/tiny_lm), its file, and one line on what it is."""

    name: str
    path: Path
    description: str


def presets_dir() -> Path:
    """Where the configurations lie. Raises ConfigError when the installation lacks them."""
    for folder in (PACKAGE / "configs", PACKAGE.parent / "configs"):
        if (folder / "model").is_dir():
            return folder
    raise ConfigError(f"{PACKAGE}: no configurations beside the package; install mmspeech again")


def list_presets() -> list[Preset]:
    """Every configuration, by folder and name."""
    root = presets_dir()
    files = [path for path in sorted(root.rglob("*")) if path.suffix in SUFFIXES]
    return [Preset(_name(path, root), path, _describe(path)) for path in files]


def find_preset(name: str) -> Preset:
    """By name, with or without `configs/` in front and a suffix behind. Raises ConfigError naming the nearest."""
    presets = {preset.name: preset for preset in list_presets()}
    wanted = Path(name.removeprefix("configs/"))
    wanted = (wanted.with_suffix("") if wanted.suffix in SUFFIXES else wanted).as_posix()
    if wanted not in presets:
        near = get_close_matches(wanted, presets, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else "`mmspeech config ls` lists them"
        raise ConfigError(f"{name}: no such configuration; {hint}")
    return presets[wanted]


def copy_preset(name: str, dst: Path) -> Path:
    """Copy one to `dst` (a new file, or a folder to put it in). Raises ConfigError instead of replacing a file."""
    preset = find_preset(name)
    target = dst / preset.path.name if dst.is_dir() else dst
    if target.exists():
        raise ConfigError(f"{target}: is there already; choose another name or remove it")
    if target.suffix != preset.path.suffix:
        raise ConfigError(f"{target}: expected a name that ends in {preset.path.suffix}")
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(preset.path, target)
    return target


def find_file(path: str) -> Path:
    """A file as named; one of `configs/...` that is not below the working directory comes from the installation."""
    if Path(path).is_file() or not path.startswith("configs/"):
        return Path(path)
    return find_preset(path).path


def _name(path: Path, root: Path) -> str:
    return path.relative_to(root).with_suffix("").as_posix()


def _describe(path: Path) -> str:
    """The first line of a YAML file when it is a comment; JSON has none and is told by what it sets."""
    if path.suffix == ".json":
        zero = read_mapping(path).get("zero_optimization", {})
        away = [what for what in ("optimizer", "param") if f"offload_{what}" in zero]
        return f"DeepSpeed: ZeRO stage {zero.get('stage', 0)}" + "".join(f", {what} on the host" for what in away)
    line = path.read_text(encoding="utf-8").split("\n", 1)[0]
    return line.removeprefix("#").strip() if line.startswith("#") else ""
