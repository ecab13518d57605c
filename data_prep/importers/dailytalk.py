"""DailyTalk: everyday dialogues, read by two people, each turn a recording of its own.

Files: metadata.json {"<dialogue>": {"<turn>": {"text", "speaker": 0 | 1, "emotion", "act", "topic", ...}}} and
data/<dialogue>/<turn>_<speaker>_d<dialogue>.wav, with the text in a .txt beside it too. Speaker 0 is the user here, 1
the model. A dialogue in which a turn has no recording fails.
Licence: CC-BY-SA-4.0. Where: github.com/keonlee9420/DailyTalk. No splits.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_prep.importers.base import Context, Row, field, json_pairs, one_file, text, told
from data_prep.records import Record
from data_prep.steps import DroppedError
from mmspeech.config import ConfigError

LICENCE = "CC-BY-SA-4.0"
SPEAKERS = {"0": "user", "1": "main"}


def rows(folder: Path, split: str) -> Iterator[Row]:
    for dialogue, turns in json_pairs(one_file(folder, "metadata.json")):
        yield {"dialogue": dialogue, "turns": turns}


def key(row: Row) -> str:
    return row["dialogue"]


def record(row: Row, context: Context) -> Record:
    told_turns = field(row, "turns", dict)
    if not told_turns:
        raise DroppedError("empty text")
    numbers = sorted(told_turns, key=int)
    turns = [_turn(context, row["dialogue"], number, told_turns[number]) for number in numbers]
    first = told_turns[numbers[0]]
    emotions = [told_turns[number].get("emotion") for number in numbers]
    return context.record(key(row), turns=turns, meta=told({"topic": first.get("topic"), "emotions": emotions}))


def _turn(context: Context, dialogue: str, number: str, turn: Any) -> dict[str, str]:
    speaker = str(field(turn, "speaker", (int, str)))
    if speaker not in SPEAKERS:
        raise ConfigError(f"turn {number}: speaker {speaker!r}; expected 0 or 1")
    name = f"{number}_{speaker}_d{dialogue}"
    audio = context.find(f"data/{dialogue}/{name}.wav", f"{dialogue}/{name}.wav")
    return {"speaker": SPEAKERS[speaker], "text": text(field(turn, "text")), "audio": audio}
