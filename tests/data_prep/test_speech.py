"""What is spoken: words with their times, voices, calls that can be broken off, faults that are found."""

import json

import numpy as np
import pytest
import soundfile
from voices import needs_speech

from data_prep.check import check
from data_prep.clip_questions import CLIP_SETS
from data_prep.phones import PHONES
from data_prep.preview import preview
from data_prep.questions import SETS, make_questions
from data_prep.scenes import make_scenes
from data_prep.tts import (
    HELD_OUT_VOICES,
    MODEL_VOICE,
    Voice,
    random_voice,
    synthesise,
)
from data_prep.world_dialogue import vocabulary
from data_prep.world_speak import Timing, speak
from mmspeech.config import ConfigError

CALLERS = [random_voice(np.random.default_rng(seed), held_out=False) for seed in range(5)]
EVENTFUL = Timing(pause_share=0.5, barge_in_share=0.6, quiet_share=0.2)


@pytest.fixture(scope="module")
def calls(tmp_path_factory):
    """Four dialogues, and the calls made of them."""
    root = tmp_path_factory.mktemp("spoken")
    make_scenes(root / "scenes", count=4, seed=2, split="train", size_px=96, blind_share=0.5)
    assert speak(root / "scenes", root / "calls", seed=2, jobs=1, timing=EVENTFUL) == 0
    return root


def records(folder) -> list[dict]:
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]


def test_held_out_voices_are_never_drawn_for_training():
    rng = np.random.default_rng(0)
    held_out = {voice.key for voice in HELD_OUT_VOICES}
    assert not held_out & {random_voice(rng, held_out=False).key for _ in range(3000)}
    assert {random_voice(rng, held_out=True).key for _ in range(300)} == held_out


@needs_speech
@pytest.mark.parametrize("voice", [*HELD_OUT_VOICES, *CALLERS], ids=lambda voice: voice.key)
def test_every_word_has_its_time(voice):
    text = "in which place is the orange triangle on the left of the picture"
    spoken = synthesise(text, voice)
    assert spoken.wave.dtype == np.float32 and 0.4 < np.abs(spoken.wave).max() <= 0.51
    assert [word for word, _, _ in spoken.words] == text.split()
    for items in (spoken.words, spoken.phones):
        ends = [0.0] + [end for _, _, end in items]
        for (_, start, end), before in zip(items, ends, strict=False):
            assert before - 0.02 <= start < end <= spoken.duration_sec
    assert {phone for phone, _, _ in spoken.phones} <= set(PHONES)


@needs_speech
@pytest.mark.parametrize("voice", [MODEL_VOICE, *CALLERS[:3]], ids=lambda voice: voice.key)
def test_the_whole_vocabulary_can_be_said(voice):
    words = vocabulary()
    spoken = [
        word for at in range(0, len(words), 16) for word, *_ in synthesise(" ".join(words[at : at + 16]), voice).words
    ]
    assert spoken == words


@needs_speech
def test_the_model_always_sounds_the_same():
    first = synthesise("the circle is red", MODEL_VOICE).wave
    synthesise("something else", Voice(engine="flite", name="rms", rate=1.2))
    assert np.array_equal(first, synthesise("the circle is red", MODEL_VOICE).wave)


@needs_speech
def test_rate_pitch_and_formant_make_another_speaker():
    plain, text = Voice(engine="flite", name="slt"), "where is the star"
    fast, small = (synthesise(text, plain.model_copy(update=u)) for u in ({"rate": 1.25}, {"formant": 1.1}))
    length = synthesise(text, plain).duration_sec
    assert fast.duration_sec < 0.9 * length and small.duration_sec == pytest.approx(length / 1.1, rel=0.06)


@needs_speech
def test_nothing_and_unknown_voices_are_refused():
    for text, voice in (("...", MODEL_VOICE), ("hello", Voice(engine="flite", name="x")),
                        ("hello", Voice(engine="espeak", name="xx-yy"))):  # fmt: skip
        with pytest.raises(ConfigError):
            synthesise(text, voice)


@needs_speech
def test_calls_are_without_fault(calls):
    report = check(calls / "calls")
    assert report.faults == [] and report.entries == 4
    for record in records(calls / "calls"):
        wave, rate_hz = soundfile.read(calls / "calls" / record["entry"]["path"])
        assert rate_hz == 24_000 and wave.shape[1] == 2
        assert bool(record["visuals"]) == (record["entry"]["kind"] == "visual")
        for before, turn in zip(record["turns"], record["turns"][1:], strict=False):
            assert before["interrupted"] == (turn["question_start_sec"] < before["answer_end_sec"])
            if before["interrupted"]:
                assert before["answer_end_sec"] - turn["question_start_sec"] < 0.5


