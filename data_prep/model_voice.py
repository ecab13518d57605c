"""What the model says, in its voice: in short phrases, so that no sound tells what comes in a later one.

A synthesiser that knows the whole sentence lets its last word be heard in the first ones: they are longer or higher
before a short word. A model that learns from such speech reads its answer off its own voice, and need not look; when it
speaks by itself, there is nothing to read. So each phrase is spoken without knowing what follows.
"""

from collections.abc import Iterator
from functools import lru_cache

import numpy as np

from data_prep.tts import MODEL_VOICE, Timed, Utterance, synthesise

# Words after whose first one nothing is left to choose. All others are spoken one by one.
FORMULAS = (
    "colour of the", "count of", "size of the", "one is a", "at the", "on the", "in the center", "left side",
    "right side", "yes there is", "no there is not", "it moves", "it moved", "it does not", "it did not",
    "hello nice to meet you", "fine thank you", "a small model that can see", "tell you what is in a picture",
    "not see a picture", "you are welcome", "goodbye see you soon",
)  # fmt: skip
_FORMULAS = sorted((tuple(formula.split()) for formula in FORMULAS), key=len, reverse=True)


def phrases(text: str) -> Iterator[str]:
    """The text in pieces: the longest formula at each place, or a word."""
    words = tuple(text.split())
    while words:
        length = next((len(formula) for formula in _FORMULAS if words[: len(formula)] == formula), 1)
        yield " ".join(words[:length])
        words = words[length:]


@lru_cache(maxsize=20_000)
def model_says(text: str) -> Utterance:
    """A sentence in the model's voice; the same object every time. Raises as `synthesise`."""
    waves: list[np.ndarray] = []
    words: list[Timed] = []
    phones: list[Timed] = []
    now_sec = 0.0
    for phrase in phrases(text):
        said = _phrase(phrase)
        waves.append(said.wave)
        words += [(name, now_sec + start_sec, now_sec + end_sec) for name, start_sec, end_sec in said.words]
        phones += [(name, now_sec + start_sec, now_sec + end_sec) for name, start_sec, end_sec in said.phones]
        now_sec += said.duration_sec
    if not waves:
        return synthesise(text, MODEL_VOICE)
    return Utterance(np.concatenate(waves), words, phones)


@lru_cache(maxsize=2_000)
def _phrase(text: str) -> Utterance:
    return synthesise(text, MODEL_VOICE)
