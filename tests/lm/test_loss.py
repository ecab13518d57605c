"""The loss counts what it should, with the weights it should."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from mmspeech.lm.loss import LossWeights, duplex_loss, see_batch
from mmspeech.types import Batch, VisualContext


def batch_of(codes: torch.Tensor, **changes) -> Batch:
    ones = torch.ones(codes.shape[0], codes.shape[2])
    return Batch(**({"codes": codes, "text_weight": ones, "audio_weight": ones} | changes))


@torch.no_grad()
def by_hand(model, batch: Batch, weights: LossWeights) -> tuple[float, float]:
    """The definition, in loops: each loss is sum(w * CE) / sum(w) over frames."""
    lm = model.lm
    columns, _ = lm.layout.delay(batch.codes)
    out = lm(columns[..., :-1])
    depth = lm.depth_logits(out.hidden, columns[:, 0, 1:], columns[:, lm.layout.own, 1:])
    sums = {"text": [0.0, 0.0], "audio": [0.0, 0.0]}

    def count(kind, logits, target, weight):
        if target >= 0 and weight > 0:
            sums[kind][0] += weight * float(F.cross_entropy(logits[None], target[None]))
            sums[kind][1] += weight

    batch_size, _, num_frames = batch.codes.shape
    for b in range(batch_size):
        for frame in range(num_frames):
            text = batch.codes[b, 0, frame]
            pad = weights.text_pad if int(text) in (0, 3) else 1.0
            count("text", out.text_logits[b, frame], text, pad * float(batch.text_weight[b, frame]))
            for k in range(3):
                position = frame + lm.layout.delays[1 + k]
                if position < num_frames:
                    share = weights.first_codebook if k == 0 else 1.0
                    weight = share * float(batch.audio_weight[b, frame])
                    count("audio", depth[b, position, k], batch.codes[b, 1 + k, frame], weight)
    return sums["text"][0] / sums["text"][1], sums["audio"][0] / sums["audio"][1]


def test_the_loss_is_its_definition(make_model, make_codes):
    model = make_model()
    codes = make_codes(model)
    codes[0, 0, :6] = torch.tensor([3, 3, 0, 7, -1, 3])
    codes[1, 1:4, 5:] = -1
    batch = batch_of(codes, text_weight=torch.rand(2, 12), audio_weight=torch.rand(2, 12) * (torch.rand(2, 12) < 0.7))
    weights = LossWeights(text_pad=0.3, first_codebook=5.0, audio=2.0)
    out = duplex_loss(model, batch, weights=weights)
    text, audio = by_hand(model, batch, weights)
    assert out.text_loss.item() == pytest.approx(text, rel=1e-4)
    assert out.audio_loss.item() == pytest.approx(audio, rel=1e-4)
    assert out.loss.item() == pytest.approx(text + 2 * audio, rel=1e-4)


def test_frames_without_weight_do_not_matter(make_model, make_codes):
    model = make_model(eyes=False)
    codes = make_codes(model)
    weight = torch.ones(2, 12)
    weight[:, 6:] = 0
    changed = codes.clone()
    changed[:, :4, 7:] = make_codes(model, seed=5)[:, :4, 7:]
    losses = [duplex_loss(model, batch_of(c, text_weight=weight, audio_weight=weight)).loss for c in (codes, changed)]
    assert torch.equal(*losses)


def test_speechless_rows_train_text_only(make_model, make_codes):
    model = make_model()
    codes = make_codes(model)
    codes[:, 1:] = -1
    out = duplex_loss(model, batch_of(codes))
    out.loss.backward()
    assert out.audio_loss.item() == 0 and float(out.metrics["depth_frames"]) == 0
    assert out.metrics["semantic_acc"].isnan()
    temporal, depth = model.lm.temporal, model.lm.depth
    assert temporal.text_linear.weight.grad.any() and not depth.audio_linear.weight.grad.any()
    # What is not there gets no gradient, apart from the initial tokens.
    grad = temporal.audio_emb.weight.grad.view(6, 8, -1)
    assert grad[:, 7].any() and not grad[:, :7].any()


def test_depth_frames_are_a_share_and_all_important_ones(make_model, make_codes):
    model = make_model(eyes=False)
    weight = torch.ones(8, 40)
    weight[:, 10:15] = 2.0
    batch = batch_of(make_codes(model, batch_size=8, num_frames=40), audio_weight=weight)
    draw = torch.Generator().manual_seed(0)
    out = duplex_loss(model, batch, weights=LossWeights(depth_frames_share=0.25), generator=draw)
    important = 8 * 6  # frames 10..14, the last of them also one column later for delayed codebooks
    assert important + 40 < float(out.metrics["depth_frames"]) < important + 100
    assert float(duplex_loss(model, batch).metrics["depth_frames"]) == 8 * 40


def test_memorised_targets_score_one(make_model, make_codes):
    torch.manual_seed(0)
    model = make_model(eyes=False).train()
    batch = batch_of(make_codes(model, batch_size=1, num_frames=6))
    optimiser = torch.optim.Adam(model.parameters(), lr=0.02)
    first = None
    for _ in range(60):
        out = duplex_loss(model, batch)
        first = out.loss.item() if first is None else first
        optimiser.zero_grad()
        out.loss.backward()
        optimiser.step()
    assert out.loss.item() < 0.1 * first
    assert all(float(out.metrics[name]) > 0.9 for name in ("word_acc", "semantic_acc", "acoustic_acc"))


def test_every_parameter_learns(make_model, make_codes):
    model = make_model()
    onset = torch.zeros(2, dtype=torch.long)
    batch = batch_of(
        make_codes(model), pixels=torch.randn(2, 3, 2, 2), picture_rows=torch.arange(2), onset_frames=onset
    )
    out = duplex_loss(model, batch)
    out.loss.backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())
    assert 0 < float(out.metrics["gate"]) < 1


@torch.no_grad()
@pytest.mark.parametrize("memory_frames", [1, 2])
def test_pictures_go_to_their_rows_at_their_times(memory_frames, make_model, make_codes):
    """Also when a batch names a row's pictures in another order. With room for one, the second takes its place."""
    model = make_model(fusion={"memory_frames": memory_frames})
    pixels = torch.randn(3, 3, 2, 2)
    batch = batch_of(
        make_codes(model, batch_size=3), pixels=pixels, picture_rows=torch.tensor([2, 0, 2]),
        onset_frames=torch.tensor([4, 0, 1]),
    )  # fmt: skip
    visual = see_batch(model, batch)
    never = VisualContext.NEVER
    assert visual.onset_frames.tolist() == [[0] * 4 + [never] * 4, [never] * 8, [1] * 4 + [4] * 4]
    assert (visual.until_frames is None) == (memory_frames == 2)
    if memory_frames == 1:
        assert visual.until_frames.tolist() == [[never] * 8, [never] * 8, [4] * 4 + [never] * 4]
    alone = model.see(model.tower(pixels)[0], torch.zeros(3, dtype=torch.long))
    for keys, expected in zip(visual.keys, alone.keys, strict=True):
        torch.testing.assert_close(keys[2], expected[[2, 0]].flatten(0, 1))
        torch.testing.assert_close(keys[0, :4], expected[1])


