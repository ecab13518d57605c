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
    torch.testing.assert_close(projector(FEATURES)[0], expected)


def test_a_hidden_layer_and_no_norm():
    projector = build_projector(
        VisionConfig(tower="vit", image_size_px=48, tower_dim=12, projector_hidden=20, projector_norm=None), dim=8
    )
    expected = projector.proj(F.gelu(projector.hidden(FEATURES)))
    torch.testing.assert_close(projector(FEATURES)[0], expected)


def test_released_projector_has_its_size():
    with torch.device("meta"):
        projector = Projector(source_dim=1152, dim=4096)
    assert sum(p.numel() for p in projector.parameters()) == 4_726_784


def test_without_projection_the_width_stays():
    projector = Projector(source_dim=12, dim=12, project=False, norm=None)
    torch.testing.assert_close(projector(FEATURES)[0], FEATURES)
    with pytest.raises(ConfigError, match="keeps width 12; it cannot give width 8"):
        Projector(source_dim=12, dim=8, project=False)


def test_features_of_another_precision_are_taken():
    assert Projector(source_dim=12, dim=8)(FEATURES.bfloat16())[0].dtype == torch.float32


def pooled(**changes) -> Projector:
    config = VisionConfig(tower="vit", image_size_px=48, tower_dim=12, projector_norm=None, **changes)
    torch.manual_seed(0)
    return build_projector(config, dim=8)


@pytest.mark.parametrize(("side", "new"), [(4, 2), (5, 3), (1, 1)])
def test_the_mean_of_four_neighbours(side, new):
    projector, grid = pooled(pool="mean2x2"), torch.randn(2, side, side, 12)
    tokens, mask = projector(grid.flatten(1, 2))
    assert tokens.shape == (2, new * new, 8) and mask is None and projector.count(side * side) == new * new
    place = grid[:, 2 * (new - 1) :, :2].flatten(1, 2).mean(dim=1)  # the lowest on the left
    torch.testing.assert_close(tokens[:, -new], projector.proj(place))
    for found, given in ((torch.randn(2, 5, 12), None), (grid.flatten(1, 2), torch.ones(2, side * side) > 0)):
        with pytest.raises(ConfigError, match="mean2x2: expected a square grid of tokens, got"):
            projector(found, given)


def test_learned_queries_take_any_number_of_tokens():
    """Those that are not there change nothing, and a picture without any is not there."""
    projector = pooled(pool=3)
    features, mask = torch.randn(3, 7, 12), torch.arange(7) < torch.tensor([[7], [4], [0]])
    tokens, there = projector(features, mask)
    assert tokens.shape == (3, 3, 8) and tokens.isfinite().all() and projector.count(7) == 3
    assert there.tolist() == [[True] * 3, [True] * 3, [False] * 3]
    torch.testing.assert_close(tokens[1], projector(features[1:2, :4])[0][0])
    torch.testing.assert_close(tokens[0], projector(features[:1].flip(1))[0][0])
    tokens.square().sum().backward()
    assert projector.pool.queries.grad.any(dim=1).all()


def test_poolings_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="greater than 0"):
        pooled(pool=0)
    with pytest.raises(ValueError, match="class tokens have no place"):
        pooled(pool="mean2x2", keep_prefix_tokens=True)
