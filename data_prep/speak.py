"""`speak`: records with turns -> stereo calls (left the model, right the user) with the times of their words.

Every call has a caller's voice of its own (or the one that the record's meta "user_speaker" always has); the model's
is the same in all. The caller's side goes through rooms, telephones and noise; the model's is clean.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.conversation import Conversation, Manners, lay_out
from data_prep.effects import loudness, user_channel
from data_prep.files import inside, write_atomic, write_wav
from data_prep.records import Record, check_paths, media_root, parse_record
from data_prep.steps import How, Item, Outcome, Tally, attempt, run_step
from data_prep.voices import Voices, open_voices
from mmspeech.config import ConfigError, StrictModel
from mmspeech.frames import SAMPLE_RATE_HZ, samples_to_seconds

CHUNK_ITEMS = 16
MODEL_LUFS = -24.0
MEDIA = "media"
_SPEAKERS = {"main": "SPEAKER_MAIN", "user": "SPEAKER_USER"}


class SpeakSettings(StrictModel):
    """voices, names, model_voice, aligner: see voices.open_voices. `clean`: no rooms, telephones and noise."""

    voices: str = "flite+espeak"
    names: tuple[str, ...] = ()
    model_voice: str | None = None
    aligner: str | None = None
    manners: Manners = Manners()
    clean: bool = False
    seed: int = 0


def speak(data: Path, out: Path, settings: SpeakSettings, *, how: How) -> Tally:
    """Voice every record of `data` that has turns. Raises ConfigError for voices that cannot be had."""
    root = media_root(data if data.is_dir() else data.parent)
    opened_voices(settings)  # before any work, and before a process is started
    return run_step(
        "speak",
        data,
        out,
        SpeakWork(out.resolve(), root, settings),
        settings=settings.model_dump(mode="json"),
        how=how,
        chunk_items=CHUNK_ITEMS,
    )


def opened_voices(settings: SpeakSettings) -> Voices:
    """The pool of voices, with an aligner where it needs one."""
    aligner = None
    if settings.aligner is not None:
        from data_prep.aligners import open_aligner

        aligner = open_aligner(settings.aligner).words
    return open_voices(settings.voices, names=settings.names, model_voice=settings.model_voice, aligner=aligner)


@dataclass(frozen=True)
class SpeakWork:
    """See steps.Work."""

    out: Path
    root: Path
    settings: SpeakSettings

    def open(self):
        return partial(self._chunk, opened_voices(self.settings))

    def _chunk(self, voices: Voices, number: int, items: list[Item]) -> Iterable[Outcome]:
        for where, data in items:
            name = data.get("id", where) if isinstance(data, dict) else where
            yield attempt(str(name), partial(self._item, voices, where, data))

    def _item(self, voices: Voices, where: str, data: Any) -> dict[str, Any]:
        if isinstance(data, ConfigError):
            raise data
        record = parse_record(data, where=where)
        if not record.turns:
            raise ConfigError(f"{record.id}: no turns to speak; write them with `python -m data_prep dialogue`")
        check_paths(record, self.root)
        rng = np.random.default_rng(_number(f"{self.settings.seed} {record.id}"))
        language = record.meta.get("language", "en")
        cast = {"user": self._caller(voices, record, language), "main": voices.model(language)}
        call = lay_out(record.turns, voices, cast, language=language, manners=self.settings.manners, rng=rng)
        return write_call(self.out, record, self._mixed(call, rng), call, cast, root=self.root)

    def _caller(self, voices: Voices, record: Record, language: str) -> str:
        who = record.meta.get("user_speaker", record.id)
        return voices.draw(np.random.default_rng(_number(f"{self.settings.seed} voice {who}")), language)

    def _mixed(self, call: Conversation, rng: np.random.Generator) -> np.ndarray:
        """[N, 2]: the model, the caller."""
        length = int(call.end_sec * SAMPLE_RATE_HZ)
        main, user = (call.tracks[side].wave(length) for side in ("main", "user"))
        return np.stack([loudness(main, MODEL_LUFS), user_channel(user, rng, clean=self.settings.clean)], axis=1)


def write_call(
    out: Path, record: Record, wave: np.ndarray, call: Conversation, cast: dict[str, str], *, root: Path
) -> dict[str, Any]:
    """Write the sound, the json and what is shown of a call; returns its manifest entry."""
    wav = out / f"{record.id}.wav"
    wav.parent.mkdir(parents=True, exist_ok=True)
    words = [(word, a, b, _SPEAKERS[side]) for side, track in call.tracks.items() for word, a, b in track.words]
    words.sort(key=lambda word: word[1])
    visuals = [visual.model_dump() | {"path": keep_media(out, inside(root, visual.path))} for visual in record.visuals]
    facts = {"id": record.id, "source": record.source, "licence": record.licence, "split": record.split}
    told = {
        "alignments": [[word, [round(a, 3), round(b, 3)], who] for word, a, b, who in words],
        "visuals": visuals,
        "said": call.said,
        "voices": cast,
        **facts,
        "meta": record.meta,
    }
    write_wav(wav, wave)
    write_atomic(wav.with_suffix(".json"), json.dumps(told, ensure_ascii=False).encode())
    return {"path": f"{record.id}.wav", "duration": round(samples_to_seconds(len(wave)), 3)} | facts


def keep_media(out: Path, file: Path) -> str:
    """Copy a picture or clip under the name of its content, once; returns its path in `out`."""
    data = file.read_bytes()
    digest = hashlib.sha256(data).hexdigest()[:32]
    kept = out / MEDIA / digest[:2] / f"{digest}{file.suffix.lower()}"
    if not kept.is_file():
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(kept, data)
    return kept.relative_to(out).as_posix()


def _number(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")
