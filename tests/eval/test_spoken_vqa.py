"""The whole harness with scripted responders: an oracle that knows the answers, and one that says nothing."""

import json

import numpy as np
import pytest

from eval.manifest import Line, Spoken, read_lines, read_recordings
from eval.report import claim, run_identity, summarise_task, write_results
from eval.responder import Reply
from eval.run import SAMPLES, run_task
from eval.task import Settings
from eval.tasks import find
from eval.tasks.codec_resynthesis import read_part
from eval.tasks.spoken_vqa import SpokenVqa
from mmspeech.audio.waveform import write_wav
from mmspeech.config import ConfigError
from mmspeech.serve.session import SpokenWord

RATE_HZ = 24_000
QUESTION_SEC = 1.0


class Scripted:
    """Says `text(line)` from `start_sec` on, with a tone as its voice; counts the calls it was asked for."""

    sample_rate_hz = RATE_HZ

    def __init__(self, text, *, start_sec=1.4, speaks_sec=0.5):
        self.text, self.start_sec, self.speaks_sec = text, start_sec, speaks_sec
        self.seeds, self.frames = [], []

    def answer(self, questions, *, seeds):
        self.seeds += seeds
        self.frames += [question.frames for question in questions]
        return [self._reply(question.line) for question in questions]

    def _reply(self, line):
        words = [SpokenWord(w, self.start_sec + 0.1 * k, 0.5) for k, w in enumerate(self.text(line).split())]
        wave = np.zeros(4 * RATE_HZ, np.float32)
        if words:
            wave[int(self.start_sec * RATE_HZ) : int((self.start_sec + self.speaks_sec) * RATE_HZ)] = 0.1
        return Reply(words, wave)


class Deaf:
    """A recogniser that hears nothing, at once."""

    unknown = ()

    def words(self, wave, sample_rate_hz):
        return []


@pytest.fixture
def manifest(tmp_path):
    lines = []
    for number in range(5):
        write_wav(tmp_path / f"q{number}.wav", 0.1 * np.ones(RATE_HZ * (1 + number % 2)), RATE_HZ)
        lines.append(
            {
                "audio": f"q{number}.wav",
                "image": None,
                "question": "what colour is the circle",
                "answers": ["red", "crimson"],
                "kind": ("colour", "count")[number % 2],
                "voice": "v",
                "question_end_sec": QUESTION_SEC,
                "anything_else": 1,
            }
        )
    return save(tmp_path / "m.jsonl", lines)


