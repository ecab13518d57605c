"""`python -m eval.full_duplex_bench RUN OUT`: replies of a run's duplex task in the file layout that the scripts of
Full-Duplex-Bench read, so that its own numbers can be had of them.

For each sample a folder KIND/ID: input.wav (the user), output.wav (the model, from the same moment on), output.json
(the model's words with their times) and a json with the times of the user's turn. Its scripts and data are not here:
their licence (CC BY-NC 4.0) does not allow it.
"""

import json
import re
from pathlib import Path
from typing import Annotated, Any

import soundfile
import typer

from eval.console import told_errors
from eval.run import SAMPLES, read_records
from mmspeech.config import ConfigError

FOLDERS = {
    "pause": "pause_handling",
    "turn taking": "smooth_turn_taking",
    "interruption": "user_interruption",
    "long turn": "backchannel",
}
_LAST_WORD_SEC = 0.3


def export(run: Path, out: Path) -> int:
    """Write all kept replies of the duplex task; returns how many. ConfigError when the run has none."""
    records = [r for r in read_records(run / SAMPLES) if r["task"] == "duplex" and "audio" in r and "asked" in r]
    if not records:
        raise ConfigError(f"{run / SAMPLES}: no replies of the task duplex; run python -m eval --tasks duplex first")
    for record in records:
        folder = out / FOLDERS[record["kind"]] / re.sub(r"[^A-Za-z0-9]+", "_", record["id"])
        folder.mkdir(parents=True, exist_ok=True)
        for name, file in (("input.wav", record["asked"]), ("output.wav", record["audio"])):
            wave, rate_hz = soundfile.read(str(run / file))
            soundfile.write(str(folder / name), wave, rate_hz, subtype="PCM_16")
        _write(folder / "output.json", _transcript(record["words"]))
        for name, told in _user_turn(record).items():
            _write(folder / name, told)
    return len(records)


def _transcript(words: list[dict[str, Any]]) -> dict[str, Any]:
    """Words with their times; a word ends where the next begins, and at the latest after _LAST_WORD_SEC."""
    starts = [word["start_sec"] for word in words]
    ends = [
        min(start + _LAST_WORD_SEC, after) for start, after in zip(starts, [*starts[1:], float("inf")], strict=True)
    ]
    chunks = [
        {"text": word["text"], "timestamp": [start, round(end, 3)]}
        for word, start, end in zip(words, starts, ends, strict=True)
    ]
    return {"text": " ".join(word["text"] for word in words), "chunks": chunks}


def _user_turn(record: dict[str, Any]) -> dict[str, Any]:
    end_sec = record["user_end_sec"]
    if record["kind"] == "interruption":
        times = [record["barge_start_sec"], end_sec]
        return {"interrupt.json": [{"context": "", "interrupt": record["question"], "timestamp": times}]}
    if record["kind"] == "pause":
        return {"pause.json": [{"text": record["question"], "timestamp": record["pause_sec"]}]}
    return {"turn_taking.json": [{"text": record["question"], "timestamp": [0.0, end_sec]}]}


def _write(file: Path, told: Any) -> None:
    file.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")


def main(
    run: Annotated[Path, typer.Argument(help="--out of a run of python -m eval")],
    out: Annotated[Path, typer.Argument(help="folder to write to")],
) -> None:
    """Write what the scripts of Full-Duplex-Bench read."""
    with told_errors():
        typer.echo(f"{out}: {export(run, out)} samples")


if __name__ == "__main__":
    typer.run(main)
