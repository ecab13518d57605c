"""Checkpoints: what is saved is loaded, in another process too; what does not fit is named; nothing half-written."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from mmspeech import checkpoint
from mmspeech.audio.codec import codec_hash
from mmspeech.checkpoint import (
    CheckpointError,
    load_adapters,
    load_codec,
    load_model,
    resolve,
    save_adapters,
    save_codec,
    save_model,
)
from mmspeech.lm.model import VisionSpeechModel

FRESH_PROCESS = """
import sys, torch
from mmspeech.checkpoint import load_model
bundle = load_model(sys.argv[1])
codes = torch.arange(7 * 5).view(1, 7, 5) % 32
pixels = torch.linspace(-1, 1, 3 * 32 * 32).view(1, 3, 32, 32)
with torch.no_grad():
    features, mask = bundle.model.tower(pixels)
    visual = bundle.model.see(features, torch.zeros(1, dtype=torch.long), mask)
    out = bundle.model.lm(codes, visual=visual)
    heard = bundle.codec.encode(torch.linspace(-1, 1, 3840)[None, None])
torch.save([out.hidden, out.text_logits, out.gate, heard, bundle.tokenizer.encode("circle")], sys.argv[2])
"""


@pytest.fixture
def copy(small_checkpoint, tmp_path):
    """The small checkpoint in a folder that may be spoilt."""
    return shutil.copytree(small_checkpoint, tmp_path / "copy")


def save_again(bundle, path, **changes):
    options = {"model": bundle.model, "codec": bundle.codec, "config": bundle.config}
    return save_model(path, tokenizer_file=bundle.path / "tokenizer.model", **options, **changes)


def test_round_trip_in_a_fresh_process(small_bundle, small_checkpoint, tmp_path):
    again = save_again(small_bundle, tmp_path / "again")
    outs = []
    for folder in (small_checkpoint, again):
        file = tmp_path / "out.pt"
        subprocess.run([sys.executable, "-c", FRESH_PROCESS, str(folder), str(file)], check=True)
        outs.append(torch.load(file))
    for first, second in zip(*outs, strict=True):
        assert torch.equal(first, second) if isinstance(first, torch.Tensor) else first == second


def test_loading_keeps_tables_real_and_weights_exact(small_checkpoint):
    bundle = load_model(small_checkpoint)
    for module in (bundle.model, bundle.codec):
        assert not any(t.is_meta for t in [*module.parameters(), *module.buffers()])
        assert not module.training
    stored = load_file(small_checkpoint / "model.safetensors")
    own = {name: value for name, value in bundle.model.state_dict().items() if not name.startswith("tower.")}
    assert own.keys() == stored.keys() and all(torch.equal(own[name], stored[name]) for name in own)
    assert not any(p.requires_grad for p in bundle.model.tower.parameters())


def test_building_empty_leaves_the_world_as_it_was():
    register = torch.nn.Module.register_parameter
    empty = checkpoint.build_empty(lambda: torch.nn.Linear(3, 4))
    assert empty.weight.is_meta and torch.nn.Module.register_parameter is register
    assert not torch.nn.Linear(3, 4).weight.is_meta


def test_half_precision_is_cast_at_load_and_keeps_the_codec_hash(small_bundle, tmp_path):
    half = save_again(small_bundle, tmp_path / "half", dtype=torch.float16)
    full = save_again(small_bundle, tmp_path / "full")
    assert (half / "model.safetensors").stat().st_size < 0.6 * (full / "model.safetensors").stat().st_size
    bundle = load_model(half)
    assert {p.dtype for p in bundle.model.parameters()} == {torch.float32}
    assert {p.dtype for p in load_model(full, dtype=torch.bfloat16).model.parameters()} == {torch.bfloat16}
    assert codec_hash(bundle.codec) == codec_hash(small_bundle.codec)
    stored, own = load_file(half / "codec.safetensors"), small_bundle.codec.state_dict()
    assert {value.dtype for name, value in stored.items() if name.startswith("encoder.")} == {torch.float16}
    assert all(torch.equal(stored[name], own[name]) for name in own if name.startswith("quantizer."))


def test_codec_hash_is_of_what_makes_codes(small_checkpoint):
    codec = load_codec(small_checkpoint)
    before = codec_hash(codec)
    with torch.no_grad():
        next(codec.decoder.parameters()).add_(1)
        assert codec_hash(codec) == before
        next(codec.encoder.parameters()).add_(1)
    assert codec_hash(codec) != before


def test_codec_directory_round_trip(small_bundle, tmp_path):
    save_codec(tmp_path / "codec", small_bundle.codec, small_bundle.config.codec)
    codec = load_codec(tmp_path / "codec")
    wave = torch.randn(2, 1, 9600)
    assert torch.equal(codec.encode(wave), small_bundle.codec.encode(wave))
    assert codec_hash(codec) == codec_hash(small_bundle.codec)


def test_adapters_alone(small_bundle, tmp_path):
    torch.manual_seed(5)
    other = VisionSpeechModel(small_bundle.config)
    save_adapters(tmp_path / "adapters", small_bundle.model, base="small")
    before = {name: value.clone() for name, value in other.state_dict().items()}
    load_adapters(tmp_path / "adapters", other)
    names, trained = set(other.adapter_names()), small_bundle.model.state_dict()
    assert set(load_file(tmp_path / "adapters" / "adapters.safetensors")) == names
    for name, value in other.state_dict().items():
        assert torch.equal(value, trained[name] if name in names else before[name]), name


def test_all_keys_that_do_not_fit_are_named_at_once(copy):
    file = copy / "model.safetensors"
    tensors = load_file(file)
    del tensors["lm.temporal.text_linear.weight"]
    tensors["lm.surprise"] = torch.zeros(1)
    tensors["projector.proj.weight"] = torch.zeros(2, 2)
    save_file(tensors, file)
    with pytest.raises(CheckpointError) as caught:
        load_model(copy)
    message = str(caught.value)
    assert "1 missing: lm.temporal.text_linear.weight" in message and "1 unexpected: lm.surprise" in message
    assert "1 misshaped: projector.proj.weight [2, 2] (expected [32, 16])" in message and "\n" not in message


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (lambda f: (f / "config.json").unlink(), "no config.json"),
        (lambda f: (f / "model.safetensors").unlink(), "model.safetensors: not there"),
        (lambda f: (f / "tokenizer.model").unlink(), "no tokenizer.model"),
        (lambda f: (f / "codec.safetensors").write_bytes(b"\0" * 20), "not a readable safetensors file"),
        (lambda f: (f / "config.json").write_text(json.dumps({"name": "x"})), "missing key 'lm'"),
    ],
)
def test_spoilt_directories_are_refused_in_one_line(copy, spoil, expected):
    spoil(copy)
    with pytest.raises(ValueError, match=expected) as caught:
        load_model(copy)
    assert str(copy) in str(caught.value) and "\n" not in str(caught.value)


def test_only_checkpoints_are_replaced(small_bundle, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"cat")
    (tmp_path / "file").write_text("mine")
    for there in ("photos", "file"):
        with pytest.raises(CheckpointError, match="already there and not a checkpoint"):
            save_again(small_bundle, tmp_path / there)
    assert (tmp_path / "photos" / "cat.jpg").read_bytes() == b"cat" and (tmp_path / "file").read_text() == "mine"
    assert {path.name for path in tmp_path.iterdir()} == {"photos", "file"}


def test_pickles_are_refused(tmp_path):
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pytorch_model.bin is a pickle"):
        resolve(tmp_path)


def test_nothing_there_and_offline_are_one_sentence(tmp_path, monkeypatch):
    with pytest.raises(CheckpointError, match="nothing there"):
        resolve(tmp_path / "a" / "b")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match="neither a directory here nor to be had from the hub") as caught:
        resolve("someone/some-model-that-is-not-here")
    assert "\n" not in str(caught.value)


def test_a_run_directory_means_its_newest_checkpoint(small_checkpoint, tmp_path):
    for step in (2, 10):
        shutil.copytree(small_checkpoint, tmp_path / "checkpoints" / f"step_{step:08d}")
    (tmp_path / "checkpoints" / "step_00000011").mkdir()  # not complete
    assert resolve(tmp_path).name == "step_00000010"


def test_a_failed_save_keeps_the_old_checkpoint(small_bundle, tmp_path):
    folder = save_again(small_bundle, tmp_path / "model")
    stored = (folder / "model.safetensors").read_bytes()
    with pytest.raises(FileNotFoundError):
        save_model(
            folder,
            model=small_bundle.model,
            codec=small_bundle.codec,
            config=small_bundle.config,
            tokenizer_file=tmp_path / "no.model",
        )
    assert (folder / "model.safetensors").read_bytes() == stored
    assert [p.name for p in tmp_path.iterdir()] == ["model"]
