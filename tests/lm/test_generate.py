"""The frame generator: what it feeds, what it returns, and that training sees the same."""

import types

import pytest
import torch

from mmspeech.config import GenerationConfig
from mmspeech.lm.generate import FrameGenerator
from mmspeech.lm.model import DuplexLM

GREEDY = GenerationConfig(text_temperature=0, audio_temperature=0)


def record(lm: DuplexLM) -> list[list[int]]:
    """Every column the model is fed from now on."""
    fed: list[list[int]] = []

    def forward(self, codes, *, visual=None, state=None):
        fed.append(codes[0, :, 0].tolist())
        return DuplexLM.forward(self, codes, visual=visual, state=state)

    lm.forward = types.MethodType(forward, lm)
    return fed


def test_the_trace_of_the_released_generator(make_model, monkeypatch):
    delays = (0, 0, *[1] * 7, 0, *[1] * 7)
    depth = make_model().config.lm.depth.model_dump() | {"context": 8}
    lm = make_model(eyes=False, text_card=500, audio_card=900, num_codebooks=8, delays=delays, depth=depth).lm
    fed = record(lm)
    generator = FrameGenerator(lm, sampling=GREEDY)
    call = 0
    monkeypatch.setattr(
        generator, "_choose", lambda part, logits: torch.tensor([100 + call if part == 0 else 199 + 10 * call + part])
    )
    out = []
    for call in range(4):
        out.append(generator.step(600 + 10 * call + torch.arange(8)[None]))
    start = [900] * 7
    assert fed == [
        [500, 900, *start, 900, *start],
        [100, 200, *start, 610, *start],
        [101, 210, *range(211, 218), 620, *range(611, 618)],
        [102, 220, *range(221, 228), 630, *range(621, 628)],
    ]
    assert out[0] is None
    for call, frame in enumerate(out[1:], start=1):
        assert frame.frame == call - 1 and frame.text_ids.tolist() == [99 + call]
        expected = [190 + 10 * call, *range(201 + 10 * call, 208 + 10 * call)]
        assert frame.codes.tolist() == [expected]


