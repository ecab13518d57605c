"""Multiple choice of the text stream: public file forms, and log-probabilities that are the model's own."""

import csv
import json
import math

import pytest
from questions import measure

from eval.options import option_scores
from eval.responder import ModelResponder
from eval.task import Prompt, Settings
from eval.tasks import find
from eval.tasks.language import OWN, read_choices, red_circle
from mmspeech.config import ConfigError


def test_scripts_get_what_they_deserve(tmp_path):
    task = find("language")(Settings(data=tmp_path), None)
    assert len(task.samples) == 2 * len(OWN.read_text().splitlines())
    assert measure(task, tmp_path / "oracle", batch_size=16)["all"]["score"] == 1.0
    assert measure(task, tmp_path / "silent", who="silent", batch_size=16)["all"]["score"] == 0.0
    found = measure(task, tmp_path / "blind", who="blind", batch_size=16)["all"]
    assert found["guessing"] == 0.25 and found["score_95"][0] <= 0.3


def test_answers_are_spread_over_the_places():
    answers = [choice.answer for choice in read_choices(OWN, own=True)]
    assert max(answers.count(place) for place in range(4)) <= 0.3 * len(answers)


def test_mmlu_as_csv_jsonl_and_parquet(tmp_path):
    row = {"question": "What is 2 + 2?", "choices": ["3", "4", "5", "6"], "answer": 1, "subject": "elementary_math"}
    folder = tmp_path / "mmlu" / "test"
    folder.mkdir(parents=True)
    with (folder / "elementary_math_test.csv").open("w", newline="") as opened:
        csv.writer(opened).writerow([row["question"], *row["choices"], "B"])
    (folder / "more.jsonl").write_text(json.dumps(row) + "\n")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pytest.importorskip("pyarrow").Table.from_pylist([row]), folder / "whole.parquet")
    for file in folder.iterdir():
        (choice,) = read_choices(file)
        assert choice.question == "What is 2 + 2? A. 3 B. 4 C. 5 D. 6 Answer:", file
        assert (choice.options, choice.answer, choice.kind) == (("A", "B", "C", "D"), 1, "elementary math")
    task = find("language")(Settings(data=tmp_path, limit=2), None)
    kinds = [sample.kind for sample in task.samples]
    assert kinds.count("small talk") == 2 and kinds.count("elementary math, after visual turns") == 2


@pytest.mark.parametrize(
    "row", [{}, {"question": "a", "choices": ["x"], "answer": 0, "subject": "s"},
            {"question": "a", "choices": ["x", "y"], "answer": "Z", "subject": "s"},
            {"question": "a", "choices": ["x", "y"], "answer": 2, "subject": "s"}],
)  # fmt: skip
def test_rows_that_do_not_fit_are_named(tmp_path, row):
    file = tmp_path / "bad.jsonl"
    file.write_text(json.dumps(row) + "\n")
    with pytest.raises(ConfigError, match=r"bad\.jsonl, row 1: .*expected question, 2 to 4 choices"):
        read_choices(file)


def test_log_probabilities_are_the_models_own(small_bundle):
    """Options of one token have probabilities that sum to one at most, whoever else is asked."""
    tokenizer = small_bundle.tokenizer
    singles = {tokenizer.piece(token).strip(): token for token in range(4, tokenizer.vocab_size)}
    options = tuple(text for text, token in singles.items() if text and tokenizer.encode(text) == [token])[:8]
    prompt = Prompt(text="the circle is", options=options)
    together = option_scores(small_bundle, prompt)
    assert all(score < 0 for score in together) and sum(map(math.exp, together)) <= 1.0 + 1e-5
    alone = [option_scores(small_bundle, Prompt(text="the circle is", options=(one,)))[0] for one in options]
    assert together == pytest.approx(alone, abs=1e-4)
    longer = option_scores(small_bundle, Prompt(text="the circle is", options=("red", "red red red")))
    assert longer[1] < longer[0]
    with pytest.raises(ConfigError, match="has no token"):
        option_scores(small_bundle, Prompt(text="the", options=("",)))


def test_what_is_seen_counts(small_bundle):
    blind = option_scores(small_bundle, Prompt(text="it is", options=("red", "blue")))
    sighted = Prompt(text="it is", options=("red", "blue"), pictures=[(0.0, red_circle())])
    seen = option_scores(small_bundle, sighted)
    assert blind != seen
    (reply,) = ModelResponder(small_bundle).answer([None], [Prompt(text="it is", options=("red", "blue"))], seeds=[0])
    assert reply.option_scores == pytest.approx(blind) and not len(reply.wave)
