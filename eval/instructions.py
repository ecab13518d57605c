"""Which instructions of IFEval (Zhou et al. 2023) can be checked by rule here; the others are not judged."""

import re
from collections.abc import Callable
from typing import Any

from eval.scoring import normalise


def follows(answer: str, instruction: str, options: dict[str, Any]) -> bool | None:
    """Whether an answer does what an instruction (its id and options) asks; None when no rule here can tell."""
    check = CHECKS.get(instruction)
    if check is None:
        return None
    try:
        return check(answer, {key: value for key, value in options.items() if value is not None})
    except KeyError:  # the row does not say what it asks
        return None


def _words_said(answer: str, options: dict[str, Any]) -> bool:
    said = answer.lower()
    return all(re.search(rf"\b{re.escape(word.lower())}\b", said) for word in options["keywords"])


def _words_left_out(answer: str, options: dict[str, Any]) -> bool:
    said = answer.lower()
    return not any(re.search(rf"\b{re.escape(word.lower())}\b", said) for word in options["forbidden_words"])


def _compare(count: int, limit: int, relation: str) -> bool:
    return count >= limit if relation == "at least" else count < limit


def _word_often(answer: str, options: dict[str, Any]) -> bool:
    count = len(re.findall(rf"\b{re.escape(options['keyword'].lower())}\b", answer.lower()))
    return _compare(count, int(options["frequency"]), options["relation"])


def _number_of_words(answer: str, options: dict[str, Any]) -> bool:
    return _compare(len(normalise(answer)), int(options["num_words"]), options["relation"])


def _ends_with(answer: str, options: dict[str, Any]) -> bool:
    return normalise(answer)[-len(normalise(options["end_phrase"])) :] == normalise(options["end_phrase"])


CHECKS: dict[str, Callable[[str, dict[str, Any]], bool]] = {
    "keywords:existence": _words_said,
    "keywords:forbidden_words": _words_left_out,
    "keywords:frequency": _word_often,
    "length_constraints:number_words": _number_of_words,
    "punctuation:no_comma": lambda answer, options: "," not in answer,
    "change_case:english_lowercase": lambda answer, options: answer == answer.lower(),
    "change_case:english_capital": lambda answer, options: answer == answer.upper(),
    "startend:end_checker": _ends_with,
}
