"""Files of public sets as they are published, small ones, and what became of them when they are imported."""

import csv
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import soundfile
from PIL import Image

from data_prep.import_sets import import_set
from data_prep.records import MOST_CHARACTERS, media_root, parse_record
from data_prep.steps import read_part

HUGE = "x" * (MOST_CHARACTERS + 1)
KANJI = "Ein süßer 犬 🐕 — naïve"
AWAY = "../../etc/passwd"


def png(colour: int = 0) -> bytes:
    held = io.BytesIO()
    Image.new("RGB", (8, 8), (colour, 0, 0)).save(held, "PNG")
    return held.getvalue()


def put(file: Path, data: bytes | str | list | dict | None = None) -> Path:
    """A file: a picture, text, JSON (.json), or lines of JSON (.jsonl)."""
    file.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(data, list | dict) and ".jsonl" in file.name:
        data = "".join(one if isinstance(one, str) else json.dumps(one) + "\n" for one in data)
    elif isinstance(data, list | dict):
        data = json.dumps(data)
    file.write_bytes(data.encode() if isinstance(data, str) else png() if data is None else data)
    return file


def put_parquet(file: Path, rows: list[dict]) -> Path:
    import pyarrow
    import pyarrow.parquet

    file.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    return file


def put_csv(file: Path, rows: list[dict]) -> Path:
    with file.open("w", newline="", encoding="utf-8") as opened:
        written = csv.DictWriter(opened, list(rows[0]))
        written.writeheader()
        written.writerows(rows)
    return file


def put_wav(file: Path, channels: int = 2) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(file, np.zeros((2400, channels), np.float32), 24000)
    return file


def put_tar(file: Path, members: dict[str, bytes]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w") as packed:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            packed.addfile(member, io.BytesIO(data))
    return file


def page(name: int, **more) -> dict:
    return {"questionId": name, "question": "What year?", "image": "documents/x_1.png", "docId": 1,
            "ucsf_document_id": "x", "ucsf_document_page_no": "1", "answers": [KANJI, "1990"]} | more  # fmt: skip


def spoken(words: list, video="video/youtube/a.mp4", begin=10.0, end=20.0) -> list:
    shown = {"type": "video", "video": video, "video_start": begin, "video_end": end}
    asked = {"type": "text", "text": "", "previous": "before", "title": KANJI}
    answer = {"role": "assistant", "content": [{"type": "text_stream", "text_stream": words}]}
    return [{"role": "user", "content": [shown, asked]}, answer]


def imported(name: str, data: Path | str, out: Path, **how) -> tuple[dict, dict]:
    """(records by what stands after the source in their id, what failed or was left out by reason)."""
    tally = import_set(name, str(data), out, **how)
    assert tally.complete
    return outcomes(name, out)


def outcomes(name: str, out: Path) -> tuple[dict, dict]:
    """The same of an import that was done otherwise."""
    parts, number = [], 0
    while (part := read_part(out, number)) is not None:
        parts, number = parts + part, number + 1
    lines = (out / "manifest.jsonl").read_text(encoding="utf-8").splitlines()
    records = [parse_record(json.loads(line), where="manifest") for line in lines]
    for record in records:
        assert record.source == name and all((media_root(out) / path).is_file() for path in record.paths())
    others = {one["id"].partition("/")[2]: one.get("failed") or one["dropped"] for one in parts if "id" in one}
    return {record.id.partition("/")[2]: record for record in records}, others


def said(record) -> list[tuple[str, str]]:
    return [(turn.speaker, turn.text) for turn in record.turns]


def captions(record) -> list[str]:
    return [caption.text for caption in record.captions]
