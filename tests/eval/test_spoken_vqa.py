"""Spoken questions: what counts as right, early, late and silent, and what is said of bad manifests."""

import json
from dataclasses import replace

import numpy as np
import pytest
from questions import RATE_HZ, lines_of, measure, save, write_questions

from eval.manifest import Line, Spoken, read_lines, read_recordings
from eval.recognise import NoEars
from eval.task import Reply, Settings, spoken
from eval.tasks.codec_resynthesis import read_part
from eval.tasks.spoken_vqa import SpokenVqa, build
from mmspeech.audio.waveform import write_wav
from mmspeech.config import ConfigError


class Says:
    """Says a text from `start_sec` on; its voice sounds for `speaks_sec`."""

    sample_rate_hz = RATE_HZ

    def __init__(self, text, *, start_sec=1.4, speaks_sec=0.5):
        self.text, self.start_sec, self.speaks_sec = text, start_sec, speaks_sec
        self.pictures = []

    def answer(self, samples, prompts, *, seeds):
        self.pictures += [prompt.pictures for prompt in prompts]
        return [self._reply() for _ in prompts]

    def _reply(self):
        wave = np.zeros(12 * RATE_HZ, np.float32)
        wave[int(self.start_sec * RATE_HZ) : int((self.start_sec + self.speaks_sec) * RATE_HZ)] = 0.1
        return replace(spoken(self.text, self.start_sec, word_sec=0.1), wave=wave)


def ask(manifest, who, out, **options):
    settings = Settings(manifest=manifest, **options)
    return measure(SpokenVqa(read_lines(manifest, Line), settings, NoEars()), out, who=who, settings=settings)["all"]


@pytest.fixture
def manifest(tmp_path):
    return save(tmp_path / "red.jsonl", [line | {"answers": ["red"]} for line in lines_of(write_questions(tmp_path))])


def test_a_right_answer_and_when_it_came(manifest, tmp_path):
    found = ask(manifest, Says("It is Red."), tmp_path / "o")
    assert found["score"] == 1.0 and found["said_nothing"] == 0.0 and found["false_starts"] == 0.0
    assert found["answer_sec_p50"] == pytest.approx(0.4)
    assert found["heard_right"] == 0.0  # by ears that hear nothing
    assert ask(manifest, Says("It is blue"), tmp_path / "wrong")["score"] == 0.0


def test_false_starts_are_words_before_the_question_ended(manifest, tmp_path):
    assert ask(manifest, Says("red", start_sec=0.5), tmp_path / "o")["false_starts"] == 1.0
    assert ask(manifest, Says("red", start_sec=1.1), tmp_path / "p")["false_starts"] == 0.0


def test_a_rejected_phrase_makes_an_answer_wrong(manifest, tmp_path):
    lines = [line | {"answers": ["left"], "rejected": ["top left"]} for line in lines_of(manifest)]
    path = save(tmp_path / "r.jsonl", lines)
    assert ask(path, Says("at the top left"), tmp_path / "a")["score"] == 0.0
    assert ask(path, Says("at the left"), tmp_path / "b")["score"] == 1.0


def test_barge_in_counts_stops_and_judges_what_came_after(manifest, tmp_path):
    path = save(tmp_path / "b.jsonl", [line | {"barge_start_sec": 1.6} for line in lines_of(manifest)])
    quick = ask(path, Says("well it is red"), tmp_path / "quick")
    assert quick["barge_ins_while_speaking"] == 6 and quick["stopped"] == 1.0 and quick["false_starts"] is None
    assert quick["score"] == 1.0  # "red" is the word that came after 1.6 s
    assert ask(path, Says("red it is well"), tmp_path / "early")["score"] == 0.0
    assert ask(path, Says("red", speaks_sec=2.0), tmp_path / "slow")["stopped"] == 0.0
    done = ask(path, Says("red", start_sec=0.2, speaks_sec=0.2), tmp_path / "done")
    assert done["barge_ins"] == 6 and done["barge_ins_while_speaking"] == 0 and done["stopped"] is None


def test_missing_and_foreign_files_are_named_and_count_as_wrong(manifest, tmp_path):
    (tmp_path / "m1.wav").unlink()
    (tmp_path / "m2.wav").write_text("not audio")
    settings = Settings(manifest=manifest)
    task = SpokenVqa(read_lines(manifest, Line), settings, NoEars())
    summary = measure(task, tmp_path / "o", who=Says("red"), settings=settings)
    assert summary["counts"] == {"samples": 6, "measured": 4, "failed": 2}
    assert "m1.wav" in summary["failed"]["m1"] and "m2.wav" in summary["failed"]["m2"]
    assert summary["all"]["count"] == 6 and summary["all"]["score"] == pytest.approx(4 / 6)


