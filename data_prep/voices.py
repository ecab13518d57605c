"""Who speaks: synthesisers of this machine, models of transformers, any command, or an HTTP endpoint."""

import shlex
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Protocol

import numpy as np

from data_prep.spoken_form import spoken_words
from data_prep.tts import (
    HELD_OUT_VOICES,
    MODEL_VOICE,
    Timed,
    Utterance,
    Voice,
    random_voice,
    require_synthesisers,
    synthesise,
)
from mmspeech.config import ConfigError
from mmspeech.endpoint import post, split_address
from mmspeech.frames import SAMPLE_RATE_HZ

TRANSFORMERS, COMMAND = "transformers:", "command:"
LOCAL = ("flite", "espeak", "flite+espeak")
COMMAND_LIMIT_SEC = 120
PEAK = 0.5
_FLITE_NAMES = ("slt", "rms", "awb")
Aligner = Callable[[np.ndarray, int, str], Sequence[Timed]]


class Voices(Protocol):
    """A pool of voices. `draw` casts a speaker, the same for the same randomness; `model` is the assistant's own, the
    same in all calls; `say` speaks: wave at 24 kHz with its words as they were written, and their times."""

    def draw(self, rng: np.random.Generator, language: str) -> str: ...

    def model(self, language: str) -> str: ...

    def say(self, text: str, voice: str, language: str) -> Utterance: ...


def open_voices(
    name: str, *, names: Sequence[str] = (), model_voice: str | None = None, aligner: Aligner | None = None
):
    """The pool that `--voices` means. `names`: those of its voices that callers have (the backend's own names);
    `model_voice`: that of the assistant (None: the first). `aligner` tells the times of words for backends that do not.

    Raises ConfigError.
    """
    if name in LOCAL:
        return LocalVoices(name, names, model_voice)
    if aligner is None:
        raise ConfigError(f"--voices {name} tells no times of words; give --aligner sphinx, ctc:NAME or whisper:NAME")
    if name.startswith(TRANSFORMERS):
        return HeardVoices(TransformersVoice(name.removeprefix(TRANSFORMERS)), names, model_voice, aligner)
    if name.startswith(COMMAND):
        return HeardVoices(CommandVoice(name.removeprefix(COMMAND)), names, model_voice, aligner)
    if (served := split_address(name)) is not None:
        return HeardVoices(ServedVoice(*served), names, model_voice, aligner)
    raise ConfigError(
        f"--voices {name}: expected {', '.join(LOCAL)}, transformers:NAME_OR_DIR, command:CMD, or http(s)://host/v1#model"
    )


class LocalVoices:
    """flite and espeak-ng, which tell when each word is said. A caller is a voice with pitch, rate and formants of its
    own, written as JSON. In other languages than English, espeak-ng alone speaks, with its voice of that code."""

    def __init__(self, name: str, names: Sequence[str], model_voice: str | None):
        require_synthesisers()
        held_out = {voice.name for voice in HELD_OUT_VOICES}
        if bad := [one for one in names if one in held_out]:
            raise ConfigError(f"the voice {bad[0]} is held out for evaluation; choose others")
        self._name, self._names = name, tuple(names)
        self._model = model_voice

    def draw(self, rng: np.random.Generator, language: str) -> str:
        drawn = random_voice(rng, held_out=False)
        if language != "en":
            variant = ("", "+m1", "+m3", "+m7", "+f1", "+f2", "+f5")[rng.integers(7)]
            drawn = drawn.model_copy(update={"engine": "espeak", "name": f"{language}{variant}"})
        elif self._names:
            drawn = drawn.model_copy(update=_named(self._names[rng.integers(len(self._names))]))
        elif self._name == "flite":
            drawn = drawn.model_copy(update={"engine": "flite", "name": _FLITE_NAMES[rng.integers(3)]})
        elif self._name == "espeak":
            while drawn.engine != "espeak":
                drawn = random_voice(rng, held_out=False)
        return drawn.model_dump_json()

    def model(self, language: str) -> str:
        if language != "en":
            return Voice(engine="espeak", name=f"{language}+f2").model_dump_json()
        return (MODEL_VOICE.model_copy(update=_named(self._model)) if self._model else MODEL_VOICE).model_dump_json()

    @lru_cache(maxsize=2_000)  # noqa: B019 -- pools live as long as their process; what is said often (yes, mm hmm) is kept
    def say(self, text: str, voice: str, language: str) -> Utterance:
        speaker = Voice.model_validate_json(voice)
        pairs = spoken_words(text, language, ascii_only=speaker.engine == "flite")
        said = synthesise(" ".join(word for _, words in pairs for word in words), speaker)
        return Utterance(said.wave, grouped(pairs, said.words), said.phones)


def _named(name: str) -> dict[str, str]:
    return {"engine": "flite" if name in (*_FLITE_NAMES, "kal", "kal16") else "espeak", "name": name}


