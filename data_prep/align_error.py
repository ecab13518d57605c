"""How far an aligner is off: speech whose words' times the synthesiser tells, aligned as if they were not known."""

from collections.abc import Sequence

import numpy as np

from data_prep.aligners import Aligner, open_aligner
from data_prep.tts import HELD_OUT_VOICES, Voice, random_voice, require_synthesisers, synthesise
from mmspeech.config import ConfigError
from mmspeech.frames import FRAME_RATE_HZ, SAMPLE_RATE_HZ

PAUSE_SEC = 0.3  # of silence before and after


def measure_error(aligner: Aligner, voices: Sequence[Voice], texts: Sequence[str]) -> tuple[np.ndarray, int]:
    """The distance in seconds between where each word begins and where the aligner says so, [words]; and how many texts
    it gave up."""
    errors, given_up = [], 0
    silence = np.zeros(int(PAUSE_SEC * SAMPLE_RATE_HZ), np.float32)
    for text, voice in zip(texts, voices, strict=True):
        said = synthesise(text, voice)
        try:
            found = aligner.words(np.concatenate([silence, said.wave, silence]), SAMPLE_RATE_HZ, text)
        except ConfigError:
            given_up += 1
            continue
        errors += [abs(own[1] - PAUSE_SEC - true[1]) for own, true in zip(found, said.words, strict=True)]
    return np.array(errors), given_up


def align_error(backend: str, count: int, seed: int) -> list[str]:
    """Lines of a table: the error over sentences of the rendered world, by flite's and espeak-ng's voices."""
    from data_prep.world import random_scene
    from data_prep.world_dialogue import model_sentences

    require_synthesisers()
    aligner, rng = open_aligner(backend), np.random.default_rng(seed)
    texts = model_sentences(rng, [random_scene(rng, split="train") for _ in range(count)], per_scene=4)
    texts = [text for text in texts if len(text.split()) > 3][:count]
    drawn = [random_voice(rng, held_out=False) for _ in range(8 * count)]
    pools = {name: [voice for voice in drawn if voice.engine == name] for name in ("flite", "espeak")}
    lines = [f"| {backend}: start of a word | median ms | mean ms | p90 ms | within 80 ms | words | given up |"]
    lines.append("|---|---|---|---|---|---|---|")
    for name, voices in (pools | {"held out": list(HELD_OUT_VOICES) * count}).items():
        errors_sec, given_up = measure_error(aligner, voices[: len(texts)], texts)
        errors = 1000 * errors_sec
        within = float((errors <= 1000 / FRAME_RATE_HZ).mean())
        shown = f"{np.median(errors):.0f} | {errors.mean():.0f} | {np.percentile(errors, 90):.0f} | {within:.1%}"
        lines.append(f"| {name} | {shown} | {len(errors)} | {given_up} of {len(texts)} |")
    return lines
