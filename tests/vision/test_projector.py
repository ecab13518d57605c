"""The projector: width, its parts, and names that map to Kyutai's."""

import pytest
import torch
import torch.nn.functional as F

from mmspeech.config import ConfigError, VisionConfig
from mmspeech.vision.projector import Projector, build_projector

FEATURES = torch.randn(2, 5, 12, generator=torch.Generator().manual_seed(0))


def test_one_layer_is_kyutais():
    projector = Projector(source_dim=12, dim=8, norm="rms_variance")
    assert {name: list(p.shape) for name, p in projector.named_parameters()} == {
        "proj.weight": [8, 12], "proj.bias": [8], "norm.alpha": [8]
    }  # fmt: skip
    projected = F.linear(FEATURES, projector.proj.weight, projector.proj.bias)
    expected = projected * torch.rsqrt(projected.var(-1, keepdim=True) + 1e-5)
    torch.testing.assert_close(projector(FEATURES), expected)


def test_a_hidden_layer_and_no_norm():
    projector = build_projector(
        VisionConfig(tower="vit", image_size_px=48, tower_dim=12, projector_hidden=20, projector_norm=None), dim=8
    )
    expected = projector.proj(F.gelu(projector.hidden(FEATURES)))
    torch.testing.assert_close(projector(FEATURES), expected)


def test_released_projector_has_its_size():
    with torch.device("meta"):
        projector = Projector(source_dim=1152, dim=4096)
    assert sum(p.numel() for p in projector.parameters()) == 4_726_784


def test_without_projection_the_width_stays():
    projector = Projector(source_dim=12, dim=12, project=False, norm=None)
    torch.testing.assert_close(projector(FEATURES), FEATURES)
    with pytest.raises(ConfigError, match="keeps width 12; it cannot give width 8"):
        Projector(source_dim=12, dim=8, project=False)


def test_features_of_another_precision_are_taken():
    assert Projector(source_dim=12, dim=8)(FEATURES.bfloat16()).dtype == torch.float32
