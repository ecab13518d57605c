"""When each word of a recording is said: by a model that listens, with or without a text to go by."""

import re
from collections.abc import Sequence
from difflib import SequenceMatcher
from functools import cached_property
from typing import Protocol

import numpy as np

from data_prep.ctc import ctc_path, greedy_path
from data_prep.tts import Timed
from mmspeech.config import ConfigError

RATE_HZ = 16_000  # what all of these models hear
_SPHINX_FRAME_SEC = 0.01
_LEAST_SEC = 0.1


class Aligner(Protocol):
    """words: of a recording [N] float32, with (start_sec, end_sec). With a `text` they are its words, as they are
    written there; without, what the model hears. ConfigError when it cannot tell."""

    def words(self, wave: np.ndarray, rate_hz: int, text: str | None = None) -> list[Timed]: ...


def open_aligner(name: str) -> Aligner:
    """The aligner that `--backend` or `--aligner` names. Raises ConfigError."""
    kind, _, model = name.partition(":")
    if name == "sphinx":
        return SphinxAligner()
    if kind == "ctc" and model:
        return CtcAligner(model)
    if kind == "whisper" and model:
        return WhisperAligner(model)
    raise ConfigError(f"aligner {name!r}: expected sphinx, ctc:NAME_OR_DIR or whisper:NAME_OR_DIR")


def _heard(wave: np.ndarray, rate_hz: int) -> np.ndarray:
    import soxr

    if len(wave) < _LEAST_SEC * rate_hz:
        raise ConfigError(f"{len(wave) / rate_hz:.2f} s of sound; expected {_LEAST_SEC} s at least")
    return soxr.resample(np.asarray(wave, np.float32), rate_hz, RATE_HZ)


def letters(text: str) -> str:
    """The letters and digits of a text, in lower case: what words are told apart by."""
    return "".join(letter for letter in text.lower() if letter.isalnum())


def spread(text: str, heard: Sequence[Timed], end_sec: float) -> list[Timed]:
    """Give the words of `text` the times of words that were heard, which may be others: letters are matched with
    letters, and what has no match is spread between what has. ConfigError when nothing matches."""
    spelled, times = "", []
    for word, start_sec, stop_sec in heard:
        own = letters(word)
        step_sec = (stop_sec - start_sec) / max(len(own), 1)
        times += [(start_sec + n * step_sec, start_sec + (n + 1) * step_sec) for n in range(len(own))]
        spelled += own
    wanted = letters(text)
    blocks = SequenceMatcher(None, wanted, spelled, autojunk=False).get_matching_blocks()
    known = {block.a + n: times[block.b + n] for block in blocks for n in range(block.size)}
    if not known:
        raise ConfigError(f"heard {spelled[:60]!r} for {text[:60]!r}: nothing of it matches")
    places = sorted(known)
    starts = np.interp(range(len(wanted)), places, [known[place][0] for place in places])
    stops = np.interp(range(len(wanted)), places, [known[place][1] for place in places])
    found: list[Timed] = []
    at = 0
    for word in text.split():
        count = len(letters(word))
        if count:
            found.append((word, float(starts[at]), min(float(stops[at + count - 1]), end_sec)))
        elif found:
            found[-1] = (f"{found[-1][0]} {word}", *found[-1][1:])
        at += count
    return found


