"""The memory of what is seen: frame by frame as for a whole call, and a still picture as ever."""

from dataclasses import replace

import pytest
import torch

from mmspeech.config import GenerationConfig
from mmspeech.lm.generate import FrameGenerator
from mmspeech.lm.sight import see_calls
from mmspeech.types import VisualContext

NEVER = VisualContext.NEVER
SAMPLING = GenerationConfig(text_top_k=5, audio_top_k=0)
# Row 0 wraps round again and again, row 1 sees little and late, row 2 nothing.
TIMES = [[0, 1, 4, 5, 9, 13, 14, 20, 21, 22, 26, 31], [3, 8, 17, 18], []]
STEPS = 34
MEMORIES = {
    "one": {},
    "one, shared": {"shared": True, "shared_gate": True},
    "three": {"memory_frames": 3},
    "ages": {"memory_frames": 3, "age_buckets": 6},
    "summaries": {"memory_frames": 2, "summary_slots": 2, "summary_group": 2},
    "all": {"memory_frames": 2, "age_buckets": 7, "summary_slots": 2, "summary_group": 3, "shared": True},
}


def frames_of(times: list[list[int]], *, masked: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Tower features [P, 4, 6], rows [P], onsets [P] and mask [P, 4], mixed up."""
    pairs = [(row, onset) for row, onsets in enumerate(times) for onset in onsets]
    order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(1)).tolist()
    rows, onsets = torch.tensor([pairs[i] for i in order]).unbind(1)
    mask = torch.rand(len(pairs), 4, generator=torch.Generator().manual_seed(2)) < (0.6 if masked else 2)
    return torch.randn(len(pairs), 4, 6, generator=torch.Generator().manual_seed(3)), rows, onsets, mask


def stream(model, features, rows, onsets, mask, *, forget=(), steps=STEPS) -> tuple[FrameGenerator, list, torch.Tensor]:
    """Calls that get each frame when it is due, in one go for all rows. forget: (step, row) pairs.

    Returns the generator, the traces, and the codes [B, R, T] that a training batch would hold of it.
    """
    generator = FrameGenerator(model.lm, 3, SAMPLING, seed=3)
    heard = torch.randint(0, 7, (3, 3, steps), generator=torch.Generator().manual_seed(4))
    frames, traces = [], []
    for step, column in enumerate(heard.unbind(dim=2)):
        for _, row in (pair for pair in forget if pair[0] == step):
            generator.forget(torch.arange(3) == row)
        due = (onsets == step).nonzero()[:, 0]
        if len(due):
            generator.show(
                model.see(features[due], torch.zeros(len(due), dtype=torch.long), mask[due]), rows[due].tolist()
            )
        frames.append(generator.step(column))
        traces.append(generator.trace)
    own = [torch.cat([f.text_ids[:, None], f.codes], dim=1) for f in frames if f is not None]
    own = torch.stack(own, dim=2)[..., : steps - 2]
    return generator, traces, torch.cat([own, heard[..., 1 : own.shape[2] + 1]], dim=1)


def compare(model, codes: torch.Tensor, traces: list, visual: VisualContext) -> None:
    columns, _ = model.lm.layout.delay(codes)
    out = model.lm(columns[..., :-1], visual=visual)
    for t in range(codes.shape[2]):
        torch.testing.assert_close(out.text_logits[:, t], traces[t].text_logits, atol=1e-4, rtol=0)
        torch.testing.assert_close(out.hidden[:, t], traces[t].hidden, atol=1e-4, rtol=0)
        torch.testing.assert_close(out.gate[:, t], traces[t].gate, atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
@pytest.mark.parametrize("memory", MEMORIES.values(), ids=MEMORIES.keys())
def test_streaming_equals_offline(memory, masked, make_model):
    model = make_model(fusion=memory)
    features, rows, onsets, mask = frames_of(TIMES, masked=masked)
    generator, traces, codes = stream(model, features, rows, onsets, mask)
    visual = see_calls(model, features, rows, onsets, batch_size=3, mask=mask)
    compare(model, codes, traces, visual)
    places = memory.get("memory_frames", 1) + memory.get("summary_slots", 0)
    assert generator.ring.context.keys[0].shape[1] == 4 * places < visual.keys[0].shape[1]
    # What is seen matters, and so does when.
    other = replace(visual, onset_frames=visual.onset_frames.where(visual.onset_frames == NEVER, 0))
    with pytest.raises(AssertionError):
        compare(model, codes, traces, other)


@torch.no_grad()
def test_a_row_forgets_alone(make_model):
    """Afterwards it is as if its call had shown nothing before."""
    model = make_model(fusion=MEMORIES["all"])
    features, rows, onsets, mask = frames_of(TIMES, masked=True)
    _, traces, codes = stream(model, features, rows, onsets, mask, forget=[(11, 0)])
    late = (rows == 0) & (onsets >= 11)
    before, after = (
        see_calls(model, features[part], rows[part], onsets[part], batch_size=3, mask=mask[part])
        for part in (~late, late)
    )
    stays = before.until_frames.clone()
    stays[0].clamp_(max=11)
    before = replace(before, until_frames=stays)
    never = torch.full_like(after.onset_frames, NEVER)
    parts = before, replace(after, until_frames=never if after.until_frames is None else after.until_frames)
    joined = {
        name: torch.cat([getattr(part, name) for part in parts], dim=1)
        for name in ("onset_frames", "until_frames", "stamp_frames")
    }
    for name in ("keys", "values"):
        joined[name] = tuple(torch.cat(pair, dim=1) for pair in zip(*(getattr(p, name) for p in parts), strict=True))
    compare(model, codes, traces, VisualContext(**joined))


@torch.no_grad()
def test_a_row_that_starts_over_sees_nothing_of_before(make_model):
    model = make_model(fusion=MEMORIES["all"])
    features, rows, onsets, mask = frames_of(TIMES, masked=False)
    generator, fresh_traces, _ = stream(model, features, rows, onsets, mask)
    places = [tensor.data_ptr() for tensor in generator.ring.state.tensors()]
    heard = torch.randint(0, 7, (3, 3, STEPS), generator=torch.Generator().manual_seed(4))
    generator.reset(torch.tensor([True, False, False]))
    for step, column in enumerate(heard.unbind(dim=2)):
        due = ((onsets == step) & (rows == 0)).nonzero()[:, 0]
        if len(due):
            generator.show(model.see(features[due], torch.zeros(1, dtype=torch.long)), [0])
        generator.step(column)
        torch.testing.assert_close(generator.trace.hidden[0], fresh_traces[step].hidden[0], atol=1e-5, rtol=0)
    assert [tensor.data_ptr() for tensor in generator.ring.state.tensors()] == places


@torch.no_grad()
@pytest.mark.parametrize("memory", MEMORIES.values(), ids=MEMORIES.keys())
def test_a_frame_changes_nothing_before_it(memory, make_model, make_codes):
    model = make_model(fusion=memory)
    codes = make_codes(model, batch_size=3, num_frames=STEPS)
    features, rows, onsets, _ = frames_of(TIMES, masked=False)
    visual = see_calls(model, features, rows, onsets, batch_size=3)
    hidden = model.lm(codes, visual=visual).hidden
    for changed in range(0, len(rows), 3):
        other = features.clone()
        other[changed] += 1
        again = model.lm(codes, visual=see_calls(model, other, rows, onsets, batch_size=3)).hidden
        same = (again == hidden).all(dim=-1)
        row, onset = int(rows[changed]), int(onsets[changed])
        assert same[:, :onset].all() and same[[r for r in range(3) if r != row]].all() and not same[row, onset]


@torch.no_grad()
@pytest.mark.parametrize("fusion", [{}, {"shared": True, "gate": "scalar_tanh"}], ids=["own", "shared"])
def test_one_still_picture_is_the_old_case(fusion, make_model):
    """To the bit, beside what attention to the picture's keys and values alone gives; also with ages that learned
    nothing yet."""
    single = make_model(fusion=fusion)
    features, zero = torch.randn(1, 4, 6), torch.zeros(1, dtype=torch.long)
    heard = torch.randint(0, 7, (1, 3, 20))

    def run(model, show) -> torch.Tensor:
        generator = FrameGenerator(model.lm, 1, SAMPLING, seed=3)
        show(generator)
        traces = []
        for column in heard.unbind(dim=2):
            generator.step(column)
            traces.append(torch.cat([generator.trace.hidden, generator.trace.text_logits], dim=1))
        return torch.stack(traces)

    expected = run(single, lambda generator: generator.see(single.see(features, zero)))
    for memory in ({}, {"memory_frames": 4}, {"memory_frames": 3, "age_buckets": 5, "summary_slots": 2}):
        model = make_model(fusion=fusion | memory)
        weights = {name: value for name, value in model.state_dict().items() if ".age." not in name}
        assert weights.keys() == single.state_dict().keys()
        model.load_state_dict(single.state_dict(), strict=False)
        for projection in model.lm.temporal.fusion.projections:
            if projection.age is not None:
                torch.nn.init.zeros_(projection.age.weight)
        found = run(model, lambda generator, model=model: generator.show(model.see(features, zero), [0]))
        assert torch.equal(found, expected), memory


def test_ages_are_learned_from_zero(make_model, make_codes):
    model = make_model(fusion=MEMORIES["all"])
    codes = make_codes(model, batch_size=3, num_frames=STEPS)
    features, rows, onsets, _ = frames_of(TIMES, masked=False)
    fusion = model.lm.temporal.fusion
    torch.nn.init.zeros_(fusion.projections[0].age.weight)
    model.lm(codes, visual=see_calls(model, features, rows, onsets, batch_size=3)).hidden.square().sum().backward()
    used = fusion.projections[0].age.weight.grad.any(dim=0)
    assert fusion.age_starts.tolist() == [0, 1, 2, 3, 4, 5, 6] and used.all()
    assert "lm.temporal.fusion.projections.0.age.weight" in model.adapter_names()


def test_a_frame_of_more_tokens_than_the_ring_has_is_refused(make_model):
    model = make_model()
    generator, zero = FrameGenerator(model.lm, 1), torch.zeros(1, dtype=torch.long)
    generator.show(model.see(torch.randn(1, 4, 6), zero), [0])
    generator.show(model.see(torch.randn(1, 2, 6), zero), [0])
    assert (generator.ring.context.onset_frames == 0).tolist() == [[True, True, False, False]]
    with pytest.raises(ValueError, match="a frame of 5 visual tokens came to a ring made for 4"):
        generator.show(model.see(torch.randn(1, 5, 6), zero), [0])
