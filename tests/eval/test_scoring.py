import math

import numpy as np
import pytest

from eval.scoring import holds_answer, is_active, normalise, percentile, stop_after

RATE_HZ = 24_000


def tone(duration_sec: float) -> np.ndarray:
    return 0.3 * np.sin(np.arange(int(duration_sec * RATE_HZ)) * 0.1).astype(np.float32)


def quiet(duration_sec: float) -> np.ndarray:
    return np.zeros(int(duration_sec * RATE_HZ), np.float32)


def test_normalise_drops_case_and_punctuation_and_spells_digits():
    assert normalise("It's 2 red CIRCLES, I think!") == ["it's", "two", "red", "circles", "i", "think"]
    assert normalise("\u2019tis 'so'") == ["tis", "so"]
    assert normalise("...") == []


@pytest.mark.parametrize(
    ("said", "answers", "holds"),
    [
        ("the circle is red", ["red"], True),
        ("the circle is redder", ["red"], False),
        ("it is at the top left", ["top left"], True),
        ("it is at the left top", ["top left"], False),
        ("there are 3", ["three", "many"], True),
        ("", ["red"], False),
        ("anything", [""], False),
    ],
)
def test_answers_are_whole_words_in_order(said, answers, holds):
    assert holds_answer(normalise(said), answers) is holds


def test_activity_marks_sound_only():
    active = is_active(np.concatenate([quiet(0.5), tone(0.5)]), RATE_HZ)
    assert len(active) == 50 and not active[:25].any() and active[25:].all()


def test_stop_is_counted_from_the_barge_in_to_lasting_silence():
    wave = np.concatenate([quiet(1), tone(2), quiet(0.1), tone(0.1), quiet(1)])
    assert stop_after(wave, RATE_HZ, 2.6) == pytest.approx(0.6, abs=0.021)


def test_nothing_to_stop_and_never_stopping():
    assert stop_after(np.concatenate([tone(0.5), quiet(3)]), RATE_HZ, 2.0) is None
    assert math.isinf(stop_after(tone(3), RATE_HZ, 1.0))


def test_nothing_has_no_percentile():
    assert percentile([], 50) is None
