"""The same seeds give the same speech, whatever was said before, in parts, or after being broken off."""

import hashlib
import json

import numpy as np
import pytest
from voices import needs_speech

from data_prep import tts
from data_prep.calls import read_manifest
from data_prep.scenes import make_scenes
from data_prep.tts import Voice, synthesise
from data_prep.world_speak import OtherCallError, Timing, speak
from mmspeech.config import ConfigError

VOICES = (
    Voice(engine="flite", name="slt"),
    Voice(engine="flite", name="rms", rate=1.1),
    Voice(engine="espeak", name="en-us+m3", pitch=0.9),
    Voice(engine="espeak", name="en+f2", rate=0.9, formant=1.1),
)


def digests(folder) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def spoken(tmp_path_factory):
    root = tmp_path_factory.mktemp("repeatable")
    make_scenes(root / "scenes", count=2, seed=3, split="train", size_px=96, blind_share=0.3)
    assert speak(root / "scenes", root / "calls", seed=1, jobs=1, timing=Timing()) == 0
    return root


def test_scenes_and_dialogues_stay_what_they_were(tmp_path):
    """A change here means that the shipped model's training data can no longer be made again."""
    make_scenes(tmp_path, count=6, seed=1, split="train", size_px=96, blind_share=0.5)
    texts = b"".join(path.read_bytes() for path in sorted(tmp_path.glob("*.json")))
    assert hashlib.sha256(texts).hexdigest()[:16] == "f29f55d30de1b1cd"


@needs_speech
def test_a_wave_does_not_depend_on_what_was_said_before():
    first = [synthesise("where is the red star", voice) for voice in VOICES]
    again = [synthesise("where is the red star", voice) for voice in VOICES[::-1]][::-1]
    for one, two in zip(first, again, strict=True):
        assert np.array_equal(one.wave, two.wave) and (one.words, one.phones) == (two.words, two.phones)


@needs_speech
def test_half_deleted_and_spoken_again_equals_a_clean_run(spoken, tmp_path):
    whole = digests(spoken / "calls")
    for number, path in enumerate(sorted((spoken / "calls").iterdir())):
        if number % 2:
            (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "000001.dialogue.json.err").write_text("of an earlier run")
    assert speak(spoken / "scenes", tmp_path, seed=1, jobs=1, timing=Timing()) == 0
    assert digests(tmp_path) == whole


@needs_speech
def test_parts_make_the_whole(spoken, tmp_path):
    for part in (1, 0):
        assert speak(spoken / "scenes", tmp_path, seed=1, jobs=1, timing=Timing(), shard=(part, 2)) == 0
    parts = digests(tmp_path)
    assert [parts.pop(f"manifest-{part}-of-2.jsonl") for part in (0, 1)]
    whole = digests(spoken / "calls")
    assert parts == {name: digest for name, digest in whole.items() if name != "manifest.jsonl"}
    assert [call.id for call in read_manifest(tmp_path)] == [call.id for call in read_manifest(spoken / "calls")]


@needs_speech
def test_a_folder_of_other_calls_is_refused(spoken, tmp_path):
    make_scenes(tmp_path / "other", count=1, seed=8, split="train", size_px=96, blind_share=0.0)
    with pytest.raises(OtherCallError, match="choose another --out folder"):
        speak(tmp_path / "other", spoken / "calls", seed=1, jobs=1, timing=Timing())


@needs_speech
def test_words_are_timed_however_they_are_joined():
    for text in ("on the", "in which place", "is it in the center"):
        for voice in VOICES:
            assert [word for word, _, _ in synthesise(text, voice).words] == text.split()


def test_the_training_pool_and_the_held_out_pool_share_no_voice():
    pool = {voice.key for voice in (*tts._FLITE_TRAIN, *tts._ESPEAK_TRAIN)}
    held_out = {voice.key for voice in tts.HELD_OUT_VOICES}
    assert not pool & held_out and len(pool) > 90 and len(held_out) == 6
    drawn = {tts.random_voice(np.random.default_rng(seed), held_out=False).key for seed in range(2000)}
    assert drawn <= pool and len(drawn) > 90


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"turns": []}, "turns"),
        ({"kind": "other"}, "kind"),
        ({"extra": 1}, "extra"),
        ({"turns": [{"kind": "x", "question": "", "answer": "a", "answers": ["a"]}]}, "question"),
    ],
)
def test_a_broken_dialogue_is_named(tmp_path, change, named):
    from data_prep.scenes import load_dialogue

    turn = {"kind": "x", "question": "q", "answer": "a", "answers": ["a"]}
    path = tmp_path / "0.dialogue.json"
    path.write_text(json.dumps({"kind": "blind", "split": "train", "seed": 0, "turns": [turn]}))
    assert load_dialogue(path).turns[0].answers == ("a",)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ConfigError, match=named) as caught:
        load_dialogue(path)
    assert str(path) in str(caught.value)
    path.write_text("{")
    with pytest.raises(ConfigError, match="not JSON"):
        load_dialogue(path)
