"""`python -m data_prep`: bad input ends in one line and exit code 2, failures on the way in 1, the rest in 0."""

import ctypes
import json

import numpy as np
import pytest
from PIL import Image

from data_prep import espeak, flite, questions
from data_prep import world_speak as speak
from data_prep.__main__ import main
from data_prep.scenes import make_scenes
from data_prep.tts import Utterance
from data_prep.world import load_scene
from mmspeech.config import ConfigError

CIRCLE = {"shape": "circle", "colour": "red", "size": "large", "x": 0.2, "y": 0.8}
SCENE = {"objects": [CIRCLE], "background": {"tone": "light", "kind": "plain"}}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty current folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def made_up_voices(monkeypatch):
    """Tones for words; a text with "star" cannot be spoken."""

    def said(text, voice=None):
        if "star" in text.split():
            raise ConfigError("cannot say star")
        times = [(word, k * 0.2, (k + 1) * 0.2) for k, word in enumerate(text.split())]
        return Utterance(np.full(4800 * len(times), 0.5, np.float32), times, [("ah", *t[1:]) for t in times])

    for module in (speak, questions):
        monkeypatch.setattr(module, "require_synthesisers", lambda: None)
        monkeypatch.setattr(module, "model_says", said)
    monkeypatch.setattr(speak, "synthesise", said)


def run(*arguments) -> int:
    return main([str(argument) for argument in arguments])


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ("nothing", "No such command 'nothing'"),
        ("scenes --count 3", "--out"),
        ("scenes --count 0 --out s", "--count"),
        ("scenes --count x --out s", "--count"),
        ("scenes --count 3 --out s --seed -1", "--seed"),
        ("scenes --count 3 --out s --split other", "train, valid, test"),
        ("scenes --count 3 --out s --shard 2/2", "0 <= i < n"),
        ("scenes --count 3 --out s --shard half", "0 <= i < n"),
        ("scenes --count 3 --out s --size-px 5", "--size-px"),
        ("scenes --count 3 --out s --blind-share 2", "--blind-share"),
        ("scenes --count 3 --out s --colour red", "--colour"),
        ("render gone.json --out x.png", "gone.json"),
        ("render gone.json --out x.png --size-px 5", "--size-px"),
        ("speak --data gone --out c", "gone: expected a manifest.jsonl"),
        ("speak --data gone --out c --jobs 0", "--jobs"),
        ("questions --out q --name other", "known, unseen, talk, pause, barge"),
        ("check --data gone", "gone: expected a manifest.jsonl"),
        ("preview --data gone --out p", "gone: expected a manifest.jsonl"),
        ("pack --data gone --codes gone --out p", "gone"),
    ],
)
def test_bad_input_is_one_line(folder, capsys, arguments, named):
    assert run(*arguments.split()) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1 and captured.err.startswith("data_prep: ") and named in captured.err
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"\xff\xfe", b'{"objects": NaN}', json.dumps(SCENE).encode()[:40]]
)
def test_a_scene_that_is_none_is_one_line(folder, capsys, content):
    (folder / "s.json").write_bytes(content)
    assert run("render", "s.json", "--out", "x.png") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "s.json: not a scene: " in error and not (folder / "x.png").exists()


def test_what_is_wrong_with_a_scene_is_said(folder):
    for change, told in (
        ({"x": 0.34}, "x 0.34 lies within 0.045 of a border between two places"),
        ({"x": 0.05}, "red circle: x 0.05 puts a large object outside the picture"),
        ({"x": float("nan")}, "objects.0.x: "),
        ({"x": "0.2"}, "objects.0.x: Input should be a valid number"),
        ({"z": 1}, "objects.0.z: Extra inputs are not permitted"),
        ({"colour": "white"}, "white circle cannot be seen on a light background"),
    ):
        (folder / "s.json").write_text(json.dumps(SCENE | {"objects": [CIRCLE | change]}))
        with pytest.raises(ConfigError) as caught:
            load_scene(folder / "s.json")
        assert told in str(caught.value) and "\n" not in str(caught.value)


def test_help_names_every_verb(capsys):
    assert run() == 0
    shown = capsys.readouterr().out
    verbs = ("scenes", "render", "speak", "questions", "tokenizer", "babble", "check", "preview")
    verbs += ("encode", "pack", "remix")
    assert all(verb in shown for verb in verbs)


def test_render_writes_the_picture_whole(folder):
    (folder / "s.json").write_text(json.dumps(SCENE))
    assert run("render", "s.json", "--out", "new/x.png", "--size-px", 128) == 0
    assert Image.open("new/x.png").size == (128, 128)
    assert [path.name for path in (folder / "new").iterdir()] == ["x.png"]


