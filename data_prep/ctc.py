"""Paths through the scores of a CTC model (Graves et al. 2006): the best one of all, or the best for given labels."""

import numpy as np

from mmspeech.config import ConfigError

Label = tuple[int, int, int]  # id, first frame, the frame after its last


def greedy_path(scores: np.ndarray, blank: int) -> list[Label]:
    """scores [T, V] -> the likeliest id of each frame, repeats joined, blanks left out."""
    found: list[Label] = []
    before = blank
    for frame, number in enumerate(scores.argmax(axis=1).tolist()):
        if number != blank and number == before:
            found[-1] = (number, found[-1][1], frame + 1)
        elif number != blank:
            found.append((number, frame, frame + 1))
        before = number
    return found


def ctc_path(scores: np.ndarray, labels: list[int], blank: int) -> list[Label]:
    """The best path for `labels`: log-probabilities scores [T, V] -> where each label is, by the Viterbi algorithm.

    States are the labels with blanks before, between and after; from each a path stays, goes on, or leaves out a blank
    between two different labels. ConfigError when there are fewer frames than the labels need.
    """
    states = np.full(2 * len(labels) + 1, blank)
    states[1::2] = labels
    skips = np.zeros(len(states), bool)
    skips[3::2] = states[3::2] != states[1:-2:2]
    best = np.full(len(states), -np.inf)
    best[:2] = scores[0, states[:2]]
    came = np.zeros((len(scores), len(states)), np.int8)  # how many states further back the best path was before
    for frame in range(1, len(scores)):
        ways = np.stack([best, np.r_[-np.inf, best[:-1]], np.r_[[-np.inf] * 2, best[:-2]]])
        ways[2, ~skips] = -np.inf
        came[frame] = ways.argmax(axis=0)
        best = ways.max(axis=0) + scores[frame, states]
    state = len(states) - 1 - int(best[-2] > best[-1])
    if not np.isfinite(best[state]):
        raise ConfigError(f"{len(scores)} frames are too few for {len(labels)} letters: is the text that of the sound?")
    places = [state]
    for frame in range(len(scores) - 1, 0, -1):
        state -= int(came[frame, state])
        places.append(state)
    frames: dict[int, list[int]] = {}
    for frame, state in enumerate(reversed(places)):
        if state % 2:
            frames.setdefault(state // 2, []).append(frame)
    return [(label, frames[place][0], frames[place][-1] + 1) for place, label in enumerate(labels)]