def test_the_sound_of_a_reply_is_heard_too(manifest, tmp_path):
    pytest.importorskip("pocketsphinx")
    flite = pytest.importorskip("data_prep.flite")
    try:
        speech, rate_hz, _, _ = flite.synthesise("it is red", name="slt", pitch=1.0, rate=1.0)
    except FileNotFoundError as error:
        pytest.skip(str(error))
    import soxr

    task = build(Settings(manifest=manifest, sentences=("it is red", "it is blue")), None)
    reply = Reply(spoken("it is red", 1.4).words, soxr.resample(np.asarray(speech, np.float32), rate_hz, RATE_HZ))
    record = task.score(task.samples[0], task.prompt(task.samples[0]), reply)
    assert record["heard"] == "it is red" and record["heard_right"] and record["word_errors"] == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no lines in it"),
        ("{broken", "line 1: not JSON"),
        ('{"audio": "a.wav"}', "line 1: 'answers': Field required"),
        ('{"audio": "a.wav", "answers": []}', "line 1: 'answers'"),
        ('{"audio": "a.wav", "answers": ["x"], "id": "1"}\n' * 2, "the id '1' stands on several lines"),
    ],
)
def test_bad_manifests_are_one_line_errors(tmp_path, text, message):
    path = tmp_path / "m.jsonl"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_lines(path, Line)
    with pytest.raises(ConfigError, match="no such manifest"):
        read_lines(tmp_path / "none.jsonl", Line)


def test_listening_tasks_take_the_question_as_text(tmp_path):
    lines = read_lines(save(tmp_path / "m.jsonl", [{"audio": "a.wav", "question": "hello", "answers": ["hi"]}]), Spoken)
    assert lines[0].text == "hello" and lines[0].audio == tmp_path / "a.wav" and lines[0].id == "000001"


def test_calls_give_the_model_turns_nobody_interrupted(tmp_path):
    turn = {"answer": "it is red", "answer_start_sec": 1.0, "answer_end_sec": 1.5, "interrupted": False}
    turns = [turn, turn | {"interrupted": True}]
    write_wav(tmp_path / "c.wav", np.stack([0.1 * np.ones(2 * RATE_HZ), np.zeros(2 * RATE_HZ)]), RATE_HZ)
    (tmp_path / "c.json").write_text(json.dumps({"turns": turns}))
    (line,) = read_recordings(save(tmp_path / "m.jsonl", [{"path": "c.wav", "duration": 2.0}]))
    assert line.text == "it is red" and line.id == "c-0"
    wave = read_part(line)
    assert len(wave) == RATE_HZ // 2 and np.allclose(wave, 0.1, atol=1e-3)  # the left channel alone
    (tmp_path / "c.json").write_text("{}")
    with pytest.raises(ConfigError, match="not the json of a spoken call"):
        read_recordings(tmp_path / "m.jsonl")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xff\xfe\x00\x81", "not a text file"),
        (b"", "no lines in it"),
        (b'{"audio": "a.wav", "answers": []}', "line 1: 'answers'"),
        (b"{", "line 1: not JSON"),
        (None, "no such manifest"),
    ],
)
@pytest.mark.parametrize("task", ["spoken_vqa", "codec_resynthesis"])
def test_the_command_names_a_bad_manifest_in_one_line(small_checkpoint, tmp_path, task, content, message):
    from typer.testing import CliRunner

    from eval.__main__ import app

    manifest, out = tmp_path / "m.jsonl", tmp_path / "out"
    if content is not None:
        manifest.write_bytes(content)
    options = ["--manifest", manifest, "--out", out, "--tasks", task, "--model", small_checkpoint]
    result = CliRunner().invoke(app, list(map(str, options)))
    assert result.exit_code == 2 and result.stderr.count("\n") == 1
    assert result.stderr.startswith(f"error: {manifest}")
    assert message in result.stderr or (task == "codec_resynthesis" and "line 1: 'text'" in result.stderr)
    assert not out.exists()


def test_a_channel_that_a_recording_lacks_is_named(tmp_path):
    write_wav(tmp_path / "mono.wav", np.zeros(RATE_HZ), RATE_HZ)
    with pytest.raises(ConfigError, match="mono.wav: has 1 channels; the manifest asks for channel 1"):
        read_part(Spoken(audio=tmp_path / "mono.wav", text="hello", channel=1))
