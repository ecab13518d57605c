"""Delays move frames to columns."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmspeech.tokens.streams import StreamLayout


def layout(delays: tuple[int, ...]) -> StreamLayout:
    return StreamLayout((len(delays) - 1) // 2, delays, text_card=100, audio_card=50)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=5, max_size=5), st.integers(1, 9))
def test_every_row_comes_late_by_its_delay(delays, num_frames):
    streams = layout(tuple(delays))
    codes = torch.randint(0, 50, (2, 5, num_frames))
    columns, held = streams.delay(codes)
    assert columns.shape == (2, 5, num_frames + 1) and held.shape == (5, num_frames + 1)
    for row, delay in enumerate(delays):
        count = max(num_frames - delay, 0)
        assert torch.equal(columns[:, row, delay + 1 :], codes[:, row, :count])
        assert held[row].tolist() == [column > delay for column in range(num_frames + 1)]
        assert (columns[:, row, : delay + 1] == (50 if row else 100)).all()


def test_columns_by_hand():
    streams = layout((0, 0, 1, 0, 2))
    codes = torch.arange(1, 4).repeat(1, 5, 1) + 10 * torch.arange(5)[None, :, None]
    columns, _ = streams.delay(codes)
    assert columns[0].tolist() == [
        [100, 1, 2, 3],
        [50, 11, 12, 13],
        [50, 50, 21, 22],
        [50, 31, 32, 33],
        [50, 50, 50, 41],
    ]


def test_weights_move_with_their_codes():
    streams = layout((0, 0, 1, 0, 2))
    moved, _ = streams.shift(torch.tensor([[[0.1, 0.2, 0.3]] * 2]), fill=0.0, rows=streams.own)
    torch.testing.assert_close(moved[0], torch.tensor([[0.0, 0.1, 0.2, 0.3], [0.0, 0.0, 0.1, 0.2]]))


def test_nothing_stays_nothing():
    columns, _ = layout((0, 0, 1, 0, 1)).delay(torch.full((1, 5, 3), -1))
    assert (columns[0, 2] == torch.tensor([50, 50, -1, -1])).all()


def test_rows_are_counted():
    with pytest.raises(ValueError, match="codes have 4 rows, expected 5"):
        layout((0, 0, 1, 0, 2)).delay(torch.zeros(1, 4, 3, dtype=torch.long))
