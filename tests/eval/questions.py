"""Small question sets of tones, and tasks over them, for the tests of the harness."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from eval.measure import Run, measure_tasks
from eval.results import run_identity
from eval.scripted import Scripted
from eval.task import Settings
from mmspeech.audio.waveform import write_wav

RATE_HZ = 24_000
QUESTION_SEC = 1.0
COLOURS = ("red", "blue", "green", "yellow")


def write_questions(folder: Path, *, count: int = 6, name: str = "m", **extra: object) -> Path:
    """A manifest of `count` questions, each a tone, about colours and numbers."""
    lines = []
    for number in range(count):
        write_wav(folder / f"{name}{number}.wav", 0.1 * np.ones(RATE_HZ * (1 + number % 2)), RATE_HZ)
        line = {
            "id": f"{name}{number}",
            "audio": f"{name}{number}.wav",
            "question": "what colour is the circle",
            "answers": [COLOURS[number % len(COLOURS)]],
            "kind": ("colour", "count")[number % 2],
            "voice": "v",
            "question_end_sec": QUESTION_SEC,
            "anything_else": 1,
        }
        lines.append(line | extra)
    return save(folder / f"{name}.jsonl", lines)


def question_sets(data: Path, **counts: int) -> Path:
    """The folder of sets in a folder of data, with so many questions in each set."""
    folder = data / "questions"
    folder.mkdir()
    for name, count in counts.items():
        write_questions(folder, count=count, name=name)
    return folder


def save(path: Path, lines: list[dict]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def lines_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def measure(task, out: Path, *, who="oracle", settings: Settings | None = None, batch_size: int = 2) -> dict:
    """Run a task to the end, as the command does; `who` is a script's name or a responder. Returns its summary."""
    settings = settings or Settings()
    responder = Scripted(who, task) if isinstance(who, str) else who
    identity = run_identity(settings=settings, bundle=None, who="a script", batch_size=batch_size)
    return measure_tasks([task], Run(out, identity), lambda task: responder)[task.name]


def sound_cell(seconds: float = 0.5, rate_hz: int = 16_000) -> dict:
    """A recording as the cell of a public parquet file holds it."""
    buffer = io.BytesIO()
    soundfile.write(buffer, 0.1 * np.ones(int(seconds * rate_hz)), rate_hz, format="WAV")
    return {"bytes": buffer.getvalue(), "path": None}


def write_parquet(file: Path, rows: list[dict], *, group_rows: int = 2) -> None:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    file.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.Table.from_pylist(rows), file, row_group_size=group_rows)