def sounding(wave: np.ndarray, start_sec: float, end_sec: float) -> tuple[float, float]:
    """A word's time without the silence at its ends: an aligner counts pauses to the words beside them. wave [N] at
    16 kHz; what is 34 dB below its peak is silence."""
    size = int(_SPHINX_FRAME_SEC * RATE_HZ)
    first = int(start_sec * RATE_HZ)
    piece = wave[first : int(end_sec * RATE_HZ)]
    loudness = np.sqrt(np.square(piece[: len(piece) // size * size].reshape(-1, size)).mean(axis=1))
    active = np.flatnonzero(loudness > 0.02 * np.abs(wave).max())
    if not len(active):
        return start_sec, end_sec
    return start_sec + active[0] * _SPHINX_FRAME_SEC, start_sec + (active[-1] + 1) * _SPHINX_FRAME_SEC


class SphinxAligner:
    """pocketsphinx with the English model in its package: nothing to download. It needs a text; of a word that is not
    in its dictionary it hears the sounds that its letters have in most words."""

    def words(self, wave: np.ndarray, rate_hz: int, text: str | None = None) -> list[Timed]:
        if text is None:
            raise ConfigError(
                "the aligner sphinx needs to know what is said; use ctc:NAME or whisper:NAME to transcribe"
            )
        heard = _heard(wave, rate_hz)
        decoder = self._decoder
        known, spoken = [], text.lower().replace("\u2019", "'")
        for word in re.findall(r"[^\W\d_]+(?:'[^\W\d_]+)*", spoken):
            if decoder.lookup_word(word) is None:
                decoder.add_word(word, _guessed(word), True)
            known.append(word)
        if not known:
            raise ConfigError(f"{text[:60]!r}: no word that could be listened for")
        pcm = (heard.clip(-1, 1) * 32767).astype(np.int16).tobytes()
        try:
            decoder.set_align_text(" ".join(known))
            decoder.start_utt()
            decoder.process_raw(pcm, full_utt=True)
            decoder.end_utt()
            segments = list(decoder.seg() or [])
        except RuntimeError as error:
            raise ConfigError(f"{text[:60]!r}: could not be aligned ({error})") from error
        found = []
        for one in segments:
            if one.word[0] not in "<[":  # silence
                start_sec, end_sec = one.start_frame * _SPHINX_FRAME_SEC, (one.end_frame + 1) * _SPHINX_FRAME_SEC
                found.append((one.word.partition("(")[0], *sounding(heard, start_sec, end_sec)))
        if len(found) < len(known):
            raise ConfigError(f"{text[:60]!r}: the sound does not fit the text, or is too unclear to be aligned")
        return spread(text, found, len(wave) / rate_hz)

    @cached_property
    def _decoder(self):
        try:
            from pocketsphinx import Config, Decoder, get_model_path
        except ModuleNotFoundError as error:
            raise ConfigError("the aligner sphinx needs pocketsphinx: pip install 'mmspeech[data]'") from error
        config = Config(
            hmm=get_model_path("en-us/en-us"),
            dict=get_model_path("en-us/cmudict-en-us.dict"),
            lm=None,
            samprate=float(RATE_HZ),
            beam=1e-80,  # wide: the words are known, only their times are sought
            wbeam=1e-60,
            pbeam=1e-80,
            silprob=1e-40,  # else a voice that it knows badly is taken for silence
            fillprob=1e-40,
            loglevel="FATAL",
        )
        return Decoder(config)


_SOUNDS = {
    "a": "AE", "b": "B", "c": "K", "d": "D", "e": "EH", "f": "F", "g": "G", "h": "HH", "i": "IH", "j": "JH", "k": "K",
    "l": "L", "m": "M", "n": "N", "o": "AA", "p": "P", "q": "K", "r": "R", "s": "S", "t": "T", "u": "AH", "v": "V",
    "w": "W", "x": "K S", "y": "Y", "z": "Z", "ch": "CH", "sh": "SH", "th": "TH", "ee": "IY", "oo": "UW", "ph": "F",
    "ng": "NG", "ck": "K", "qu": "K W", "ou": "AW", "ai": "EY", "ay": "EY", "oa": "OW", "ea": "IY",
}  # fmt: skip


def _guessed(word: str) -> str:
    """A pronunciation from letters, good enough to find where a name begins and ends."""
    import unicodedata

    plain = unicodedata.normalize("NFKD", word).encode("ascii", "ignore").decode()
    phones, at = [], 0
    while at < len(plain):
        size = 2 if plain[at : at + 2] in _SOUNDS else 1
        if (sound := _SOUNDS.get(plain[at : at + size])) is not None:
            phones.append(sound)
        at += size
    return " ".join(phones) or "AH"


class CtcAligner:
    """A CTC model of transformers (wav2vec 2.0 and its kin), by hub name or directory. The best path through its
    letters is found by data_prep/ctc.py."""

    def __init__(self, name: str):
        import torch
        from transformers import AutoModelForCTC, AutoProcessor

        try:
            self._processor = AutoProcessor.from_pretrained(name)
            self._model = AutoModelForCTC.from_pretrained(name).eval()
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise ConfigError(f"aligner ctc:{name}: cannot be loaded ({' '.join(str(error).split())})") from error
        tokenizer = self._processor.tokenizer
        self._torch = torch
        self._ids = {token.lower(): number for token, number in tokenizer.get_vocab().items() if len(token) == 1}
        self._blank, self._between = tokenizer.pad_token_id, getattr(tokenizer, "word_delimiter_token_id", None)
        self._letters = {number: token for token, number in self._ids.items()}

    def words(self, wave: np.ndarray, rate_hz: int, text: str | None = None) -> list[Timed]:
        heard = _heard(wave, rate_hz)
        given = self._processor(heard, sampling_rate=RATE_HZ, return_tensors="pt")
        with self._torch.no_grad():
            logits = self._model(**given).logits[0]
        scores = logits.float().log_softmax(dim=-1).numpy()
        frame_sec = len(wave) / rate_hz / len(scores)
        if text is None:
            return self._grouped(greedy_path(scores, self._blank), frame_sec)
        ids = []
        for word in text.lower().split():
            own = [self._ids[letter] for letter in word if letter in self._ids and self._ids[letter] != self._between]
            if own and ids and self._between is not None:
                ids.append(self._between)
            ids += own
        if not ids:
            raise ConfigError(f"{text[:60]!r}: none of its letters is known to the model")
        found = self._grouped(ctc_path(scores, ids, self._blank), frame_sec)
        return spread(text, found, len(wave) / rate_hz)

    def _grouped(self, path: list[tuple[int, int, int]], frame_sec: float) -> list[Timed]:
        """Letters (id, first frame, after the last) -> words."""
        found: list[Timed] = []
        fresh = True
        for number, first, end in path:
            if number == self._between or number not in self._letters:
                fresh = True
                continue
            letter, start_sec, end_sec = self._letters[number], first * frame_sec, end * frame_sec
            if fresh:
                found.append((letter, start_sec, end_sec))
            else:
                found[-1] = (found[-1][0] + letter, found[-1][1], end_sec)
            fresh = False
        return found


class WhisperAligner:
    """A Whisper of transformers, by hub name or directory: hears the words and, by its attention, when they are said.
    Of a text that is given, the words are kept, and the times of those heard in their place are taken."""

    def __init__(self, name: str):
        from transformers import pipeline

        try:
            self._pipeline = pipeline("automatic-speech-recognition", model=name, chunk_length_s=30)
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise ConfigError(f"aligner whisper:{name}: cannot be loaded ({' '.join(str(error).split())})") from error

    def words(self, wave: np.ndarray, rate_hz: int, text: str | None = None) -> list[Timed]:
        end_sec = len(wave) / rate_hz
        heard = {"raw": _heard(wave, rate_hz), "sampling_rate": RATE_HZ}
        chunks = self._pipeline(heard, return_timestamps="word").get("chunks", [])
        found = [
            (one["text"].strip(), float(one["timestamp"][0]), float(one["timestamp"][1] or end_sec))
            for one in chunks
            if one["text"].strip() and one["timestamp"][0] is not None
        ]
        return found if text is None else spread(text, found, end_sec)
