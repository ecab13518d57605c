"""What a run shows of its learning: sampled calls, boards, the gap between sighted and blind, curves."""

import json
import sys
import types

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from safetensors.torch import load_file

from mmspeech.checkpoint import MODEL
from mmspeech.config import ConfigError
from mmspeech.data.shards import ShardSet, write_shards
from mmspeech.serve.session import SpokenWord
from mmspeech.types import Visual, Word
from train.checkpointing import STATE
from train.curves import draw_curves, read_curves
from train.gap import gaps, sighted_and_blind
from train.recipe import train
from train.sample_figure import draw_call
from train.sample_page import write_page
from train.samples import SampledCall, write_samples
from train.settings import SourceConfig


def lines_of(config) -> list[dict]:
    return [json.loads(line) for line in (config.run_dir / "metrics.jsonl").read_text().splitlines()]


def test_what_a_run_writes_of_its_calls(make_config):
    config = make_config(max_steps=1, sample_every_steps=None, sample_calls=1)
    train(config)
    folder = config.run_dir / "samples" / "step_00000001"
    names = ["000.json", "000.png", "000.wav", "000_seen0.png", "index.html"]
    assert sorted(path.name for path in folder.iterdir()) == names
    described = json.loads((folder / "000.json").read_text())
    assert described["call"] == "1-0" and ["user", 0.2, "hello"] in described["reference"]
    assert described["said"] and all(set(word) == {"piece", "start_sec", "gate"} for word in described["said"])
    # The picture is shown at 0.1 s, in frame 1: nothing is looked at before, something after.
    gates = np.array(described["layer_gates"])
    assert gates.shape[1] == len(described["gate_layers"]) == 2
    assert (gates[0] == 0).all() and (gates[2:] > 0).all()
    wave, rate_hz = soundfile.read(folder / "000.wav")
    assert rate_hz == 24_000 and wave.shape == (1920 * len(gates), 2) and wave.std() > 0
    assert Image.open(folder / "000.png").size[0] > 500
    assert folder.name in (config.run_dir / "samples" / "index.html").read_text()
    lines = lines_of(config)
    assert {"train", "samples", "eval/calls"} <= {line["kind"] for line in lines}
    for line in lines:
        if line["kind"] in ("train", "eval/calls"):
            mean = (line["gate_layer_00"] + line["gate_layer_01"]) / 2
            assert line["gate"] == pytest.approx(mean, rel=1e-4) and 0 <= line["gate_open"] <= 1


def test_tensorboard_has_sound_words_gates_and_picture(make_config):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = make_config(max_steps=1, sample_every_steps=1, sample_calls=1)
    train(config)
    board = EventAccumulator(str(config.run_dir / "tensorboard"))
    board.Reload()
    tags = board.Tags()
    assert set(tags["audio"]) == {"samples/000/call", "samples/000/model"}
    assert set(tags["images"]) == {"samples/000/gates", "samples/000/picture"}
    assert "samples/000/words/text_summary" in tags["tensors"]
    assert {"train/gate_layer_01", "train/gate_open", "samples/word_gate"} <= set(tags["scalars"])


def test_sampling_leaves_no_trace_in_the_training(make_config):
    states = []

    def watched(origin, *given):
        before = torch.get_rng_state()
        drawn = write_samples(origin, *given)
        states.append((torch.equal(before, torch.get_rng_state()), origin.model.training))
        return drawn

    plain = train(make_config(run="plain", precision="no"))
    sampled = train(make_config(run="sampled", precision="no", sample_every_steps=1, sample_calls=1), sample=watched)
    assert states == [(True, False)] * 4
    before, after = load_file(plain / MODEL), load_file(sampled / MODEL)
    assert all(torch.equal(before[name], after[name]) for name in before)
    before, after = (torch.load(folder / STATE, weights_only=True) for folder in (plain, sampled))
    assert before["position"] == after["position"]
    for name, moments in before["moments"].items():
        assert all(torch.equal(value, after["moments"][name][key]) for key, value in moments.items())


