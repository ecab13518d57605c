"""The tokenizer's ids, and words on the frame grid."""

import pytest

from mmspeech.tokens.text import TextTokenizer, TokenizerError, train_tokenizer, words_to_frames
from mmspeech.types import Word

SENTENCES = ["there is a red circle at the left", "hello what a wonderful day", "the blue square is small"] * 4


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return train_tokenizer(SENTENCES, 48, tmp_path_factory.mktemp("tokenizer") / "deep" / "tokenizer.model")


class Pieces:
    """Stands for a tokenizer: known words, known ids."""

    IDS = {"hello": [100], "wonderful": [100, 101, 102], "a": [7], "?": []}

    def encode(self, word):
        return self.IDS[word]


def frames(words, num_frames=15, **options):
    return words_to_frames(words, num_frames, Pieces(), **options).tolist()


def test_special_ids_come_first_and_say_nothing(tokenizer):
    assert tokenizer.vocab_size <= 48
    assert [tokenizer.piece(token) for token in range(4)] == ["", "", "", ""]


def test_text_comes_back(tokenizer):
    for sentence in SENTENCES[:3]:
        tokens = tokenizer.encode(sentence)
        assert all(token > 3 for token in tokens)
        assert tokenizer.decode([3, *tokens, 0]) == sentence
    assert tokenizer.piece(tokenizer.encode("hello")[0]).startswith(" ")
    assert tokenizer.decode(tokenizer.encode("red \u03a9 circle")) == "red  circle"


def test_it_loads_again(tokenizer):
    assert TextTokenizer(tokenizer.path).encode("red circle") == tokenizer.encode("red circle")


def test_the_example_of_the_released_recipe():
    words = [Word("hello", 0.30, 0.70), Word("wonderful", 0.95, 1.4)]
    assert frames(words) == [3, 3, 0, 100, 3, 3, 3, 3, 3, 3, 0, 100, 101, 102, 3]


def test_words_in_any_order_of_one_speaker_only():
    words = [Word("wonderful", 0.95, 1.4), Word("a", 0.5, 0.6, "user"), Word("hello", 0.30, 0.70)]
    assert frames(words) == [3, 3, 0, 100, 3, 3, 3, 3, 3, 3, 0, 100, 101, 102, 3]
    assert frames(words, speaker="user") == [3] * 5 + [0, 7] + [3] * 8


def test_fast_words_wait_or_cut():
    words = [Word("wonderful", 0.16, 0.5), Word("a", 0.24, 0.3), Word("hello", 0.32, 0.5)]
    assert frames(words, 8) == [3, 0, 100, 101, 102, 7, 100, 3]
    assert frames(words, 8, keep_all=False) == [3, 0, 100, 7, 100, 3, 3, 3]


def test_edges():
    assert frames([Word("hello", 0.0, 0.2)], 3) == [100, 3, 3]
    assert frames([Word("wonderful", 0.16, 0.5)], 4) == [3, 0, 100, 101]
    assert frames([Word("wonderful", 9.0, 9.5), Word("?", 0.1, 0.2)], 4) == [3] * 4
    assert frames([Word("hello", 0.2, 0.2), Word("a", 0.3, 0.1)], 3) == [3] * 3
    assert frames([], 2) == [3, 3]


def test_bad_files_are_named(tmp_path):
    with pytest.raises(TokenizerError, match=r"none.model: no such file; expected a SentencePiece model"):
        TextTokenizer(tmp_path / "none.model")
    (tmp_path / "bad.model").write_bytes(b"not a model")
    with pytest.raises(TokenizerError, match="bad.model: not a SentencePiece model"):
        TextTokenizer(tmp_path / "bad.model")


def test_foreign_ids_are_refused(tmp_path):
    import sentencepiece

    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES), model_prefix=str(tmp_path / "other"), vocab_size=30, minloglevel=2, pad_id=-1
    )
    with pytest.raises(TokenizerError, match=r"are \(0, 1, 2, -1\), expected \(0, 1, 2, 3\)"):
        TextTokenizer(tmp_path / "other.model")


def test_training_needs_sentences(tmp_path):
    with pytest.raises(TokenizerError, match="training failed"):
        train_tokenizer([], 40, tmp_path / "t.model")
