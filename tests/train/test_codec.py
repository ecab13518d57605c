"""The codec stage: resumes exactly, writes a codec that loads, a sample to hear, and names what is wrong with calls."""

import json

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file

from mmspeech.checkpoint import load_codec
from mmspeech.config import ConfigError
from train import codec as stage

SIZES = {
    "kind": "spectral", "num_codebooks": 2, "codebook_size": 16, "codebook_dim": 8, "num_mels": 32, "dim": 16,
    "hidden": 16, "low_blocks": 1, "high_blocks": 1, "num_phones": 2,
}  # fmt: skip


@pytest.fixture
def calls(tmp_path):
    """The manifest of one call of noise, with phones."""
    folder = tmp_path / "calls"
    folder.mkdir()
    rng = np.random.default_rng(0)
    soundfile.write(folder / "a.wav", 0.1 * rng.standard_normal((3 * 24_000, 2)), 24_000)
    phones = {"main": [["ah", 0.5, 1.0]], "user": [["ah", 1.5, 2.0]]}
    (folder / "a.json").write_text(json.dumps({"phones": phones}))
    (folder / "manifest.jsonl").write_text(json.dumps({"path": "a.wav", "duration": 3.0}) + "\n")
    return folder / "manifest.jsonl"


def config(calls, out, **changes):
    settings = {
        "codec": SIZES, "manifests": [str(calls)], "out": str(out), "phones": ["sil", "ah"], "crop_frames": 4,
        "batch_size": 2, "max_steps": 4, "continuous_steps": 1, "save_every_steps": 2, "sample_every_steps": 2,
        "log_every_steps": 1,
    }  # fmt: skip
    return stage.CodecStageConfig.model_validate(settings | changes)


def test_a_resumed_run_is_the_unbroken_one_and_can_be_heard(calls, tmp_path, monkeypatch):
    whole = stage.train_codec(config(calls, tmp_path / "whole"))
    save = stage.save_checkpoint

    def save_and_die(path, **parts):
        save(path, **parts)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(stage, "save_checkpoint", save_and_die)
        stage.train_codec(config(calls, tmp_path / "broken"))
    broken = stage.train_codec(config(calls, tmp_path / "broken"))
    first, second = (load_file(folder / "codec.safetensors") for folder in (whole, broken))
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    # Listening on the way changes nothing.
    silent = stage.train_codec(config(calls, tmp_path / "silent", sample_every_steps=None))
    third = load_file(silent / "codec.safetensors")
    assert all(torch.equal(first[name], third[name]) for name in first)
    lines = [json.loads(line) for line in (broken / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4] and all("spectral" in line for line in lines)
    assert list((broken / "tensorboard").glob("events.*"))
    wave, rate_hz = soundfile.read(whole / "samples" / "step_00000004.wav")
    assert rate_hz == 24_000 and wave.shape == (4 * 1920, 2) and wave[:, 0].std() > 0.01
    assert load_codec(whole).encode(torch.zeros(1, 1, 1920)).shape == (1, 2, 1)


def test_phones_stay_with_their_sound_however_a_caller_is_changed(calls, tmp_path):
    wave, rate_hz = soundfile.read(calls.parent / "a.wav")
    loud = np.zeros(len(wave), bool)
    loud[36_000:48_000] = True  # "ah" of the user
    soundfile.write(calls.parent / "a.wav", wave * loud[:, None], rate_hz)
    changes = {"crop_frames": 20, "user_share": 1.0, "speaker_jitter": 0.3, "colour_db": 12}
    crops = stage.CallCrops(config(calls, tmp_path, **changes))
    waves, labels = crops.batch(0, 16)
    heard = waves[:, 0].unflatten(1, (-1, 480)).square().mean(2) > 1e-5
    spoken = labels.flatten(1) == 1
    assert (heard == spoken).float().mean() > 0.97
    assert len(set(spoken.sum(1).tolist())) > 4  # some faster, some slower
    assert torch.equal(crops.batch(0, 16)[0], waves)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("manifest.jsonl", "", "names no call"),
        ("manifest.jsonl", "{", "not a manifest"),
        ("manifest.jsonl", '{"audio": "a.wav"}', "not a manifest"),
        ("a.json", "{}", "no phones of both sides"),
        ("a.json", '{"phones": {"main": [["zz", 0, 1]], "user": []}}', "phones the config lacks: zz"),
        ("a.wav", "hello", "not readable as audio"),
    ],
)
def test_calls_that_cannot_be_used_are_named(calls, tmp_path, name, text, message):
    (calls.parent / name).write_text(text)
    with pytest.raises(ConfigError, match=f"{name}: .*{message}"):
        stage.train_codec(config(calls, tmp_path / "out"))
