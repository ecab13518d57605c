"""The command line, also in the hands of somebody who makes mistakes: one line, exit code 2, nothing half-written."""

import json
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from mmspeech.cli import app

RATE_HZ = 24_000


@pytest.fixture
def question(tmp_path) -> Path:
    path = tmp_path / "question.wav"
    soundfile.write(path, 0.1 * np.sin(np.arange(RATE_HZ // 2) * 0.1), RATE_HZ)
    return path


def mmspeech(*args):
    return CliRunner().invoke(app, [str(arg) for arg in args])


def talk(model, *, audio, out, **options):
    flags = [part for key, value in options.items() for part in (f"--{key}", value)]
    return mmspeech("talk", "--audio", audio, "--model", model, "--out", out, "--max-sec", 0.5, *flags)


def assert_one_line_error(result, *mentions):
    assert result.exit_code == 2, result.output
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.stdout == ""
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1, result.stderr
    assert "Traceback" not in result.stderr
    for mention in mentions:
        assert str(mention) in result.stderr, result.stderr


def files_in(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*")}


# What works


def test_talk_writes_the_reply_and_prints_one_object(small_checkpoint, question, tmp_path):
    out, plot, picture = tmp_path / "new" / "reply.wav", tmp_path / "call.png", tmp_path / "p.png"
    Image.new("RGB", (50, 40), "red").save(picture)
    result = mmspeech(
        "talk", "--audio", question, "--image", picture, "--model", small_checkpoint, "--out", out,
        "--stereo", "--json", "--plot", plot, "--max-sec", 1, "--seed", 3,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    summary = json.loads(result.stdout)
    assert result.stdout.count("\n") == 1
    assert set(summary) == {"text", "words", "frames", "rtf", "pictures", "step_ms", "model"}
    assert set(summary["step_ms"]) == {"p50", "p99"} and summary["rtf"] > 0
    assert summary["text"].split() == [word["text"] for word in summary["words"] if word["text"]]
    assert all(set(word) == {"text", "start_sec", "gate"} for word in summary["words"])
    wave, rate_hz = soundfile.read(out)
    assert rate_hz == RATE_HZ and wave.shape == (summary["frames"] * 1920, 2)
    original, _ = soundfile.read(question)
    assert np.allclose(wave[: len(original), 1], original, atol=1e-3) and not wave[len(original) :, 1].any()
    assert Image.open(plot).size[0] > 100
    assert not any("tmp" in name for name in files_in(tmp_path))


def test_greedy_replies_are_equal_whatever_the_seed(small_checkpoint, question, tmp_path):
    replies = []
    for seed in (1, 2):
        out = tmp_path / f"{seed}.wav"
        result = mmspeech(
            "talk", "--audio", question, "--model", small_checkpoint, "--out", out, "--greedy", "--seed", seed,
            "--max-sec", 0.5,
        )  # fmt: skip
        assert result.exit_code == 0, result.output
        assert result.stdout == ""
        replies.append(out.read_bytes())
    assert replies[0] == replies[1]


@pytest.mark.parametrize(
    ("rate_hz", "channels", "suffix"), [(192_000, 1, "wav"), (8_000, 8, "wav"), (44_100, 2, "flac")]
)
def test_any_rate_and_any_channels(small_checkpoint, tmp_path, rate_hz, channels, suffix):
    path = tmp_path / f"q.{suffix}"
    soundfile.write(path, 0.1 * np.ones((rate_hz // 2, channels)), rate_hz)
    result = talk(small_checkpoint, audio=path, out=tmp_path / "r.wav")
    assert result.exit_code == 0, result.output


def test_a_picture_of_one_pixel_is_a_picture(small_checkpoint, question, tmp_path):
    Image.new("RGB", (1, 1), "red").save(tmp_path / "dot.png")
    result = talk(small_checkpoint, audio=question, out=tmp_path / "r.wav", image=tmp_path / "dot.png")
    assert result.exit_code == 0, result.output


def test_info_counts_every_parameter_once(small_checkpoint, small_bundle):
    result = mmspeech("info", small_checkpoint)
    assert result.exit_code == 0, result.output
    modules = (small_bundle.model.lm, small_bundle.model.projector, small_bundle.model.tower, small_bundle.codec)
    total = sum(parameter.numel() for module in modules for parameter in module.parameters())
    adapters = sum(parameter.numel() for parameter in small_bundle.model.adapter_parameters())
    assert f"{total:,} in all, {adapters:,} trainable" in result.stdout


def test_info_of_a_configuration_counts_the_released_adapters():
    result = mmspeech("info", Path(__file__).parents[1] / "configs" / "model" / "moshivis_7b.yaml")
    assert result.exit_code == 0, result.output
    assert "206,184,448 trainable" in result.stdout and "12.5 per second" in result.stdout


def test_convert_writes_a_checkpoint_and_says_what_was_not_there(tmp_path):
    golden = Path(__file__).parent / "golden" / "moshivis-small"
    result = mmspeech("convert", golden, tmp_path / "ours")
    assert result.exit_code == 0, result.output
    assert result.stdout.strip() == str(tmp_path / "ours") and "no tokenizer" in result.stderr
    assert {"config.json", "model.safetensors"} <= files_in(tmp_path / "ours")
    assert_one_line_error(mmspeech("convert", golden, tmp_path / "ours"), tmp_path / "ours", "choose a new directory")
    assert_one_line_error(mmspeech("verify", tmp_path / "ours"), tmp_path / "ours", "expected.safetensors")


def test_doctor_names_python_and_torch():
    result = mmspeech("doctor")
    assert result.exit_code in (0, 1) and "Python" in result.stdout and "torch" in result.stdout


def test_bench_times_every_part(small_checkpoint, tmp_path):
    result = mmspeech("bench", "--model", small_checkpoint, "--frames", 20, "--out", tmp_path / "b.json")
    assert result.exit_code == 0, result.output
    numbers = json.loads((tmp_path / "b.json").read_text())["ms"]
    assert all(0 < row["p50"] <= row["p99"] for row in numbers.values())
    assert numbers["whole frame"]["p50"] >= numbers["think"]["p50"]


def test_verify_passes_on_the_reference_and_fails_on_other_weights(tmp_path):
    golden = Path(__file__).parent / "golden" / "moshivis-small"
    if not golden.is_dir():
        pytest.skip("no golden checkpoint in this checkout")
    assert mmspeech("verify", golden).exit_code == 0
    for name in ("config.yaml", "expected.safetensors"):
        (tmp_path / name).write_bytes((golden / name).read_bytes())
    tensors = load_file(golden / "model.safetensors")
    first = next(key for key in tensors if "transformer" in key)
    save_file({**tensors, first: tensors[first] + 0.5}, tmp_path / "model.safetensors")
    result = mmspeech("verify", tmp_path)
    assert result.exit_code == 1 and "differs" in result.stdout


# What does not


def no_file(path):
    pass


def empty_file(path):
    path.write_bytes(b"")


def folder(path):
    path.mkdir()


def foreign_file(path):
    path.write_text("this is neither sound nor picture\n" * 50)


def cut_wav(path):
    soundfile.write(path, np.zeros(RATE_HZ), RATE_HZ)
    path.write_bytes(path.read_bytes()[:3000])


def wav_without_samples(path):
    soundfile.write(path, np.zeros(0), RATE_HZ)


def wav_of_nan(path):
    soundfile.write(path, np.full(RATE_HZ, np.nan), RATE_HZ, subtype="FLOAT")


@pytest.mark.parametrize("spoil", [no_file, empty_file, folder, foreign_file, cut_wav, wav_without_samples, wav_of_nan])
def test_bad_audio(small_checkpoint, tmp_path, spoil):
    audio, out = tmp_path / "bad.wav", tmp_path / "reply.wav"
    spoil(audio)
    before = files_in(tmp_path)
    assert_one_line_error(talk(small_checkpoint, audio=audio, out=out), audio)
    assert files_in(tmp_path) == before


def cut_png(path):
    noise = np.random.default_rng(0).integers(0, 255, (200, 200, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:2000])


def huge_png(path):
    """A valid header of 100 megapixels, a few kilobytes of data."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 10_000, 10_000, 8, 0, 0, 0, 0)
    rows = zlib.compress(b"\0" * 10_001 * 10_000, 9)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b""))


@pytest.mark.parametrize("spoil", [no_file, empty_file, folder, foreign_file, cut_png, huge_png])
def test_bad_pictures(small_checkpoint, question, tmp_path, spoil):
    image, out = tmp_path / "bad.png", tmp_path / "reply.wav"
    spoil(image)
    before = files_in(tmp_path)
    assert_one_line_error(talk(small_checkpoint, audio=question, out=out, image=image), image)
    assert files_in(tmp_path) == before


def test_bad_outputs_are_refused_before_any_work(small_checkpoint, question, tmp_path):
    before = files_in(tmp_path)
    assert_one_line_error(talk(small_checkpoint, audio=question, out=tmp_path), "is a directory")
    assert_one_line_error(talk(small_checkpoint, audio=question, out=tmp_path / "r.mp3"), ".wav")
    assert_one_line_error(talk(small_checkpoint, audio=question, out=question / "r.wav"), "cannot write")
    good = tmp_path / "r.wav"
    assert_one_line_error(talk(small_checkpoint, audio=question, out=good, plot=tmp_path / "p.txt"), ".png")
    assert_one_line_error(talk(small_checkpoint, audio=question, out=good, device="tpu9"), "tpu9")
    assert files_in(tmp_path) == before


def spoilt_checkpoint(small_checkpoint, path, kind):
    path.mkdir()
    for file in small_checkpoint.iterdir():
        (path / file.name).write_bytes(file.read_bytes())
    config = path / "config.json"
    data = json.loads(config.read_text())
    match kind:
        case "no config":
            config.unlink()
        case "unknown key":
            data["lm"]["temporal"]["num_head"] = 3
            config.write_text(json.dumps(data))
        case "wrong width":
            data["lm"]["temporal"]["dim"] = 64
            config.write_text(json.dumps(data))
        case "not json":
            config.write_text("{")
        case "no tokenizer":
            (path / "tokenizer.model").unlink()
        case "foreign tokenizer":
            (path / "tokenizer.model").write_text("hello")
        case "cut weights":
            weights = path / "model.safetensors"
            weights.write_bytes(weights.read_bytes()[:5000])
        case "no codec":
            (path / "codec.safetensors").unlink()
        case "cut tower":
            (path / "tower.safetensors").write_bytes((path / "tower.safetensors").read_bytes()[:200])
        case "other text":
            data["lm"]["text_card"] = 32
            config.write_text(json.dumps(data))
            weights = load_file(path / "model.safetensors")
            for key in [key for key in weights if "text_emb" in key or "text_linear" in key]:
                weights[key] = weights[key][: 32 + ("emb" in key)].clone()
            save_file(weights, path / "model.safetensors")
    return path


@pytest.mark.parametrize(
    ("kind", "mention"),
    [
        ("no config", "config.json"),
        ("unknown key", "did you mean 'num_heads'?"),
        ("wrong width", "expected"),
        ("not json", "config.json"),
        ("no tokenizer", "tokenizer.model"),
        ("foreign tokenizer", "tokenizer.model"),
        ("cut weights", "model.safetensors"),
        ("no codec", "codec.safetensors"),
        ("cut tower", "tower.safetensors"),
        ("other text", "lm.text_card is 32, the tokenizer has"),
    ],
)
def test_bad_checkpoints(small_checkpoint, question, tmp_path, kind, mention):
    model = spoilt_checkpoint(small_checkpoint, tmp_path / "model", kind)
    before = files_in(tmp_path)
    assert_one_line_error(talk(model, audio=question, out=tmp_path / "r.wav"), model, mention)
    assert files_in(tmp_path) == before


def test_info_of_a_checkpoint_with_a_cut_tower(small_checkpoint, tmp_path):
    model = spoilt_checkpoint(small_checkpoint, tmp_path / "model", "cut tower")
    assert_one_line_error(mmspeech("info", model), model / "tower.safetensors")


def test_paths_that_are_no_checkpoint(question, tmp_path):
    out = tmp_path / "r.wav"
    assert_one_line_error(talk(tmp_path / "nothing", audio=question, out=out), "nothing there")
    assert_one_line_error(talk(question, audio=question, out=out), question)
    assert_one_line_error(talk(tmp_path, audio=question, out=out), "config.json")
    for command in (["info"], ["verify"], ["bench", "--model"]):
        assert_one_line_error(mmspeech(*command, tmp_path / "nothing"), "nothing")
    assert_one_line_error(mmspeech("convert", tmp_path / "nothing", tmp_path / "dst"), "nothing")
    assert not (tmp_path / "dst").exists()


def test_a_failure_half_way_leaves_nothing(small_checkpoint, question, tmp_path, monkeypatch):
    """The disk fills up while the reply is written: the old reply stays, nothing else does."""
    out = tmp_path / "r.wav"
    out.write_bytes(b"the old reply")

    def full(*args, **kwargs):
        Path(args[0]).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mmspeech.audio.waveform.soundfile.write", full)
    assert_one_line_error(talk(small_checkpoint, audio=question, out=out), "No space left")
    assert out.read_bytes() == b"the old reply" and not any("tmp" in name for name in files_in(tmp_path))


def test_bugs_keep_their_trace(monkeypatch, tmp_path):
    """Only what the user can mend becomes a line: an error of our own must not look like one of theirs."""

    def bug(*args):
        raise ValueError("a bug")

    monkeypatch.setattr("mmspeech.commands.info.run_info", bug)
    result = mmspeech("info")
    assert isinstance(result.exception, ValueError)


def test_help_is_quick_and_loads_nothing_heavy():
    code = """
import sys, time, typer.testing, mmspeech.cli
result = typer.testing.CliRunner().invoke(mmspeech.cli.app, ["--help"])
assert result.exit_code == 0 and "talk" in result.stdout
print([name for name in ("torch", "numpy", "transformers", "timm") if name in sys.modules], time.process_time())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded, cpu_sec = done.stdout.rsplit(maxsplit=1)
    assert loaded == "[]" and float(cpu_sec) < 0.8


def test_a_whole_process_ends_with_code_two(tmp_path):
    command = ["talk", "--audio", str(tmp_path / "no.wav"), "--out", str(tmp_path / "r.wav")]
    done = subprocess.run([sys.executable, "-m", "mmspeech.cli", *command], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1, done.stderr
