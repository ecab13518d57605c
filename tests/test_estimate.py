"""`mmspeech estimate` and `mmspeech config`: memory falls as it is shared, time follows the log, presets copy."""

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from mmspeech.cli import app
from mmspeech.commands.estimate import TrainNeeds, make_plan
from mmspeech.config import apply_overrides, read_mapping
from mmspeech.estimate import SHARINGS, footprints, measure_sizes, process_memory, step_flops, warnings
from mmspeech.lm.model import VisionSpeechModel
from mmspeech.presets import list_presets

ROOT = Path(__file__).resolve().parent.parent
VISION = ROOT / "configs" / "train" / "tiny_vision.yaml"
GB = 1e9


def plan(*overrides: str):
    return make_plan(TrainNeeds.model_validate(apply_overrides(read_mapping(VISION), list(overrides))))


def run(*args) -> tuple[int, str]:
    done = CliRunner().invoke(app, [str(arg) for arg in args], env={"COLUMNS": "160"})
    return done.exit_code, " ".join(done.output.split())


def memory(run_plan, *, processes: int) -> dict[str, dict[str, float]]:
    kept = {sharded: footprints(run_plan, sharded=sharded)[run_plan.recompute] for sharded in (False, True)}
    sizes = measure_sizes(run_plan)
    return {
        sharing.name: process_memory(run_plan, sizes, sharing, kept[sharing.stage > 0], processes=processes).gpu
        for sharing in SHARINGS
    }


def test_defaults_are_those_of_training():
    from train.settings import DataConfig, LossConfig, TrainConfig

    for needs, whole in ((TrainNeeds, TrainConfig), (TrainNeeds.model_fields["data"].annotation, DataConfig),
                         (TrainNeeds.model_fields["loss"].annotation, LossConfig)):  # fmt: skip
        for name, field in needs.model_fields.items():
            if name not in ("init", "data", "loss", "lora", "sources") and not field.is_required():
                assert whole.model_fields[name].default == field.default, name


def test_joined_calls_are_the_longest_there_are():
    longest = plan("data.sources.own.join_frames=700", "data.max_frames=300").max_frames
    assert longest == 700 and plan("data.max_frames=300").max_frames == 300


def test_lora_trains_its_pairs_beside_the_adapters():
    from train.lora import add_lora
    from train.settings import LoraSettings

    paired, adapters, every = plan("lora={rank: 8}"), plan(), plan("trainable=[all]")
    torch.manual_seed(0)
    model = VisionSpeechModel(paired.model)
    lora = add_lora(model, LoraSettings(rank=8), seed=0)
    learns = set(lora.trainable(model, [*adapters.trainable]))
    sizes = measure_sizes(paired)
    assert sizes.trained == sum(p.numel() for name, p in model.named_parameters() if name in learns)
    assert sizes.weights == sum(p.numel() for p in model.parameters())
    assert step_flops(adapters) < step_flops(paired) < step_flops(every)
    by = memory(paired, processes=1)["ddp"]
    low, high = (memory(other, processes=1)["ddp"]["activations"] for other in (adapters, every))
    assert low < by["activations"] <= high


def test_each_stage_shares_what_it_says():
    full = plan("trainable=[all]")
    sizes, by = measure_sizes(full), memory(full, processes=4)
    assert by["ddp"]["weights"] == 4 * sizes.weights and by["ddp"]["optimiser"] == 8 * sizes.trained
    assert by["zero1"]["weights"] == by["zero2"]["weights"] == 2 * sizes.weights
    assert by["zero3"]["weights"] == 2 * sizes.weights / 4
    assert by["zero1"]["optimiser"] == by["zero3"]["optimiser"] == 16 * sizes.trained / 4
    assert by["zero2_offload"]["optimiser"] == by["zero3_offload"]["weights"] == 0
    assert memory(plan(), processes=4)["ddp"]["optimiser"] < by["ddp"]["optimiser"] / 3  # adapters alone


def test_operations_and_visual_tokens_follow_the_shapes():
    assert plan().tower_tokens == 64 and plan("init.blind=true", "trainable=[speech]").tower_tokens == 0
    # A frozen model costs less than one that learns; twice the batches cost twice.
    assert 1.3 * step_flops(plan()) < step_flops(plan("trainable=[all]"))
    assert step_flops(plan("batches_per_step=2")) == 2 * step_flops(plan())


def test_what_would_go_wrong_is_said():
    poor = plan("batches_per_step=3", "data.batch_frames=100")
    found = "; ".join(warnings(poor, processes=2, totals={"ddp": 9 * GB, "zero3": 2 * GB}, usable=4 * GB))
    for part in ("set batches_per_step=4", "does not fit as ddp; take zero3", "100 frames: below", "max_frames 375"):
        assert part in found
    none = warnings(plan(), processes=1, totals={"ddp": 9 * GB}, usable=4 * GB)
    assert "fits in no way: the least is 9.0 GB" in none[0]


def test_the_command_prints_memory_and_time_from_a_log(tmp_path):
    speed = {"kind": "train", "tflops_per_sec": 0.5, "mfu": 0.25}
    lines = [
        {"kind": "train", "step": 1, "tflops_per_sec": 0.001, "mfu": 0.001},
        speed | {"step": 2},
        speed | {"step": 3},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"cut')
    code, shown = run("estimate", "--config", VISION, "recompute_layers=true", "--gpus", 2, "--gpu-memory", 24,
                      "--run", tmp_path, "--peak-tflops", 4)  # fmt: skip
    assert code == 0 and "25.0 % MFU (measured in" in shown and "steps a day" in shown and "zero3" in shown
    assert "recompute_layers: true (as configured)" in shown and "batches_per_step=2" in shown
    assert "0.5 TFLOP/s per process" in run("estimate", "--config", VISION, "--run", tmp_path)[1]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--gpu", "Card 9"), "its peak is not known here"),
        (("lora={targets: [lm.temporal.out_norm]}",), "LoRA can not wrap"),
        (("--run", "."), "no metrics.jsonl here"),
        (("trainable=[adaptors]",), "did you mean 'adapters'?"),
        (("init.model=null", "root=/nowhere"), "no checkpoint here yet"),
        (("init.model=configs/model/tinny.yaml",), "did you mean model/tiny?"),
        (("data.batch_frames=0", "precision=fp8"), "'precision'"),
    ],
)
def test_the_command_refuses_in_one_line(args, message):
    code, shown = run("estimate", "--config", VISION, *args)
    assert code == 2 and shown.startswith("error: ") and message in shown


def test_presets_are_listed_with_what_they_are_and_copied_once(tmp_path):
    presets = list_presets()
    assert {"model/tiny", "train/tiny_vision", "deepspeed/zero3"} <= {preset.name for preset in presets}
    assert all(preset.description for preset in presets)
    code, shown = run("config", "ls")
    assert code == 0 and all(preset.name in shown for preset in presets)
    assert run("config", "cp", "configs/train/tiny_vision.yaml", tmp_path / "new" / "mine.yaml")[0] == 0
    assert (tmp_path / "new" / "mine.yaml").read_bytes() == VISION.read_bytes()
    for name, target, message in (
        ("train/tiny_vision", tmp_path / "new" / "mine.yaml", "is there already"),
        ("train/tiny_visoin", tmp_path / "x.yaml", "did you mean train/tiny_vision?"),
        ("train/tiny_vision", tmp_path / "x.json", "ends in .yaml"),
    ):
        code, shown = run("config", "cp", name, target)
        assert code == 2 and message in shown and not (tmp_path / "x.json").exists()
