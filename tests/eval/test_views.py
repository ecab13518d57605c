"""Where words looked: what is recorded is what the layers did, and recording changes nothing."""

import numpy as np
import pytest
import torch
from PIL import Image

from eval.task import Prompt
from eval.views import attention_weights, draw_views, looked_words, recorded_attention
from mmspeech.config import ConfigError
from mmspeech.nn.cross_attention import CrossProjections
from mmspeech.serve.session import Session

SIDE_TOKENS = 16  # of the small model: 32 pixels, strides 4 and 2


def said(bundle):
    session = Session(bundle, seed=3, picture=Image.new("RGB", (32, 32), "blue"))
    torch.manual_seed(0)
    return torch.stack([session.step(0.1 * torch.randn(1920)).pcm for _ in range(8)])


def test_recording_changes_nothing_and_ends(small_bundle):
    before = said(small_bundle)
    with recorded_attention(small_bundle) as found:
        assert torch.equal(said(small_bundle), before)
    assert found and all(one.shape == (1, 1, SIDE_TOKENS) for one in found)
    assert all(torch.allclose(one.sum(dim=-1), torch.ones(1, 1)) for one in found)
    count = len(found)
    said(small_bundle)
    assert len(found) == count


@pytest.mark.parametrize("age_buckets", [0, 3])
def test_the_weights_are_those_of_the_layer(age_buckets):
    """With values that are unit vectors, one head and no output matrix, a layer's output is its weights."""
    torch.manual_seed(0)
    layer = CrossProjections(dim=6, num_heads=1, source_dim=6, age_buckets=age_buckets)
    torch.nn.init.eye_(layer.out_proj.weight)
    if age_buckets:
        torch.nn.init.normal_(layer.age.weight)
    x, keys, values = torch.randn(2, 3, 6), torch.randn(2, 6, 6), torch.eye(6).expand(2, 6, 6)
    mask = torch.ones(2, 1, 3, 6, dtype=torch.bool)
    mask[:, :, :, 4] = False
    ages = torch.randint(0, 3, (2, 3, 6)) if age_buckets else None
    weights = attention_weights(layer, x, keys, values, mask=mask, ages=ages)
    assert weights.shape == (2, 1, 3, 6) and float(weights[..., 4].abs().max()) == 0.0
    with torch.no_grad():
        torch.testing.assert_close(weights[:, 0], layer(x, keys, values, mask=mask, ages=ages), atol=1e-5, rtol=1e-4)


def test_words_know_where_they_looked(small_bundle, tmp_path):
    prompt = Prompt(0.1 * np.random.default_rng(0).standard_normal(24_000).astype(np.float32))
    blind = looked_words(small_bundle, prompt)
    assert blind and all(word.attention is None for word in blind)
    picture = Image.new("RGB", (40, 30), "red")
    prompt.pictures = [(0.0, picture)]
    words = looked_words(small_bundle, prompt)
    assert words and all(word.attention.shape == (SIDE_TOKENS,) for word in words)
    assert all(word.attention.sum() == pytest.approx(1.0, abs=1e-4) for word in words)
    file = draw_views(words, picture, tmp_path / "new" / "views.png")
    assert Image.open(file).size[0] > 200
    with pytest.raises(ConfigError, match="ask about the picture"):
        draw_views(blind, picture, tmp_path / "none.png")
    words[0].attention = words[0].attention[:15]
    with pytest.raises(ConfigError, match="15 visual tokens are no square grid"):
        draw_views(words, picture, tmp_path / "none.png")
