"""The sound of the model's voice: is it what its text says, how fast, how loud, how clean."""

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from eval.manifest import Line
from eval.recognise import Ears, open_ears, word_error
from eval.scoring import is_active, mean, normalise, percentile
from eval.sights import Sights
from eval.spoken import duration_sec, expected_sentences, question_lines, spoken_prompt
from eval.task import Prompt, Reply, Settings, Task, spoken
from mmspeech.audio.waveform import read_audio
from mmspeech.frames import SAMPLE_RATE_HZ

if TYPE_CHECKING:
    from mmspeech.checkpoint import Bundle

SETS = ("known", "talk")
CLIPPED = 0.999
MOS_RATE_HZ = 16_000
MEASURED = ("words_per_sec", "silence_share", "loudness_lufs", "peak", "clipped_share", "mos_overall", "mos_p808")
_LEAST_SEC = 0.5  # of sound, below which loudness and quality mean nothing


def build(settings: Settings, bundle: "Bundle | None") -> "Speech":
    """The task over the sets of DATA/questions that are there."""
    lines, files = question_lines(settings, SETS)
    every = [line for own in lines.values() for line in own]
    return Speech(lines, files, open_ears(settings, expected_sentences(every)))


class Speech(Task):
    """Score: 1 less the word error of what is heard against what the model's text says; 0 for a model that is silent.

    Rate: words per second of sound. Loudness: LUFS after ITU-R BS.1770 (pyloudnorm). Quality: DNSMOS P.808 and overall,
    1 to 5 (Reddy et al. 2021, 2022), where the package speechmos is installed, whose weights come with it.
    """

    name, version = "speech", 1

    def __init__(self, lines: dict[str, list[Line]], files: list[Path], ears: Ears):
        self.files = files
        self._ears = ears
        self.samples = [line.model_copy(update={"kind": name}) for name, own in lines.items() for line in own]
        self._sights = Sights(self.samples, pictures="given", seed=0)

    def prompt(self, sample: Line) -> Prompt:
        return spoken_prompt(sample, self._sights)

    def score(self, sample: Line, prompt: Prompt, reply: Reply) -> dict[str, Any]:
        said = normalise(reply.text)
        heard = self._ears.words(reply.wave, SAMPLE_RATE_HZ)
        errors, count = word_error(said, heard)
        return {
            "score": max(0.0, 1.0 - errors / count) if count else 0.0,
            "question": sample.question,
            "text": reply.text,
            "heard": " ".join(heard),
            "word_errors": errors,
            "words_said": count,
            **measure_sound(reply.wave, words=count),
        }

    def right_reply(self, sample: Line) -> Reply:
        """The caller's own words and voice: text and sound that belong together."""
        wave = read_audio(sample.audio)[0].numpy()
        return Reply(spoken(sample.question, 0.0).words, wave)

    def length_sec(self, sample: Line) -> float:
        return duration_sec(sample)

    def summarise(self, records: list[dict[str, Any]]) -> dict[str, Any]:
        said = sum(r["words_said"] for r in records)
        means = {name: mean([r[name] for r in records if r[name] is not None]) for name in MEASURED}
        rates = [r["words_per_sec"] for r in records if r["words_per_sec"] is not None]
        return {
            "word_error": sum(r["word_errors"] for r in records) / said if said else None,
            "said_nothing": mean([not r["words_said"] for r in records]),
            **means,
            "words_per_sec_p10": percentile(rates, 10),
            "words_per_sec_p90": percentile(rates, 90),
        }


def measure_sound(wave: np.ndarray, *, words: int) -> dict[str, float | None]:
    """Numbers of a reply [N] at 24 kHz of so many words; None where there is too little sound to tell."""
    active = is_active(wave, SAMPLE_RATE_HZ)
    sounding = np.flatnonzero(active)
    found: dict[str, float | None] = dict.fromkeys(MEASURED)
    if len(wave):
        found["peak"] = round(float(np.abs(wave).max()), 4)
        found["clipped_share"] = float((np.abs(wave) >= CLIPPED).mean())
    size = SAMPLE_RATE_HZ // 50
    if len(sounding) * size < _LEAST_SEC * SAMPLE_RATE_HZ:
        return found
    speech = wave[sounding[0] * size : (sounding[-1] + 1) * size]
    found |= {
        "words_per_sec": round(words / (len(sounding) * size / SAMPLE_RATE_HZ), 3),
        "silence_share": round(1.0 - len(sounding) / int(sounding[-1] + 1 - sounding[0]), 4),
        "loudness_lufs": _loudness_lufs(speech),
    }
    return found | _quality(speech)


def _loudness_lufs(speech: np.ndarray) -> float | None:
    import pyloudnorm

    loudness = pyloudnorm.Meter(SAMPLE_RATE_HZ).integrated_loudness(speech.astype(np.float64))
    return round(float(loudness), 2) if np.isfinite(loudness) else None


def _quality(speech: np.ndarray) -> dict[str, float | None]:
    run = _dnsmos()
    if run is None:
        return {"mos_overall": None, "mos_p808": None}
    import soxr

    wave = soxr.resample(speech.astype(np.float32), SAMPLE_RATE_HZ, MOS_RATE_HZ).clip(-1, 1)
    rated = run(wave, sr=MOS_RATE_HZ)
    return {"mos_overall": round(float(rated["ovrl_mos"]), 3), "mos_p808": round(float(rated["p808_mos"]), 3)}


@cache
def _dnsmos():
    """The rating function of speechmos, or None when it is not installed."""
    try:
        from speechmos import dnsmos
    except ModuleNotFoundError:
        return None
    return dnsmos.run
