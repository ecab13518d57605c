"""What makes steps cheaper changes neither what is learnt nor what a run can do."""

import json
from dataclasses import replace

import pytest
import torch
from small_model import SMALL_MODEL

from mmspeech.checkpoint import MODEL, read_tensors
from mmspeech.config import ConfigError, ModelConfig
from mmspeech.lm.loss import PIECE_LOGITS
from mmspeech.lm.model import VisionSpeechModel
from train import bench
from train.parts import Objective
from train.recipe import train
from train.settings import LossConfig


def test_frozen_matrices_in_bfloat16(make_config):
    """A run with evaluation and samples; it resumes to the same weights, and what is frozen stays as it was rounded."""
    settings = {"trainable": ["adapters"], "frozen_precision": "bf16", "sample_every_steps": 2, "sample_calls": 1}
    # A rate that does not depend on where the run ends.
    settings["optim"] = {"learning_rate": 1e-2, "warmup_steps": 1, "schedule": "wsd", "decay_share": 1e-6}
    whole = read_tensors(train(make_config(run="whole", **settings)) / MODEL)
    config = make_config(run="halves", max_steps=2, **settings)
    before = read_tensors(train(config) / MODEL)
    after = read_tensors(train(make_config(run="halves", **settings)) / MODEL)
    assert all(torch.equal(after[name], whole[name]) for name in whole)
    frozen = {name for name in whole if torch.equal(before[name], after[name])}
    matrices = {name for name in frozen if whole[name].ndim >= 2 and name.startswith("lm.depth.")}
    assert matrices and all(whole[name].dtype == torch.bfloat16 for name in matrices)
    assert all(whole[name].dtype == torch.float32 for name in whole.keys() - frozen)


def test_pieces_follow_the_largest_batch():
    config = ModelConfig.model_validate(SMALL_MODEL)
    model = VisionSpeechModel(config)
    frames = PIECE_LOGITS // (3 * 32)
    assert Objective(model, LossConfig(), batch_frames=frames).weights.pieces == 1
    assert Objective(model, LossConfig(), batch_frames=2 * frames).weights.pieces == 2
    assert Objective(model, LossConfig(pieces=7), batch_frames=frames).weights.pieces == 7
    with pytest.raises(ConfigError, match="loss.depth_codebooks 4: the model has 3; set at most that"):
        Objective(model, LossConfig(depth_codebooks=4), batch_frames=frames)


@pytest.fixture
def smallest(monkeypatch):
    """The shape `small`, smaller."""
    whole = bench.model_config

    def shrunk(shape, *, eyes):
        config = whole(shape, eyes=eyes)
        lm = config.lm
        temporal = lm.temporal.model_copy(update={"dim": 64, "num_layers": 2, "ffn_dim": 176})
        depth = lm.depth.model_copy(update={"dim": 32, "num_layers": 1, "ffn_dim": 88})
        update = {"text_card": 100, "audio_card": 64, "temporal": temporal, "depth": depth}
        return config.model_copy(update={"lm": lm.model_copy(update=update)})

    monkeypatch.setattr(bench, "model_config", shrunk)
    return shrunk


@pytest.mark.parametrize("options", [["--train", "all", "--share", "1"], ["--recompute", "--precision", "bf16"]])
def test_the_benchmark_times_whole_steps(options, smallest, tmp_path, capsys):
    out = tmp_path / "bench.json"
    args = ["--device", "cpu", "--frames", "30", "--calls", "2", "--steps", "2", "--out", str(out)]
    assert bench.main(args + options) == 0
    told, result = capsys.readouterr().out, json.loads(out.read_text())["result"]
    assert "frames/s" in told and result["frames"] == 60
    assert result["frames_per_sec"] == pytest.approx(60 / result["step_sec"])
    config = smallest("small", eyes=False)
    model = VisionSpeechModel(config)
    weights = sum(p.numel() for name, p in model.named_parameters() if p.ndim > 1 and "_emb" not in name)
    if "all" in options:
        # Two operations per weight and frame forward, four backward; attention comes on top.
        assert 1 < result["tflops"] * 1e12 * result["step_sec"] / (6 * weights * 60) < 1.2
        # Weights, their gradients and two moments are there at once.
        assert result["peak_gib"] * 2**30 > 16 * sum(p.numel() for p in model.parameters())


def test_both_sides_do_the_same_work(smallest, monkeypatch):
    """As many parameters, operations within two in a hundred."""
    pytest.importorskip("moshi")
    from train import bench_reference

    monkeypatch.setattr(bench_reference, "model_config", smallest)
    work = bench.Work("small", 2, 40, torch.device("cpu"), "no")
    ours = bench.our_side("ours", "all", work, LossConfig(first_codebook=100.0))
    theirs = bench_reference.reference_side("all", work, lengths=[40, 40])
    assert ours.flops == pytest.approx(theirs.flops, rel=0.02)
    assert ours.held_bytes() == pytest.approx(theirs.held_bytes(), rel=0.01)
    theirs.step()
    padded = bench_reference.reference_side("lora", replace(work, lora_rank=2), lengths=[40, 10])
    padded.step()
    assert padded.frames == 50


def test_a_benchmark_that_can_not_run_says_why(capsys):
    assert bench.main(["--device", "cpu", "--frames", "0"]) == 2
    assert "--frames, --calls, --steps and --rank: expected whole numbers above 0" in capsys.readouterr().err
