"""espeak-ng in this process: a wave, and the words and phones with their times."""

import ctypes
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
    """The library, and what its callback gathered since the last call."""

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
        self.voice = ""
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
        if name == self.voice:
            return
        if self.library.espeak_SetVoiceByName(name.encode()) != 0:
            raise ConfigError(f"espeak-ng has no voice {name!r}; `espeak-ng --voices=en` lists what it has")
        self.voice = name


@cache
def load() -> _Engine:
    """The synthesiser, ready to speak. Raises FileNotFoundError when it or its voice data is not installed."""
    return _Engine()


def _timed_phones(engine: _Engine, samples: int) -> list[tuple[str, float, float]]:
    bounds = [start / engine.sample_rate for _, start in engine.phones] + [samples / engine.sample_rate]
    phones = []
    for (name, _), start, end in zip(engine.phones, bounds, bounds[1:], strict=False):
        names = from_espeak(name)
        share = (end - start) / max(len(names), 1)
        phones += [(phone, start + k * share, start + (k + 1) * share) for k, phone in enumerate(names)]
    return [phone for phone in phones if phone[2] > phone[1]]


def _spans(engine: _Engine, text: str) -> list[tuple[int, int]]:
    """(first character, characters) of each word event. espeak-ng joins some words ("on the") and tells the first only;
    where that leaves most of the text untold, every event reaches to the next."""
    spans = [(first, length) for first, length, _ in engine.words]
    if 2 * sum(length for _, length in spans) >= sum(char.isalpha() for char in text):
        return spans
    bounds = [first for first, _ in spans] + [len(text)]
    return [(first, after - first) for first, after in zip(bounds, bounds[1:], strict=False)]


def _timed_words(engine: _Engine, text: str, phones) -> list[tuple[str, float, float]]:
    """Words end where their last phone that is no silence ends."""
    starts = [start / engine.sample_rate for _, _, start in engine.words]
    words = []
    for k, (first, length) in enumerate(_spans(engine, text)):
        limit = starts[k + 1] if k + 1 < len(starts) else float("inf")
        ends = [end for phone, start, end in phones if phone != "sil" and starts[k] - 1e-4 <= start < limit - 1e-4]
        if ends:
            words.append((text[first : first + length], starts[k], max(ends)))
    return words


def synthesise(text: str, *, name: str, pitch: float, rate: float):
    """Speak `text`: (wave float32 [N], sample rate, words, phones); words and phones are (text, start_sec, end_sec).

    `name` may carry a variant ("en-us+f2"); `rate` is a factor, `pitch` about one. Raises FileNotFoundError when
    espeak-ng is not installed, ConfigError for an unknown voice.
    """
    engine = load()
    engine.set_voice(name)
    engine.library.espeak_SetParameter(_RATE, int(_RATE_WORDS_PER_MIN * rate), 0)
    engine.library.espeak_SetParameter(_PITCH, int(np.clip(_PITCH_MIDDLE * (1 + 2 * (pitch - 1)), 0, 99)), 0)
    engine.blocks, engine.words, engine.phones = [], [], []
    data = text.encode("ascii")
    if engine.library.espeak_Synth(data, len(data) + 1, 0, 1, 0, _UTF8, None, None) != 0:
        raise ConfigError(f"espeak-ng could not speak {text!r}")
    samples = np.concatenate(engine.blocks).astype(np.float32) / 32768.0
    phones = _timed_phones(engine, len(samples))
    return samples, engine.sample_rate, _timed_words(engine, text, phones), phones
