"""The sound of replies: rates, silence, loudness, clipping; and whether it says what the text says."""

import numpy as np
import pytest
from questions import RATE_HZ, measure, question_sets

from eval.task import Settings, spoken
from eval.tasks import find
from eval.tasks.speech import measure_sound

pytest.importorskip("pyloudnorm")


def tone(seconds, level=0.1):
    return (level * np.sin(2 * np.pi * 997 * np.arange(int(seconds * RATE_HZ)) / RATE_HZ)).astype(np.float32)


def test_rates_and_silence_are_of_the_sound():
    quiet = np.zeros(RATE_HZ, np.float32)
    found = measure_sound(np.concatenate([quiet, tone(1.5), quiet, tone(1.5), quiet]), words=9)
    assert found["words_per_sec"] == pytest.approx(3.0, abs=0.05)
    assert found["silence_share"] == pytest.approx(0.25, abs=0.01)  # what is around the speech does not count
    assert found["peak"] == pytest.approx(0.1, abs=1e-3) and found["clipped_share"] == 0.0


def test_loudness_is_that_of_the_standard():
    """BS.1770: a sine of 997 Hz at full scale in one channel is -3.01 LUFS."""
    assert measure_sound(tone(3, level=1.0), words=1)["loudness_lufs"] == pytest.approx(-3.01, abs=0.1)
    assert measure_sound(tone(3, level=0.1), words=1)["loudness_lufs"] == pytest.approx(-23.01, abs=0.1)
    assert measure_sound(tone(3, level=1.2).clip(-1, 1), words=1)["clipped_share"] > 0.2


def test_too_little_sound_tells_nothing():
    for wave in (np.zeros(0, np.float32), np.zeros(RATE_HZ, np.float32), tone(0.1)):
        found = measure_sound(wave, words=0)
        assert found["loudness_lufs"] is None and found["words_per_sec"] is None and found["mos_overall"] is None


class Echo:
    """Hears the words it was told to hear."""

    unknown = ()

    def __init__(self, heard):
        self.heard = heard

    def words(self, wave, sample_rate_hz):
        return self.heard.split()


def test_the_score_is_the_share_of_words_that_are_heard(tmp_path):
    question_sets(tmp_path, known=2, talk=2)
    task = find("speech")(Settings(data=tmp_path, recogniser="none"), None)
    assert {sample.kind for sample in task.samples} == {"known", "talk"}
    sample = task.samples[0]
    prompt, reply = task.prompt(sample), spoken("the circle is red", 1.0)
    for heard, score in (("the circle is red", 1.0), ("the circle is bread", 0.75), ("", 0.0)):
        task._ears = Echo(heard)
        assert task.score(sample, prompt, reply)["score"] == score
    task._ears = Echo("what colour is the circle")
    assert measure(task, tmp_path / "oracle")["all"]["score"] == 1.0
    silent = measure(task, tmp_path / "silent", who="silent")["all"]
    assert silent["score"] == 0.0 and silent["said_nothing"] == 1.0 and silent["word_error"] is None
