"""Text tokens: SentencePiece pieces, and words with times -> one token per frame."""

import io
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from mmspeech.config import ConfigError
from mmspeech.frames import seconds_to_frames
from mmspeech.types import Word

EPAD_ID, BOS_ID, EOS_ID, PAD_ID = 0, 1, 2, 3
WORD_START = "\u2581"


class TokenizerError(ConfigError):
    """A tokenizer that cannot be read or trained; the message is one line."""


class TextTokenizer:
    """A SentencePiece model whose first ids are EPAD 0 (its slot for unknown pieces), BOS 1, EOS 2 and PAD 3."""

    def __init__(self, path: str | Path):
        import sentencepiece

        self.path = Path(path)
        if not self.path.is_file():
            raise TokenizerError(f"{path}: no such file; expected a SentencePiece model (tokenizer.model)")
        try:
            self._model = sentencepiece.SentencePieceProcessor(model_proto=self.path.read_bytes())
        except RuntimeError as error:
            raise TokenizerError(f"{path}: not a SentencePiece model; copy or train it again") from error
        special = (self._model.unk_id(), self._model.bos_id(), self._model.eos_id(), self._model.pad_id())
        if special != (EPAD_ID, BOS_ID, EOS_ID, PAD_ID):
            raise TokenizerError(f"{path}: ids of unknown, BOS, EOS, PAD are {special}, expected (0, 1, 2, 3)")

    @property
    def vocab_size(self) -> int:
        return self._model.vocab_size()

    def encode(self, word: str) -> list[int]:
        """Ids of a word or a sentence, without BOS; what the alphabet lacks is left out."""
        return [token for token in self._model.encode(word.strip()) if token > PAD_ID]

    def piece(self, token: int) -> str:
        """The text of one id, a space where a word begins; empty for the special ids and beyond the last."""
        if not PAD_ID < token < self.vocab_size:
            return ""
        return self._model.id_to_piece(token).replace(WORD_START, " ")

    def decode(self, tokens: Iterable[int]) -> str:
        """The text of a row of ids, without the special ones."""
        return "".join(self.piece(token) for token in tokens).strip()


def train_tokenizer(sentences: Iterable[str], vocab_size: int, path: str | Path) -> TextTokenizer:
    """Train a BPE SentencePiece model on sentences, at most `vocab_size` ids, and write it to `path`.

    A small closed vocabulary becomes one piece a word, which leaves the text stream ahead of the sound.
    """
    import sentencepiece

    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sentences), model_writer=model, vocab_size=vocab_size, model_type="bpe",
            character_coverage=1.0, hard_vocab_limit=False, split_by_number=True, minloglevel=2,
            unk_id=EPAD_ID, bos_id=BOS_ID, eos_id=EOS_ID, pad_id=PAD_ID,
        )  # fmt: skip
    except RuntimeError as error:
        raise TokenizerError(f"{path}: training failed: {' '.join(str(error).split())}") from error
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(model.getvalue())
    return TextTokenizer(path)


def words_to_frames(
    words: Sequence[Word], num_frames: int, tokenizer: TextTokenizer, *, speaker: str = "main", keep_all: bool = True
) -> Tensor:
    """Words of one speaker -> [T] long, one text token per frame of 80 ms.

    A word's tokens start in the frame its sound starts in, one per frame; the frame before it, if it was PAD, becomes
    EPAD, and all else is PAD. Tokens that the next word would cut off push it back; with `keep_all` False they are
    dropped, as in moshi-finetune. Words that end before they start are left out, and what does not fit is cut.
    """
    frames = torch.full((num_frames,), PAD_ID, dtype=torch.long)
    for frame, token in _placed(words, tokenizer, speaker=speaker, keep_all=keep_all):
        if frame >= num_frames:
            break
        frames[frame] = token
    return frames


def _placed(
    words: Sequence[Word], tokenizer: TextTokenizer, *, speaker: str, keep_all: bool
) -> Iterator[tuple[int, int]]:
    """(frame, token) in order of time, EPADs included."""
    spoken = sorted(
        (word for word in words if word.speaker == speaker and word.start_sec < word.end_sec),
        key=lambda word: word.start_sec,
    )
    starts = [max(seconds_to_frames(word.start_sec), 0) for word in spoken]
    free = 0  # the first frame without a token
    for i, (word, start) in enumerate(zip(spoken, starts, strict=True)):
        tokens = tokenizer.encode(word.text)
        if not keep_all and i + 1 < len(starts):
            tokens = tokens[: starts[i + 1] - start]
        if not tokens:
            continue
        first = max(start, free)
        if first > free:
            yield first - 1, EPAD_ID
        for offset, token in enumerate(tokens):
            yield first + offset, token
        free = first + len(tokens)
