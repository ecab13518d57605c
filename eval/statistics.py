"""Means with intervals, and whether two runs differ: resampling, so that nothing is assumed of how scores lie."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 10_000
_CHUNK = 500  # resamples at once


@dataclass(frozen=True)
class Difference:
    """Of paired scores: the mean of b - a, its 95 % interval, and the probability of one as large by chance alone."""

    mean: float
    low: float
    high: float
    p: float
    pairs: int


def bootstrap_mean(values: Sequence[float], *, seed: int = 0) -> tuple[float, float] | None:
    """The 95 % percentile-bootstrap interval of the mean (Efron and Tibshirani 1993, chapter 13); None of nothing."""
    if not len(values):
        return None
    means = _resampled_means(np.asarray(values, float), np.random.default_rng(seed))
    low, high = np.percentile(means, (2.5, 97.5))
    return float(low), float(high)


def paired_difference(a: Sequence[float], b: Sequence[float], *, seed: int = 0) -> Difference:
    """b - a of samples that both runs have, in the same order. The probability is that of a sign-flip permutation test
    (two-sided; Good 2005): were it chance which run has which score, how often the means would be as far apart."""
    if len(a) != len(b) or not len(a):
        raise ValueError(f"{len(a)} and {len(b)} scores: expected as many of each, and some")
    changes = np.asarray(b, float) - np.asarray(a, float)
    rng = np.random.default_rng(seed)
    low, high = np.percentile(_resampled_means(changes, rng), (2.5, 97.5))
    observed = abs(changes.mean())
    as_far = 0
    for first in range(0, RESAMPLES, _CHUNK):
        signs = rng.choice((-1.0, 1.0), (min(_CHUNK, RESAMPLES - first), len(changes)))
        as_far += int((np.abs((signs * changes).mean(axis=1)) >= observed - 1e-12).sum())
    return Difference(float(changes.mean()), float(low), float(high), (as_far + 1) / (RESAMPLES + 1), len(changes))


def _resampled_means(values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    parts = []
    for first in range(0, RESAMPLES, _CHUNK):
        drawn = rng.integers(0, len(values), (min(_CHUNK, RESAMPLES - first), len(values)))
        parts.append(values[drawn].mean(axis=1))
    return np.concatenate(parts)
