"""CIDEr-D (Vedantam, Zitnick and Parikh 2015): how much of what people say of a picture a caption says, weighted by how
rare it is to say so.

Equal to pycocoevalcap's scorer to 1e-6 (tested) for the same words. Theirs takes document frequencies from the captions
it is given to judge; here they come from all references at once, so that each caption is judged by itself.
"""

import math
from collections import Counter
from collections.abc import Sequence

MAX_N = 4
SIGMA = 6.0  # in words of difference in length

Gram = tuple[str, ...]


class Cider:
    """Knows the references of a whole set: for each picture its captions, each a list of words."""

    def __init__(self, references: Sequence[Sequence[Sequence[str]]]):
        self._frequency: Counter[Gram] = Counter()
        for captions in references:
            self._frequency.update({gram for caption in captions for gram in _grams(caption)})
        self._log_count = math.log(max(len(references), 1))

    def score(self, caption: Sequence[str], references: Sequence[Sequence[str]]) -> float:
        """From 0 to 10, where 10 says the same as every reference; of one picture's references."""
        if not references:
            raise ValueError("no reference captions to judge by")
        own = self._weighted(caption)
        return 10.0 * sum(_similarity(own, self._weighted(one)) for one in references) / (MAX_N * len(references))

    def _weighted(self, words: Sequence[str]) -> tuple[list[dict[Gram, float]], list[float], int]:
        """tf-idf of the n-grams of each order, their norms, and the length, which is counted in pairs of words."""
        vectors: list[dict[Gram, float]] = [{} for _ in range(MAX_N)]
        grams = _grams(words)
        for gram, count in grams.items():
            rarity = self._log_count - math.log(max(1, self._frequency[gram]))
            vectors[len(gram) - 1][gram] = count * rarity
        norms = [math.sqrt(sum(value * value for value in vector.values())) for vector in vectors]
        return vectors, norms, max(len(words) - 1, 0)


def _grams(words: Sequence[str]) -> Counter[Gram]:
    return Counter(tuple(words[i : i + n]) for n in range(1, MAX_N + 1) for i in range(len(words) - n + 1))


def _similarity(own, other) -> float:
    """Cosines summed over the orders; a word said more often than the reference says it counts only as often."""
    (vectors, norms, length), (their_vectors, their_norms, their_length) = own, other
    total = 0.0
    for vector, norm, theirs, their_norm in zip(vectors, norms, their_vectors, their_norms, strict=True):
        if norm and their_norm:
            shared = (min(value, theirs[gram]) * theirs[gram] for gram, value in vector.items() if gram in theirs)
            total += sum(shared) / (norm * their_norm)
    return total * math.exp(-((length - their_length) ** 2) / (2 * SIGMA**2))