def test_pictures_need_a_tower(make_model, make_codes):
    model = make_model()
    model.tower = None
    zero = torch.zeros(1, dtype=torch.long)
    batch = batch_of(make_codes(model), pixels=torch.randn(1, 3, 2, 2), picture_rows=zero, onset_frames=zero)
    with pytest.raises(ValueError, match="the batch has pictures but the model has no vision tower"):
        duplex_loss(model, batch)


def test_bfloat16_autocast(make_model, make_codes):
    model = make_model()
    batch = batch_of(make_codes(model))
    exact = duplex_loss(model, batch)
    with torch.autocast("cpu", torch.bfloat16):
        out = duplex_loss(model, batch)
    out.loss.backward()
    assert out.loss.dtype == torch.float32
    assert out.loss.item() == pytest.approx(exact.loss.item(), rel=0.05)


def gradients(model, batch: Batch, weights: LossWeights) -> tuple[list[float], list]:
    model.zero_grad()
    out = duplex_loss(model, batch, weights=weights)
    out.loss.backward()
    return list(out.numbers().values()), [parameter.grad.clone() for parameter in model.parameters()]


@pytest.mark.parametrize("pieces", [2, 5, 100])
def test_pieces_change_nothing(pieces, make_model, make_codes):
    """Nor do more pieces than frames, of which some are empty."""
    model = make_model()
    some = (torch.rand(2, 12, generator=torch.Generator().manual_seed(1)) < 0.7).float()
    batch = batch_of(make_codes(model), text_weight=some, audio_weight=some.flip(1))
    numbers, whole = gradients(model, batch, LossWeights(first_codebook=3.0))
    again, cut = gradients(model, batch, LossWeights(first_codebook=3.0, pieces=pieces))
    assert again == pytest.approx(numbers, rel=1e-6)
    for expected, found in zip(whole, cut, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)


def test_pieces_bound_what_is_kept(make_model, make_codes):
    model = make_model(text_card=2000)
    batch = batch_of(make_codes(model, num_frames=40))
    kept = {}
    for pieces in (1, 8):
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, s=sizes: s.append(t.numel()) or t, lambda t: t):
            duplex_loss(model, batch, weights=LossWeights(pieces=pieces))
        kept[pieces] = max(sizes)
    assert kept[1] >= 80 * 2000 > 4 * kept[8]


def test_the_first_codebooks_alone(make_model, make_codes):
    """As if the others had no audio, and without running their steps."""
    model = make_model()
    codes = make_codes(model)
    hidden, text = torch.randn(5, 16), torch.tensor([1, 2, 3, 4, 5])
    own = codes[0, 1:4, :5].t()
    for count in (1, 2):
        torch.testing.assert_close(
            model.lm.depth(hidden, text, own[:, :count]), model.lm.depth(hidden, text, own)[:, :count]
        )
    out = duplex_loss(model, batch_of(codes), weights=LossWeights(depth_codebooks=1))
    assert out.metrics["acoustic_acc"].isnan() and not out.metrics["semantic_acc"].isnan()
    out.audio_loss.backward()
    assert model.lm.depth.audio_linear.weight.grad[0].any() and not model.lm.depth.audio_linear.weight.grad[1:].any()
    first = duplex_loss(model, batch_of(codes), weights=LossWeights(first_codebook=1e9))
    assert out.audio_loss.item() == pytest.approx(first.audio_loss.item(), rel=1e-5)


def test_pictures_that_come_at_once_need_no_mask(make_model, make_codes):
    """One picture for some rows, at different times: what attention does with a mask and without is the same."""
    model = make_model()
    batch = batch_of(
        make_codes(model, batch_size=3), pixels=torch.randn(2, 3, 2, 2), picture_rows=torch.tensor([2, 0]),
        onset_frames=torch.tensor([4, 0]),
    )  # fmt: skip
    visual = see_batch(model, batch)
    assert visual.at_once
    columns = model.lm.layout.delay(batch.codes)[0][..., :-1]
    plain, masked = (model.lm(columns, visual=replace(visual, at_once=at_once)) for at_once in (True, False))
    torch.testing.assert_close(plain.hidden, masked.hidden, atol=1e-6, rtol=1e-6)
    assert torch.equal(plain.gate == 0, masked.gate == 0)
