"""The manifest of a task: one JSON object per line, with paths relative to the manifest's folder."""

import json
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError

from mmspeech.config import ConfigError


class Event(BaseModel):
    """Something the model was asked to tell when it happens: when, in seconds of the call, and what says so."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    at_sec: float = Field(ge=0)
    answers: tuple[Annotated[str, Field(min_length=1)], ...] = Field(min_length=1)


class Line(BaseModel):
    """One spoken question. Keys not listed here are allowed and ignored.

    `image` is seen from the start; `video` is a clip of which `fps` frames a second are seen from `start_sec` on, or a
    .json of [seconds, picture] pairs (see mmspeech.vision.timeline).
    `answers`: what a right reply holds; `rejected`: what it must not hold (for the answer "left": "top left").
    `reply`: what the data's own speaker would answer; it tells the recogniser which words to expect.
    `question_end_sec`: when the last question ends (the file's end if absent); `barge_start_sec`: when the user
    starts to talk over the model. `events`: what the model was asked to tell (then `answers` is what it agrees with).
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    id: str = ""
    audio: Path
    image: Path | None = None
    video: Path | None = None
    fps: float = Field(2.0, gt=0)
    start_sec: float = Field(0.0, ge=0)
    question: str = ""
    answers: tuple[Annotated[str, Field(min_length=1)], ...] = Field(min_length=1)
    rejected: tuple[str, ...] = ()
    reply: str | None = None
    kind: str = "all"
    voice: str = "all"
    question_end_sec: float | None = Field(None, ge=0)
    barge_start_sec: float | None = Field(None, ge=0)
    events: tuple[Event, ...] = ()


class Spoken(BaseModel):
    """A recording and its words (`text`, or else `question`), for tasks that only listen.

    `channel` None: all channels, averaged. `start_sec`, `end_sec`: the part of the file that is meant.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    id: str = ""
    audio: Path
    text: str = Field(min_length=1, validation_alias=AliasChoices("text", "question"))
    kind: str = "all"
    voice: str = "all"
    channel: int | None = Field(None, ge=0)
    start_sec: float = Field(0.0, ge=0)
    end_sec: float | None = Field(None, ge=0)


class SpokenCall(BaseModel):
    """A line of a manifest of calls: a stereo wav (left the model) with a json of its turns beside it."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    id: str = ""
    audio: Path = Field(validation_alias=AliasChoices("audio", "path"))


LineT = TypeVar("LineT", bound=BaseModel)


def read_lines(path: Path, cls: type[LineT], *, limit: int | None = None) -> list[LineT]:
    """All lines (the first `limit`) with paths resolved and ids filled in; ConfigError names the first bad line."""
    lines = []
    for number, text in enumerate(_read_text(path).splitlines(), start=1):
        if not text.strip() or (limit is not None and len(lines) >= limit):
            continue
        try:
            line = cls.model_validate(json.loads(text))
        except (json.JSONDecodeError, ValidationError) as error:
            raise ConfigError(f"{path}, line {number}: {_first_problem(error)}") from error
        paths = {k: path.parent / v for k in ("audio", "image", "video") if (v := getattr(line, k, None)) is not None}
        lines.append(line.model_copy(update={**paths, "id": line.id or f"{number:06d}"}))
    if not lines:
        raise ConfigError(f"{path}: no lines in it; expected one JSON object per line")
    ids = [line.id for line in lines]
    if len(set(ids)) != len(ids):
        twice = next(i for i in ids if ids.count(i) > 1)
        raise ConfigError(f"{path}: the id {twice!r} stands on several lines; ids must differ")
    return lines


def read_recordings(path: Path, *, limit: int | None = None) -> list[Spoken]:
    """Recordings of a manifest of `Spoken` lines; or, of a manifest of calls, the model's turns nobody interrupted."""
    if '"path"' not in _read_text(path).partition("\n")[0]:
        return read_lines(path, Spoken, limit=limit)
    turns = [turn for call in read_lines(path, SpokenCall) for turn in _model_turns(call.audio)]
    if not turns:
        raise ConfigError(f"{path}: no call of it has a whole turn of the model")
    return turns[:limit]


def _read_text(path: Path) -> str:
    if not path.is_file():
        raise ConfigError(f"{path}: no such manifest; expected one JSON object per line")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not a text file; expected a manifest, one JSON object per line") from error


def _model_turns(audio: Path) -> list[Spoken]:
    file = audio.with_suffix(".json")
    try:
        turns = json.loads(file.read_text(encoding="utf-8"))["turns"]
        return [
            Spoken(
                id=f"{audio.stem}-{number}",
                audio=audio,
                text=turn["answer"],
                channel=0,
                start_sec=turn["answer_start_sec"],
                end_sec=turn["answer_end_sec"],
            )
            for number, turn in enumerate(turns)
            if not turn["interrupted"]
        ]
    except (OSError, json.JSONDecodeError, KeyError, TypeError, ValidationError) as error:
        raise ConfigError(f"{file}: not the json of a spoken call ({type(error).__name__}: {error})") from error


def _first_problem(error: ValueError) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"'{'.'.join(str(part) for part in first['loc'])}': {first['msg']}"
    return f"not JSON ({error})"
