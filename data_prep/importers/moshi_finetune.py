"""Calls in the form of moshi-finetune: recordings of two who talk, with the times of words.

Files: a .jsonl of {"path": "data_stereo/1.wav", "duration": 24.5}, paths relative to it; each a stereo wav (left the
model, right the user) with a .json beside it, {"alignments": [[word, [start_sec, end_sec], "SPEAKER_MAIN" |
"SPEAKER_USER"], ...]} (its annotate.py writes the words of the left only).
Licence: whoever made the recordings; --licence says which (kyutai/DailyTalkContiguous: CC-BY-SA-4.0).
Where: the form, github.com/kyutai-labs/moshi-finetune; a set, hf.co/datasets/kyutai/DailyTalkContiguous. No splits.
"""

import json
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from data_prep.calls import SPEAKERS
from data_prep.importers.base import Context, Row, field, json_lines, one_file, told
from data_prep.records import UNKNOWN_LICENCE, Record
from mmspeech.config import ConfigError

LICENCE = UNKNOWN_LICENCE
CHANNELS = 2


def rows(folder: Path, split: str) -> Iterator[Any]:
    yield from json_lines(one_file(folder, "*.jsonl"))


def key(row: Row) -> str:
    return PurePosixPath(field(row, "path")).with_suffix("").as_posix()


def record(row: Row, context: Context) -> Record:
    import soundfile

    path = context.find(field(row, "path"))
    channels = soundfile.info(context.media_root / path).channels
    if channels != CHANNELS:
        raise ConfigError(f"{path}: {channels} channel(s); expected stereo, the model left and the user right")
    beside = context.find(PurePosixPath(path).with_suffix(".json").as_posix())
    spoken = json.loads((context.media_root / beside).read_text(encoding="utf-8"))
    words = [_word(one) for one in field(spoken, "alignments", list)]
    words = sorted((word for word in words if word["text"]), key=lambda word: word["start_sec"])
    meta = {name: value for name, value in spoken.items() if name != "alignments"}
    return context.record(key(row), audio=path, words=words, meta=told(meta | {"duration": row.get("duration")}))


def _word(told: Any) -> dict[str, Any]:
    try:
        word, (start_sec, end_sec), speaker = told
        times = {"start_sec": float(start_sec), "end_sec": float(end_sec)}
        return {"text": word.strip(), "speaker": SPEAKERS[speaker]} | times
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ConfigError(f"alignments: expected [word, [start, end], speaker], got {str(told)[:60]}") from error
