"""The manifest of calls: whole or in parts, strict, and what `check` and `preview` make of made-up calls and shards."""

import json
from io import BytesIO

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from data_prep.calls import ManifestError, find_manifests, read_manifest
from data_prep.check import check
from data_prep.preview import preview
from mmspeech.config import ConfigError
from mmspeech.data.shards import SIDECAR, CodecStamp, write_shards
from mmspeech.tokens.text import train_tokenizer
from mmspeech.types import Sample, Visual, Word

RATE_HZ = 24_000


@pytest.fixture
def calls(tmp_path):
    """Three calls of 2 s: the user asks, the model answers, about a picture."""
    folder = tmp_path / "calls"
    folder.mkdir()
    for i in range(3):
        soundfile.write(folder / f"{i}.wav", np.random.default_rng(i).uniform(-0.3, 0.3, (2 * RATE_HZ, 2)), RATE_HZ)
        Image.new("RGB", (8, 8), (80 * i, 0, 0)).save(folder / f"{i}.png")
        save(folder, i, record())
    write_manifest(folder, "manifest.jsonl", range(3))
    return folder


def record() -> dict:
    turn = {"kind": "colour_of_shape", "question": "which colour", "answer": "it is <red>", "answers": ["<red>"]}
    times = {"question_start_sec": 0.1, "question_end_sec": 0.5, "answer_start_sec": 1.0, "answer_end_sec": 1.6}
    return {
        "alignments": [
            ["which", [0.1, 0.3], "SPEAKER_USER"],
            ["colour", [0.3, 0.5], "SPEAKER_USER"],
            ["it", [1.0, 1.2], "SPEAKER_MAIN"],
            ["is", [1.2, 1.4], "SPEAKER_MAIN"],
            ["<red>", [1.4, 1.6], "SPEAKER_MAIN"],
        ],
        "phones": {"main": [["ih", 1.0, 1.1]], "user": [["w", 0.1, 0.2]]},
        "turns": [turn | times | {"interrupted": False}],
    }


def save(folder, i: int, described: dict) -> None:
    visuals = [{"kind": "image", "path": f"{i}.png", "start_sec": 0.0}]
    (folder / f"{i}.json").write_text(json.dumps({"visuals": visuals} | described))


def write_manifest(folder, name: str, which) -> None:
    (folder / name).write_text("".join(json.dumps({"path": f"{i}.wav", "duration": 2.0}) + "\n" for i in which))


def test_parts_are_read_as_one_manifest(calls):
    whole = read_manifest(calls)
    (calls / "manifest.jsonl").rename(calls / "aside")
    write_manifest(calls, "manifest-0-of-2.jsonl", (0, 2))
    with pytest.raises(ManifestError, match="manifest-1-of-2.jsonl is missing"):
        read_manifest(calls)
    write_manifest(calls, "manifest-1-of-2.jsonl", (1,))
    assert read_manifest(calls) == whole and check(calls).faults == [] and check(calls).entries == 3
    assert [file.name for file in find_manifests(calls)] == ["manifest-0-of-2.jsonl", "manifest-1-of-2.jsonl"]
    write_manifest(calls, "manifest-0-of-3.jsonl", (0,))
    with pytest.raises(ManifestError, match="expected a manifest.jsonl"):
        read_manifest(calls)
    (calls / "aside").rename(calls / "manifest.jsonl")
    assert read_manifest(calls) == whole


def test_an_empty_part_is_no_fault(calls):
    (calls / "manifest.jsonl").unlink()
    write_manifest(calls, "manifest-0-of-2.jsonl", range(3))
    write_manifest(calls, "manifest-1-of-2.jsonl", ())
    assert len(read_manifest(calls)) == 3 and check(calls).faults == []


@pytest.mark.parametrize(
    "line", ["nonsense", "[1]", '{"path": "0.wav"}', '{"path": 3, "duration": 1}', '{"path": "x", "duration": NaN}',
             '{"path": "x", "duration": -1}'],
)  # fmt: skip
def test_a_broken_line_is_named(tmp_path, line):
    file = tmp_path / "manifest.jsonl"
    file.write_text(f'{{"path": "0.wav", "duration": 2.0}}\n\n{line}\n')
    with pytest.raises(ManifestError, match=r"manifest\.jsonl:3: expected"):
        read_manifest(tmp_path)


