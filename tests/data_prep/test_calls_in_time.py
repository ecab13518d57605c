"""How a call is laid out in time, with made-up voices: pauses, barge-ins, channels; no synthesiser is needed."""

import itertools
import json

import numpy as np
import pytest

from data_prep import world_dialogue
from data_prep import world_speak as speak
from data_prep.track import FADE_SEC, Track
from data_prep.tts import MODEL_VOICE, Utterance
from data_prep.world import COLOURS, SHAPES, random_scene
from data_prep.world_dialogue import LATE, VISUAL_KINDS, visual_turn
from data_prep.world_speak import COMMENT_WITHIN_SEC, Timing, question_parts, speak_dialogue, speak_shown
from mmspeech.frames import SAMPLE_RATE_HZ

WORD_SEC = 0.3
QUIET = {"pause_share": 0.0, "barge_in_share": 0.0, "quiet_share": 0.0}


def said(text: str, voice=None) -> Utterance:
    """0.3 s of full level per word."""
    times = [(word, k * WORD_SEC, (k + 1) * WORD_SEC) for k, word in enumerate(text.split())]
    return Utterance(np.ones(round(len(times) * WORD_SEC * SAMPLE_RATE_HZ), np.float32), times, times)


@pytest.fixture(autouse=True)
def made_up_voices(monkeypatch):
    monkeypatch.setattr(speak, "synthesise", said)
    monkeypatch.setattr(speak, "model_says", said)
    monkeypatch.setattr(speak, "user_channel", lambda wave, rng: wave)


def turns(seed: int, count: int) -> list[dict]:
    rng = np.random.default_rng(seed)
    scene = random_scene(rng, split="train")
    return [visual_turn(scene, rng).record() for _ in range(count)]


def call(seed: int, timing: Timing, count: int = 5):
    return speak_dialogue(turns(seed, count), voice=MODEL_VOICE, rng=np.random.default_rng(seed), timing=timing)


def loud(wave, word) -> bool:
    _, (start_sec, end_sec), _ = word
    middle = int((start_sec + min(0.05, (end_sec - start_sec) / 2)) * SAMPLE_RATE_HZ)
    return wave[middle] > 0


def test_an_utterance_cut_off_fades_and_loses_the_words_after_it():
    track = Track()
    end_sec = track.add(said("one two three four"), 1.0, until_sec=1.7)
    assert end_sec == 1.7
    assert track.words == [("one", 1.0, 1.3), ("two", 1.3, 1.6), ("three", 1.6, 1.7)] == track.phones
    wave = track.wave(3 * SAMPLE_RATE_HZ)
    last, fade = round(1.7 * SAMPLE_RATE_HZ), int(FADE_SEC * SAMPLE_RATE_HZ)
    assert not wave[: SAMPLE_RATE_HZ - 1].any() and not wave[last + 1 :].any()
    assert (wave[SAMPLE_RATE_HZ + 1 : last - fade - 1] == 1).all()
    faded = wave[last - fade : last]
    assert (np.diff(faded) <= 0).all() and faded[-2] < 0.01


def test_an_utterance_that_ends_in_time_is_left_whole():
    track, same = Track(), said("one two")
    assert track.add(same, 0.5, until_sec=2.0) == pytest.approx(1.1)
    assert len(track.words) == 2 and same.wave.min() == 1


def test_an_utterance_shorter_than_the_fade_fades_too():
    track = Track()
    track.add(said("one"), 0.0, until_sec=FADE_SEC / 2)
    assert track.wave(SAMPLE_RATE_HZ)[int(FADE_SEC / 2 * SAMPLE_RATE_HZ) - 2] < 0.01


@pytest.mark.parametrize("seed", range(12))
def test_words_sound_on_their_own_channel_within_the_call(seed):
    timing = Timing(pause_share=0.5, barge_in_share=0.7, quiet_share=0.2)
    spoken = call(seed, timing)
    seconds = len(spoken.wave) / SAMPLE_RATE_HZ
    alignments = spoken.record["alignments"]
    assert [a[1][0] for a in alignments] == sorted(a[1][0] for a in alignments)
    for word in alignments:
        channel = ("SPEAKER_MAIN", "SPEAKER_USER").index(word[2])
        assert 0 <= word[1][0] <= word[1][1] <= seconds  # equal: cut off within a millisecond of its start
        assert word[1][0] == word[1][1] or loud(spoken.wave[:, channel], word)
    for side, who in (("main", "SPEAKER_MAIN"), ("user", "SPEAKER_USER")):
        assert spoken.record["phones"][side] == [[w, *times] for w, times, speaker in alignments if speaker == who]


