"""Long calls: questions one after another, or after a silence; hand-worked times, and scripts that get their due."""

import numpy as np
import pytest
from questions import COLOURS, QUESTION_SEC, RATE_HZ, lines_of, measure, question_sets, save

from eval.task import Reply, Settings, spoken
from eval.tasks import find
from eval.tasks.long_call import ANSWER_SEC, QUESTIONS, QUIET_SEC
from mmspeech.serve.session import SpokenWord

STEP_SEC = QUESTION_SEC + ANSWER_SEC  # from one question to the next


@pytest.fixture
def task(tmp_path):
    question_sets(tmp_path, known=14, motion=14)
    return find("long_call")(Settings(data=tmp_path), None)


def named(task, kind):
    return [sample for sample in task.samples if sample.kind == kind]


def test_all_questions_are_asked_on_end_and_each_after_a_silence(task):
    many, alone = named(task, "many questions"), named(task, "after silence")
    assert [len(call.lines) for call in many] == [QUESTIONS, 28 - QUESTIONS] and len(alone) == 28
    assert [line.id for line in many[0].lines[:4]] == [
        "known/known0",
        "motion/motion0",
        "known/known1",
        "motion/motion1",
    ]
    assert len({sample.id for sample in task.samples}) == len(task.samples)


def test_recordings_lie_where_their_questions_are_scored(task):
    call = named(task, "many questions")[0]
    wave = task.prompt(call).wave
    assert len(wave) == int(QUESTIONS * STEP_SEC * RATE_HZ) and task.length_sec(call) == QUESTIONS * STEP_SEC
    loud = np.flatnonzero(np.diff(np.concatenate([[0], (np.abs(wave) > 0.05).astype(int)])) == 1)
    assert np.allclose(loud / RATE_HZ, np.arange(QUESTIONS) * STEP_SEC, atol=0.001)
    silent = task.prompt(named(task, "after silence")[0]).wave
    assert not silent[: int(QUIET_SEC * RATE_HZ)].any() and silent[int(QUIET_SEC * RATE_HZ)] != 0


def test_pictures_enter_with_their_questions(tmp_path, task):
    from PIL import Image

    file = tmp_path / "questions" / "known.jsonl"
    lines = lines_of(file)
    for number, colour in ((0, "red"), (2, "blue")):
        Image.new("RGB", (8, 8), colour).save(file.parent / f"{colour}.png")
        lines[number]["image"] = f"{colour}.png"
    save(file, lines)
    task = find("long_call")(Settings(data=tmp_path), None)
    pictures = task.prompt(named(task, "many questions")[0]).pictures
    assert [(at_sec, seen.getpixel((0, 0))) for at_sec, seen in pictures] == [
        (0.0, (255, 0, 0)),
        (4 * STEP_SEC, (0, 0, 255)),
    ]
    assert task.prompt(named(task, "after silence")[4]).pictures[0][0] == QUIET_SEC


def test_scripts_get_what_they_deserve(task, tmp_path):
    oracle = measure(task, tmp_path / "oracle")
    assert oracle["all"]["score"] == 1.0 and oracle["all"]["questions"] == 56
    silent = measure(task, tmp_path / "silent", who="silent")["by_kind"]["many questions"]
    assert silent["score"] == 0.0 and silent["said_nothing"] == 1.0
    blind = measure(task, tmp_path / "blind", who="blind")["all"]["score"]
    assert 0.0 < blind < 0.7


def test_an_answer_counts_for_the_question_before_it_only(task):
    call = named(task, "many questions")[0]
    prompt = task.prompt(call)
    late = [SpokenWord(COLOURS[0], STEP_SEC + 0.1, 0.0)]
    record = task.score(call, prompt, Reply(late))
    assert record["score"] == pytest.approx(1 / QUESTIONS)  # of the second line, whose answer is the same
    assert [turn["right"] for turn in record["turns"][:2]] == [False, True]
    record = task.score(call, prompt, spoken("red", 11 * STEP_SEC + 1.5))
    summary = task.summarise([record])
    assert record["turns"][11]["text"] == "red" and summary["questions"] == QUESTIONS
    assert summary["right_in_minute_1"] == 0.0 and summary["right"] == record["score"] and summary["unasked"] is None


def test_who_speaks_into_the_silence_is_counted(task):
    call = named(task, "after silence")[0]
    records = [task.score(call, task.prompt(call), spoken("red", at_sec)) for at_sec in (30.0, QUIET_SEC + 1.5)]
    assert [record["unasked"] for record in records] == [True, False] and [r["score"] for r in records] == [0.0, 1.0]
    assert task.summarise(records)["unasked"] == 0.5
