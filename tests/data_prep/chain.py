"""A small chain (records -> calls -> codes -> shards) in a process of its own, to be killed."""

import json
from pathlib import Path

from PIL import Image

from data_prep import encode as encode_module
from data_prep import speak as speak_module
from data_prep.conversation import Manners
from data_prep.encode import encode
from data_prep.pack import pack
from data_prep.records import Record, SaidRecord, SeenRecord, write_records
from data_prep.speak import SpeakSettings, speak
from data_prep.steps import How

SAID = ("What is it?", "A red bus.", "How many?", "Just one, I think.")


def make_records(folder: Path, count: int = 8) -> Path:
    """A set of records with pictures and turns."""
    folder.mkdir(parents=True)
    made = []
    for number in range(count):
        Image.new("RGB", (16, 16), (number * 20, 0, 0)).save(folder / f"{number}.png")
        turns = [SaidRecord(speaker="main" if n % 2 else "user", text=text) for n, text in enumerate(SAID)]
        seen = (SeenRecord(path=f"{number}.png"),)
        made.append(Record(id=f"s/{number}", source="s", licence="CC0-1.0", visuals=seen, turns=tuple(turns)))
    write_records(folder, made, root=folder)
    return folder


def run_chain(data: Path, codec: Path, out: Path, shard: tuple[int, int] = (0, 1)) -> None:
    """All steps, in chunks of two or three."""
    speak_module.CHUNK_ITEMS, encode_module.CHUNK_ITEMS = 2, 3
    how = How(shard=shard)
    settings = SpeakSettings(voices="flite", manners=Manners(start_sec=(0.0, 0.2), end_sec=(0.1, 0.2)))
    speak(data, out / "calls", settings, how=how)
    encode(data=out / "calls", codec_dir=codec, out=out / "codes", how=how)
    pack(data=out / "calls", codes=out / "codes", out=out / "shards", how=how, calls_per_file=3)


def shards_of(out: Path) -> dict[str, bytes]:
    """The files of the finished set."""
    assert json.loads((out / "shards" / "shards.json").read_text())["calls"]
    return {file.name: file.read_bytes() for file in sorted((out / "shards").iterdir())}
