"""What is to be said, word by word, for a model that asks for the next word when it is ready to begin it.

Source: Kyutai's delayed-streams modelling, "Streaming Sequence-to-Sequence Learning with Delayed Streams Modeling"
(arXiv 2509.08753).
"""

import re
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from mmspeech.config import ConfigError
from mmspeech.frames import FRAME_RATE_HZ
from mmspeech.tokens.text import BOS_ID, EOS_ID, EPAD_ID, PAD_ID, TextTokenizer

TURN_IDS = (BOS_ID, EOS_ID)  # before the first word of a turn: of the first speaker, of the other
NEW_WORD_ID = EPAD_ID
NOTHING = -1
_BREAK = re.compile(r'<break\s+time="(\d+(?:\.\d*)?)s"\s*/?>')
_LEFT_OUT = str.maketrans({"\u2019": "'", ":": " ", "(": None, ")": None})


@dataclass(frozen=True)
class ScriptWord:
    """A word's tokens, or none for a pause; no other word begins before `pause_frames` have passed behind it."""

    text: str
    tokens: tuple[int, ...]
    pause_frames: int = 0


def parse_script(
    turns: Sequence[str], tokenizer: TextTokenizer, *, mark_turns: bool, gap_frames: int = 1
) -> list[ScriptWord]:
    """Turns, of two speakers by turns -> words. `<break time="1.5s"/>` is a pause of about that length.

    mark_turns: for models that know two speakers. gap_frames: how much longer than its tokens each word lasts at least.
    Raises ConfigError when there is nothing to say.
    """
    words: list[ScriptWord] = []
    last_speaker = None
    for number, turn in enumerate(turns):
        speaker = number % len(TURN_IDS)
        for text, pause_sec in _pieces(turn.translate(_LEFT_OUT)):
            if not text:
                words.append(ScriptWord("", (), round(pause_sec * FRAME_RATE_HZ)))
                continue
            tokens = tuple(tokenizer.encode(text))
            if not tokens:  # nothing that the alphabet has
                continue
            if mark_turns and speaker != last_speaker:
                tokens, last_speaker = (TURN_IDS[speaker], *tokens), speaker
            words.append(ScriptWord(text, tokens, gap_frames + len(tokens) - 1 if gap_frames else 0))
    if not any(word.tokens for word in words):
        raise ConfigError("nothing to say: expected words that the tokenizer has letters for")
    return words


def _pieces(turn: str) -> list[tuple[str, float]]:
    """Words with 0, and pauses as no word with their seconds, in order."""
    pieces: list[tuple[str, float]] = []
    for number, part in enumerate(_BREAK.split(turn)):
        if number % 2:
            pieces.append(("", float(part)))
        else:
            pieces += [(word, 0.0) for word in part.split()]
    return pieces


@dataclass
class ScriptReader:
    """Decides the text token of each frame from what the model wishes: the next word to begin, or to wait.

    card: of the text embedding, with its initial row. lookahead_words: how far ahead the second text stream is, 0
    for models that have none; both streams go into one id, `(second + 1) * card + first`. max_pause_frames: after so
    many frames without a word the next one begins unasked. end_frame: where the model asked for a word after the last.
    begun: each word with the frame it began in.
    """

    words: Sequence[ScriptWord]
    card: int
    lookahead_words: int = 0
    max_pause_frames: int = 8
    initial_pause_frames: int = 2
    end_frame: int | None = None
    begun: list[tuple[str, int]] = field(default_factory=list)

    def __post_init__(self):
        self._waiting = deque(self.words)
        self._tokens: deque[int] = deque()
        self._ahead: deque[int] = deque()
        self._may_pause = self._must_pause = self.initial_pause_frames

    def next_id(self, wish: int, frame: int) -> int:
        """The id of a frame, given what the model would have it be: NEW_WORD_ID, or anything else to wait."""
        begins = self._begin(frame) if self._is_due(wish) else False
        if not begins:
            self._may_pause, self._must_pause = max(self._may_pause - 1, 0), max(self._must_pause - 1, 0)
        if not self.lookahead_words:
            return NEW_WORD_ID if begins else self._next(self._tokens, PAD_ID)
        # The mark of a new word goes into the second stream, so that the word itself begins a frame earlier.
        first = self._next(self._tokens, PAD_ID)
        second = NEW_WORD_ID if begins else self._next(self._ahead, NOTHING)
        return (second + 1) * self.card + first

    def _is_due(self, wish: int) -> bool:
        if self._tokens or self._must_pause:
            return False
        return wish == NEW_WORD_ID or not self._may_pause

    def _begin(self, frame: int) -> bool:
        """Take the next word; whether this frame is marked as its beginning. The end is marked once, where the model
        was trained to see it."""
        if not self._waiting:
            if self.end_frame is not None:
                return False
            self.end_frame = frame
            return self.lookahead_words > 0
        word = self._waiting.popleft()
        self._must_pause = word.pause_frames
        if not word.tokens:
            return False
        self.begun.append((word.text, frame))
        self._tokens.extend(word.tokens)
        coming = [later.tokens for later in self._waiting if later.tokens]
        if 0 < self.lookahead_words <= len(coming):
            self._ahead.extend(coming[self.lookahead_words - 1])
        self._may_pause = self.max_pause_frames
        return True

    @staticmethod
    def _next(tokens: deque[int], otherwise: int) -> int:
        return tokens.popleft() if tokens else otherwise
