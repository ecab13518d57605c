"""results.json: the numbers of a run with everything needed to know where they came from."""

import hashlib
import json
import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval.statistics import bootstrap_mean
from eval.task import Settings, Task
from mmspeech.commands.common import whole_file
from mmspeech.config import ConfigError

if TYPE_CHECKING:
    from mmspeech.checkpoint import Bundle

SCHEMA_VERSION = 2
RESULTS, RUN = "results.json", "run.json"
TIMES = "times"  # of results.json: all that differs between two equal runs
_LIBRARIES = ("mmspeech", "torch", "numpy", "pocketsphinx", "jiwer", "pycocoevalcap", "transformers", "timm")


def run_identity(*, settings: Settings, bundle: "Bundle | None", who: str, batch_size: int) -> dict[str, Any]:
    """What must be equal for two runs to give the same numbers on the same machine; `who` answers."""
    return {
        "schema_version": SCHEMA_VERSION,
        "responder": who,
        "limit": settings.limit,
        "seed": settings.seed,
        "batch_size": batch_size,
        "pictures": settings.pictures,
        "recogniser": settings.recogniser,
        "judge": settings.judge,
        "sampling": None if bundle is None else settings.sampling(bundle).model_dump(),
        "sentences_sha256": hashlib.sha256("\n".join(settings.sentences or ()).encode()).hexdigest(),
        "model": None if bundle is None else {"name": bundle.config.name, "sha256": model_hash(bundle.path)},
    }


def task_identity(task: Task) -> dict[str, Any]:
    """The version of a task and the revision of its data: one hash over its files and the ids of its samples."""
    digest = hashlib.sha256()
    for file in task.files:
        digest.update(_file_hash(file).encode())
    for sample in task.samples:
        digest.update(f"{sample.id}\n".encode())
    return {"version": task.version, "data": [str(file) for file in task.files], "revision": digest.hexdigest()[:16]}


def claim(out: Path, identity: dict[str, Any], tasks: dict[str, Any]) -> None:
    """Make `out` this run's folder; ConfigError when it holds another run (only tasks may be added to it)."""
    file = out / RUN
    out.mkdir(parents=True, exist_ok=True)
    if file.is_file():
        before = json.loads(file.read_text(encoding="utf-8"))
        changed = sorted(key for key in identity if before["run"].get(key) != identity[key])
        there = before["tasks"]
        changed += [f"{name} (version or data)" for name, own in tasks.items() if there.get(name, own) != own]
        if changed:
            raise ConfigError(f"{out}: holds another run (different {', '.join(changed)}); choose another --out")
        tasks = there | tasks
    write_json(file, {"run": identity, "tasks": tasks})


def summarise_task(task: Task, records: list[dict[str, Any]]) -> dict[str, Any]:
    """Counts, the numbers of all records, and those of each kind and voice.

    Samples that could not be asked are named and score 0: they stay in the denominator.
    """
    failed = {record["id"]: record["error"] for record in records if "error" in record}
    return {
        "counts": {"samples": len(records), "measured": len(records) - len(failed), "failed": len(failed)},
        "failed": failed,
        "all": _numbers(task, records),
        "by_kind": _grouped(task, records, "kind"),
        "by_voice": _grouped(task, records, "voice"),
    }


def _numbers(task: Task, records: list[dict[str, Any]]) -> dict[str, Any]:
    scores = scores_of(records)
    good = [record for record in records if "error" not in record]
    return {
        "score": sum(scores) / len(scores) if scores else None,
        "score_95": bootstrap_mean(scores),
        "count": len(scores),
        **task.summarise(good),
    }


def scores_of(records: list[dict[str, Any]]) -> list[float]:
    """The scores of records: 0 where a sample failed; those that cannot tell (None) are left out."""
    scores = (0.0 if "error" in record else record["score"] for record in records)
    return [float(score) for score in scores if score is not None]


def _grouped(task: Task, records: list[dict[str, Any]], key: str) -> dict[str, Any]:
    names = sorted({record[key] for record in records})
    if len(names) < 2:
        return {}
    return {name: _numbers(task, [record for record in records if record[key] == name]) for name in names}


def write_results(
    out: Path,
    *,
    identity: dict[str, Any],
    tasks: dict[str, Any],
    missing: dict[str, str],
    spent_sec: dict[str, float],
    bundle: "Bundle | None",
) -> Path:
    """Write results.json, keeping what it holds of other tasks of the same run. missing: why tasks could not run."""
    file = out / RESULTS
    before = read_results(out) if file.is_file() else {"tasks": {}, TIMES: {"spent_sec": {}}}
    results = {
        "schema_version": SCHEMA_VERSION,
        "tasks": {**before["tasks"], **tasks},
        "missing": missing,
        "run": identity,
        "model_config": None if bundle is None else bundle.config.model_dump(mode="json"),
        "hardware": _hardware(),
        "versions": {name: _version(name) for name in _LIBRARIES},
        "commit": _commit(),
        TIMES: {
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "spent_sec": {**before[TIMES]["spent_sec"], **spent_sec},
        },
    }
    write_json(file, results)
    return file


def read_results(out: Path) -> dict[str, Any]:
    """The results of a run's folder. ConfigError when there are none, or none of this schema."""
    file = out / RESULTS
    try:
        results = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise ConfigError(f"{file}: no results of a run ({type(error).__name__}); give the --out of one") from error
    if results.get("schema_version") != SCHEMA_VERSION:
        raise ConfigError(f"{file}: schema {results.get('schema_version')}, expected {SCHEMA_VERSION}; run it again")
    return results


def model_hash(path: Path) -> str:
    """One hash over the files of a checkpoint directory that decide what the model does."""
    digest = hashlib.sha256()
    for file in sorted(path.iterdir()):
        if file.suffix in (".safetensors", ".model") or file.name == "config.json":
            digest.update(f"{file.name} {_file_hash(file)}\n".encode())
    return digest.hexdigest()


def write_json(file: Path, data: dict[str, Any]) -> None:
    """Write atomically, readable, without NaN or infinity (they become null)."""
    text = json.dumps(_finite(data), indent=1, allow_nan=False, ensure_ascii=False)
    with whole_file(file) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if value - value == 0 else None
    if isinstance(value, dict):
        return {key: _finite(child) for key, child in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(child) for child in value]
    return value


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