def test_scenes_shards_and_seeds(folder):
    assert run("scenes", "--out", "a", "--count", 3, "--seed", 5) == 0
    for part in ("1/2", "0/2"):
        assert run("scenes", "--out", "b", "--count", 3, "--seed", 5, "--shard", part) == 0
    files = [{path.name: path.read_bytes() for path in (folder / name).iterdir()} for name in "ab"]
    assert files[0] == files[1] and len(files[0]) == 9
    assert run("scenes", "--out", "a", "--count", 3, "--seed", 6) == 2


def star_and_others(folder) -> None:
    turn = {"kind": "hello", "question": "hello | there", "answer": "hello", "answers": ["hello"]}
    for name, question in (("000000", "hello | there"), ("000001", "a star")):
        dialogue = {"kind": "blind", "split": "train", "seed": 0, "turns": [turn | {"question": question}] * 2}
        (folder / f"{name}.dialogue.json").write_text(json.dumps(dialogue))


def test_a_dialogue_that_cannot_be_voiced_is_reported(folder, capsys, made_up_voices):
    (folder / "d").mkdir()
    star_and_others(folder / "d")
    assert run("speak", "--data", "d", "--out", "c", "--jobs", 1) == 1
    assert "1 dialogues could not be voiced" in capsys.readouterr().err
    assert "cannot say star" in (folder / "c/000001.dialogue.json.err").read_text()
    assert [json.loads(line)["path"] for line in (folder / "c/manifest.jsonl").open()] == ["000000.wav"]
    assert run("check", "--data", "c") == 1
    output = capsys.readouterr().out
    assert "cannot say star" in output and "1 entries" in output and "1 faults" in output
    (folder / "d/000001.dialogue.json").write_text((folder / "d/000000.dialogue.json").read_text())
    assert run("speak", "--data", "d", "--out", "c", "--jobs", 1) == 0
    assert not list((folder / "c").glob("*.err")) and run("check", "--data", "c") == 0
    assert run("preview", "--data", "c", "--out", "p", "--call", "000001") == 0
    assert sorted(path.name for path in (folder / "p").iterdir()) == ["000001.html", "000001.wav"]


def test_a_torn_dialogue_fails_alone(folder, made_up_voices):
    (folder / "d").mkdir()
    star_and_others(folder / "d")
    (folder / "d/000001.dialogue.json").write_text('{"turns": 3}')
    (folder / "d/name.dialogue.json").write_text("{}")
    assert run("speak", "--data", "d", "--out", "c", "--jobs", 1) == 1
    problems = {path.name: path.read_text() for path in (folder / "c").glob("*.err")}
    assert set(problems) == {"000001.dialogue.json.err", "name.dialogue.json.err"}
    assert "missing key 'kind'" in problems["000001.dialogue.json.err"]


def test_more_parts_than_dialogues(folder, made_up_voices):
    make_scenes(folder / "s", count=1, seed=0, split="train", size_px=96, blind_share=1.0)
    assert run("speak", "--data", "s", "--out", "c", "--jobs", 1, "--shard", "1/2") == 0
    assert (folder / "c/manifest-1-of-2.jsonl").read_text() == ""


def test_questions_leave_nothing_out_silently(folder, capsys, made_up_voices):
    assert run("questions", "--out", "q", "--name", "talk", "--count", 3) == 0
    assert len((folder / "q/talk.jsonl").read_text().splitlines()) == 3
    assert run("questions", "--out", "q", "--name", "known", "--count", 40) == 2
    error = capsys.readouterr().err
    assert "known.jsonl: not written, question known_000" in error and "cannot say star" in error
    assert not (folder / "q/known.jsonl").exists()


@pytest.mark.parametrize("verb", ["speak --data s --out c --jobs 1", "questions --out c --name known"])
def test_missing_synthesisers_are_one_line(folder, capsys, monkeypatch, verb):
    make_scenes(folder / "s", count=1, seed=0, split="train", size_px=96, blind_share=0.0)

    def refuse(name, **options):
        raise OSError(f"{name}: cannot open shared object file")

    for module in (flite, espeak):
        module.load.cache_clear()
    monkeypatch.setattr(ctypes, "CDLL", refuse)
    assert run(*verb.split()) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "apt install libflite1" in error and "apt install libespeak-ng1" in error
    assert not (folder / "c").exists()


def test_the_tokenizer_is_trained_on_the_world(folder):
    assert run("tokenizer", "--out", "t.model", "--count", 30, "--vocab-size", 200) == 0
    assert (folder / "t.model").stat().st_size > 1000