@pytest.mark.parametrize("delays", [(0, 0, 1, 1, 0, 1, 1), (0,) * 7, (0, 2, 2, 3, 1, 2, 2), (2, 0, 1, 1, 0, 1, 1)])
@torch.no_grad()
def test_training_sees_what_generation_saw(make_model, delays):
    model = make_model(delays=delays)
    lm, layout, count = model.lm, model.lm.layout, 10
    visual = model.see(torch.randn(2, 4, 6), torch.tensor([0, 3]))
    generator = FrameGenerator(lm, 2, GenerationConfig(text_top_k=5, audio_top_k=0), seed=3)
    generator.see(visual)
    heard = torch.randint(0, 7, (2, 3, count + 1 + layout.max_delay))
    frames, traces = [], []
    for column in heard.unbind(dim=2):
        frames.append(generator.step(column))
        traces.append(generator.trace)
    frames = [frame for frame in frames if frame is not None]
    assert [frame.frame for frame in frames] == list(range(count + 1))
    own = torch.stack([torch.cat([frame.text_ids[:, None], frame.codes], dim=1) for frame in frames], dim=2)
    # The first call's user codes are not heard: frame j of training is heard in call j + 1.
    codes = torch.cat([own[..., :count], heard[..., 1 : count + 1]], dim=1)
    columns, held = layout.delay(codes)
    out = lm(columns[..., :-1], visual=visual)
    depth = lm.depth_logits(out.hidden, columns[:, 0, 1:], columns[:, layout.own, 1:])
    for t in range(count):
        torch.testing.assert_close(out.text_logits[:, t], traces[t].text_logits, atol=1e-4, rtol=0)
        torch.testing.assert_close(out.gate[:, t], traces[t].gate, atol=1e-5, rtol=0)
        if held[: layout.own.stop, t + 1].all():
            sampled = torch.stack(traces[t].depth_logits, dim=1)
            torch.testing.assert_close(depth[:, t], sampled, atol=1e-4, rtol=0)
    text_gate = torch.stack([frame.gate for frame in frames], dim=1)
    torch.testing.assert_close(text_gate[:, : count - delays[0]], out.gate[:, delays[0] :], atol=1e-5, rtol=0)
    layer_gates = torch.stack([frame.layer_gates for frame in frames], dim=1)
    assert layer_gates.shape[2] == len(lm.temporal.gated_layers) > 1
    expected = out.layer_gates[:, delays[0] :]
    torch.testing.assert_close(layer_gates[:, : count - delays[0]], expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(layer_gates.mean(dim=2), text_gate)


def run(generator: FrameGenerator, heard: torch.Tensor) -> torch.Tensor:
    """[B, 1 + K, T'] of all whole frames."""
    frames = [generator.step(column) for column in heard.unbind(dim=2)]
    return torch.stack([torch.cat([f.text_ids[:, None], f.codes], dim=1) for f in frames if f is not None], dim=2)


def test_seeds_decide_and_company_does_not(make_model):
    lm = make_model(eyes=False).lm
    heard = torch.randint(0, 7, (3, 3, 12))
    together = run(FrameGenerator(lm, 3, seed=[7, 8, 9]), heard)
    for row in range(3):
        assert torch.equal(run(FrameGenerator(lm, 1, seed=7 + row), heard[row : row + 1])[0], together[row])
    assert not torch.equal(run(FrameGenerator(lm, 3, seed=[1, 2, 3]), heard), together)
    assert torch.equal(run(FrameGenerator(lm, 3, seed=7), heard), together)


def test_top_one_is_greedy(make_model):
    lm, heard = make_model(eyes=False).lm, torch.randint(0, 7, (2, 3, 12))
    greedy = run(FrameGenerator(lm, 2, GREEDY), heard)
    assert torch.equal(run(FrameGenerator(lm, 2, GenerationConfig(text_top_k=1, audio_top_k=1)), heard), greedy)


def test_sampling_follows_the_distribution(make_model):
    generator = FrameGenerator(make_model(eyes=False).lm, 1, GenerationConfig(text_temperature=0.5, text_top_k=3))
    logits = torch.tensor([[0.0, 1.0, 0.5, -1.0, *[-9.0] * 7]])
    counts = torch.zeros(11)
    for _ in range(2000):
        generator.sampler.renew(1)
        counts[generator._choose(0, logits)] += 1
    expected = torch.softmax(torch.tensor([0.0, 1.0, 0.5]) / 0.5, dim=0)
    torch.testing.assert_close(counts[:3] / 2000, expected, atol=0.04, rtol=0)
    assert counts[3:].sum() == 0


def test_pad_mult_is_added_to_the_logit_of_pad_in_its_row_alone(make_model):
    model = make_model(eyes=False)
    pad = model.lm.config.text_pad_id
    settings = [GREEDY, GREEDY.model_copy(update={"pad_mult": -1.0}), GenerationConfig(text_top_k=0, pad_mult=-1.0)]
    generator = FrameGenerator(model.lm, 3, settings)
    logits = torch.full((3, 11), -9.0)
    logits[:, pad], logits[:, pad + 1] = 1.0, 0.5
    ids = torch.zeros(3, 2000)
    for draw in range(2000):
        generator.sampler.renew(3)
        ids[:, draw] = generator._choose(0, logits)
    assert (ids[0] == pad).all() and (ids[1] == pad + 1).all()
    share = torch.softmax(torch.tensor([0.0, 0.5]) / 0.7, dim=0)[0]
    torch.testing.assert_close((ids[2] == pad).float().mean(), share, atol=0.04, rtol=0)
    generator.reset(torch.tensor([False, True, True]), samplings=[GREEDY] * 3)
    assert (generator._choose(0, logits) == pad).all()


def test_a_row_starts_over_alone(make_model):
    model = make_model()
    heard = torch.randint(0, 7, (2, 3, 12))
    zero = torch.zeros(2, dtype=torch.long)
    generator, visual = FrameGenerator(model.lm, 2, seed=5), model.see(torch.randn(2, 4, 6), zero)
    generator.see(visual)
    places = [tensor.data_ptr() for tensor in generator.rows.tensors()]
    whole = run(generator, heard)
    generator.reset()
    run(generator, heard[..., :5])
    generator.reset(torch.tensor([False, True]))
    first = generator.step(heard[:, :, 0])
    assert first.codes[1].tolist() == [-1] * 3 and first.text_ids[1] == -1 and (first.codes[0] >= 0).all()
    rest = run(generator, heard[..., 1:])
    assert torch.equal(rest[1], whole[1])
    generator.reset()
    assert torch.equal(run(generator, heard), whole)
    assert [tensor.data_ptr() for tensor in generator.rows.tensors()] == places


def test_text_can_be_forced(make_model):
    lm = make_model(eyes=False).lm
    generator, heard = FrameGenerator(lm, 2, GREEDY), torch.randint(0, 7, (2, 3, 4))
    forced = torch.tensor([[5, -1], [6, -1], [-1, 9], [4, -1]])
    frames = [generator.step(column, text_ids=ids) for column, ids in zip(heard.unbind(2), forced, strict=True)]
    free = run(FrameGenerator(lm, 2, GREEDY), heard)
    assert [int(frame.text_ids[0]) for frame in frames[1:3]] == [5, 6]
    assert int(frames[3].text_ids[1]) == 9
    assert torch.equal(frames[1].text_ids[1], free[1, 0, 0])


def test_a_picture_may_come_and_go(make_model):
    model = make_model()
    generator, heard = FrameGenerator(model.lm, 1, GREEDY), torch.randint(0, 7, (1, 3, 9))
    frames = []
    for call in range(9):
        if call == 3:
            generator.see(model.see(torch.randn(1, 4, 6), torch.tensor([call])))
        if call == 6:
            generator.see(None)
        frames.append(generator.step(heard[..., call]))
    # A frame's gate is that of the call in which its text was chosen, one call before it is whole.
    assert [float(frame.gate) > 0 for frame in frames[1:]] == [call - 1 in (3, 4, 5) for call in range(1, 9)]


def test_wrong_shapes_are_refused(make_model):
    lm = make_model(eyes=False).lm
    with pytest.raises(ValueError, match=r"user codes are \[1, 4\], expected \[1, 3\]"):
        FrameGenerator(lm).step(torch.zeros(1, 4, dtype=torch.long))
    with pytest.raises(ValueError, match="2 seeds for 3 rows"):
        FrameGenerator(lm, 3, seed=[1, 2])
