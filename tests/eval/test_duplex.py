"""Turn-taking: who takes the turn when, hand-worked, and the layout that another benchmark reads."""

import json

import numpy as np
import pytest
import soundfile
from questions import RATE_HZ, lines_of, measure, question_sets, save

from eval.full_duplex_bench import export
from eval.scripted import Scripted
from eval.task import Reply, Settings, spoken
from eval.tasks import find
from eval.turns import Utterance, backchannels_in, longest_pause, overlap_share, takeover_in, utterances
from mmspeech.audio.waveform import write_wav
from mmspeech.config import ConfigError
from mmspeech.frames import SAMPLE_RATE_HZ
from mmspeech.serve.session import SpokenWord


def words(*starts_sec):
    return [SpokenWord("word", start, 0.0) for start in starts_sec]


def test_words_without_a_long_silence_are_one_utterance():
    said = utterances(words(1.0, 1.3, 1.9, 4.0))
    assert said == [Utterance(1.0, 2.15, 3), Utterance(4.0, 4.25, 1)]
    assert [one.takes_turn for one in said] == [True, False]  # 1.15 s; one short word
    (quick,) = utterances(words(0.0, 0.1, 0.2, 0.3))
    assert quick.takes_turn and quick.end_sec < 1.0  # four words
    (short,) = utterances(words(0.0, 0.2, 0.4))
    assert not short.takes_turn
    assert utterances([]) == [] and utterances([SpokenWord("", 0.0, 0.0)]) == []


def test_takeovers_and_backchannels_are_told_apart_in_their_time():
    said = utterances(words(1.0, 3.0, 3.3, 3.6, 3.9, 8.0))
    assert backchannels_in(said, 0.0, 5.0) == 1 and backchannels_in(said, 0.0, 9.0) == 2
    assert takeover_in(said, 0.0, 5.0).start_sec == 3.0 and takeover_in(said, 3.5, 9.0) is None


def test_the_longest_pause_and_the_overlap():
    tone, quiet = np.full(RATE_HZ, 0.1, np.float32), np.zeros(RATE_HZ, np.float32)
    wave = np.concatenate([quiet, tone, quiet[: RATE_HZ // 2], tone, quiet])
    begin, end = longest_pause(wave, RATE_HZ)
    assert begin == pytest.approx(2.0, abs=0.03) and end == pytest.approx(2.5, abs=0.03)
    assert longest_pause(tone, RATE_HZ) is None and longest_pause(quiet, RATE_HZ) is None
    assert overlap_share(np.concatenate([tone, quiet]), np.concatenate([tone, tone]), RATE_HZ) == pytest.approx(0.5)
    assert overlap_share(quiet[:0], quiet[:0], RATE_HZ) == 0.0


@pytest.fixture
def task(tmp_path):
    folder = question_sets(tmp_path, known=4, pause=2, barge=2)
    barge = folder / "barge.jsonl"
    for line in lines_of(barge):
        write_wav(folder / line["audio"], 0.1 * np.ones(RATE_HZ * 4), RATE_HZ)
    save(barge, [line | {"barge_start_sec": 2.0, "question_end_sec": 4.0} for line in lines_of(barge)])
    return find("duplex")(Settings(data=tmp_path), None)


def test_scripts_get_what_they_deserve(task, tmp_path):
    assert measure(task, tmp_path / "oracle")["all"]["score"] == 1.0
    late = measure(task, tmp_path / "late", who="late")["by_kind"]
    assert late["turn taking"]["score"] == 0.0 and late["interruption"]["score"] == 0.0
    assert late["long turn"]["score"] == 1.0  # nobody is kept waiting there
    silent = measure(task, tmp_path / "silent", who="silent")["by_kind"]
    assert silent["pause"]["score"] == 0.0 and silent["turn taking"]["tor_after_end"] == 0.0


def test_long_turns_are_two_questions_in_one_breath(task):
    turn = next(sample for sample in task.samples if sample.kind == "long turn")
    assert len(task.prompt(turn).wave) == int(RATE_HZ * (1 + 0.4 + 2))
    prompt = task.prompt(turn)
    early = task.score(turn, prompt, spoken("i will answer you now", 1.5))
    assert early["score"] == 0.0 and early["early_takeover"]
    polite = task.score(turn, prompt, spoken("yes", 1.2))
    assert polite["score"] == 1.0 and polite["backchannels"] == 1


def test_who_does_not_stop_when_interrupted_fails(task):
    turn = next(sample for sample in task.samples if sample.kind == "interruption")
    prompt, answer = task.prompt(turn), spoken("the circle is red i think", 4.3)
    stubborn = Reply(answer.words, np.full(7 * SAMPLE_RATE_HZ, 0.1, np.float32))
    assert task.score(turn, prompt, stubborn)["score"] == 0.0
    wave = answer.wave.copy()
    wave[SAMPLE_RATE_HZ : int(2.3 * SAMPLE_RATE_HZ)] = 0.1
    yielding = task.score(turn, prompt, Reply(answer.words, wave))
    assert yielding["score"] == 1.0 and yielding["stop_sec"] == pytest.approx(0.3, abs=0.03)
    assert yielding["answer_sec"] == pytest.approx(0.3)


class Kept(Scripted):
    """Keeps the sound of replies, as a model's are kept."""

    def __init__(self, task, out):
        super().__init__("oracle", task)
        self.folder = out / "replies"
        self.folder.mkdir(parents=True)

    def answer(self, samples, prompts, *, seeds):
        replies = super().answer(samples, prompts, seeds=seeds)
        for seed, reply in zip(seeds, replies, strict=True):
            soundfile.write(str(self.folder / f"{seed}.flac"), reply.wave, SAMPLE_RATE_HZ)
        return replies

    def file(self, prompt, seed):
        return self.folder / f"{seed}.flac"


def test_the_layout_of_full_duplex_bench(task, tmp_path):
    measure(task, tmp_path / "run", who=Kept(task, tmp_path / "run"))
    assert export(tmp_path / "run", tmp_path / "fdb") == len(task.samples)
    folders = {path.name for path in (tmp_path / "fdb").iterdir()}
    assert folders == {"smooth_turn_taking", "pause_handling", "user_interruption", "backchannel"}
    one = sorted((tmp_path / "fdb" / "user_interruption").iterdir())[0]
    told = json.loads((one / "output.json").read_text())
    assert told["text"].startswith("red") and told["chunks"][0]["timestamp"] == [4.3, 4.6]
    assert json.loads((one / "interrupt.json").read_text())[0]["timestamp"] == [2.0, 4.0]
    asked, reply = (soundfile.info(str(one / name)) for name in ("input.wav", "output.wav"))
    assert asked.samplerate == reply.samplerate == RATE_HZ and asked.duration == pytest.approx(4.0)
    with pytest.raises(ConfigError, match="no replies of the task duplex"):
        export(tmp_path, tmp_path / "none")
