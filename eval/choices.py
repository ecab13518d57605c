"""Multiple choice by likelihood: what every such task shares."""

from typing import Any

from eval.scoring import mean
from eval.task import Reply, Task
from mmspeech.config import ConfigError

LETTERS = "ABCDEFGH"


class MultipleChoice(Task):
    """Score 1 when the right option is the likeliest, by its summed log-probability; a tie is a guess not made.

    A sample has `kind`, `question`, `options`, and `answer`, the index of the right one.
    """

    def score(self, sample: Any, prompt: Any, reply: Reply) -> dict[str, Any]:
        scores = reply.option_scores
        if len(scores) != len(sample.options):
            raise ConfigError(f"{sample.id}: {len(scores)} option scores for {len(sample.options)} options")
        best = max(range(len(scores)), key=scores.__getitem__)
        alone = scores.count(max(scores)) == 1
        return {
            "score": float(alone and best == sample.answer),
            "question": sample.question,
            "answers": [sample.options[sample.answer]],
            "text": sample.options[best] if alone else "",
            "option_scores": [round(score, 4) for score in scores],
            "guessing": 1 / len(scores),
        }

    def right_reply(self, sample: Any) -> Reply:
        return Reply(option_scores=[0.0 if number == sample.answer else -10.0 for number in range(len(sample.options))])

    def summarise(self, records: list[dict[str, Any]]) -> dict[str, Any]:
        return {"guessing": mean([record["guessing"] for record in records])}


def lettered(question: str, options: tuple[str, ...]) -> str:
    """The question, its options with a letter each, and the beginning of an answer."""
    told = " ".join(f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False))
    return f"{question} {told} Answer:"


def letters_of(options: tuple[str, ...]) -> tuple[str, ...]:
    """A, B ...: one for each option."""
    return tuple(LETTERS[: len(options)])


def first_of_each(samples: list[Any], limit: int | None) -> list[Any]:
    """The first `limit` samples of each kind (None: all), in order."""
    taken: dict[str, int] = {}
    kept = []
    for sample in samples:
        taken[sample.kind] = taken.get(sample.kind, 0) + 1
        if limit is None or taken[sample.kind] <= limit:
            kept.append(sample)
    return kept
