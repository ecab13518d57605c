"""`mmspeech merge`: a run becomes a directory that needs nothing else, with a card that tells what is true."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from test_cli import assert_one_line_error, mmspeech

from mmspeech.checkpoint import MODEL, load_adapters, load_model


@pytest.fixture
def run(small_checkpoint, tmp_path) -> Path:
    """A run directory as training leaves it: two checkpoints, the older one with the weights it began with."""
    run = tmp_path / "my_run"
    for step in (2, 4):
        folder = run / "checkpoints" / f"step_{step:08d}"
        shutil.copytree(small_checkpoint, folder)
    tensors = load_file(folder / MODEL)
    save_file({name: value + 0.01 * (value.ndim > 1) for name, value in tensors.items()}, folder / MODEL)
    adapters = load_model(small_checkpoint).model.adapter_names()
    _say(run, {name: list(tensors[name].shape) for name in adapters})
    settings = {"root": "/home/me", "run": "my_run", "init": {"checkpoint": "/home/me/base"}, "trainable": ["adapters"]}
    (run / "config.yaml").write_text(yaml.safe_dump(settings))
    lines = [
        {"kind": "train", "step": 4, "loss": 1.5, "minutes": 3.0},
        {"kind": "eval/mine", "step": 2, "loss": 9.0, "word_acc": 0.111, "depth_frames": 7.0},
        {"kind": "eval/mine", "step": 4, "loss": 2.5, "word_acc": 0.625, "depth_frames": 7.0},
        {"kind": "eval/other", "step": 4, "loss": 3.25, "gap": 0.75},
        {"kind": "event", "step": 4, "skipped_call": "x"},
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"kind": "tr')
    return run


def _say(run: Path, trained: dict[str, list[int]]) -> None:
    (run / "trainable.txt").write_text("".join(f"{name} {shape}\n" for name, shape in trained.items()))


def test_a_run_becomes_a_model_with_a_card(run, tmp_path):
    result = mmspeech("merge", run, tmp_path / "out", "generation.text_temperature=0.25")
    assert result.exit_code == 0 and result.stdout == f"{tmp_path / 'out'}\n", result.output
    newest = run / "checkpoints" / "step_00000004"
    assert {file.name for file in (tmp_path / "out").iterdir()} == {file.name for file in newest.iterdir()}
    merged, own = load_file(tmp_path / "out" / MODEL), load_file(newest / MODEL)
    assert merged.keys() == own.keys() and all(torch.equal(merged[name], own[name]) for name in own)
    assert load_model(tmp_path / "out").config.generation.text_temperature == 0.25
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: mmspeech\n") and "Step 4 of the run `my_run`" in card
    assert "mmspeech talk --model out " in card and "Loss in training: 1.500 after 3 minutes." in card
    assert "| validation set | step | loss | word_acc | gap |" in card
    assert "| mine | 4 | 2.500 | 0.625 |  |" in card and "| other | 4 | 3.250 |  | 0.750 |" in card
    assert "/home/me" not in card and "checkpoint: base" in card
    model = load_model(newest).model
    numbers = sum(parameter.numel() for parameter in model.adapter_parameters())
    assert f"| all | {len(model.adapter_names())} | {numbers:,} |" in card


def test_an_older_checkpoint_tells_of_its_own_step(run, small_checkpoint, tmp_path):
    result = mmspeech("merge", run / "checkpoints" / "step_00000002", tmp_path / "out")
    assert result.exit_code == 0, result.output
    card = (tmp_path / "out" / "README.md").read_text()
    assert "Step 2 of" in card and "| mine | 2 | 9.000 | 0.111 |" in card and "other" not in card
    merged, own = load_file(tmp_path / "out" / MODEL), load_file(small_checkpoint / MODEL)
    assert all(torch.equal(merged[name], own[name]) for name in own)


def test_a_release_has_the_precision_and_the_card_that_were_asked_for(small_checkpoint, tmp_path):
    (tmp_path / "card.md").write_text("# a card\n")
    for dtype, stored in (("fp16", torch.float16), ("bf16", torch.bfloat16)):
        out = tmp_path / dtype
        result = mmspeech("merge", small_checkpoint, out, "--dtype", dtype, "--card", tmp_path / "card.md")
        assert result.exit_code == 0, result.output
        assert {value.dtype for value in load_file(out / MODEL).values()} == {stored}
        assert (out / "README.md").read_text() == "# a card\n" and load_model(out).config.name == "small-random"


def test_adapters_alone(run, small_checkpoint, tmp_path):
    result = mmspeech("merge", run, tmp_path / "eyes", "--adapters-only", "--dtype", "bf16")
    assert result.exit_code == 0, result.output
    assert {file.name for file in (tmp_path / "eyes").iterdir()} == {"adapters.safetensors", "README.md"}
    with safe_open(tmp_path / "eyes" / "adapters.safetensors", "pt") as opened:
        assert opened.metadata()["base"] == "base"
    bundle, trained = load_model(small_checkpoint), load_model(run).model.state_dict()
    load_adapters(tmp_path / "eyes", bundle.model)
    for name, value in bundle.model.state_dict().items():
        if name in bundle.model.adapter_names():
            assert torch.equal(value, trained[name].bfloat16().float()), name
    card = (tmp_path / "eyes" / "README.md").read_text()
    assert 'load_adapters("eyes", bundle.model)' in card and "They go with `base`" in card


def test_what_is_wrong_is_one_line_and_writes_nothing(run, tmp_path):
    out = tmp_path / "out"
    newest = run / "checkpoints" / "step_00000004"
    before = (newest / MODEL).read_bytes()
    assert_one_line_error(mmspeech("merge", tmp_path / "none", out), tmp_path / "none")
    assert_one_line_error(mmspeech("merge", run, out, "--dtype", "int8"), "--dtype int8: expected fp16, bf16, fp32")
    assert_one_line_error(mmspeech("merge", run, out, "--push", "mine"), "--push mine: expected OWNER/NAME")
    assert_one_line_error(mmspeech("merge", run, out, "--card", tmp_path / "c.md"), tmp_path / "c.md", "no such file")
    assert_one_line_error(mmspeech("merge", run, out, "generation.heat=1"), "unknown key 'generation.heat'")
    assert_one_line_error(mmspeech("merge", run, out, "--adapters-only", "name=x"), "leave it out")
    assert_one_line_error(mmspeech("merge", run, newest), newest, "holds what a run goes on from")
    assert_one_line_error(mmspeech("merge", run, run), run, "choose a new directory")
    _say(run, {"projector.norm.weight": [4], "lm.depth.text_emb": [65, 16]})
    assert_one_line_error(mmspeech("merge", run, out, "--adapters-only"), "no vision adapters", "merge it whole")
    assert not out.exists() and (newest / MODEL).read_bytes() == before


def test_a_push_uploads_what_was_written(run, tmp_path, hub):
    result = mmspeech("merge", run, tmp_path / "out", "--dtype", "fp16", "--push", "me/mine", "--private")
    assert result.exit_code == 0, result.output
    assert "/me/mine/" in result.stdout.splitlines()[1]
    assert hub.files == {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()}
    assert b"mmspeech talk --model me/mine " in hub.files["README.md"]


def test_a_push_to_a_hub_that_is_not_there(run, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    result = mmspeech("merge", run, tmp_path / "out", "--push", "me/mine")
    assert result.exit_code == 2 and "is written, but not pushed to me/mine" in result.stderr
    assert (tmp_path / "out" / MODEL).is_file()
