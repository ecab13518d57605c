"""`align`: records of recordings -> calls (stereo, left the model, right the user) with the times of their words.

Words are taken as given, aligned with what is known to be said, or transcribed. A mono recording is split by who
speaks, as the words that are given tell, or a diarisation model.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data_prep.aligners import Aligner, open_aligner
from data_prep.conversation import Conversation
from data_prep.files import inside
from data_prep.records import Record, check_paths, media_root, parse_record
from data_prep.speak import write_call
from data_prep.steps import How, Item, Outcome, Tally, attempt, run_step
from data_prep.track import Track
from data_prep.tts import Timed, Utterance
from mmspeech.audio.waveform import resample
from mmspeech.config import ConfigError
from mmspeech.frames import SAMPLE_RATE_HZ, samples_to_seconds

CHUNK_ITEMS = 16
SIDES = ("main", "user")
TURN_GAP_SEC = 0.2  # between turns that were recorded one by one
GIVEN, PYANNOTE = "given", "pyannote:"
_MARGIN_SEC = 0.1  # kept around a word when a mono recording is split


def align(data: Path, out: Path, *, backend: str, diarise: str | None, how: How) -> Tally:
    """Make calls of the recordings of `data`. Raises ConfigError for a backend that cannot be had."""
    if diarise is not None and not diarise.startswith(PYANNOTE):
        raise ConfigError(f"--diarise {diarise}: expected {PYANNOTE}NAME_OR_DIR")
    root = media_root(data if data.is_dir() else data.parent)
    work = AlignWork(out.resolve(), root, backend, diarise)
    work.open()  # before a process is started
    settings = {"backend": backend, "diarise": diarise}
    return run_step("align", data, out, work, settings=settings, how=how, chunk_items=CHUNK_ITEMS)


@dataclass(frozen=True)
class AlignWork:
    """See steps.Work."""

    out: Path
    root: Path
    backend: str
    diarise: str | None

    def open(self):
        aligner = None if self.backend == GIVEN else open_aligner(self.backend)
        diariser = None if self.diarise is None else Diariser(self.diarise.removeprefix(PYANNOTE))
        return partial(self._chunk, aligner, diariser)

    def _chunk(self, aligner: Aligner | None, diariser, number: int, items: list[Item]) -> Iterable[Outcome]:
        for where, data in items:
            name = data.get("id", where) if isinstance(data, dict) else where
            yield attempt(str(name), partial(self._item, aligner, diariser, where, data))

    def _item(self, aligner: Aligner | None, diariser, where: str, data: Any) -> dict[str, Any]:
        if isinstance(data, ConfigError):
            raise data
        record = parse_record(data, where=where)
        check_paths(record, self.root)
        if record.audio is not None:
            call = self._recorded(record, aligner, diariser)
        elif record.turns and all(turn.audio for turn in record.turns):
            call = self._joined(record, aligner)
        else:
            raise ConfigError(f"{record.id}: no recording; voices for written turns are made by `data_prep speak`")
        length = int(call.end_sec * SAMPLE_RATE_HZ)
        wave = np.stack([call.tracks[side].wave(length) for side in SIDES], axis=1)
        return write_call(self.out, record, wave, call, {}, root=self.root)

    def _recorded(self, record: Record, aligner: Aligner | None, diariser) -> Conversation:
        """A recording of the whole call."""
        wave = read_channels(inside(self.root, record.audio))
        given = {side: [(w.text, w.start_sec, w.end_sec) for w in record.words if w.speaker == side] for side in SIDES}
        if wave.shape[1] == 1:
            wave = self._split(record, wave[:, 0], given, diariser)
        if wave.shape[1] != 2:
            raise ConfigError(f"{record.audio}: {wave.shape[1]} channels; expected one, or two (the model, the user)")
        call = Conversation(end_sec=samples_to_seconds(len(wave)))
        for channel, side in enumerate(SIDES):
            own = np.ascontiguousarray(wave[:, channel])
            words = given[side] if aligner is None else _listen(aligner, own, record, side)
            call.tracks[side] = Track([(0.0, own)], list(words))
        if not any(call.tracks[side].words for side in SIDES):
            raise ConfigError(f"{record.id}: no words; give --backend sphinx (with turns), ctc:NAME or whisper:NAME")
        return call

    def _split(self, record: Record, wave: np.ndarray, given: dict[str, list[Timed]], diariser) -> np.ndarray:
        """A mono recording [N] as [N, 2]: each side holds what is said by it."""
        if record.words:
            spans = {side: [(a - _MARGIN_SEC, b + _MARGIN_SEC) for _, a, b in given[side]] for side in SIDES}
        elif diariser is not None:
            spans = diariser.spans(wave)
        else:
            raise ConfigError(f"{record.audio}: mono, and nothing tells who speaks; give --diarise {PYANNOTE}NAME")
        sides = np.zeros((len(wave), 2), np.float32)
        for channel, side in enumerate(SIDES):
            for start_sec, end_sec in spans[side]:
                place = slice(max(0, int(start_sec * SAMPLE_RATE_HZ)), int(end_sec * SAMPLE_RATE_HZ))
                sides[place, channel] = wave[place]
        return sides

    def _joined(self, record: Record, aligner: Aligner | None) -> Conversation:
        """Turns that were recorded one by one, laid out one after the other."""
        if aligner is None:
            raise ConfigError(f"{record.id}: the words of its turns have no times; give --backend sphinx or another")
        call, now_sec = Conversation(), TURN_GAP_SEC
        for turn in record.turns:
            wave = read_channels(inside(self.root, turn.audio)).mean(axis=1)
            said = Utterance(wave, aligner.words(wave, SAMPLE_RATE_HZ, turn.text), [])
            call.keep(turn, said, now_sec, until_sec=None)
            now_sec += said.duration_sec + TURN_GAP_SEC
        call.end_sec = now_sec
        return call


def _listen(aligner: Aligner, wave: np.ndarray, record: Record, side: str) -> list[Timed]:
    """The words of one side: of its turns, where those are known; none on a silent side of which nothing is known."""
    text = " ".join(turn.text for turn in record.turns if turn.speaker == side)
    if not text and float(np.abs(wave).max(initial=0.0)) < 1e-3:
        return []
    if record.turns and not text:
        return []
    return aligner.words(wave, SAMPLE_RATE_HZ, text or None)


def read_channels(path: Path) -> np.ndarray:
    """A recording as [N, channels] float32 at 24 kHz. ConfigError for a file that is no sound."""
    import soundfile

    try:
        wave, rate_hz = soundfile.read(str(path), dtype="float32", always_2d=True)
    except soundfile.LibsndfileError as error:
        raise ConfigError(f"{path}: not audio ({error})") from error
    if not len(wave):
        raise ConfigError(f"{path}: no sound in it")
    return resample(torch.from_numpy(wave.T.copy()), rate_hz, SAMPLE_RATE_HZ).numpy().T


class Diariser:
    """Who speaks when, by a pipeline of pyannote.audio (hub name or directory). Who speaks first is the user."""

    def __init__(self, name: str):
        self._name = name
        self._pipeline  # noqa: B018 -- to fail before any work

    @cached_property
    def _pipeline(self):
        try:
            from pyannote.audio import Pipeline
        except ModuleNotFoundError as error:
            raise ConfigError(f"--diarise {PYANNOTE}{self._name} needs pyannote: pip install pyannote.audio") from error
        try:
            return Pipeline.from_pretrained(self._name)
        except (OSError, ValueError, RuntimeError) as error:
            raise ConfigError(f"--diarise {PYANNOTE}{self._name}: cannot be loaded ({error})") from error

    def spans(self, wave: np.ndarray) -> dict[str, list[tuple[float, float]]]:
        """(start_sec, end_sec) of both sides of a mono wave [N] at 24 kHz. ConfigError unless two people speak."""
        told = self._pipeline({"waveform": torch.from_numpy(wave)[None], "sample_rate": SAMPLE_RATE_HZ}, num_speakers=2)
        told = getattr(told, "speaker_diarization", told)
        found: dict[str, list[tuple[float, float]]] = {}
        for segment, _, who in told.itertracks(yield_label=True):
            found.setdefault(who, []).append((segment.start, segment.end))
        if len(found) != 2:
            raise ConfigError(f"{len(found)} people speak in it; expected two")
        first = min(found, key=lambda who: found[who][0][0])
        return {"user": found.pop(first), "main": found.popitem()[1]}
