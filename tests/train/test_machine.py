"""What a machine computes in."""

import pytest
import torch

from mmspeech.config import ConfigError
from train import machine


@pytest.mark.parametrize(
    ("can", "found"),
    [({"avx2": True}, "no"), ({"avx512_bf16": True}, "bf16"), ({"amx_bf16": True}, "bf16"), ({}, "no")],
)
def test_cpus_compute_in_bfloat16_where_they_can(monkeypatch, can, found):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: can, raising=False)
    assert machine.fast_precision(on_cpu=True) == found


def test_a_torch_that_does_not_tell_computes_in_float32(monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert machine.fast_precision(on_cpu=True) == "no"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_gpus_do_too():
    assert machine.fast_precision(on_cpu=False) == "bf16"


@pytest.mark.parametrize("wanted", ["auto", "no", "bf16"])
def test_what_is_asked_for_is_done(make_config, monkeypatch, wanted):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True}, raising=False)
    accelerator = machine.start(make_config(precision=wanted, device="cpu"))
    assert accelerator.mixed_precision == {"auto": "bf16"}.get(wanted, wanted)
    machine.finish(accelerator)


def test_frozen_bfloat16_needs_bfloat16_steps(make_config, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True}, raising=False)
    accelerator = machine.start(make_config(frozen_precision="bf16", device="cpu"))
    assert accelerator.mixed_precision == "bf16"
    machine.finish(accelerator)
    with pytest.raises(ConfigError, match="frozen_precision bf16 needs bf16 steps"):
        machine.start(make_config(frozen_precision="bf16", precision="no", device="cpu"))
