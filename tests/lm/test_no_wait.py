"""A step at full size on a pretended GPU: everything a step launches can be launched without waiting for the device."""

from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from mmspeech.config import ModelConfig, load_config
from mmspeech.lm.generate import FrameGenerator
from mmspeech.lm.model import VisionSpeechModel
from mmspeech.lm.sampling import Sampler

CONFIG = Path(__file__).parents[2] / "configs" / "model" / "moshivis_7b.yaml"


@pytest.fixture
def pretended_gpu(monkeypatch):
    """Tensors with a device and a shape, without numbers; asking for a number raises. Random numbers, which need a real
    GPU's generator, are left as they are: drawing them waits for nothing."""

    class Anywhere(torch.Generator):
        def __new__(cls, device=None):
            return super().__new__(cls)

    monkeypatch.setattr(torch, "Generator", Anywhere)
    monkeypatch.setattr(Sampler, "renew", lambda self, count: None)
    with FakeTensorMode():
        yield


def test_a_step_of_the_7b_model_does_not_wait(pretended_gpu):
    with torch.device("cuda"):
        model = VisionSpeechModel(load_config(ModelConfig, CONFIG))
    generator = FrameGenerator(model.lm, batch_size=4)
    features = torch.empty(4, 1024, model.config.vision.tower_dim, device="cuda")
    seen = model.see(features, torch.zeros(4, dtype=torch.long, device="cuda"))
    for rows in (4, 4, 2):
        generator.show(seen, [0, 1, 2, 3])
        out = generator.step(torch.empty(rows, 8, device="cuda", dtype=torch.long))
    assert out.codes.shape == (2, 8) and out.codes.device.type == "cuda"
    with pytest.raises(DataDependentOutputException):
        int(out.text_ids[0])
