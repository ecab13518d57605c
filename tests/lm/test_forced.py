"""Text and codes that a step is made to take in place of what it would draw."""

import pytest
import torch

from mmspeech.config import GenerationConfig
from mmspeech.lm.generate import FrameGenerator

DELAYS = [(0, 0, 1, 1, 0, 1, 1), (0,) * 7, (0, 2, 2, 3, 1, 2, 2), (2, 0, 1, 1, 0, 1, 1)]


@pytest.mark.parametrize("delays", DELAYS)
def test_forced_ids_come_back_where_their_delays_put_them(make_model, delays):
    lm = make_model(eyes=False, delays=delays).lm
    generator, steps = FrameGenerator(lm, 2, seed=4), 12
    draw = torch.Generator().manual_seed(1)
    text = torch.randint(-1, 11, (steps, 2), generator=draw)
    own = torch.randint(-1, 7, (steps, 2, 3), generator=draw)
    heard = torch.randint(0, 7, (steps, 2, 3), generator=draw)
    frames = [generator.step(heard[i], text_ids=text[i], own_codes=own[i]) for i in range(steps)]
    given = [frame for frame in frames if frame is not None]
    assert len(given) == steps - max(delays)
    for out in given:
        for what, ids, delay in [
            (text, out.text_ids, delays[0]),
            *((own[..., k], out.codes[:, k], delays[1 + k]) for k in range(3)),
        ]:
            wanted = what[out.frame + delay]
            assert torch.equal(ids[wanted >= 0], wanted[wanted >= 0])


def test_forcing_nothing_is_not_forcing(make_model):
    lm = make_model(eyes=False).lm
    heard = torch.randint(0, 7, (10, 2, 3))
    free, forced = FrameGenerator(lm, 2, seed=3), FrameGenerator(lm, 2, seed=3)
    nothing = torch.full((2, 3), -1)
    for column in heard:
        a, b = free.step(column), forced.step(column, text_ids=nothing[:, 0], own_codes=nothing)
        assert (a is None) == (b is None)
        assert a is None or (torch.equal(a.text_ids, b.text_ids) and torch.equal(a.codes, b.codes))
        assert torch.equal(free.trace.hidden, forced.trace.hidden)


def test_later_codes_and_steps_follow_what_was_forced(make_model):
    """A forced code is what the depth transformer goes on from, and what the next column holds."""
    lm = make_model(eyes=False).lm
    heard = torch.randint(0, 7, (2, 1, 3))
    traces = []
    for code in (1, 5):
        generator = FrameGenerator(lm, 1, GenerationConfig(text_temperature=0, audio_temperature=0))
        generator.step(heard[0], own_codes=torch.tensor([[code, -1, -1]]))
        first = generator.trace
        generator.step(heard[1])
        traces.append((first, generator.trace))
    (one, next_one), (other, next_other) = traces
    assert torch.equal(one.depth_logits[0], other.depth_logits[0])
    assert not torch.equal(one.depth_logits[1], other.depth_logits[1])
    assert not torch.equal(next_one.hidden, next_other.hidden)


def test_own_codes_of_a_wrong_shape_are_refused(make_model):
    with pytest.raises(ValueError, match=r"own codes are \[1, 2\], expected \[1, 3\]"):
        FrameGenerator(make_model(eyes=False).lm).step(torch.zeros(1, 3).long(), own_codes=torch.zeros(1, 2).long())
