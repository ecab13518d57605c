"""Recognisers: of a closed set of words (pocketsphinx) or any Whisper, and word error between said and heard."""

import tempfile
from collections.abc import Iterable
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Protocol

import numpy as np

from eval.ngram import arpa
from eval.scoring import normalise
from mmspeech.config import ConfigError

if TYPE_CHECKING:
    from eval.task import Settings

RECOGNISER_RATE_HZ = 16_000
_PAD_SEC = 0.3  # silence around the speech: without it first and last words are lost
_TARGET_RMS = 0.08
_NOISE = 1e-4  # digital silence upsets the recogniser's noise estimate
_BEAM, _WORD_BEAM = 1e-80, 1e-60  # wider than the usual: the vocabulary is small, so there is time


class Ears(Protocol):
    """`unknown`: words it can never hear."""

    unknown: list[str]

    def words(self, wave: np.ndarray, sample_rate_hz: int) -> list[str]:
        """The words heard in `wave` ([N] float, mono); none in silence."""
        ...


def open_ears(settings: "Settings", sentences: Iterable[str]) -> Ears:
    """The recogniser that the settings name; a closed-world one knows `sentences` and those of the settings.

    ConfigError for a name that is none, and where its package or model is not there.
    """
    kind, _, model = settings.recogniser.partition(":")
    if kind == "none":
        return NoEars()
    if kind == "whisper" and model:
        return WhisperEars(model)
    if kind != "sphinx":
        raise ConfigError(f"--recogniser {settings.recogniser}: expected sphinx, none or whisper:NAME_OR_DIR")
    return Recogniser([*sentences, *(settings.sentences or ())])


class NoEars:
    """Hears nothing, at no cost: for numbers that are read from the model's own text."""

    unknown: list[str] = []

    def words(self, wave: np.ndarray, sample_rate_hz: int) -> list[str]:
        return []


