"""What is seen adds nothing where nothing is seen, and opens slowly."""

from dataclasses import replace

import pytest
import torch

from mmspeech.nn.cross_attention import GATE_KINDS, Fusion, Gate, sight_of
from mmspeech.types import VisualContext
from mmspeech.vision.memory import Memory

NEVER = VisualContext.NEVER


def make(**changes) -> Fusion:
    torch.manual_seed(0)
    options = {"dim": 16, "num_heads": 2, "layers": (1, 3), "source_dim": 16}
    return Fusion(**options | {"gate_hidden": 4, "gate_shift": -4.0} | changes)


def context(fusion: Fusion, onset: torch.Tensor, width: int = 16) -> VisualContext:
    keys, values = fusion.keys_values(torch.randn(*onset.shape, width, generator=torch.Generator().manual_seed(1)))
    return VisualContext(keys, values, onset)


@pytest.mark.parametrize("gate", GATE_KINDS)
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("shared_gate", [True, False])
def test_every_kind_runs_and_every_parameter_learns(gate, shared, shared_gate):
    fusion = make(gate=gate, shared=shared, shared_gate=shared_gate, source_dim=10)
    seen, x = context(fusion, torch.zeros(2, 5, dtype=torch.long), width=10), torch.randn(2, 4, 16)
    sight = sight_of(seen, torch.arange(4)[None])
    assert len(seen.keys) == (1 if shared else 2)
    for parameter in fusion.parameters():
        torch.nn.init.normal_(parameter)
    for layer in (1, 3):
        y, openness = fusion(layer, x, sight)
        assert (openness is None) == (gate == "none")
        y.square().sum().backward(retain_graph=True)
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in fusion.parameters())
    assert fusion(0, x, sight)[0] is x


def test_steps_that_see_nothing_keep_their_bits():
    fusion = make(gate="none")
    onset = torch.tensor([[0, 0, 2], [NEVER, NEVER, NEVER], [3, 3, NEVER]])
    x = torch.randn(3, 6, 16)
    y, _ = fusion(1, x, sight_of(context(fusion, onset), torch.arange(6)[None]))
    same = (y == x).all(dim=-1)
    assert same[1].all() and same[2, :3].all() and not same[2, 3:].any() and not same[0].any()


def test_a_token_is_seen_from_its_onset_on():
    fusion, x = make(gate="none"), torch.randn(1, 4, 16)
    positions = torch.arange(4)[None]
    late = fusion(1, x, sight_of(context(fusion, torch.tensor([[0, 0, 2]])), positions))[0]
    two, three = context(fusion, torch.tensor([[0, 0, NEVER]])), context(fusion, torch.tensor([[0, 0, 0]]))
    torch.testing.assert_close(late[:, :2], fusion(1, x, sight_of(two, positions))[0][:, :2])
    torch.testing.assert_close(late[:, 2:], fusion(1, x, sight_of(three, positions))[0][:, 2:])


def test_a_closed_gate_keeps_the_bits():
    fusion = make(gate="scalar_tanh")
    x = torch.randn(2, 4, 16)
    y, openness = fusion(3, x, sight_of(context(fusion, torch.zeros(2, 5, dtype=torch.long)), torch.arange(4)[None]))
    assert torch.equal(y, x) and (openness == 0).all()


@pytest.mark.parametrize(("shift", "expected"), [(-4.0, 0.018), (2.0, 0.881)])
def test_the_shift_says_how_open_a_new_sigmoid_gate_is(shift, expected):
    gate = Gate(dim=16, kind="scalar_sigmoid", hidden=4, shift=shift)
    assert gate(torch.randn(1, 1, 16)).item() == pytest.approx(expected, abs=1e-3)
    with pytest.raises(ValueError, match="gate 'relu': expected one of sigmoid, tanh"):
        Gate(dim=16, kind="relu", hidden=4, shift=shift)


def test_rows_without_a_picture_report_a_closed_gate():
    fusion = make()
    onset = torch.tensor([[0, 0], [NEVER, NEVER]])
    _, openness = fusion(1, torch.randn(2, 3, 16), sight_of(context(fusion, onset), torch.arange(3)[None]))
    assert (openness[0] > 0).all() and (openness[1] == 0).all()


@pytest.mark.parametrize("age_buckets", [0, 12])
@pytest.mark.parametrize("memory_frames", [1, 3])
@pytest.mark.parametrize("seed", range(3))
def test_steps_in_blocks_see_what_they_see_one_by_one(seed, memory_frames, age_buckets):
    """Pictures at odd times, also before the call and after it, rows with fewer of them or none, tokens left out."""
    draw = torch.Generator().manual_seed(seed)
    num_rows, num_frames, num_tokens, num_steps = 4, 9, 5, 40
    fusion = make(gate="none", age_buckets=age_buckets)
    for parameter in fusion.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    frame_onset = torch.randint(-9, 50, (num_rows, num_frames), generator=draw).sort(dim=1).values
    frame_onset[1, 4:], frame_onset[2] = NEVER, NEVER
    there = (torch.rand(num_rows, num_frames, num_tokens, generator=draw) < 0.9) & (frame_onset != NEVER)[..., None]
    until = Memory(memory_frames).until(frame_onset)
    onset, until = (torch.where(there, times[..., None], NEVER).flatten(1) for times in (frame_onset, until))
    x, positions = torch.randn(num_rows, num_steps, 16, generator=draw), torch.arange(num_steps)[None]
    found = []
    for frame_tokens in (None, num_tokens):
        seen = replace(context(fusion, onset), until_frames=until, frame_tokens=frame_tokens)
        sight = fusion.sight(seen, positions)
        assert (sight.blocks is None) == (frame_tokens is None)
        y, _ = fusion(1, x, sight)
        found.append([y, *torch.autograd.grad(y.square().sum(), list(fusion.parameters()), allow_unused=True)])
    for one_by_one, in_blocks in zip(*found, strict=True):
        torch.testing.assert_close(in_blocks, one_by_one, rtol=1e-4, atol=1e-4)
    assert ((found[0][0] == x) == (found[1][0] == x)).all()
