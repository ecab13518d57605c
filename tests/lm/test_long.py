"""Calls without end: positions far beyond the window, rings that wrap, and results that stay what they are."""

import pytest
import torch

from mmspeech.config import GenerationConfig
from mmspeech.lm.generate import FrameGenerator
from mmspeech.nn.transformer import Transformer

HOUR_STEPS = 45_000
LAYERS, CONTEXT = 2, 9


@pytest.mark.parametrize("begin", [3_000, HOUR_STEPS, 1_000_000, 40_000_000])
@pytest.mark.parametrize("chunk", [1, 4])
@torch.no_grad()
def test_far_into_a_call_attention_is_as_at_its_beginning(begin, chunk):
    """What lies further back than all layers can reach does not count, so that from there on both must be equal."""
    torch.manual_seed(0)
    model = Transformer(dim=64, num_heads=2, num_layers=LAYERS, ffn_dim=64, context=CONTEXT)
    x = torch.randn(2, 60, 64)
    offline = model(x)
    state = model.init_state(2, max_steps=chunk)
    state.offset += begin
    streamed = torch.cat([model(part, state=state) for part in x.split(chunk, dim=1)], dim=1)
    reach = LAYERS * CONTEXT
    assert (streamed[:, reach:] - offline[:, reach:]).abs().max() < 1e-4
    assert state.offset.tolist() == [begin + 60] * 2


def test_a_generator_goes_on_past_an_hour(make_model):
    """The state is as large as at the start, and a row that is an hour in speaks as one that has just begun would
    after the same last frames."""
    model = make_model(eyes=False)
    generator = FrameGenerator(model.lm, 2, GenerationConfig(text_temperature=0, audio_temperature=0))
    generator.rows.temporal.offset[1] = HOUR_STEPS
    generator.steps[1] = HOUR_STEPS
    sizes = [value.shape for layer in generator.rows.temporal.layers for value in (layer.keys, layer.values)]
    user = torch.randint(0, 7, (1, 3, 4 * model.config.lm.temporal.context))
    for step in range(user.shape[2]):
        out = generator.step(user[:, :, step].expand(2, -1))
    assert sizes == [value.shape for layer in generator.rows.temporal.layers for value in (layer.keys, layer.values)]
    assert generator.frame_of(1) - generator.frame_of(0) == HOUR_STEPS and out.codes.min() >= 0