def grouped(pairs: list[tuple[str, list[str]]], times: Sequence[Timed]) -> list[Timed]:
    """Written words with the times of the words said for them, which are as many and in the same order."""
    if len(times) != sum(len(said) for _, said in pairs):
        raise ConfigError(f"{len(times)} words were timed of {' '.join(written for written, _ in pairs)!r}")
    found, first = [], 0
    for written, said in pairs:
        own = times[first : first + len(said)]
        found.append((written, own[0][1], own[-1][2]))
        first += len(said)
    return found


class Speech(Protocol):
    """Sound of a text, [N] float32 and its rate in Hz. `names`: its voices, if it knows them."""

    names: tuple[str, ...]

    def speak(self, text: str, voice: str, language: str) -> tuple[np.ndarray, int]: ...


class HeardVoices:
    """A backend that only gives sound: an aligner listens for the words."""

    def __init__(self, speech: Speech, names: Sequence[str], model_voice: str | None, aligner: Aligner):
        self._speech, self._aligner = speech, aligner
        self._names = tuple(names) or speech.names or ("",)
        self._model = model_voice or self._names[0]

    def draw(self, rng: np.random.Generator, language: str) -> str:
        callers = [name for name in self._names if name != self._model] or list(self._names)
        return callers[rng.integers(len(callers))]

    def model(self, language: str) -> str:
        return self._model

    def say(self, text: str, voice: str, language: str) -> Utterance:
        import soxr

        pairs = spoken_words(text, language)
        told = " ".join(word for _, words in pairs for word in words)
        wave, rate_hz = self._speech.speak(told, voice, language)
        peak = float(np.abs(wave).max(initial=0.0))
        if peak < 1e-4:
            raise ConfigError(f"the voice {voice or '(its only one)'} said nothing for {text!r}")
        wave = soxr.resample(wave * (PEAK / peak), rate_hz, SAMPLE_RATE_HZ, quality="HQ").astype(np.float32)
        return Utterance(wave, grouped(pairs, list(self._aligner(wave, SAMPLE_RATE_HZ, told))), [])


class TransformersVoice:
    """A text-to-speech model of transformers, by hub name or directory. Voices are the numbers of its speakers (VITS,
    MMS), or what its pipeline calls a voice preset (Bark)."""

    def __init__(self, name: str):
        self._name = name

    @cached_property
    def _pipeline(self):
        from transformers import pipeline

        try:
            return pipeline("text-to-speech", model=self._name)
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            reason = " ".join(str(error).split())
            raise ConfigError(f"--voices {TRANSFORMERS}{self._name}: cannot be loaded ({reason})") from error

    @property
    def names(self) -> tuple[str, ...]:
        count = getattr(self._pipeline.model.config, "num_speakers", 1)
        return tuple(str(number) for number in range(count)) if count > 1 else ()

    def speak(self, text: str, voice: str, language: str) -> tuple[np.ndarray, int]:
        import torch

        chosen = {"speaker_id": int(voice)} if voice.isdigit() else {"voice_preset": voice}
        torch.manual_seed(0)
        said = self._pipeline(text, forward_params=chosen if voice else {})
        return np.asarray(said["audio"], np.float32).reshape(-1), int(said["sampling_rate"])


@dataclass(frozen=True)
class CommandVoice:
    """Any program: `{text}`, `{voice}`, `{language}` and `{out}` (a wav file it writes) stand in its command. No shell
    reads it, so texts cannot do harm."""

    command: str
    names: tuple[str, ...] = ()

    def __post_init__(self):
        if "{out}" not in self.command or "{text}" not in self.command:
            raise ConfigError(f"--voices {COMMAND}{self.command}: expected {{text}} and {{out}} in the command")

    def speak(self, text: str, voice: str, language: str) -> tuple[np.ndarray, int]:
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "said.wav"
            told = {"{text}": text, "{voice}": voice, "{language}": language, "{out}": str(out)}
            words = shlex.split(self.command)
            for key, value in told.items():
                words = [word.replace(key, value) for word in words]
            try:
                done = subprocess.run(words, capture_output=True, timeout=COMMAND_LIMIT_SEC, check=False)
            except (OSError, subprocess.TimeoutExpired) as error:
                raise ConfigError(f"{words[0]}: {error}") from error
            if done.returncode or not out.is_file():
                reason = done.stderr.decode(errors="replace").strip()[-200:] or "no sound was written"
                raise ConfigError(f"{words[0]}: exit code {done.returncode} ({reason})")
            return _read_sound(out.read_bytes(), words[0])


@dataclass(frozen=True)
class ServedVoice:
    """OpenAI's /audio/speech, which many servers speak."""

    address: str
    model_name: str
    names: tuple[str, ...] = ()

    def speak(self, text: str, voice: str, language: str) -> tuple[np.ndarray, int]:
        body = {"model": self.model_name, "input": text, "voice": voice or "alloy", "response_format": "wav"}
        url = f"{self.address}/audio/speech"
        return post(url, body, lambda data: _read_sound(data, url))


def _read_sound(data: bytes, where: str) -> tuple[np.ndarray, int]:
    """The sound of a file, mono. ConfigError for what is none."""
    import io

    import soundfile

    try:
        wave, rate_hz = soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)
    except soundfile.LibsndfileError as error:
        raise ConfigError(f"{where}: gave no sound ({error})") from error
    return wave.mean(axis=1), rate_hz
