"""A small back-off n-gram model in ARPA text, for a recogniser that knows only a closed set of words."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence

START, END = "<s>", "</s>"
_DISCOUNT = 0.4  # taken from every seen count, given to what was never seen
_NO_BACKOFF = -99.0


def arpa(sentences: Iterable[Sequence[str]], vocabulary: Iterable[str], *, order: int = 3) -> str:
    """An ARPA model of `sentences` (lists of words) in which every word of `vocabulary` stays possible anywhere.

    Sentences are counted once each: how often the data repeats one says nothing about what a model will say.
    """
    unique = sorted({tuple(words) for words in sentences if words})
    counts = [_count(unique, n) for n in range(1, order + 1)]
    words = sorted(set(vocabulary) | {word for sentence in unique for word in sentence}) + [END]
    table = [_unigrams(counts[0], words)]
    for n in range(2, order + 1):
        table.append(_higher(counts[n - 1]))
    return _format(table)


def _count(sentences: list[tuple[str, ...]], n: int) -> Counter:
    counts: Counter = Counter()
    for sentence in sentences:
        padded = (START, *sentence, END)
        counts.update(padded[i : i + n] for i in range(len(padded) - n + 1))
    return counts


def _unigrams(counts: Counter, words: list[str]) -> dict[tuple[str, ...], float]:
    total = sum(counts[(word,)] + 1 for word in words)
    return {(word,): (counts[(word,)] + 1) / total for word in words}


def _higher(counts: Counter) -> dict[tuple[str, ...], float]:
    totals: Counter = Counter()
    for gram, count in counts.items():
        totals[gram[:-1]] += count
    return {gram: (count - _DISCOUNT) / totals[gram[:-1]] for gram, count in counts.items()}


def _backoff(table: list[dict], n: int) -> dict[tuple[str, ...], float]:
    """For every context seen in (n+1)-grams: the weight of the shorter model where the longer has nothing."""
    seen: Counter = Counter()
    shorter: Counter = Counter()
    for gram, probability in table[n].items():
        seen[gram[:-1]] += probability
        shorter[gram[:-1]] += table[n - 1].get(gram[1:], 0.0)
    return {context: (1.0 - seen[context]) / max(1e-6, 1.0 - shorter[context]) for context in seen}


def _format(table: list[dict]) -> str:
    table[0] = {(START,): 0.0, **table[0]}
    lines = ["\\data\\", *(f"ngram {n + 1}={len(grams)}" for n, grams in enumerate(table)), ""]
    for n, grams in enumerate(table):
        weights = _backoff(table, n + 1) if n + 1 < len(table) else {}
        lines.append(f"\\{n + 1}-grams:")
        for gram, probability in sorted(grams.items()):
            line = f"{_log10(probability):.4f} {' '.join(gram)}"
            lines.append(f"{line} {_log10(weights[gram]):.4f}" if gram in weights else line)
        lines.append("")
    return "\n".join([*lines, "\\end\\", ""])


def _log10(probability: float) -> float:
    return math.log10(probability) if probability > 0 else _NO_BACKOFF