class WhisperEars:
    """Open speech recognition by a Whisper of transformers (Radford et al. 2022), by hub name or directory, greedy."""

    unknown: list[str] = []

    def __init__(self, model: str):
        from transformers import pipeline

        try:
            self._pipeline = pipeline("automatic-speech-recognition", model=model)
        except (OSError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise ConfigError(f"--recogniser whisper:{model}: cannot be loaded ({reason})") from error

    def words(self, wave: np.ndarray, sample_rate_hz: int) -> list[str]:
        import soxr

        if not wave.size or np.abs(wave).max() < 1e-3:
            return []  # Whisper finds words in silence
        wave = soxr.resample(np.asarray(wave, np.float32), sample_rate_hz, RECOGNISER_RATE_HZ)
        heard = self._pipeline(
            {"raw": wave, "sampling_rate": RECOGNISER_RATE_HZ}, generate_kwargs={"do_sample": False, "num_beams": 1}
        )
        return normalise(heard["text"])


class Recogniser:
    """Hears only the words of `sentences` and `vocabulary`, and prefers their order in `sentences`.

    `unknown` lists the words it has no pronunciation for: it can never hear those, so they count as errors.
    Needs the `eval` extra (pocketsphinx); its English acoustic model comes with that package.
    """

    def __init__(self, sentences: Iterable[str], *, vocabulary: Iterable[str] = ()):
        try:
            from pocketsphinx import Config, Decoder, get_model_path
        except ModuleNotFoundError as error:
            raise ConfigError(
                f"{error.name} is not installed; evaluation needs it: pip install 'mmspeech[eval]'"
            ) from error

        texts = [normalise(sentence) for sentence in sentences]
        wanted = sorted({word for text in texts for word in text} | {w for v in vocabulary for w in normalise(v)})
        pronunciations = _pronounce(wanted, Path(get_model_path("en-us/cmudict-en-us.dict")))
        self._lock = Lock()
        self.unknown = [word for word in wanted if word not in pronunciations]
        if not pronunciations:
            raise ValueError("the recogniser was given no word it can pronounce; check the sentences it should know")
        usable = [text for text in texts if pronunciations.keys() >= set(text)]
        with tempfile.TemporaryDirectory() as folder:
            dictionary, model = Path(folder) / "closed.dict", Path(folder) / "closed.arpa"
            dictionary.write_text("".join(line for lines in pronunciations.values() for line in lines), "utf-8")
            model.write_text(arpa(usable, pronunciations), "utf-8")
            self._decoder = Decoder(
                Config(
                    hmm=get_model_path("en-us/en-us"),
                    dict=str(dictionary),
                    lm=str(model),
                    loglevel="FATAL",
                    beam=_BEAM,
                    wbeam=_WORD_BEAM,
                )
            )

    def words(self, wave: np.ndarray, sample_rate_hz: int) -> list[str]:
        """The words heard in `wave` ([N] float, mono); none in silence."""
        import soxr

        wave = np.asarray(wave, dtype=np.float32)
        if wave.ndim != 1:
            raise ValueError(f"expected a mono wave [N], got shape {wave.shape}")
        wave, rms = _speech(wave, sample_rate_hz)
        if rms < 1e-4:
            return []
        wave = soxr.resample(wave * (_TARGET_RMS / rms), sample_rate_hz, RECOGNISER_RATE_HZ)
        pad = np.zeros(int(_PAD_SEC * RECOGNISER_RATE_HZ), np.float32)
        padded = np.concatenate([pad, wave, pad])
        padded += np.random.default_rng(0).normal(0.0, _NOISE, padded.size).astype(np.float32)
        samples = (np.clip(padded, -1.0, 1.0) * 32767).astype("<i2").tobytes()
        with self._lock:
            self._decoder.start_utt()
            self._decoder.process_raw(samples, full_utt=True)
            self._decoder.end_utt()
            heard = self._decoder.hyp()
            return heard.hypstr.split() if heard else []


def _pronounce(words: list[str], dictionary: Path) -> dict[str, list[str]]:
    """Lines of a small dictionary for each word that has a pronunciation, alternatives included.

    A word made of two that are in the dictionary ("leftmost") is put together from them.
    """
    entries: dict[str, list[str]] = {}
    for line in dictionary.read_text(encoding="utf-8").splitlines():
        name, _, phones = line.partition(" ")
        entries.setdefault(name.partition("(")[0], []).append(phones)
    found = {}
    for word in words:
        halves = ((word[:cut], word[cut:]) for cut in range(len(word) - 3, 2, -1))
        made = (f"{entries[a][0]} {entries[b][0]}" for a, b in halves if a in entries and b in entries)
        spoken = entries.get(word) or list(made)[:1]
        if spoken:
            found[word] = [f"{word}{'' if n == 1 else f'({n})'} {phones}\n" for n, phones in enumerate(spoken, start=1)]
    return found


def _speech(wave: np.ndarray, sample_rate_hz: int) -> tuple[np.ndarray, float]:
    """The wave from its first to its last 20 ms piece within 30 dB of the loudest, and the rms of those pieces.

    Pauses do not count towards the level; and seconds of silence around a reply would shift the recogniser's estimate
    of the channel, which it takes from all it is given.
    """
    size = max(1, sample_rate_hz // 50)
    power = np.square(wave[: len(wave) // size * size].reshape(-1, size)).mean(axis=1)
    if not power.size:
        return wave, float(np.sqrt(np.square(wave).mean())) if wave.size else 0.0
    (loud,) = np.nonzero(power >= power.max() * 1e-3)
    return wave[loud[0] * size : (loud[-1] + 1) * size], float(np.sqrt(power[loud].mean()))


def word_error(said: list[str], heard: list[str]) -> tuple[int, int]:
    """(errors, words said): substitutions, deletions and insertions between two lists of words."""
    import jiwer

    if not said:
        return len(heard), 0
    if not heard:
        return len(said), len(said)
    out = jiwer.process_words(" ".join(said), " ".join(heard))
    return out.substitutions + out.deletions + out.insertions, len(said)
