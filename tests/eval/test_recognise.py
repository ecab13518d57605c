import itertools

import numpy as np
import pytest

from eval.ngram import arpa
from eval.recognise import Recogniser, word_error

pytest.importorskip("pocketsphinx")


def test_arpa_probabilities_of_each_context_sum_to_one():
    """Whatever was said before, what may come next sums to one, seen or not."""
    text = arpa([["a", "b"], ["a", "c", "b"]], ["a", "b", "c", "d"])
    probability, backoff = _parse(text)
    words = ["a", "b", "c", "d", "</s>"]
    for context in [*itertools.product(["<s>", *words[:4]], words[:4]), ("<s>",), ("a",), ("d",), ()]:
        total = sum(_probability(context, word, probability, backoff) for word in words)
        assert total == pytest.approx(1.0, abs=2e-3), context


def _parse(text):
    probability, backoff = {}, {}
    for line in text.splitlines():
        parts = line.split()
        if len(parts) < 2 or not parts[0].lstrip("-")[:1].isdigit():
            continue
        numeric = len(parts) > 2 and parts[-1].lstrip("-").replace(".", "").isdigit()
        gram = tuple(parts[1:-1] if numeric else parts[1:])
        probability[gram] = 10 ** float(parts[0])
        backoff[gram] = 10 ** float(parts[-1]) if numeric else 1.0
    return probability, backoff


def _probability(context, word, probability, backoff):
    gram = (*context, word)
    if gram in probability:
        return probability[gram]
    return backoff.get(context, 1.0) * _probability(context[1:], word, probability, backoff)


def test_word_error_counts_all_three_kinds():
    said = ["the", "circle", "is", "red"]
    assert word_error(said, said) == (0, 4)
    assert word_error(said, ["the", "circle", "red"]) == (1, 4)
    assert word_error(said, ["a", "circle", "is", "is", "red"]) == (2, 4)
    assert word_error(said, []) == (4, 4)
    assert word_error([], ["red"]) == (1, 0)


def test_silence_is_no_words():
    recogniser = Recogniser(["the circle is red"])
    assert recogniser.words(np.zeros(24_000, np.float32), 24_000) == []
    assert recogniser.words(np.zeros(0, np.float32), 24_000) == []


def test_words_without_pronunciation_are_named_and_compounds_made():
    recogniser = Recogniser(["the leftmost zzqx is red"])
    assert recogniser.unknown == ["zzqx"]
    with pytest.raises(ValueError, match="no word it can pronounce"):
        Recogniser(["zzqx"])


def test_hears_clear_speech():
    flite = pytest.importorskip("data_prep.flite")
    sentences = ["the circle is red", "there are two blue squares", "no there is no star", "it is at the top left"]
    recogniser = Recogniser(sentences)
    said_again = "there are two red circles"  # words it knows in an order it has not seen
    for sentence in [*sentences, said_again]:
        try:
            wave, rate_hz, _, _ = flite.synthesise(sentence, name="slt", pitch=1.0, rate=1.0)
        except FileNotFoundError as error:
            pytest.skip(str(error))
        recogniser = Recogniser([*sentences, "red circles"]) if sentence == said_again else recogniser
        assert " ".join(recogniser.words(wave, rate_hz)) == sentence


def test_silence_around_a_sentence_changes_nothing():
    flite = pytest.importorskip("data_prep.flite")
    try:
        wave, rate_hz, _, _ = flite.synthesise("there are two blue squares", name="slt", pitch=1.0, rate=1.0)
    except FileNotFoundError as error:
        pytest.skip(str(error))
    recogniser = Recogniser(["there are two blue squares", "there are two red circles"])
    quiet = np.zeros(5 * rate_hz, np.float32)
    assert recogniser.words(np.concatenate([quiet, wave, quiet]), rate_hz) == recogniser.words(wave, rate_hz)
