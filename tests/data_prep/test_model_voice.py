"""The model's own voice tells nothing of what comes."""

import numpy as np
import pytest
from voices import needs_speech

from data_prep.model_voice import FORMULAS, model_says, phrases
from data_prep.world import random_scene
from data_prep.world_dialogue import SMALL_TALK, visual_turn
from mmspeech.frames import SAMPLE_RATE_HZ


def sentences() -> list[str]:
    rng = np.random.default_rng(0)
    seen = [visual_turn(random_scene(rng, split="train"), rng).answer for _ in range(300)]
    return seen + [answer for _, answer in SMALL_TALK.values()]


def test_phrases_are_formulas_or_words():
    for text in sentences():
        parts = list(phrases(text))
        assert " ".join(parts) == text and all(" " not in part or part in FORMULAS for part in parts)


def test_within_a_phrase_nothing_is_left_to_choose():
    """No two sentences go on differently inside a formula that has begun."""
    words = [text.split() for text in sentences()]
    for formula in (tuple(formula.split()) for formula in FORMULAS):
        for said in words:
            for place in range(len(said) - 1):
                if tuple(said[place : place + 2]) == formula[:2]:
                    assert tuple(said[place : place + len(formula)]) == formula, (formula, said)


@needs_speech
@pytest.mark.parametrize(
    ("start", "ends"),
    [
        ("the count of stars is", ("one", "two", "zero")),
        ("a red circle", ("yes there is", "no there is not")),
        ("the red circle is at the", ("top left", "bottom left")),
        ("i am", ("fine thank you", "a small model that can see")),
    ],
)
def test_sentences_sound_alike_until_they_differ(start, ends):
    said = [model_says(f"{start} {end}") for end in ends]
    place = len(start.split())
    turns_sec = {one.words[place - 1][2] for one in said}
    assert len(turns_sec) == 1
    until = int(turns_sec.pop() * SAMPLE_RATE_HZ)
    for one, end in zip(said, ends, strict=True):
        assert np.array_equal(one.wave[:until], said[0].wave[:until])
        assert [word for word, _, _ in one.words] == f"{start} {end}".split()
        times = [time for _, first_sec, last_sec in one.words for time in (first_sec, last_sec)]
        assert times == sorted(times) and times[-1] <= one.duration_sec + 1e-6
