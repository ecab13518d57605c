"""Speech with word and phone times from the synthesisers of this machine, and the pools of voices."""

from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from data_prep import espeak, flite
from mmspeech.config import ConfigError
from mmspeech.frames import SAMPLE_RATE_HZ

_LEAD_SEC, _TAIL_SEC = 0.02, 0.06  # kept around the speech when a synthesiser's own silence is cut off

Timed = tuple[str, float, float]


class Voice(BaseModel):
    """A speaker. `pitch` and `rate` are factors on the synthesiser's own; `formant` resamples the wave (and so
    moves pitch and vocal-tract length together), which makes another, virtual, speaker."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    engine: Literal["flite", "espeak"]
    name: str
    pitch: float = Field(default=1.0, ge=0.5, le=2.0)
    rate: float = Field(default=1.0, ge=0.5, le=2.0)
    formant: float = Field(default=1.0, ge=0.8, le=1.25)

    @property
    def key(self) -> str:
        """Which speaker it is, whatever the settings: what the split into train and held-out is made on."""
        return f"{self.engine}:{self.name}"


@dataclass
class Utterance:
    """One spoken text. wave: float32 [N] at 24 kHz, peak about 0.5; times in seconds from its start."""

    wave: np.ndarray
    words: list[Timed]
    phones: list[Timed]

    @property
    def duration_sec(self) -> float:
        """Of the wave, silence included."""
        return len(self.wave) / SAMPLE_RATE_HZ


MODEL_VOICE = Voice(engine="flite", name="slt")

_ACCENTS = ("en", "en-us", "en-us-nyc", "en-029", "en-gb-scotland", "en-gb-x-rp", "en-gb-x-gbclan", "en-gb-x-gbcwmd")
_VARIANTS = ("", "+m1", "+m2", "+m3", "+m4", "+m5", "+m6", "+m8", "+f1", "+f2", "+f3", "+f5")
_NAMED = ("en-us+Andy", "en-us+Annie", "en-us+Alicia", "en-us+Mario", "en+Linda", "en+Michael", "en+Gene", "en+steph")

HELD_OUT_VOICES = (
    Voice(engine="flite", name="kal"),
    Voice(engine="flite", name="kal16"),
    Voice(engine="espeak", name="en-gb-scotland+f4"),
    Voice(engine="espeak", name="en-us+f4"),
    Voice(engine="espeak", name="en-us-nyc+m7"),
    Voice(engine="espeak", name="en-gb-x-rp+f2"),
)
_HELD_OUT_KEYS = {voice.key for voice in HELD_OUT_VOICES}
_FLITE_TRAIN = tuple(Voice(engine="flite", name=name) for name in ("slt", "rms", "awb"))
_ESPEAK_TRAIN = tuple(
    voice
    for name in (*_NAMED, *(accent + variant for accent in _ACCENTS for variant in _VARIANTS))
    if (voice := Voice(engine="espeak", name=name)).key not in _HELD_OUT_KEYS
)
_FLITE_SHARE = 0.4  # of the callers: flite's three speakers sound more like people than espeak-ng's hundred


def require_synthesisers() -> None:
    """Raises FileNotFoundError with one line that names what is not installed and the packages that hold it."""
    missing = []
    for engine in (flite, espeak):
        try:
            engine.load()
        except FileNotFoundError as error:
            missing.append(str(error))
    if missing:
        raise FileNotFoundError("; ".join(missing))


def random_voice(rng: np.random.Generator, *, held_out: bool) -> Voice:
    """A caller: a voice of the training pool or of the held-out pool, its pitch, rate and formants drawn anew."""
    if held_out:
        base = HELD_OUT_VOICES[rng.integers(len(HELD_OUT_VOICES))]
    else:
        pool = _FLITE_TRAIN if rng.random() < _FLITE_SHARE else _ESPEAK_TRAIN
        base = pool[rng.integers(len(pool))]
    slow, fast = (0.8, 1.2) if base.engine == "flite" else (0.7, 1.1)
    return base.model_copy(
        update={
            "pitch": round(float(rng.uniform(0.85, 1.2)), 3),
            "rate": round(float(rng.uniform(slow, fast)), 3),
            "formant": round(float(rng.uniform(0.88, 1.15)), 3),
        }
    )


def _letters(text: str) -> str:
    return "".join(c for c in text.lower() if c.isalpha())


def _match_words(text: str, heard: list[Timed]) -> list[Timed]:
    """Give the words of `text` the times of the synthesiser's words, which may be split, joined or left out ("in the").

    Letters are matched with letters; one that has no match stands where the letter before it ended.
    """
    spelled, times = "", []  # times of each letter
    for word, start, end in heard:
        letters = _letters(word)
        step = (end - start) / max(len(letters), 1)
        times += [(start + k * step, start + (k + 1) * step) for k in range(len(letters))]
        spelled += letters
    wanted = _letters(text)
    matches = SequenceMatcher(None, wanted, spelled, autojunk=False).get_matching_blocks()
    place = {match.a + k: times[match.b + k] for match in matches for k in range(match.size)}
    if 2 * len(place) < len(wanted):
        raise ConfigError(f"the synthesiser spoke {spelled!r} for {text!r}; use plain lower-case words")
    letters, last_sec = [], times[0][0]
    for k in range(len(wanted)):
        letters.append(place.get(k, (last_sec, last_sec)))
        last_sec = letters[-1][1]
    words, at = [], 0
    for word in text.split():
        count = len(_letters(word))
        if count:
            words.append((word.strip(".,?!:;").lower(), letters[at][0], letters[at + count - 1][1]))
        at += count
    return words


def _trimmed(wave: np.ndarray, words: list[Timed], phones: list[Timed]) -> Utterance:
    voiced = [phone for phone in phones if phone[0] != "sil"]
    first = max(0.0, voiced[0][1] - _LEAD_SEC)
    last = min(len(wave) / SAMPLE_RATE_HZ, voiced[-1][2] + _TAIL_SEC)
    cut = wave[int(first * SAMPLE_RATE_HZ) : int(last * SAMPLE_RATE_HZ)].copy()
    fade = min(len(cut) // 2, int(0.01 * SAMPLE_RATE_HZ))
    ramp = np.linspace(0, 1, fade, dtype=np.float32)
    cut[:fade] *= ramp
    cut[len(cut) - fade :] *= ramp[::-1]
    length = len(cut) / SAMPLE_RATE_HZ

    def moved(items: list[Timed]) -> list[Timed]:
        return [(name, max(0.0, start - first), min(length, end - first)) for name, start, end in items]

    return Utterance(wave=cut, words=moved(words), phones=[p for p in moved(phones) if p[2] > p[1]])


def synthesise(text: str, voice: Voice) -> Utterance:
    """Speak `text` (ASCII words, no digits) with `voice`; the silence around it is cut off.

    Raises ConfigError for an empty text or an unknown voice, FileNotFoundError when the synthesiser is not installed.
    """
    import soxr

    if not _letters(text):
        raise ConfigError(f"nothing to say in {text!r}; expected at least one word")
    engine = flite if voice.engine == "flite" else espeak
    wave, rate_hz, words, phones = engine.synthesise(text, name=voice.name, pitch=voice.pitch, rate=voice.rate)
    wave = soxr.resample(wave, rate_hz * voice.formant, SAMPLE_RATE_HZ, quality="HQ")
    peak = float(np.abs(wave).max())
    wave = (wave * (0.5 / max(peak, 1e-4))).astype(np.float32)
    words = [(word, start / voice.formant, end / voice.formant) for word, start, end in words]
    phones = [(phone, start / voice.formant, end / voice.formant) for phone, start, end in phones]
    return _trimmed(wave, _match_words(text, words), phones)