@needs_speech
def test_the_model_is_silent_until_it_answers(calls):
    for record in records(calls / "calls"):
        wave, rate_hz = soundfile.read(calls / "calls" / record["entry"]["path"])
        spoken = np.zeros(len(wave), bool)
        for turn in record["turns"]:
            assert turn["answer_start_sec"] > turn["question_end_sec"] + 0.25
            start, end = (int(turn[key] * rate_hz) for key in ("answer_start_sec", "answer_end_sec"))
            spoken[start - 48 : end + 48] = True  # the times are in whole milliseconds
        assert np.abs(wave[~spoken, 0]).max() == 0 and np.abs(wave[spoken, 0]).max() > 0.2


@needs_speech
def test_half_deleted_and_spoken_again_is_whole(calls, tmp_path):
    before = {path.name: path.read_bytes() for path in sorted((calls / "calls").iterdir())}
    kept = list(before)[1::2]
    for name in kept:
        (tmp_path / name).write_bytes(before[name])
    (tmp_path / kept[0]).with_suffix(".wav.tmp").write_bytes(b"broken off")
    assert speak(calls / "scenes", tmp_path, seed=2, jobs=1, timing=EVENTFUL) == 0
    assert check(tmp_path).faults == []
    assert {path.name for path in tmp_path.iterdir() if path.suffix != ".tmp"} == set(before)
    pictures = [name for name in before if name.endswith(".png")]
    assert pictures and all((tmp_path / name).read_bytes() == before[name] for name in pictures)


@needs_speech
def test_planted_faults_are_named(calls, tmp_path):
    for path in (calls / "calls").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    visual = next(path for path in sorted(tmp_path.glob("*.json")) if json.loads(path.read_text())["visuals"])
    record = json.loads(visual.read_text())
    record["alignments"][0][1] = [900.0, 901.0]
    record["voice"] = HELD_OUT_VOICES[0].model_dump()
    record["turns"][0]["answer"] = "the circle is pink"
    visual.write_text(json.dumps(record))
    visual.with_suffix(".png").write_bytes(b"not a picture")
    other = next(path for path in sorted(tmp_path.glob("*.wav")) if path.stem != visual.stem)
    other.write_bytes(other.read_bytes()[:1000])
    with (tmp_path / "manifest.jsonl").open("a") as manifest:
        manifest.write('{"path": "gone.wav", "duration": 1.0}\nnonsense\n')
    found = "\n".join(check(tmp_path).faults)
    for part in ("900.0", "held out", "pink", "picture 0", other.name, "gone.wav is not there", "nonsense"):
        assert part in found, f"{part} not in {found}"


@needs_speech
def test_a_preview_shows_the_words_where_they_sound(calls, tmp_path):
    record = next(r for r in records(calls / "calls") if r["visuals"])
    name = record["entry"]["path"].removesuffix(".wav")
    lines = preview(calls / "calls", tmp_path, call=name)
    word, (start_sec, _), _ = record["alignments"][0]
    assert any(line.split()[0] == str(int(start_sec * 12.5)) and word in line for line in lines[1:])
    page = (tmp_path / f"{name}.html").read_text()
    assert record["turns"][0]["answer"] in page and (tmp_path / f"{name}.wav").is_file()
    with pytest.raises(ConfigError, match="no call 'x'"):
        preview(calls / "calls", tmp_path, call="x")


@needs_speech
@pytest.mark.parametrize("name", SETS)
def test_question_sets(tmp_path, name):
    manifest = make_questions(tmp_path, name=name, count=3, seed=1, split="test", size_px=96)
    assert check(manifest).faults == []
    held_out = {voice.key for voice in HELD_OUT_VOICES}
    for line in map(json.loads, manifest.read_text().splitlines()):
        assert (line["voice"] in held_out) == name.endswith("unseen")
        shown = line.get("image") or line.get("video")
        assert (shown is None) == (name == "talk") and (line.get("video") is not None) == (name in CLIP_SETS)
        seconds = soundfile.info(tmp_path / line["audio"]).duration
        assert 0.5 < line["question_end_sec"] < seconds and line["answers"]
        assert name != "barge" or 0.5 < line["barge_start_sec"] < line["question_end_sec"]


@needs_speech
def test_questions_that_are_there_are_kept(tmp_path):
    options = {"name": "talk", "seed": 1, "split": "test", "size_px": 96}
    whole = make_questions(tmp_path / "whole", count=3, **options).read_text()
    make_questions(tmp_path / "broken", count=2, **options)
    made = (tmp_path / "broken/talk/talk_00001.wav").stat().st_mtime_ns
    assert make_questions(tmp_path / "broken", count=3, **options).read_text() == whole
    assert (tmp_path / "broken/talk/talk_00001.wav").stat().st_mtime_ns == made
    with pytest.raises(ConfigError, match="choose another --out folder"):
        make_questions(tmp_path / "broken", count=3, **options | {"seed": 2})
