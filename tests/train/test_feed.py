"""The feed: the order of calls is a function of seed and position; batches keep to their bound; weights move."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from mmspeech.checkpoint import load_model
from mmspeech.data.collate import Layout, PictureFormat
from mmspeech.data.shards import ShardSet
from train.feed import CallBatches, Draw, Plan, Planner, Position, pack_by_length, share_past, weight_at
from train.settings import DataConfig, SourceConfig


class FakeShards:
    """Lengths are all that planning needs."""

    def __init__(self, lengths):
        self.num_frames = np.array(lengths)

    def __len__(self):
        return len(self.num_frames)


def make_planner(weights=((1.0, None), (1.0, None)), progress_of=lambda batches: 0.0) -> Planner:
    configs = [SourceConfig(path="x", weight=first, end_weight=last) for first, last in weights]
    rng = np.random.default_rng(0)
    sets = [FakeShards(rng.integers(10, 60, 23 + i)) for i in range(len(configs))]
    config = DataConfig(sources={"x": configs[0]}, batch_frames=200, max_frames=50, pool_batches=4)
    return Planner(list(zip(sets, configs, strict=True)), config=config, seed=5, progress_of=progress_of)


START = Position()


def take(planner, count, position=START):
    return list(itertools.islice(planner.plans(position), count))


def test_any_position_continues_as_if_never_left():
    plans = take(make_planner(), 30)
    for index in (0, 1, 7, 12, 20):
        position = Position.from_dict(plans[index].after.as_dict())
        assert take(make_planner(), 29 - index, position) == plans[index + 1 :]


def test_position_holds_while_weights_move():
    def progress_of(batches):
        return min(1.0, batches / 40)

    weights = ((1.0, 0.0), (0.0, 1.0))
    plans = take(make_planner(weights, progress_of), 60)
    assert take(make_planner(weights, progress_of), 29, plans[30].after) == plans[31:]
    assert {draw.source for draw in plans[0].draws} == {0}
    assert {draw.source for plan in plans[-8:] for draw in plan.draws} == {1}


def test_every_call_comes_once_per_epoch():
    planner = make_planner(((1.0, None),))
    drawn = [index for plan in take(planner, 60) for draw in plan.draws for index in draw.calls]
    counts = np.bincount(drawn, minlength=23)
    # Within a pool calls are sorted by length, so an epoch's end may lie inside one.
    assert counts.max() - counts.min() <= 2 and len(counts) == 23


def test_batches_keep_to_their_frames_and_little_is_padded():
    planner = make_planner()
    padded = held = 0
    for plan in take(planner, 40):
        lengths = [min(50, int(planner.sources[draw.source][0].num_frames[draw.calls[0]])) for draw in plan.draws]
        assert len(lengths) * max(lengths) <= 200
        padded, held = padded + len(lengths) * max(lengths), held + sum(lengths)
    assert held / padded > 0.85


def test_a_source_may_have_its_own_crop_length():
    planner = make_planner()
    planner.sources[1] = planner.sources[1][0], SourceConfig(path="x", max_frames=12)
    plans = take(planner, 30)
    assert {(draw.source, draw.max_frames) for plan in plans for draw in plan.draws} == {(0, 50), (1, 12)}
    assert max(len(plan.draws) for plan in plans) == 200 // 12


def joining(planner, **changes):
    options = {"path": "x", "join_frames": 150, "join_silence_frames": 40} | changes
    planner.sources[1] = planner.sources[1][0], SourceConfig(**options)
    return planner


def test_calls_are_joined_as_long_as_they_fit():
    planner = joining(make_planner())
    joined = [draw for plan in take(planner, 60) for draw in plan.draws if draw.source == 1]
    lengths = planner.sources[1][0].num_frames
    silences = [silence for draw in joined for silence in draw.silences_frames]
    for draw in joined:
        assert len(draw.calls) == len(draw.silences_frames) and draw.silences_frames[0] == 0
        assert sum(lengths[list(draw.calls)]) + sum(draw.silences_frames) <= 150 == draw.max_frames
    assert (
        max(len(draw.calls) for draw in joined) > 2 and max(silences) <= 40 and np.mean(silences) < 15 < max(silences)
    )
    counts = np.bincount([index for draw in joined for index in draw.calls], minlength=24)
    assert counts.max() - counts.min() <= 1 + 8  # every call once per epoch; pools are cut by length


def test_joined_calls_go_on_from_any_position():
    plans = take(joining(make_planner()), 30)
    for index in (1, 7, 12):
        assert take(joining(make_planner()), 29 - index, plans[index].after) == plans[index + 1 :]


def test_a_call_too_long_to_join_is_cropped_and_stands_alone():
    planner = joining(make_planner(), join_frames=20)
    for draw in (draw for plan in take(planner, 40) for draw in plan.draws if draw.source == 1):
        own = planner.sources[1][0].num_frames[list(draw.calls)]
        assert draw.max_frames == 20 and (len(draw.calls) == 1 or sum(own) <= 20)


def test_what_lies_past_the_models_memory_is_counted():
    planner = make_planner(((1.0, None),))
    lengths = np.minimum(planner.sources[0][0].num_frames, 50)
    alone = share_past(planner.sources, config=planner.config, context_frames=30)
    assert alone == pytest.approx(np.maximum(lengths - 30, 0).sum() / lengths.sum())
    assert share_past(planner.sources, config=planner.config, context_frames=50) == 0.0
    two = [*planner.sources, (planner.sources[0][0], SourceConfig(path="x", weight=0.0, join_frames=100))]
    assert share_past(two, config=planner.config, context_frames=30) == pytest.approx(alone)
    assert share_past(two[1:], config=planner.config, context_frames=30) == 0.0  # of nothing
    long = [(planner.sources[0][0], SourceConfig(path="x", join_frames=100))]
    assert share_past(long, config=planner.config, context_frames=50) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ({"join_frames": 100, "max_frames": 50}, "leave max_frames out"),
        ({"join_silence_frames": 10}, "goes with join_frames"),
        ({"join_frames": 300}, "exceeds batch_frames 200"),
    ],
)
def test_settings_of_joining_that_cannot_be(source, words):
    with pytest.raises(ValidationError, match=words):
        DataConfig.model_validate({"sources": {"own": {"path": "x", **source}}, "batch_frames": 200})
    with pytest.raises(ValidationError, match="one by one"):
        valid = {"own": {"path": "x", "join_frames": 100}}
        DataConfig.model_validate({"sources": {"own": {"path": "x"}}, "valid": valid, "batch_frames": 200})


def test_a_call_longer_than_a_batch_goes_alone():
    draws = [(300, Draw(0, (i,), (0,), 400, "dialogue", (0,))) for i in range(3)]
    assert [len(batch) for batch in pack_by_length(draws, 200)] == [1, 1, 1]


@pytest.mark.parametrize(("progress", "expected"), [(0.0, 1.0), (0.5, 0.6), (1.0, 0.2), (2.0, 0.2)])
def test_weights_move_in_a_line(progress, expected):
    assert weight_at(SourceConfig(path="x", weight=1.0, end_weight=0.2), progress) == pytest.approx(expected)
    assert weight_at(SimpleNamespace(weight=0.7, end_weight=None), progress) == 0.7


def test_a_joined_row_is_seen_as_its_calls_are(calls, small_checkpoint):
    bundle, shards = load_model(small_checkpoint), ShardSet(calls / "train")
    layout = Layout(tokenizer=bundle.tokenizer, silence_codes=(1, 2, 3), codebook_size=32)
    form = PictureFormat(32, (0.5,) * 3, (0.5,) * 3)
    batches = CallBatches([(shards, SourceConfig(path="x", join_frames=100))], layout=layout, pictures=form)
    alone = [batches[Plan((Draw(0, (index,), (0,), 100, "dialogue", (0,)),))].batch for index in (4, 1)]
    joined = batches[Plan((Draw(0, (4, 1), (0, 9), 100, "dialogue", (0,)),))].batch
    first, second = (one.codes.shape[2] for one in alone)
    assert joined.codes.shape[2] == first + 9 + second and joined.ids == ["0-4+0-1"]
    assert torch.equal(joined.codes[..., :first], alone[0].codes)
    assert torch.equal(joined.codes[..., first + 9 :], alone[1].codes)
    assert joined.onset_frames.tolist() == [2, first + 9 + 2] and joined.picture_rows.tolist() == [0, 0]
    assert torch.equal(joined.pixels, torch.cat([one.pixels for one in alone]))
