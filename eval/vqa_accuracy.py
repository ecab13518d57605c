"""The accuracy of VQA (Antol et al. 2015): an answer is as right as people agree with it."""

import re
from collections.abc import Sequence

from eval.scoring import holds_answer

AGREE = 3  # people who say the same make an answer wholly right
_NUMBERS = {
    "none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5", "six": "6",
    "seven": "7", "eight": "8", "nine": "9", "ten": "10",
}  # fmt: skip
_ARTICLES = {"a", "an", "the"}
# Written without their apostrophe, as people type them.
_CONTRACTIONS = {
    word.replace("'", ""): word
    for word in (
        "aren't", "can't", "couldn't", "didn't", "doesn't", "don't", "hadn't", "hasn't", "haven't", "isn't", "mustn't",
        "shouldn't", "that's", "there's", "they're", "wasn't", "weren't", "what's", "where's", "who's", "won't",
        "wouldn't", "you're",
    )
}  # fmt: skip


def normalise_answer(text: str) -> str:
    """Lower case, no punctuation (commas within numbers go, full stops within them stay), numbers as digits, no
    articles, contractions with their apostrophe."""
    text = text.lower().replace("\u2019", "'").strip()
    text = re.sub(r"(?<=\d),(?=\d)", "", text)
    text = re.sub(r"(?<!\d)\.|\.(?!\d)", "", text)
    words = re.sub(r"[^\w\s'.:]|(?<!\w)'|'(?!\w)", " ", text).split()
    words = [_CONTRACTIONS.get(word, _NUMBERS.get(word, word)) for word in words]
    return " ".join(word for word in words if word not in _ARTICLES)


def exact_accuracy(answer: str, people: Sequence[str]) -> float:
    """The official rule, for the whole answer: over all people, min(1, how many of the others said it / 3), in the
    mean. Both sides are always normalised."""
    own = normalise_answer(answer)
    return _agreement([normalise_answer(one) == own for one in people])


def spoken_accuracy(words: Sequence[str], people: Sequence[str]) -> float:
    """The same for a spoken sentence, as the words of eval.scoring.normalise: someone said the same if their answer
    stands in it as whole words."""
    return _agreement([holds_answer(words, [one]) for one in people])


def _agreement(same: Sequence[bool]) -> float:
    if len(same) == 1:  # sets with one answer to each question
        return float(same[0])
    total = sum(same)
    return sum(min(1.0, (total - own) / AGREE) for own in same) / len(same)