def save(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def measure(manifest, responder, out, **options):
    settings = Settings(manifest=manifest, **options)
    lines = read_lines(manifest, Line)
    task = SpokenVqa(lines=lines, settings=settings, responder=responder, recogniser=Deaf())
    claim(out, run_identity(settings=settings, bundle=None, batch_size=2, tasks=[task]))
    records, _ = run_task(task, out=out, seed=settings.seed, batch_size=2, progress=lambda done, total: None)
    return summarise_task(task, records)


def test_oracle_gets_everything_and_silence_nothing(manifest, tmp_path):
    oracle = measure(manifest, Scripted(lambda line: "It is Red."), tmp_path / "oracle")
    assert oracle["counts"] == {"lines": 5, "measured": 5, "failed": 0}
    assert oracle["all"]["right"] == 1.0 and oracle["all"]["said_nothing"] == 0.0
    assert oracle["all"]["answer_sec_p50"] == pytest.approx(0.4)
    assert set(oracle["by_kind"]) == {"colour", "count"} and oracle["by_voice"] == {}
    silent = measure(manifest, Scripted(lambda line: ""), tmp_path / "silent")
    assert silent["all"]["right"] == 0.0 and silent["all"]["said_nothing"] == 1.0
    assert silent["all"]["heard_right"] == 0.0 and silent["all"]["word_error"] is None


def test_false_starts_are_words_before_the_question_ended(manifest, tmp_path):
    assert measure(manifest, Scripted(lambda line: "red", start_sec=0.5), tmp_path / "o")["all"]["false_starts"] == 1.0
    assert measure(manifest, Scripted(lambda line: "red", start_sec=1.1), tmp_path / "p")["all"]["false_starts"] == 0.0


def test_a_rejected_phrase_makes_an_answer_wrong(manifest, tmp_path):
    lines = [line | {"answers": ["left"], "rejected": ["top left"]} for line in lines_of(manifest)]
    path = save(tmp_path / "r.jsonl", lines)
    assert measure(path, Scripted(lambda line: "at the top left"), tmp_path / "a")["all"]["right"] == 0.0
    assert measure(path, Scripted(lambda line: "at the left"), tmp_path / "b")["all"]["right"] == 1.0


def test_barge_in_counts_stops_and_judges_what_came_after(manifest, tmp_path):
    path = save(tmp_path / "b.jsonl", [line | {"barge_start_sec": 1.6} for line in lines_of(manifest)])
    quick = measure(path, Scripted(lambda line: "well it is red", speaks_sec=0.5), tmp_path / "quick")["all"]
    assert quick["barge_ins_while_speaking"] == 5 and quick["stopped"] == 1.0 and quick["false_starts"] is None
    assert quick["right"] == 1.0  # "red" is the word that came after 1.6 s
    early = measure(path, Scripted(lambda line: "red it is well"), tmp_path / "early")["all"]
    assert early["right"] == 0.0
    slow = measure(path, Scripted(lambda line: "red", speaks_sec=2.0), tmp_path / "slow")["all"]
    assert slow["stopped"] == 0.0
    done = measure(path, Scripted(lambda line: "red", start_sec=0.2, speaks_sec=0.2), tmp_path / "done")["all"]
    assert done["barge_ins"] == 5 and done["barge_ins_while_speaking"] == 0 and done["stopped"] is None


def test_missing_and_foreign_files_are_named(manifest, tmp_path):
    (tmp_path / "q1.wav").unlink()
    (tmp_path / "q2.wav").write_text("not audio")
    summary = measure(manifest, Scripted(lambda line: "red"), tmp_path / "o")
    assert summary["counts"] == {"lines": 5, "measured": 3, "failed": 2}
    assert "q1.wav" in summary["failed"]["000002"] and "q2.wav" in summary["failed"]["000003"]
    assert summary["all"]["count"] == 3


def test_a_killed_run_goes_on_and_ends_like_a_clean_one(manifest, tmp_path):
    clean = Scripted(lambda line: "red")
    measure(manifest, clean, tmp_path / "clean")
    wanted = (tmp_path / "clean" / SAMPLES).read_text()

    measure(manifest, Scripted(lambda line: "red"), tmp_path / "killed")
    samples = tmp_path / "killed" / SAMPLES
    samples.write_text(wanted[: len(wanted) // 2])  # in the middle of a line
    again = Scripted(lambda line: "red")
    measure(manifest, again, tmp_path / "killed")
    assert 0 < len(again.seeds) < 5 and set(again.seeds) <= set(clean.seeds)
    by_id = [{r["id"]: r for r in map(json.loads, text.splitlines())} for text in (wanted, samples.read_text())]
    assert by_id[0] == by_id[1] and len(samples.read_text().splitlines()) == 5
    nothing_left = Scripted(lambda line: "red")
    measure(manifest, nothing_left, tmp_path / "killed")
    assert nothing_left.seeds == []


def test_a_folder_of_another_run_is_refused(manifest, tmp_path):
    measure(manifest, Scripted(lambda line: "red"), tmp_path / "o")
    with pytest.raises(ConfigError, match=r"different seed\); choose another --out"):
        measure(manifest, Scripted(lambda line: "red"), tmp_path / "o", seed=1)


def test_results_json_is_strict_and_says_where_it_comes_from(manifest, tmp_path):
    path = save(tmp_path / "b.jsonl", [line | {"barge_start_sec": 1.6} for line in lines_of(manifest)])
    summary = measure(path, Scripted(lambda line: "red", speaks_sec=9), tmp_path / "o")
    file = write_results(tmp_path / "o", identity={"seed": 0}, tasks={"spoken_vqa": summary}, bundle=None)
    results = json.loads(file.read_text(), parse_constant=pytest.fail)
    assert results["schema_version"] == 1 and results["run"] == {"seed": 0}
    assert results["hardware"]["cpus"] and results["versions"]["torch"]
    for line in (tmp_path / "o" / SAMPLES).read_text().splitlines():
        json.loads(line, parse_constant=pytest.fail)


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


def test_the_sound_of_a_reply_is_heard_too(manifest, tmp_path):
    pytest.importorskip("pocketsphinx")
    flite = pytest.importorskip("data_prep.flite")
    try:
        speech, rate_hz, _, _ = flite.synthesise("it is red", name="slt", pitch=1.0, rate=1.0)
    except FileNotFoundError as error:
        pytest.skip(str(error))
    responder = Scripted(lambda line: "it is red")
    responder.sample_rate_hz = rate_hz
    responder.answer = lambda questions, *, seeds: [Reply([SpokenWord("it is red", 1.4, 0.5)], speech)] * len(questions)
    task = find("spoken_vqa")(Settings(manifest=manifest, sentences=("it is red", "it is blue")), None, responder)
    record = task.run([task.load(task.lines[0])], seeds=[0])[0]
    assert record["heard"] == "it is red" and record["heard_right"] and record["word_errors"] == 0


def test_unknown_task_lists_the_known():
    with pytest.raises(ConfigError, match="expected one of spoken_vqa, codec_resynthesis"):
        find("nothing")


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
    result = CliRunner().invoke(app, [str(option) for option in options])
    assert result.exit_code == 2 and result.stdout == "", result.output
    assert result.stderr.startswith(f"error: {manifest}") and result.stderr.count("\n") == 1
    assert message in result.stderr or (task == "codec_resynthesis" and "line 1: 'text'" in result.stderr)
    assert not out.exists()


def test_a_channel_that_a_recording_lacks_is_named(tmp_path):
    write_wav(tmp_path / "mono.wav", np.zeros(RATE_HZ))
    with pytest.raises(ConfigError, match="mono.wav: has 1 channels; the manifest asks for channel 1"):
        read_part(Spoken(audio=tmp_path / "mono.wav", text="hello", channel=1))
