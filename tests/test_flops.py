"""Operations counted from shapes equal those torch counts while a model runs, whatever trains."""

import pytest
import torch
from small_model import SMALL_MODEL
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mmspeech.config import ModelConfig
from mmspeech.flops import ModelFlops, Work, peak_tflops
from mmspeech.lm.loss import duplex_loss
from mmspeech.lm.model import VisionSpeechModel
from mmspeech.lm.trainable import trainable_names
from mmspeech.types import Batch

ROWS, STEPS, TOKENS = 3, 20, 16
SHARED = {"shared": True, "gate": "tanh", "gate_hidden": 8, "shared_gate": True, "layers": (1,)}


def small_model(**fusion) -> VisionSpeechModel:
    config = SMALL_MODEL | {"lm": SMALL_MODEL["lm"] | {"fusion": SMALL_MODEL["lm"]["fusion"] | fusion}}
    torch.manual_seed(0)
    return VisionSpeechModel(ModelConfig.model_validate(config))


def make_batch() -> Batch:
    """Every frame of every row counts, for text and for audio."""
    ones = torch.ones(ROWS, STEPS)
    return Batch(
        torch.randint(0, 32, (ROWS, 7, STEPS)), ones, ones,
        pixels=torch.zeros(ROWS, 3, 32, 32), picture_rows=torch.arange(ROWS),
        onset_frames=torch.zeros(ROWS, dtype=torch.long), features=torch.randn(ROWS, TOKENS, 16),
    )  # fmt: skip


@pytest.mark.parametrize("fusion", [{}, SHARED, {"gate": "scalar_tanh"}], ids=["own", "shared", "scalar"])
@pytest.mark.parametrize(
    "patterns", [["all"], ["adapters"], ["speech"], ["lm.depth.*"], ["lm.temporal.transformer.layers.1.ffn"]]
)
def test_flops_are_those_that_torch_counts(patterns, fusion):
    model = small_model(**fusion)
    trainable = trainable_names(model, patterns)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in trainable)
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    flops = ModelFlops(model.config.lm, shapes, trainable)
    costs = flops.of(Work(rows=ROWS, steps=STEPS, visual_tokens=TOKENS, depth_frames=ROWS * STEPS)).values()
    with sdpa_kernel(SDPBackend.MATH):
        with FlopCounterMode(display=False) as forward:
            loss = duplex_loss(model, make_batch()).loss
        with FlopCounterMode(display=False) as backward:
            loss.backward()
    assert sum(cost.forward for cost in costs) == forward.get_total_flops()
    assert sum(cost.through + cost.weights for cost in costs) == backward.get_total_flops()


def test_peaks_are_found_by_the_name_that_torch_gives():
    assert peak_tflops("NVIDIA H100 80GB HBM3", precision="bf16") == 989
    assert peak_tflops("NVIDIA H100 PCIe", precision="bf16") == 756
    assert peak_tflops("NVIDIA A100-SXM4-80GB", precision="no") == 19.5
    assert peak_tflops("NVIDIA L40S", precision="bf16") == 362 and peak_tflops("NVIDIA A10", precision="bf16") == 125
    assert peak_tflops("Some Card 9", precision="bf16") is None