def test_a_picture_that_does_not_decode_is_named_and_the_run_goes_on(make_config, calls, tmp_path):
    valid = ShardSet(calls / "valid")
    broken = valid[0]
    broken.visuals = [Visual(b"no picture")]
    write_shards(tmp_path / "broken", [broken, valid[1]], codec=valid.info.codec)
    data = make_config().data.model_dump() | {"valid": {"calls": {"path": str(tmp_path / "broken")}}}
    config = make_config(max_steps=1, sample_every_steps=1, data=data)
    train(config)
    assert not (config.run_dir / "samples/step_00000001/000.wav").exists()
    assert (config.run_dir / "samples/step_00000001/001.wav").exists()
    assert any("call 0 not sampled" in line.get("not_sampled", "") for line in lines_of(config))


def test_what_words_say_is_text_on_the_page(tmp_path):
    evil = "<script>alert(1)</script>$&"
    call = SampledCall(
        id=evil,
        wave=torch.rand(2, 24_000) - 0.5,
        words=[SpokenWord(evil, 0.2, 0.5)],
        heard=[Word(evil, 0, 0.1, "user")],
        expected=[],
        said=[],
        gate=np.zeros(12),
        layer_gates=np.full((12, 3), -0.5),
        layers=(0, 2, 4),
        signed_gates=True,
        pictures=[(Image.new("RGB", (9, 5)), 0.4)],
    )
    folder = tmp_path / "run" / "samples" / "step_00000001"
    folder.mkdir(parents=True)
    page = write_page(folder, {"000": (call, draw_call(call))}).read_text()
    assert page.count("<script>") == 1 and "&lt;script&gt;alert(1)" in page
    assert page.count("data:audio/mpeg;base64,") == 1 and page.count("data:image/png;base64,") == 2


def test_the_gap_is_what_the_picture_is_worth(make_config, calls):
    path = str(calls / "valid")
    sets = {"seen": SourceConfig(path=path), "gone": SourceConfig(path=path, visuals="drop", weight=2)}
    assert sighted_and_blind(sets | {"other": SourceConfig(path="x", visuals="drop")}) == [("seen", "gone")]
    results = {"a": {"word_acc": 0.5, "text_loss": 1.0}, "b": {"word_acc": 0.25, "text_loss": 3.0}}
    twice = gaps(results, [("a", "b")] * 2)
    assert twice == {"gap_a": {"word_acc": 0.25, "text_loss": 2.0}}
    data = make_config().data.model_copy(update={"valid": sets})
    config = make_config(max_steps=1, data=data.model_dump())
    train(config)
    found = {line["kind"]: line for line in lines_of(config)}
    gap = found["eval/gap"]
    assert gap["text_loss"] == pytest.approx(found["eval/gone"]["text_loss"] - found["eval/seen"]["text_loss"])
    assert gap["text_loss"] != 0 and "gate" not in found["eval/gone"]
    curves = read_curves(config.run_dir)
    assert curves["word_acc"]["eval/gap"] == [(1, gap["word_acc"])] and "gate_layer_01" in curves
    with (config.run_dir / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "st')  # as of a run that is writing
    assert draw_curves(config.run_dir).stat().st_size > 20_000


def test_nothing_to_draw_is_said(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"kind": "train", "step": 1, "mel": 2.0}\n')
    with pytest.raises(ConfigError, match="no numbers to draw"):
        draw_curves(tmp_path)


def test_wandb_is_told_what_tensorboard_is(make_config, monkeypatch):
    told, finished = [], []
    run = types.SimpleNamespace(
        log=told.append, define_metric=lambda *given, **named: None, finish=lambda: finished.append(True)
    )
    asked = {}
    fake = types.SimpleNamespace(
        init=lambda **given: asked.update(given) or run,
        Audio=lambda wave, sample_rate: wave.shape,
        Html=str,
        Error=RuntimeError,
        Image=np.shape,
    )
    monkeypatch.setitem(sys.modules, "wandb", fake)
    config = make_config(max_steps=1, sample_every_steps=1, sample_calls=1, log={"wandb": "seeing"})
    train(config)
    assert asked["project"] == "seeing" and asked["name"] == "run" and finished == [True]
    names = {name for entry in told for name in entry}
    assert {"train/loss", "train/gate_layer_00", "eval/calls/word_acc", "samples/000/gates"} <= names
    assert all(entry["step"] == 1 for entry in told)


def test_wandb_that_is_not_installed_is_said_before_the_first_step(make_config, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    config = make_config(log={"wandb": "seeing"})
    with pytest.raises(ConfigError, match="pip install wandb, or set log.wandb to null"):
        train(config)
    assert not config.run_dir.exists()
