"""results.json: the numbers of a run with everything needed to know where they came from."""

import hashlib
import json
import os
import platform
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval.task import Settings, Task
from mmspeech.config import ConfigError

if TYPE_CHECKING:
    from mmspeech.checkpoint import Bundle

SCHEMA_VERSION = 1
RESULTS, RUN = "results.json", "run.json"
_LIBRARIES = ("mmspeech", "torch", "numpy", "pocketsphinx", "jiwer", "transformers", "timm")


def run_identity(*, settings: Settings, bundle: "Bundle | None", batch_size: int, tasks: list[Task]) -> dict[str, Any]:
    """What must be equal for two runs to give the same numbers on the same machine."""
    return {
        "schema_version": SCHEMA_VERSION,
        "tasks": {task.name: task.version for task in tasks},
        "manifest": {"path": str(settings.manifest), "sha256": _file_hash(settings.manifest)},
        "limit": settings.limit,
        "seed": settings.seed,
        "batch_size": batch_size,
        "pictures": settings.pictures,
        "sampling": _sampling(settings, bundle),
        "sentences_sha256": hashlib.sha256("\n".join(settings.sentences or ()).encode()).hexdigest(),
        "model": None if bundle is None else {"name": bundle.config.name, "sha256": model_hash(bundle.path)},
    }


def claim(out: Path, identity: dict[str, Any]) -> None:
    """Make `out` this run's folder; ConfigError when it holds another run (only tasks may be added to it)."""
    file = out / RUN
    out.mkdir(parents=True, exist_ok=True)
    if file.is_file():
        before = json.loads(file.read_text(encoding="utf-8"))
        changed = sorted(key for key in identity if key != "tasks" and before.get(key) != identity[key])
        versions = before.get("tasks", {})
        changed += [name for name, number in identity["tasks"].items() if versions.get(name, number) != number]
        if changed:
            raise ConfigError(f"{out}: holds another run (different {', '.join(changed)}); choose another --out")
        identity = {**identity, "tasks": {**versions, **identity["tasks"]}}
    write_json(file, identity)


def summarise_task(task: Task, records: list[dict[str, Any]]) -> dict[str, Any]:
    """Counts, the numbers of all records, and those of each kind and voice. Failed lines are named, never dropped."""
    good = [record for record in records if "error" not in record]
    failed = {record["id"]: record["error"] for record in records if "error" in record}
    return {
        "version": task.version,
        "counts": {"lines": len(records), "measured": len(good), "failed": len(failed)},
        "failed": failed,
        "all": task.summarise(good),
        "by_kind": _grouped(task.summarise, good, "kind"),
        "by_voice": _grouped(task.summarise, good, "voice"),
    }


def _grouped(
    summarise: Callable[[list[dict[str, Any]]], dict[str, Any]], records: list[dict[str, Any]], key: str
) -> dict[str, Any]:
    names = sorted({record[key] for record in records})
    return {name: summarise([r for r in records if r[key] == name]) for name in names} if len(names) > 1 else {}


def write_results(out: Path, *, identity: dict[str, Any], tasks: dict[str, Any], bundle: "Bundle | None") -> Path:
    """Write results.json, keeping what it holds of other tasks of the same run."""
    file = out / RESULTS
    before = json.loads(file.read_text(encoding="utf-8"))["tasks"] if file.is_file() else {}
    results = {
        "schema_version": SCHEMA_VERSION,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "tasks": {**before, **tasks},
        "run": identity,
        "model_path": None if bundle is None else str(bundle.path),
        "model_config": None if bundle is None else bundle.config.model_dump(mode="json"),
        "hardware": _hardware(),
        "versions": {name: _version(name) for name in _LIBRARIES},
        "commit": _commit(),
    }
    write_json(file, results)
    return file


def model_hash(path: Path) -> str:
    """One hash over the files of a checkpoint directory that decide what the model does."""
    digest = hashlib.sha256()
    for file in sorted(path.iterdir()):
        if file.suffix in (".safetensors", ".model") or file.name == "config.json":
            digest.update(f"{file.name} {_file_hash(file)}\n".encode())
    return digest.hexdigest()


def write_json(file: Path, data: dict[str, Any]) -> None:
    """Write atomically, readable, without NaN or infinity (they become null)."""
    temporary = file.with_suffix(".tmp")
    text = json.dumps(_finite(data), indent=1, allow_nan=False, ensure_ascii=False)
    temporary.write_text(text + "\n", encoding="utf-8")
    temporary.replace(file)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if value - value == 0 else None
    if isinstance(value, dict):
        return {key: _finite(child) for key, child in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(child) for child in value]
    return value


def _sampling(settings: Settings, bundle: "Bundle | None") -> dict[str, Any] | None:
    chosen = settings.sampling or (None if bundle is None else bundle.config.generation)
    return None if chosen is None else chosen.model_dump()


def _file_hash(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _hardware() -> dict[str, Any]:
    import torch

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"machine": platform.machine(), "cpus": os.cpu_count(), "threads": torch.get_num_threads(), "gpu": gpu}


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None
