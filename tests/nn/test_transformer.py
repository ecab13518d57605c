"""Streaming equals offline, nothing sees the future, states belong to their callers."""

from functools import partial

import pytest
import torch

from mmspeech.nn.attention import BLOCK_STEPS, CausalSelfAttention, Steps, offline_steps
from mmspeech.nn.layers import RMSNorm, build_norm
from mmspeech.nn.rope import rotate, rotation
from mmspeech.nn.transformer import Transformer

STEPS = 20


def make(context: int = 6, **changes) -> Transformer:
    torch.manual_seed(0)
    sizes = {"dim": 16, "num_heads": 2, "num_layers": 3, "ffn_dim": 24, "context": context} | changes
    return Transformer(**sizes).eval()


def stream(model: Transformer, x: torch.Tensor, chunk: int, state=None) -> torch.Tensor:
    state = model.init_state(x.shape[0], max_steps=chunk) if state is None else state
    return torch.cat([model(part, state=state) for part in x.split(chunk, dim=1)], dim=1)


@pytest.mark.parametrize("chunk", [1, 2, 3, 7])
@pytest.mark.parametrize("context", [6, 50])
@pytest.mark.parametrize(
    "changes",
    [{}, {"norm": "layer", "gated_ffn": False, "layer_scale": 0.3}, {"norm": "rms_variance", "max_period": None}],
    ids=["moshi", "mimi", "variance"],
)
@torch.no_grad()
def test_streaming_equals_offline(chunk, context, changes):
    model, x = make(context, **changes), torch.randn(2, STEPS, 16)
    torch.testing.assert_close(stream(model, x, chunk), model(x), atol=1e-5, rtol=0)


def test_a_step_sees_its_window_and_nothing_else():
    model, x = make(context=3, num_layers=1), torch.randn(1, 10, 16, requires_grad=True)
    model(x)[0, 6].sum().backward()
    reached = (x.grad[0].abs().sum(dim=-1) > 0).tolist()
    assert reached == [step in (4, 5, 6) for step in range(10)]


@pytest.mark.parametrize("context", [4, 50])
def test_no_gradient_reaches_the_future(context):
    model, x = make(context), torch.randn(1, STEPS, 16, requires_grad=True)
    model(x)[:, :8].sum().backward()
    assert (x.grad[:, 8:] == 0).all() and (x.grad[:, :8] != 0).any()


@torch.no_grad()
def test_one_row_starts_over_and_the_others_go_on():
    model, x = make(), torch.randn(3, STEPS, 16)
    state = model.init_state(3)
    first = stream(model, x[:, :9], 1, state)
    state.reset(torch.tensor([False, True, False]))
    second = stream(model, x[:, 9:], 1, state)
    whole = model(x)
    torch.testing.assert_close(torch.cat([first, second], dim=1)[::2], whole[::2], atol=1e-5, rtol=0)
    torch.testing.assert_close(second[1:2], model(x[1:2, 9:]), atol=1e-5, rtol=0)


@torch.no_grad()
def test_two_interleaved_streams_do_not_mix():
    model, x, y = make(), torch.randn(1, STEPS, 16), torch.randn(1, STEPS, 16)
    states = [model.init_state(1), model.init_state(1)]
    both = [[model(z[:, i : i + 1], state=s) for z, s in zip((x, y), states, strict=True)] for i in range(STEPS)]
    for k, z in enumerate((x, y)):
        assert torch.equal(torch.cat([pair[k] for pair in both], dim=1), stream(model, z, 1))


@torch.no_grad()
def test_state_is_never_reallocated_and_the_module_holds_none():
    model, x = make(), torch.randn(1, 50, 16)
    state, before = model.init_state(1), dict(vars(model))
    places = [tensor.data_ptr() for tensor in state.tensors()]
    stream(model, x, 1, state)
    state.reset()
    assert [tensor.data_ptr() for tensor in state.tensors()] == places
    assert vars(model) == before


@torch.no_grad()
def test_a_cloned_state_replays():
    model, x = make(), torch.randn(1, STEPS, 16)
    state = model.init_state(1)
    stream(model, x[:, :9], 1, state)
    copy = state.clone()
    assert torch.equal(stream(model, x[:, 9:], 1, state), stream(model, x[:, 9:], 1, copy))


def test_a_chunk_longer_than_the_state_allows_is_refused():
    model = make()
    with pytest.raises(ValueError, match="chunk of 3 steps came to a state made for 2: call init_state"):
        model(torch.randn(1, 3, 16), state=model.init_state(1, max_steps=2))


