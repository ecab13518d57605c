"""LLaVA's conversations about pictures, and all sets in the same form (ShareGPT4V, LLaVA-OneVision, ALLaVA, ...).

Files: a .json with a list, or a .jsonl, of {"id", "image": "coco/train2017/000000033471.jpg" (a path, a list of paths,
or absent for talk without a picture), "conversations": [{"from": "human" | "gpt" | "system", "value": "..."}, ...]}.
The pictures are apart: --media is the folder that their paths are in. On the hub, rows with the same fields hold the
picture itself. There are no splits: the file given is all of one.
Licence: CC-BY-4.0 for LLaVA-Instruct-150K (and OpenAI's terms, by whose model it was written); for others, --licence.
Where: hf.co/datasets/liuhaotian/LLaVA-Instruct-150K (llava_instruct_150k.json, llava_v1_5_mix665k.json).

The same id stands for several conversations about one picture, so what is said is part of the key.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_prep.importers.base import Context, Row, field, files, json_or_lines, one_file, parquet_rows, short_hash, text
from data_prep.records import Record
from data_prep.steps import DroppedError
from mmspeech.config import ConfigError

LICENCE = "CC-BY-4.0"
HUB_SPLITS = {"train": "train"}
SPEAKERS = {"human": "user", "user": "user", "gpt": "main", "assistant": "main"}
_TAG = re.compile(r"\s*<image>\s*")


def rows(folder: Path, split: str) -> Iterator[Any]:
    found = files(folder, "*.json", "*.jsonl", "*.parquet", "data/*.parquet")
    if found[0].suffix == ".parquet":
        yield from parquet_rows(found)
    else:
        yield from json_or_lines(one_file(folder, "*.json", "*.jsonl"))


def key(row: Row) -> str:
    shown = row.get("image")
    path = shown.get("path") if isinstance(shown, dict) else shown
    named = str(row.get("id") or "")
    return f"{named}-{short_hash(path, row.get('conversations'))}".removeprefix("-")


def record(row: Row, context: Context) -> Record:
    shown = row.get("image")
    if row.get("video"):
        raise ConfigError("a conversation about a video; this form is known for pictures only")
    pictures = shown if isinstance(shown, list) else [shown] if shown else []
    turns = [turn for turn in map(_turn, field(row, "conversations", list)) if turn]
    if not turns:
        raise DroppedError("empty text")
    if turns[0]["speaker"] != "user":
        raise ConfigError("the conversation begins with the model; expected the human first")
    return context.record(key(row), visuals=[context.picture(one) for one in pictures], turns=turns)


def _turn(told: Any) -> dict[str, str] | None:
    """None for a system prompt, which no one says."""
    who = field(told, "from")
    if who == "system":
        return None
    if who not in SPEAKERS:
        raise ConfigError(f"a turn from '{who}'; expected human, gpt or system")
    return {"speaker": SPEAKERS[who], "text": text(_TAG.sub(" ", field(told, "value")))}
