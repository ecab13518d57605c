"""espeak-ng through its library: a wave, and the words and phones with their times."""

import ctypes
import os
import pickle
from ctypes import CFUNCTYPE, POINTER, c_char, c_char_p, c_int, c_short, c_uint, c_void_p
from functools import cache

import numpy as np

from data_prep.phones import from_espeak
from mmspeech.config import ConfigError

_SYNCHRONOUS = 2
_PHONEME_EVENTS = 0x0001
_DONT_EXIT = 0x8000
_UTF8 = 1
_RATE, _PITCH = 1, 3  # parameter numbers of espeak_SetParameter
_WORD, _PHONEME = 1, 7  # event types
_RATE_WORDS_PER_MIN, _PITCH_MIDDLE = 175, 50


class _Id(ctypes.Union):
    _fields_ = [("number", c_int), ("name", c_char_p), ("string", c_char * 8)]


class _Event(ctypes.Structure):
    _fields_ = [
        ("type", c_int),
        ("unique_identifier", c_uint),
        ("text_position", c_int),
        ("length", c_int),
        ("audio_position", c_int),
        ("sample", c_int),
        ("user_data", c_void_p),
        ("id", _Id),
    ]


_Callback = CFUNCTYPE(c_int, POINTER(c_short), c_int, POINTER(_Event))


class _Engine:
    """The library, and what its callback gathers."""

    def __init__(self) -> None:
        try:
            self.library = ctypes.CDLL("libespeak-ng.so.1")
        except OSError as error:
            raise FileNotFoundError(
                "espeak-ng is not installed (libespeak-ng.so.1): apt install libespeak-ng1"
            ) from error
        self.sample_rate = self.library.espeak_Initialize(_SYNCHRONOUS, 0, None, _PHONEME_EVENTS | _DONT_EXIT)
        if self.sample_rate <= 0:
            raise FileNotFoundError("espeak-ng found no voice data: apt install espeak-ng-data")
        self.blocks: list[np.ndarray] = []
        self.words: list[tuple[int, int, int]] = []  # (first character, characters, start sample)
        self.phones: list[tuple[str, int]] = []  # (mnemonic, start sample)
        self._callback = _Callback(self._collect)  # kept: the library holds only its address
        self.library.espeak_SetSynthCallback(self._callback)

    def _collect(self, samples, count: int, events) -> int:
        if samples and count > 0:
            self.blocks.append(np.ctypeslib.as_array(samples, (count,)).copy())
        k = 0
        while events[k].type:
            event = events[k]
            if event.type == _WORD:
                self.words.append((event.text_position - 1, event.length, event.sample))
            elif event.type == _PHONEME:
                self.phones.append((event.id.string.decode("utf-8", "replace"), event.sample))
            k += 1
        return 0

    def set_voice(self, name: str) -> None:
        if self.library.espeak_SetVoiceByName(name.encode()) != 0:
            raise ConfigError(f"espeak-ng has no voice {name!r}; `espeak-ng --voices=en` lists what it has")


@cache
def load() -> _Engine:
    """The synthesiser, ready to speak. Raises FileNotFoundError when it or its voice data is not installed."""
    return _Engine()


def _timed_phones(engine: _Engine, samples: int, *, english: bool) -> list[tuple[str, float, float]]:
    bounds = [start / engine.sample_rate for _, start in engine.phones] + [samples / engine.sample_rate]
    phones = []
    for (name, _), start, end in zip(engine.phones, bounds, bounds[1:], strict=False):
        names = from_espeak(name, english=english)
        share = (end - start) / max(len(names), 1)
        phones += [(phone, start + k * share, start + (k + 1) * share) for k, phone in enumerate(names)]
    return [phone for phone in phones if phone[2] > phone[1]]


def _timed_words(engine: _Engine, text: str, phones) -> list[tuple[str, float, float]]:
    """Words from their first phone to their last, silence aside.

    espeak-ng joins some words ("on the", "in which") and tells the first only, so what is told reaches to the next.
    """
    told = [(first, start / engine.sample_rate) for first, length, start in engine.words if length > 0]
    bounds = [0, *(first for first, _ in told[1:]), len(text)]
    limits = [*(start for _, start in told[1:]), float("inf")]
    words = []
    for k, (_, start) in enumerate(told):
        own = [p for p in phones if p[0] != "sil" and start - 1e-4 <= p[1] < limits[k] - 1e-4]
        if own and bounds[k] < bounds[k + 1]:
            words.append((text[bounds[k] : bounds[k + 1]], own[0][1], own[-1][2]))
    return words


def synthesise(text: str, *, name: str, pitch: float, rate: float):
    """Speak `text`: (wave float32 [N], sample rate, words, phones); words and phones are (text, start_sec, end_sec).

    `name` may carry a variant ("en-us+f2"); `rate` is a factor, `pitch` about one. The same arguments give the same
    wave, whatever was said before. Raises FileNotFoundError when espeak-ng is not installed, ConfigError for an unknown
    voice.
    """
    engine = load()
    return _in_a_fork(lambda: _speak(engine, text, name=name, pitch=pitch, rate=rate), text)


def _in_a_fork(task, text: str):
    """What `task` returns in a copy of this process. The library carries the phase of its voice's flutter from one
    utterance to the next and cannot be told to forget it; in this process it never speaks, so every copy is as new."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(reader)
            with os.fdopen(writer, "wb") as stream:
                pickle.dump(task(), stream)
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as stream:
        data = stream.read()
    os.waitpid(child, 0)
    if not data:
        raise ConfigError(f"espeak-ng ended without a word on {text!r}; use plain ASCII words")
    result = pickle.loads(data)
    if isinstance(result, ValueError):
        raise result
    return result


def _speak(engine: _Engine, text: str, *, name: str, pitch: float, rate: float):
    """What synthesise returns, or the ValueError it should raise."""
    try:
        engine.set_voice(name)
        data = text.encode()
    except ValueError as error:
        return ConfigError(str(error))
    ctypes.CDLL(None).srand(1)
    engine.library.espeak_SetParameter(_RATE, int(_RATE_WORDS_PER_MIN * rate), 0)
    engine.library.espeak_SetParameter(_PITCH, int(np.clip(_PITCH_MIDDLE * (1 + 2 * (pitch - 1)), 0, 99)), 0)
    if engine.library.espeak_Synth(data, len(data) + 1, 0, 1, 0, _UTF8, None, None) != 0:
        return ConfigError(f"espeak-ng could not speak {text!r}")
    samples = np.concatenate(engine.blocks).astype(np.float32) / 32768.0
    phones = _timed_phones(engine, len(samples), english=name.startswith("en"))
    return samples, engine.sample_rate, _timed_words(engine, text, phones), phones