@torch.no_grad()
def test_bfloat16_and_autocast():
    model, x = make(), torch.randn(1, STEPS, 16)
    exact = model(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert (model(x) - exact).abs().max() < 0.1
        assert (stream(model, x, 2) - exact).abs().max() < 0.1
    model.to(torch.bfloat16)
    out = stream(model, x.bfloat16(), 3)
    assert out.dtype == torch.bfloat16 and (out.float() - exact).abs().max() < 0.2


def test_rotation_depends_on_distance_only():
    x, y = torch.randn(1, 1, 2, 8), torch.randn(1, 1, 2, 8)
    dots = []
    for start in (0, 100):
        turned = [
            rotate(z, rotation(torch.tensor([[p]]), head_dim=8, max_period=1e4))
            for z, p in ((x, start + 7), (y, start))
        ]
        dots.append((turned[0] * turned[1]).sum(dim=-1))
    torch.testing.assert_close(dots[0], dots[1], atol=1e-4, rtol=0)


def test_rotation_turns_interleaved_pairs():
    turned = rotate(torch.tensor([[[1.0, 0.0, 1.0, 0.0]]]), rotation(torch.tensor([[2]]), head_dim=4, max_period=100.0))
    angles = torch.tensor([2.0, 0.2])
    torch.testing.assert_close(turned[0, 0], torch.stack([angles.cos(), angles.sin()], dim=-1).flatten())


@pytest.mark.parametrize("scale", [1.0, 1e-4, 1e-6, 0.0])
def test_rms_norm_is_torchs(scale):
    norm = build_norm("rms", 48, eps=1e-8)
    torch.nn.init.normal_(norm.alpha)
    x = (torch.randn(3, 5, 48) * scale).requires_grad_()
    y, expected = norm(x), torch.nn.functional.rms_norm(x, (48,), norm.alpha, 1e-8)
    torch.testing.assert_close(y, expected)
    back = torch.randn_like(y)
    gradients = [torch.autograd.grad(out, [x, norm.alpha], back) for out in (y, expected)]
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    assert norm(x.bfloat16()).dtype == torch.bfloat16


def test_norm_flavours():
    x = torch.randn(3, 5, 8) + 1
    mean_square = x / (x.square().mean(dim=-1, keepdim=True) + 1e-8).sqrt()
    torch.testing.assert_close(RMSNorm(8)(x), mean_square)
    torch.testing.assert_close(build_norm("rms_variance", 8, eps=1e-8)(x), x / x.std(dim=-1, keepdim=True))
    with pytest.raises(ValueError, match="norm 'batch': expected 'rms', 'rms_variance' or 'layer'"):
        build_norm("batch", 8, eps=1e-5)


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match="dim 16 is not a multiple of num_heads 3"):
        make(num_heads=3)


def test_recomputed_layers_give_the_same_gradients():
    model = make()
    x = torch.randn(2, 9, 16)

    def gradients() -> list[torch.Tensor]:
        model.zero_grad()
        model(x, between=lambda index, x, positions: x * (1 + index)).square().sum().backward()
        return [parameter.grad.clone() for parameter in model.parameters()]

    kept = gradients()
    model.recompute = True
    assert all(torch.equal(one, two) for one, two in zip(kept, gradients(), strict=True))


@pytest.mark.parametrize("context", [5, 128, 200])
def test_blocks_of_a_long_sequence_are_its_window(context):
    """Against one mask over all pairs, with gradients."""
    num_steps = 3 * BLOCK_STEPS + 11
    attention = CausalSelfAttention(dim=16, num_heads=2)
    steps = offline_steps(num_steps, context=context, head_dim=8, max_period=None, device=None)
    assert len(steps.blocks) > 1
    distance = torch.arange(num_steps)[:, None] - torch.arange(num_steps)
    masked = Steps(steps.positions, None, mask=(distance >= 0) & (distance < context))
    results = []
    for given in (steps, masked):
        x = torch.randn(2, num_steps, 16, generator=torch.Generator().manual_seed(0), requires_grad=True)
        y = attention(x, steps=given)
        y.square().sum().backward()
        results.append((y.detach(), x.grad))
    for one, two in zip(*results, strict=True):
        torch.testing.assert_close(one, two, atol=1e-6, rtol=1e-5)


def test_compiled_layers_give_the_same_gradients(monkeypatch):
    """As torch.compile traces them; the names of the weights stay."""
    model, x = make(), torch.randn(2, STEPS, 16)
    expected = model(x)
    gradients = torch.autograd.grad(expected.square().sum(), list(model.parameters()))
    names = list(model.state_dict())
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager", fullgraph=True))
    model.compile_layers()
    y = model(x)
    torch.testing.assert_close(y, expected, atol=1e-6, rtol=1e-6)
    again = torch.autograd.grad(y.square().sum(), list(model.parameters()))
    assert all(torch.allclose(one, two, atol=1e-6) for one, two in zip(gradients, again, strict=True))
    assert list(model.state_dict()) == names
