"""The depth transformer: sampling and teacher forcing are one computation."""

import torch


@torch.no_grad()
def test_sampling_equals_teacher_forcing(make_model):
    depth = make_model().lm.depth
    hidden, text = torch.randn(5, 16), torch.tensor([0, 3, 10, 11, -1])
    state = depth.init_state(5)
    for _ in range(2):  # the second frame overwrites the first one's keys
        codes, logits = depth.sample(
            hidden, text, lambda k, logits: logits.argmax(dim=-1), state=state, count=depth.num_codebooks
        )
        forced = depth(hidden, text, codes)
        torch.testing.assert_close(torch.stack(logits, dim=1), forced, atol=1e-5, rtol=0)
        assert torch.equal(forced.argmax(dim=-1), codes)
        hidden = torch.randn(5, 16)


def test_a_code_depends_on_the_text_and_earlier_codes_only(make_model):
    depth = make_model().lm.depth
    hidden, text, codes = torch.randn(1, 16), torch.tensor([2]), torch.tensor([[1, 2, 3]])
    with torch.no_grad():
        out = depth(hidden, text, codes)
        for k in range(3):
            changed = codes.clone()
            changed[0, k] = 5
            same = (depth(hidden, text, changed) == out).all(dim=-1)[0].tolist()
            assert same == [step <= k for step in range(3)]
        assert not torch.equal(depth(hidden, torch.tensor([4]), codes)[:, 0], out[:, 0])


@torch.no_grad()
def test_any_leading_shape_and_every_subset_of_frames(make_model):
    lm = make_model().lm
    hidden, text = torch.randn(2, 4, 16), torch.randint(0, 11, (2, 4))
    codes = torch.randint(-1, 8, (2, 3, 4))
    out = lm.depth_logits(hidden, text, codes)
    assert out.shape == (2, 4, 3, 7)
    chosen = torch.tensor([[True, False, True, False], [False, False, False, True]])
    subset = lm.depth(hidden[chosen], text[chosen], codes.transpose(1, 2)[chosen])
    torch.testing.assert_close(subset, out[chosen], atol=1e-5, rtol=0)
    assert lm.depth(hidden[:0, 0], text[:0, 0], codes[:0, :, 0]).shape == (0, 3, 7)
