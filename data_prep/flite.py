"""flite in this process: a wave, and the words and phones with their times."""

import ctypes
from ctypes import POINTER, c_char_p, c_float, c_int, c_short, c_void_p
from functools import cache

import numpy as np

from data_prep.phones import from_flite
from mmspeech.config import ConfigError

VOICES = ("slt", "awb", "rms", "kal", "kal16")


class _Wave(ctypes.Structure):
    _fields_ = [
        ("type", c_char_p),
        ("sample_rate", c_int),
        ("num_samples", c_int),
        ("num_channels", c_int),
        ("samples", POINTER(c_short)),
    ]


class _Voice(ctypes.Structure):  # the head of cst_voice: enough to reach its features
    _fields_ = [("name", c_char_p), ("features", c_void_p)]


_SIGNATURES = {
    "flite_synth_text": (c_void_p, [c_char_p, c_void_p]),
    "utt_wave": (POINTER(_Wave), [c_void_p]),
    "utt_relation": (c_void_p, [c_void_p, c_char_p]),
    "relation_head": (c_void_p, [c_void_p]),
    "item_next": (c_void_p, [c_void_p]),
    "item_feat_string": (c_char_p, [c_void_p, c_char_p]),
    "item_feat_float": (c_float, [c_void_p, c_char_p]),
    "ffeature_float": (c_float, [c_void_p, c_char_p]),
    "feat_set_float": (None, [c_void_p, c_char_p, c_float]),
    "delete_utterance": (None, [c_void_p]),
}
_WORD_START = b"R:SylStructure.daughter1.daughter1.R:Segment.p.end"
_WORD_END = b"R:SylStructure.daughtern.daughtern.R:Segment.end"


def _load(name: str) -> ctypes.CDLL:
    try:
        return ctypes.CDLL(name, mode=ctypes.RTLD_GLOBAL)
    except OSError as error:
        raise FileNotFoundError(f"flite is not installed ({name}): apt install libflite1") from error


@cache
def load() -> ctypes.CDLL:
    """The synthesiser, ready to speak. Raises FileNotFoundError when it is not installed."""
    library = _load("libflite.so.1")
    for name in ("libflite_cmulex.so.1", "libflite_usenglish.so.1"):
        _load(name)
    for name, (restype, argtypes) in _SIGNATURES.items():
        function = getattr(library, name)
        function.restype, function.argtypes = restype, argtypes
    library.flite_init()
    return library


@cache
def _voice(name: str) -> int:
    """Address of the registered voice."""
    if name not in VOICES:
        raise ConfigError(f"flite has no voice {name!r}; expected one of {', '.join(VOICES)}")
    load()
    register = getattr(_load(f"libflite_cmu_us_{name}.so.1"), f"register_cmu_us_{name}")
    register.restype, register.argtypes = c_void_p, [c_char_p]
    return register(None)


def _items(library: ctypes.CDLL, utterance: int, relation: bytes):
    item = library.relation_head(library.utt_relation(utterance, relation))
    while item:
        yield item
        item = library.item_next(item)


def _phones(library: ctypes.CDLL, utterance: int) -> list[tuple[str, float, float]]:
    phones, start = [], 0.0
    for item in _items(library, utterance, b"Segment"):
        end = library.item_feat_float(item, b"end")
        names = from_flite(library.item_feat_string(item, b"name").decode())
        share = (end - start) / len(names)
        phones += [(name, start + k * share, start + (k + 1) * share) for k, name in enumerate(names)]
        start = end
    return phones


def synthesise(text: str, *, name: str, pitch: float, rate: float):
    """Speak `text`: (wave float32 [N], sample rate, words, phones); words and phones are (text, start_sec, end_sec).

    `pitch` and `rate` are factors on the voice's own. The same text and settings always give the same samples.
    Raises FileNotFoundError when flite is not installed, ConfigError for an unknown voice.
    """
    library, voice = load(), _voice(name)
    features = ctypes.cast(voice, POINTER(_Voice)).contents.features
    library.feat_set_float(features, b"f0_shift", pitch)
    library.feat_set_float(features, b"duration_stretch", 1.0 / rate)
    library.srand(1)  # the C library's: the noise in flite's voices is drawn from it
    utterance = library.flite_synth_text(text.encode("ascii"), voice)
    try:
        wave = library.utt_wave(utterance).contents
        samples = np.ctypeslib.as_array(wave.samples, (wave.num_samples,)).astype(np.float32) / 32768.0
        words = [
            (
                library.item_feat_string(item, b"name").decode(),
                library.ffeature_float(item, _WORD_START),
                library.ffeature_float(item, _WORD_END),
            )
            for item in _items(library, utterance, b"Word")
        ]
        return samples, wave.sample_rate, words, _phones(library, utterance)
    finally:
        library.delete_utterance(utterance)
