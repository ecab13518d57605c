"""Which dialogues are left out, and by which rule."""

import re
from collections import Counter
from collections.abc import Sequence

from data_prep.records import SaidRecord
from data_prep.steps import DroppedError
from data_prep.templates import Filters

_NGRAM = 3
_SYMBOLS = re.compile(r"[*_#`{}<>|\[\]]|https?:|\n\s*[-\d]")


def check_dialogue(turns: Sequence[SaidRecord], *, facts: str, filters: Filters) -> None:
    """DroppedError, with the rule and the line that breaks it, for a dialogue that should not be learned from."""
    if not turns or turns[-1].speaker != "main":
        raise DroppedError("unfinished", turns[-1].text if turns else "")
    for turn in turns:
        _check_line(turn.text, filters)
    for rule, phrases in (("leak", filters.leaks), ("unsafe", filters.unsafe)):
        for turn in turns:
            if (found := _holds(turn.text, phrases)) is not None:
                raise DroppedError(rule, f"{found}: {turn.text}")
    said = [" ".join(words_of(turn.text)) for turn in turns]
    line, count = Counter(said).most_common(1)[0]
    if count > filters.max_line_repeats:
        raise DroppedError("said again", line)
    known = f" {' '.join(words_of(facts))} "
    for turn in turns:
        if (copied := _copied(words_of(turn.text), known, filters.max_copied_words + 1)) is not None:
            raise DroppedError("copied", copied)


def _check_line(text: str, filters: Filters) -> None:
    words = words_of(text)
    if len(words) < filters.min_words:
        raise DroppedError("too short", text)
    if len(words) > filters.max_words:
        raise DroppedError("too long", text)
    if _SYMBOLS.search(text):
        raise DroppedError("not speech", text)
    runs = [tuple(words[first : first + _NGRAM]) for first in range(len(words) - _NGRAM + 1)]
    if runs and 1 - len(set(runs)) / len(runs) > filters.max_ngram_share:
        raise DroppedError("repeats itself", text)


def words_of(text: str) -> list[str]:
    """Lower-case words, in any script."""
    return re.findall(r"\w+(?:['\u2019]\w+)*", text.lower())


def _holds(text: str, phrases: Sequence[str]) -> str | None:
    known = f" {' '.join(words_of(text))} "
    return next((phrase for phrase in phrases if f" {' '.join(words_of(phrase))} " in known), None)


def _copied(words: list[str], known: str, length: int) -> str | None:
    """`length` words in a row that stand in `known`, too."""
    for first in range(len(words) - length + 1):
        run = " ".join(words[first : first + length])
        if f" {run} " in known:
            return run
    return None
