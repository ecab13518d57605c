"""Remixed calls: what is said is true of the picture; questions are the voiced ones, answers the model's own voice."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from voices import needs_speech

from data_prep.clips import COMMENTARY_APART_SEC
from data_prep.encode import codec_stamp
from data_prep.facts import EVEN, FactsSettings, make_facts
from data_prep.film import film
from data_prep.happenings import random_clip
from data_prep.motion_dialogue import clip_turns, commentary
from data_prep.mouth import LEAD_SEC, Mouth
from data_prep.remix import RemixSettings, make_remix
from data_prep.scenes import item_rng
from data_prep.world import random_scene
from data_prep.world_dialogue import REFUSAL, SMALL_TALK, blind_dialogue, visual_dialogue, visual_turn
from data_prep.world_speak import COMMENT_WITHIN_SEC
from mmspeech.checkpoint import load_codec
from mmspeech.config import ConfigError
from mmspeech.data.shards import ShardSet, write_shards
from mmspeech.types import Sample, Word
from mmspeech.vision.video import Video

CODEC = Path(__file__).resolve().parents[2] / "mmspeech" / "pretrained" / "tiny"
STAMP = codec_stamp(load_codec(CODEC))
WORD_SEC = 0.25
TALK = {answer for _, answer in SMALL_TALK.values()}

pytestmark = needs_speech


def voiced_call(number: int) -> Sample:
    """A call whose codes tell the call (first row) and the frame (second); every third is about a clip, and of the
    others every fourth about nothing."""
    rng = np.random.default_rng(number)
    words, records, now_sec = [], [], 1.0
    if number % 3:
        make = blind_dialogue if number % 4 == 0 else visual_dialogue
        turns = make(random_scene(rng, split="train"), rng, num_turns=5)
    else:
        turns = [timed.turn for timed in clip_turns(random_clip(rng, split="train"), rng, tries=7)]
        turns.append(commentary(random_clip(rng, split="train"), rng).turn)
    for turn in turns:
        record = turn.record() | {"interrupted": False}
        for speaker, side, text in (("user", "question", turn.question), ("main", "answer", turn.answer)):
            record[f"{side}_start_sec"] = now_sec
            for word in text.replace("|", " ").split():
                words.append(Word(word, now_sec, now_sec + WORD_SEC, speaker))
                now_sec += WORD_SEC
            record[f"{side}_end_sec"] = now_sec
            now_sec += 0.4
        records.append(record)
        now_sec += 0.5
    num_frames = int(now_sec * 12.5)
    pair = torch.stack([torch.full((num_frames,), number), torch.arange(num_frames)])
    codes = pair.repeat(STAMP.num_codebooks, 1).to(torch.int16)
    return Sample(f"{number:03d}", codes, words, [], {"turns": records})


@pytest.fixture(scope="module")
def voiced(tmp_path_factory):
    folder = tmp_path_factory.mktemp("voiced") / "set"
    write_shards(folder, [voiced_call(number) for number in range(120)], codec=STAMP)
    return folder


def test_answers_are_true_of_the_picture_and_follow_their_question(voiced, tmp_path):
    make_remix(tmp_path / "out", RemixSettings(seed=3), like=[voiced], codec_dir=CODEC, count=12)
    calls = ShardSet(tmp_path / "out")
    assert calls.info.codec == STAMP and calls.info.pictures == len(calls) >= 10
    for index in range(len(calls)):
        call = calls[index]
        scene = random_scene(item_rng(3, "train", int(call.id), "remix"), split="train")
        rng = np.random.default_rng(0)
        truths = {visual_turn(scene, rng).answer for _ in range(3000)} | TALK
        answers = sentences(call.words)
        assert answers and set(answers) <= truths, (answers, scene)
        assert (call.words[0].speaker, call.words[-1].speaker) == ("user", "main")


def test_questions_come_from_the_frames_of_their_words_and_answers_are_sound(voiced, tmp_path):
    make_remix(tmp_path / "out", RemixSettings(), like=[voiced], codec_dir=CODEC, count=4)
    source, call = ShardSet(voiced), ShardSet(tmp_path / "out")[0]
    silence = torch.tensor(STAMP.silence_codes)
    for word in call.words:
        frame = int(word.start_sec * 12.5 + 1e-6)
        number, there = (int(code) for code in call.codes[STAMP.num_codebooks :, frame][:2])
        if word.speaker == "user":
            spoken = {w.text for w in source[number].words if abs(w.start_sec * 12.5 - there) < 1.01}
            assert word.text in spoken
        else:
            assert not torch.equal(call.codes[: STAMP.num_codebooks, frame + 1].long(), silence)
            quiet = [turn["answer_start_sec"] for turn in source[number].meta["turns"]]
            assert any(start_sec - 0.3 < there / 12.5 for start_sec in quiet)


def test_nothing_but_lasting_silence_tells_that_an_answer_comes():
    codec = load_codec(CODEC)
    codes, words = Mouth(codec).say("the circle is red")
    assert codes[:, 0].tolist() == list(STAMP.silence_codes)
    assert [word.text for word in words] == ["the", "circle", "is", "red"] and words[0].start_sec >= LEAD_SEC
    assert not Mouth(codec, limit=0).can_say("the circle is red")


def test_with_nothing_to_see_it_talks_repeats_and_says_that_it_can_not_see(voiced, tmp_path):
    settings = RemixSettings(seed=6, blind=1.0, num_turns=2)
    make_remix(tmp_path / "out", settings, like=[voiced], codec_dir=CODEC, count=24)
    calls = ShardSet(tmp_path / "out")
    assert calls.info.pictures == 0 and len(calls) == 24
    repeated = 0
    for index in range(len(calls)):
        asked, said = sentences(calls[index].words, "user"), sentences(calls[index].words)
        for question, answer in zip(asked, said, strict=True):
            repeats = question.endswith(answer)
            assert repeats or answer in TALK | {REFUSAL}, (question, answer)
            repeated += repeats
    assert repeated >= 4


def test_a_clip_is_asked_about_when_the_answer_is_true(voiced, tmp_path):
    settings = RemixSettings(seed=2, clips=1.0, commentary=0.0)
    make_remix(tmp_path / "out", settings, like=[voiced], codec_dir=CODEC, count=12)
    calls = ShardSet(tmp_path / "out")
    checked = 0
    for index in range(len(calls)):
        call = calls[index]
        (shown,) = call.visuals
        rng = item_rng(settings.seed, settings.split, int(call.id), "remix")
        rng.random()
        clip = random_clip(rng, split=settings.split, hurried=rng.random() < settings.hurried)
        if shown.data != film(clip, size_px=settings.size_px):
            continue  # nobody asked about the first clip that was thought up
        asked_sec = [word.end_sec for word in call.words if word.speaker == "user"][-1] - shown.start_sec
        (answer,) = sentences(call.words)
        turns = clip_turns(clip, np.random.default_rng(0), tries=9000)
        times = [(timed.earliest_sec, timed.latest_sec) for timed in turns if timed.turn.answer == answer]
        assert any(first - 1e-3 <= asked_sec <= last + 1e-3 for first, last in times), (answer, asked_sec, times)
        checked += 1
    assert checked >= 5


def test_what_happens_is_told_soon_after_it_has(voiced, tmp_path):
    settings = RemixSettings(seed=5, clips=1.0, commentary=1.0)
    make_remix(tmp_path / "out", settings, like=[voiced], codec_dir=CODEC, count=6)
    calls = ShardSet(tmp_path / "out")
    assert len(calls) >= 4
    for index in range(len(calls)):
        call = calls[index]
        said = [word for word in call.words if word.speaker == "main"]
        assert said[0].text == "okay" and len(said) >= 3
        assert all(one.end_sec <= two.start_sec + 0.1 for one, two in itertools.pairwise(said))
        clip = Video(call.visuals[0].data)
        assert call.visuals[0].start_sec < said[1].start_sec < call.visuals[0].start_sec + clip.duration_sec + 1.5


def test_after_a_swap_the_second_picture_is_asked_about(voiced, tmp_path):
    settings = RemixSettings(seed=4, swaps=1.0)
    make_remix(tmp_path / "out", settings, like=[voiced], codec_dir=CODEC, count=8)
    calls = ShardSet(tmp_path / "out")
    assert len(calls) >= 6
    for index in range(len(calls)):
        call = calls[index]
        first, second = call.visuals
        assert first.start_sec == 0.0 and first.data != second.data and len(sentences(call.words)) == 2
        switches = [
            b.start_sec for a, b in itertools.pairwise(call.words) if (a.speaker, b.speaker) == ("main", "user")
        ]
        ends = [a.end_sec for a, b in itertools.pairwise(call.words) if (a.speaker, b.speaker) == ("main", "user")]
        answered_sec = [w.start_sec for w in call.words if w.speaker == "main" and w.start_sec > switches[0]][0]
        assert ends[0] <= second.start_sec < answered_sec


def test_written_sentences_are_true_when_they_stand_there(tmp_path):
    settings = FactsSettings(seed=1, clips=0.7, num_facts=3, commentary=0.0)
    make_facts(tmp_path / "out", settings, codec_dir=CODEC, count=12)
    calls = ShardSet(tmp_path / "out")
    kinds = {calls[index].visuals[0].kind for index in range(len(calls))}
    assert kinds == {"image", "clip"} and (calls[0].codes == -1).all()
    for index in range(len(calls)):
        call = calls[index]
        rng = item_rng(1, "train", int(call.id), "facts")
        rng.random()
        text = " ".join(word.text for word in call.words)
        if call.visuals[0].kind == "image":
            scene = random_scene(rng, split="train")
            truths = {visual_turn(scene, np.random.default_rng(seed)).answer for seed in range(3000)}
        else:
            rng.random()
            clip = random_clip(rng, split="train", hurried=rng.random() < settings.hurried, shares=EVEN)
            truths = {timed.turn.answer for timed in clip_turns(clip, np.random.default_rng(0), tries=4000)}
            assert call.visuals[0].start_sec < 0
        assert any(text.startswith(truth) for truth in truths) and any(text.endswith(truth) for truth in truths)


def test_what_happens_is_told_soon_after_it_can_be_seen(tmp_path):
    settings = FactsSettings(seed=2, clips=1.0, commentary=1.0)
    make_facts(tmp_path / "out", settings, codec_dir=CODEC, count=8)
    calls = ShardSet(tmp_path / "out")
    for index in range(len(calls)):
        call = calls[index]
        rng = item_rng(2, "train", int(call.id), "facts")
        rng.random(), rng.random()
        clip = random_clip(rng, split="train", apart_sec=COMMENTARY_APART_SEC, shares=EVEN)
        told = commentary(clip, rng)
        first, *rest = call.words
        assert first.text == told.turn.answer
        for comment in told.comments:
            words, rest = rest[: len(comment.text.split())], rest[len(comment.text.split()) :]
            assert " ".join(word.text for word in words) == comment.text
            late_sec = words[0].start_sec - call.visuals[0].start_sec - comment.event_sec
            assert 0.3 <= late_sec <= COMMENT_WITHIN_SEC
        assert not rest


def test_the_same_seed_makes_the_same_calls(voiced, tmp_path):
    for name in ("a", "b"):
        make_remix(tmp_path / name, RemixSettings(seed=1), like=[voiced], codec_dir=CODEC, count=3)
    one, two = (ShardSet(tmp_path / name) for name in ("a", "b"))
    assert [one[i].words for i in range(len(one))] == [two[i].words for i in range(len(two))]
    assert all(torch.equal(one[i].codes, two[i].codes) for i in range(len(one)))


def test_a_set_without_turns_is_refused(tmp_path):
    codes = torch.zeros(2 * STAMP.num_codebooks, 20, dtype=torch.int16)
    write_shards(tmp_path / "set", [Sample("0", codes, [], [], {})], codec=STAMP)
    with pytest.raises(ConfigError, match="no turns in its calls; expected a set packed from `data_prep speak`"):
        make_remix(tmp_path / "out", RemixSettings(), like=[tmp_path / "set"], codec_dir=CODEC, count=1)
    assert not (tmp_path / "out").exists()


def sentences(words: list[Word], speaker: str = "main") -> list[str]:
    """What one side says, a sentence for each time the other has spoken."""
    turns = [list(turn) for _, turn in itertools.groupby(words, key=lambda word: word.speaker)]
    return [" ".join(word.text for word in turn) for turn in turns if turn[0].speaker == speaker]


def test_an_answer_breaks_off_soon_after_the_next_question_begins(voiced, tmp_path):
    settings = RemixSettings(seed=4, num_turns=3, barge_ins=1.0)
    make_remix(tmp_path / "out", settings, like=[voiced], codec_dir=CODEC, count=24)
    calls, rows = ShardSet(tmp_path / "out"), STAMP.num_codebooks
    broken_off = 0
    for index in range(len(calls)):
        call = calls[index]
        speakers = [(speaker, list(words)) for speaker, words in itertools.groupby(call.words, lambda w: w.speaker)]
        assert [speaker for speaker, _ in speakers] == ["user", "main"] * (len(speakers) // 2)
        for (_, answer), (_, question) in zip(speakers[1::2], speakers[2::2], strict=False):
            if answer[-1].end_sec <= question[0].start_sec:
                continue
            broken_off += 1
            assert 0.1 < answer[-1].end_sec - question[0].start_sec < 0.45
            later = int(question[0].start_sec * 12.5) + 12
            assert call.codes[0, later] == STAMP.silence_codes[0]
            for word in question:  # its sound is there, whole and in its place
                frame = int(word.start_sec * 12.5 + 1e-6)
                number, there = (int(code) for code in call.codes[rows:, frame][:2])
                spoken = {w.text for w in voiced_call(number).words if abs(w.start_sec * 12.5 - there) < 1.01}
                assert word.text in spoken
    assert broken_off >= 8