def test_a_manifest_that_is_no_text_is_refused(tmp_path):
    (tmp_path / "manifest.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ManifestError, match="not a text file"):
        read_manifest(tmp_path)


def broken(**changes) -> dict:
    return record() | changes


WORDS = record()["alignments"]
TURN = record()["turns"][0]


@pytest.mark.parametrize(
    ("described", "named"),
    [
        (broken(alignments=[["which", [0.1, 9.0], "SPEAKER_USER"]], turns=[]), "from 0.1 to 9.0 s of 2.000"),
        (broken(alignments=[["which", [0.3, 0.1], "SPEAKER_USER"]], turns=[]), "from 0.3 to 0.1"),
        (broken(alignments=[["which", [0.1, 0.3], "SPEAKER_X"]]), "not a call's json"),
        (broken(alignments=[WORDS[0], ["x", [0.12, 0.4], "SPEAKER_USER"]], turns=[]), "before 'which' has ended"),
        (broken(visuals=[{"kind": "image", "path": "gone.png", "start_sec": 0.0}]), "gone.png is not there"),
        (broken(visuals=[{"kind": "image", "path": "0.png", "start_sec": 5.0}]), "comes at 5.0 s"),
        (broken(visuals=[{"kind": "film", "path": "0.png"}]), "kind 'film'; expected 'image' or 'clip'"),
        (broken(visuals=[{"kind": "clip", "path": "0.png", "fps": 0}]), "fps 0.0; expected frames a second above 0"),
        (broken(visuals=[{"kind": "clip", "path": "0.wav"}]), "clip 0: clip: has no video stream"),
        (broken(visuals=[], entry={"kind": "visual"}), "a visual call in which nothing is seen"),
        (broken(phones={"main": [["qq", 0.1, 0.2]]}), "unknown phone 'qq'"),
        (broken(phones={"main": [["w", 0.1, 7.0]]}), "to 7.0 s"),
        (broken(phones={"main": [["w"]]}), "not of the expected form"),
        (broken(turns=[TURN | {"answer_start_sec": "soon"}]), "not of the expected form"),
        (broken(turns=[TURN | {"answer_start_sec": 0.2}]), "not in order"),
        (broken(turns=[TURN | {"question": "which shape"}]), "the words are 'which colour'"),
        (broken(turns=[TURN | {"answers": ["blue"]}]), "holds none of the accepted"),
        (broken(turns=[{"question": "which"}]), "lacks question_start_sec"),
    ],
)
def test_check_names_a_fault_in_a_call(calls, described, named):
    save(calls, 0, described)
    faults = check(calls).faults
    assert any(named in fault for fault in faults), faults
    assert all("manifest.jsonl:1: " in fault for fault in faults)


def test_check_names_all_faults_at_once(calls):
    soundfile.write(calls / "0.wav", np.zeros((RATE_HZ, 1)), RATE_HZ)
    wave, _ = soundfile.read(calls / "1.wav")
    wave[:, 1] = 0
    soundfile.write(calls / "1.wav", wave[:RATE_HZ], RATE_HZ)
    soundfile.write(calls / "2.wav", np.zeros((2 * RATE_HZ, 2)), 16_000)
    save(calls, 2, broken(visuals=[{"path": "gone.png"}]))
    (calls / "7.dialogue.json.err").write_text("ConfigError: nothing to say")
    with (calls / "manifest.jsonl").open("a") as manifest:
        manifest.write('{"path": "gone.wav", "duration": 1.0}\n{"path": "0.wav", "duration": 2.0}\n[]\n')
    found = "\n".join(check(calls).faults)
    expected = [
        (":1: ", "1 channels"),
        (":2: ", "duration is 2.0", "its channel is silent"),
        (":3: ", "16000 Hz", "gone.png"),
        (":4: ", "gone.wav is not there"),
        (":5: ", "twice"),
        (":6: ", "expected an object"),
        ("nothing to say",),
    ]
    for part in (part for parts in expected for part in parts):
        assert part in found, f"{part!r} is not in\n{found}"


def sample(name: str, **changes) -> Sample:
    picture = Image.new("RGB", (4, 4))
    buffer = BytesIO()
    picture.save(buffer, "PNG")
    codes = torch.arange(4 * 25).remainder(7).view(4, 25).short()
    parts = {"codes": codes, "words": [Word("hi", 0.1, 0.4)], "visuals": [Visual(buffer.getvalue())]}
    return Sample(id=name, **parts | changes)


def shard_set(path, *samples: Sample):
    write_shards(path, samples, codec=CodecStamp(hash="x", num_codebooks=2, codebook_size=8, silence_codes=(0, 0)))
    return path


def test_check_of_a_shard_set(tmp_path):
    report = check(shard_set(tmp_path / "good", sample("a"), sample("b", visuals=[])))
    assert report.faults == [] and report.entries == 2 and report.seconds == 4.0
    bad = shard_set(
        tmp_path / "bad",
        sample("late", words=[Word("hi", 1.0, 9.0)]),
        sample("torn", visuals=[Visual(b"torn")]),
        sample("flat", codes=torch.zeros(4, 25, dtype=torch.int16)),
        sample("late"),
    )
    faults = check(bad).faults
    for part in (
        "call late: main says 'hi'",
        "call torn: picture 0",
        "call flat: main has words",
        "late is in the set twice",
    ):
        assert any(part in fault for fault in faults), faults
    info = json.loads((bad / SIDECAR).read_text())
    (bad / SIDECAR).write_text(json.dumps(info | {"frames": 7, "pictures": 9}))
    assert any("promises 7" in fault for fault in check(bad).faults)
    (bad / info["files"][0]["name"]).write_bytes(b"no parquet")
    assert len(check(bad).faults) == 1
    (bad / SIDECAR).write_text("{")
    assert "not valid JSON" in check(bad).faults[0]


def test_a_preview_is_one_page_with_everything_in_it(calls, tmp_path):
    tokenizer = train_tokenizer(["it is <red>", "which colour"] * 20, 40, tmp_path / "t.model")
    lines = preview(calls, tmp_path / "out", call="1", tokenizer=tokenizer.path)
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["1.html", "1.png", "1.wav"]
    for suffix in ("png", "wav"):
        assert (tmp_path / f"out/1.{suffix}").read_bytes() == (calls / f"1.{suffix}").read_bytes()
    page = (tmp_path / "out/1.html").read_text()
    assert "data:audio/wav;base64," in page and "data:image/png;base64," in page and 'src="http' not in page
    assert "&lt;red&gt;" in page and "<red>" not in page and "$" not in page.split("<script>")[0]
    assert 'class="token epad" data-frame="11"' in page and 'data-sec="1.000"' in page
    assert lines[3].split()[:3] == ["12", "0.96", "it"] and lines[0].split()[-2:] == ["text", "stream"]


def test_a_preview_without_picture_and_tokenizer(calls, tmp_path):
    save(calls, 0, broken(visuals=[]))
    assert "text stream" not in preview(calls, tmp_path / "out")[0]
    assert "nothing is shown" in (tmp_path / "out/0.html").read_text() and not (tmp_path / "out/0.png").exists()


def test_a_preview_of_what_cannot_be_shown_is_refused(calls, tmp_path):
    with pytest.raises(ConfigError, match="no call 'x' in it"):
        preview(calls, tmp_path / "out", call="x")
    (calls / "0.wav").write_bytes(b"torn")
    with pytest.raises(ConfigError, match="0.wav: not there or not audio"):
        preview(calls, tmp_path / "out")
    soundfile.write(calls / "1.wav", np.zeros(100), RATE_HZ)
    with pytest.raises(ConfigError, match="1 channels; expected stereo"):
        preview(calls, tmp_path / "out", call="1")
    assert not (tmp_path / "out").exists()
