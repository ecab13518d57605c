"""Who says what an open answer is worth: rules, or a language model behind an OpenAI-compatible address.

Replaceable: `--judge rules`, or `--judge http://host:8000/v1#model-name` (the key is in OPENAI_API_KEY).
"""

import re
from dataclasses import dataclass
from typing import Protocol

from eval.scoring import holds_answer, normalise
from mmspeech.config import ConfigError
from mmspeech.endpoint import chat, split_address

LETTERS = "ABCD"
RATES = (1, 5)
# Beginnings of sentences by which an assistant declines, as people write them; ours, and not complete.
REFUSALS = (
    "i can't", "i cannot", "i won't", "i will not", "i'm sorry", "i am sorry", "i'm not able", "i am not able",
    "i'm unable", "i am unable", "i must decline", "i refuse", "no i can't", "that is not something i can",
)  # fmt: skip


class Judge(Protocol):
    """Rates what no rule can: how well `answer` answers `question`, from 0 to 1; None: it cannot tell."""

    def rate(self, question: str, answer: str, reference: str | None) -> float | None: ...


def open_judge(name: str) -> Judge:
    """The judge that `--judge` names; ConfigError for a name that is none."""
    if name == "rules":
        return NoJudge()
    if (served := split_address(name)) is not None:
        return ServedJudge(*served)
    raise ConfigError(f"--judge {name}: expected rules, or http(s)://host/v1#model-name")


class NoJudge:
    """Open answers stay unrated."""

    def rate(self, question: str, answer: str, reference: str | None) -> float | None:
        return None


@dataclass(frozen=True)
class ServedJudge:
    """A model that rates from 1 to 5, at temperature 0. ConfigError when it cannot be had; None where it gives no
    number: it would give none the next time either, and one answer must not end a run of hundreds."""

    address: str
    model: str
    wait_sec: float = 1.0  # before the second try; twice as long before each next

    def rate(self, question: str, answer: str, reference: str | None) -> float | None:
        if not answer:
            return 0.0
        told = f"Question: {question}\nAnswer: {answer}\n" + (f"A right answer: {reference}\n" if reference else "")
        said = self._ask(
            "You rate spoken answers, which are written down here. Give one number from 1 (useless or wrong) to 5 "
            "(right, complete and fit to be spoken). Say the number only.",
            told,
        )
        found = re.search(r"\d+(?:\.\d+)?", said)
        low, high = RATES
        if found is None or not low <= float(found.group()) <= high:
            return None
        return (float(found.group()) - low) / (high - low)

    def _ask(self, task: str, told: str) -> str:
        messages = [{"role": "system", "content": task}, {"role": "user", "content": told}]
        body = {"model": self.model, "messages": messages, "temperature": 0, "max_tokens": 8}
        return chat(self.address, body, wait_sec=self.wait_sec)


def chosen_letter(answer: str) -> str | None:
    """The option that an answer to multiple choice names: "B", "the answer is b"; None: none, or several."""
    says = r"(?i:answer|option|choice)\s*(?i:is|would be|:)?\s*\(?([A-D]\b|[b-d]\b|a\b(?!\s+[a-z]))"
    named = re.findall(says, answer)
    if not named:
        # "A dog" and "a dog" begin with an article.
        words = re.findall(
            r"[A-Za-z']+", re.sub(r"(^A|(?<=[.!?] )A|\ba)\s+(?!or\b|and\b|is\b|because\b)(?=[a-z])", "", answer.strip())
        )
        named = [word for word in words if word in tuple(LETTERS)] or [word for word in words if word in tuple("bcd")]
        if not named and words == ["a"]:
            named = words
    letters = {letter.upper() for letter in named}
    return letters.pop() if len(letters) == 1 else None


def refuses(answer: str) -> bool:
    """Whether an answer begins by declining."""
    said = " ".join(normalise(answer))
    return any(said.startswith(" ".join(normalise(start))) for start in REFUSALS)


def holds_reference(answer: str, references: list[str]) -> bool:
    """Whether one of the references stands in an answer as whole words."""
    return holds_answer(normalise(answer), references)