@pytest.mark.parametrize("seed", range(8))
def test_who_is_interrupted_stops_soon_and_no_other_answer_does(seed):
    timing = Timing(**QUIET | {"barge_in_share": 1.0})
    records = call(seed, timing).record["turns"]
    assert any(turn["interrupted"] for turn in records) and not records[-1]["interrupted"]
    for turn, after in itertools.pairwise(records):
        assert turn["interrupted"] == (after["question_start_sec"] < turn["answer_end_sec"])
        if turn["interrupted"]:
            stopped_after_sec = turn["answer_end_sec"] - after["question_start_sec"]
            assert stopped_after_sec == pytest.approx(timing.barge_in_stop_sec, abs=2e-3)


def test_a_question_is_whole_whether_or_not_there_is_a_pause_in_it():
    timing = Timing(**QUIET | {"pause_share": 1.0})
    for seed in range(10):
        with_pauses, without = (call(seed, t).record for t in (timing, Timing(**QUIET)))
        words = [[w for w, _, who in r["alignments"] if who == "SPEAKER_USER"] for r in (with_pauses, without)]
        assert words[0] == words[1] == " ".join(t["question"] for t in with_pauses["turns"]).split()
        for turn, asked in zip(with_pauses["turns"], turns(seed, 5), strict=True):
            seconds = turn["question_end_sec"] - turn["question_start_sec"]
            pause_sec = seconds - len(turn["question"].split()) * WORD_SEC
            low, high = timing.pause_sec if "|" in asked["question"] else (0.0, 0.0)
            assert low - 2e-3 <= pause_sec <= high + 2e-3
            assert turn["answer_start_sec"] > turn["question_end_sec"] + 0.3


def test_what_could_only_be_told_too_late_is_left_out():
    comments = [
        {"text": text, "answers": [text], "event_sec": event_sec}
        for text, event_sec in (("one two three four five six", 3.0), ("too late", 3.1), ("in time", 6.0))
    ]
    turn = {"kind": "commentary", "question": "tell me", "answer": "okay", "answers": ["okay"], "sight": 0}
    turn |= {"when": [-1.0, 0.0], "comments": comments}
    spoken, _ = speak_shown(
        [turn], num_sights=1, voice=MODEL_VOICE, rng=np.random.default_rng(0), timing=Timing(**QUIET)
    )
    told = spoken.record["turns"][0]["comments"]
    assert [comment["text"] for comment in told] == ["one two three four five six", "in time"]
    assert all(0 < one["start_sec"] - one["event_sec"] <= COMMENT_WITHIN_SEC for one in told)


def test_no_part_before_a_pause_is_a_question_of_its_own():
    """Else the model would be right to answer inside the pause."""
    questions = {form for forms, _ in world_dialogue.SMALL_TALK.values() for form in forms}
    rng = np.random.default_rng(0)
    for _ in range(1500):
        questions.add(visual_turn(random_scene(rng, split="train"), rng).question)
    whole = {speak.plain_text(question) for question in questions}
    openings = {opening.removesuffix("|").strip() for opening in LATE}
    for question in questions:
        parts = question.split("|")
        for k in range(1, len(parts)):
            before = speak.plain_text(" ".join(parts[:k]))
            for opening in openings:
                before = before.removeprefix(opening).strip()
            assert before not in whole, f"{question!r} may already be over before its pause"


def test_a_pause_falls_on_a_mark():
    rng = np.random.default_rng(0)
    cuts = {tuple(question_parts("here | is what | there", rng, pause=True)) for _ in range(50)}
    assert cuts == {("here", "is what there"), ("here is what", "there")}
    assert question_parts("here | is what", rng, pause=False) == ["here is what"]
    assert question_parts("hello there", rng, pause=True) == ["hello there"]


def test_every_kind_of_question_is_reached():
    rng = np.random.default_rng(1)
    kinds = {visual_turn(random_scene(rng, split="train"), rng).kind for _ in range(400)}
    assert kinds == {make.__name__.removeprefix("_") for make, _ in VISUAL_KINDS} and len(kinds) == 10
    said_of = json.dumps([visual_turn(random_scene(rng, split="train"), rng).record() for _ in range(400)])
    assert all(word in said_of for word in (*COLOURS, *SHAPES, *(opening.rstrip(" |") for opening in LATE)))


def test_calls_are_drawn_from_the_seed():
    same = [call(3, Timing()) for _ in range(2)]
    assert np.array_equal(same[0].wave, same[1].wave) and same[0].record == same[1].record
    assert call(4, Timing()).record != same[0].record
