"""The loss on the coming words: which words those are, and that it teaches the layers that come before."""

import pytest
import torch
import torch.nn.functional as F

from mmspeech.lm.loss import LossWeights, duplex_loss
from mmspeech.lm.plan import GAP_FRAMES, LEAD_FRAMES, add_planner, coming_tokens, planned_layer
from mmspeech.types import Batch

PAD = 3


def words_by_hand(text: list[int], frame: int, *, num_tokens: int) -> list[int]:
    found, last, limit = [], frame, LEAD_FRAMES
    for place in range(frame, len(text)):
        if text[place] == PAD:
            continue
        if place - last > limit:
            break
        found.append(text[place])
        last, limit = place, GAP_FRAMES
    return (found + [-1] * num_tokens)[:num_tokens]


@pytest.mark.parametrize("num_tokens", [1, 3, 60])
def test_the_coming_tokens_are_those_said_in_one_go(num_tokens):
    torch.manual_seed(0)
    text = torch.where(torch.rand(4, 50) < 0.15, torch.randint(5, 40, (4, 50)), PAD)
    text[3] = PAD
    found = coming_tokens(text, text != PAD, num_tokens=num_tokens)
    expected = [[words_by_hand(row, t, num_tokens=num_tokens) for t in range(50)] for row in text.tolist()]
    assert found.tolist() == expected
    assert (found[:3] >= 0).any() and (found[3] == -1).all()


def plan_model(make_model):
    model = make_model()
    add_planner(model, num_tokens=2)
    torch.nn.init.normal_(model.planner.ahead.weight, std=0.1)
    return model


def batch_of(codes: torch.Tensor) -> Batch:
    ones = torch.ones(codes.shape[0], codes.shape[2])
    return Batch(codes=codes, text_weight=ones, audio_weight=ones)


def test_the_loss_is_its_definition(make_model, make_codes):
    model = plan_model(make_model)
    codes = make_codes(model)
    codes[:, 0] = torch.where(torch.arange(12) % 4 == 1, codes[:, 0].clamp(min=5), PAD)
    codes[1, 0] = PAD
    with torch.no_grad():
        plain = duplex_loss(model, batch_of(codes))
        out = duplex_loss(model, batch_of(codes), weights=LossWeights(plan=0.5))
        held = {}
        model.lm(model.lm.layout.delay(codes)[0][..., :-1], watch=held.__setitem__)
        layer = planned_layer(len(model.lm.temporal.transformer.layers))
        logits = model.lm.temporal.text_linear(model.planner(held[layer]))
    losses = []
    for frame in range(12):
        for k, word in enumerate(words_by_hand(codes[0, 0].tolist(), frame, num_tokens=2)):
            if word >= 0:
                losses.append(F.cross_entropy(logits[0, frame, k], torch.tensor(word)).item())
    mean = sum(losses) / len(losses)
    assert out.metrics["plan_loss"].item() == pytest.approx(mean, rel=1e-4)
    assert out.loss.item() == pytest.approx((plain.text_loss + plain.audio_loss).item() + 0.5 * mean, rel=1e-4)


def test_it_teaches_what_comes_before_its_layer_only(make_model, make_codes):
    model = plan_model(make_model)
    out = duplex_loss(model, batch_of(make_codes(model)), weights=LossWeights(plan=1.0))
    plain = duplex_loss(model, batch_of(make_codes(model)), weights=LossWeights(plan=0.0))
    (out.loss - plain.loss).backward()
    layers = model.lm.temporal.transformer.layers
    taught = [float(layer.ffn.linear_in.weight.grad.abs().sum()) > 1e-4 for layer in layers]
    middle = planned_layer(len(layers))
    assert taught == [True] * (middle + 1) + [False] * (len(layers) - middle - 1)


@pytest.mark.parametrize("what", ["no words", "no sound"])
def test_without_spoken_words_there_is_nothing_to_learn(what, make_model, make_codes):
    model = plan_model(make_model)
    batch = batch_of(make_codes(model))
    if what == "no words":
        batch.codes[:, 0] = PAD
    else:
        batch.audio_weight.zero_()
    out = duplex_loss(model, batch, weights=LossWeights(plan=1.0))
    out.loss.backward()
    assert float(model.planner.ahead.weight.grad.abs().sum()) == 0
    assert "plan_loss" in out.numbers() and "plan_acc" not in out.numbers()
