"""Which frames are seen when, worked out by hand."""

import torch

from mmspeech.vision.memory import NEVER, Memory, onset_of

ONSETS = torch.tensor([[0, 3, 4, 9, 10, 12, 20], [2, 5, NEVER, NEVER, NEVER, NEVER, NEVER]])


def test_a_frame_leaves_when_so_many_later_ones_came():
    assert Memory(1).until(ONSETS).tolist() == [[3, 4, 9, 10, 12, 20, NEVER], [5] + [NEVER] * 6]
    assert Memory(3).until(ONSETS).tolist() == [[9, 10, 12, 20] + [NEVER] * 3, [NEVER] * 7]
    assert (Memory(9).until(ONSETS) == NEVER).all()


def test_summaries_begin_when_their_group_has_left_and_end_when_later_ones_came():
    shown, until = Memory(frames=2, slots=1, group=2).summaries(ONSETS)
    # Frames 0 and 1 have left when frame 3 comes, frames 2 and 3 when frame 5 comes; 4 and 5 never leave both.
    assert shown.tolist() == [[9, 12, NEVER], [NEVER] * 3] and until.tolist() == [[12, NEVER, NEVER], [NEVER] * 3]
    assert Memory(frames=2, slots=2, group=2).summaries(ONSETS)[1][0, 0] == NEVER


def test_what_has_left_no_trace_is_known():
    onsets = [-30, -20, -10, -5, 0, 8]
    assert Memory(1).forgotten(onsets, at_frame=0) == 4 and Memory(2).forgotten(onsets, at_frame=0) == 3
    assert Memory(9).forgotten(onsets, at_frame=0) == 0
    # The group of the first two is complete at -10 and gives way to the next one at 0.
    assert Memory(1, slots=1, group=2).forgotten(onsets, at_frame=0) == 2
    assert Memory(1, slots=1, group=2).forgotten(onsets, at_frame=-1) == 0


def test_places_follow_the_same_schedule():
    """A ring that is walked frame by frame holds what the schedule says is seen."""
    memory = Memory(frames=2, slots=2, group=2)
    onsets = ONSETS[:1]
    until, (shown, gone) = memory.until(onsets)[0], [times[0] for times in memory.summaries(onsets)]
    ring: dict[int, str] = {}
    for index, onset in enumerate(onsets[0].tolist()):
        at, leaving = torch.tensor(index), memory.leaving(torch.tensor(index))
        if leaving >= 0 and memory.ends_summary(leaving):
            ring[int(memory.summary_place(leaving))] = f"group {int(leaving) // 2}"
        ring[int(memory.place(at))] = f"frame {index}"
        seen = {f"frame {i}" for i, first in enumerate(onsets[0]) if first <= onset < until[i]}
        seen |= {f"group {g}" for g in range(len(shown)) if shown[g] <= onset < gone[g]}
        assert set(ring.values()) == seen and len(ring) <= memory.places


def test_a_frame_is_seen_from_the_first_step_at_or_after_its_time():
    assert [onset_of(sec) for sec in (0.0, 0.08, 0.0801, 0.41, -0.1)] == [0, 1, 2, 6, -1]
