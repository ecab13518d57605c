"""Remixed calls: what is said is true of the picture, in whole words, and comes from what was voiced."""

import numpy as np
import pytest
import torch

from data_prep.dialogue import visual_dialogue, visual_turn
from data_prep.remix import RemixSettings, make_remix
from data_prep.scenes import item_rng
from data_prep.world import random_scene
from mmspeech.config import ConfigError
from mmspeech.data.shards import CodecStamp, ShardSet, write_shards
from mmspeech.types import Sample, Word

STAMP = CodecStamp(hash="0" * 16, num_codebooks=2, codebook_size=1000, silence_codes=(0, 0))
WORD_SEC = 0.25


def voiced_call(number: int) -> Sample:
    """A call whose codes tell the call (first row) and the frame (second)."""
    rng = np.random.default_rng(number)
    words, records, now_sec = [], [], 1.0
    for turn in visual_dialogue(random_scene(rng, split="train"), rng, num_turns=5):
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
    codes = torch.stack([torch.full((num_frames,), number), torch.arange(num_frames)] * 2).to(torch.int16)
    return Sample(f"{number:03d}", codes, words, [], {"turns": records})


@pytest.fixture(scope="module")
def voiced(tmp_path_factory):
    folder = tmp_path_factory.mktemp("voiced") / "set"
    write_shards(folder, [voiced_call(number) for number in range(60)], codec=STAMP)
    return folder


def test_answers_are_true_of_the_picture_and_follow_their_question(voiced, tmp_path):
    make_remix(tmp_path / "out", RemixSettings(seed=3), like=[voiced], count=12)
    calls = ShardSet(tmp_path / "out")
    assert calls.info.codec == STAMP and calls.info.pictures == len(calls) >= 10
    for index in range(len(calls)):
        call = calls[index]
        scene = random_scene(item_rng(3, "train", int(call.id), "remix"), split="train")
        rng = np.random.default_rng(0)
        truths = {visual_turn(scene, rng).answer for _ in range(3000)}
        answers = sentences(call.words)
        assert answers and set(answers) <= truths, (answers, scene)
        assert (call.words[0].speaker, call.words[-1].speaker) == ("user", "main")


def test_codes_and_words_come_from_the_same_frames(voiced, tmp_path):
    make_remix(tmp_path / "out", RemixSettings(seed=0), like=[voiced], count=4)
    source, call = ShardSet(voiced), ShardSet(tmp_path / "out")[0]
    for word in call.words:
        frame = int(word.start_sec * 12.5 + 1e-6)
        number, there = int(call.codes[0, frame]), int(call.codes[1, frame])
        spoken = {w.text for w in source[number].words if abs(w.start_sec * 12.5 - there) < 1.01}
        assert word.text in spoken


def test_the_same_seed_makes_the_same_calls(voiced, tmp_path):
    for name in ("a", "b"):
        make_remix(tmp_path / name, RemixSettings(seed=1), like=[voiced], count=3)
    one, two = (ShardSet(tmp_path / name) for name in ("a", "b"))
    assert [one[i].words for i in range(len(one))] == [two[i].words for i in range(len(two))]
    assert all(torch.equal(one[i].codes, two[i].codes) for i in range(len(one)))


def test_a_set_without_turns_is_refused(tmp_path):
    codes = torch.zeros(4, 20, dtype=torch.int16)
    write_shards(tmp_path / "set", [Sample("0", codes, [], [], {})], codec=STAMP)
    with pytest.raises(ConfigError, match="no turns in its calls; expected a set packed from `data_prep speak`"):
        make_remix(tmp_path / "out", RemixSettings(seed=0), like=[tmp_path / "set"], count=1)
    assert not (tmp_path / "out").exists()


def sentences(words: list[Word]) -> list[str]:
    """What the model says, a sentence for each time the user has spoken."""
    said, before = [], "main"
    for word in words:
        if word.speaker == "main":
            said = [*said, word.text] if before == "user" else [*said[:-1], f"{said[-1]} {word.text}"]
        before = word.speaker
    return said
