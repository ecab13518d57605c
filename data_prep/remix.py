"""`remix`: voiced questions asked again, under other pictures and with the answers that are true of those.

A question goes with many answers and an answer with many scenes: "on the left is a red star". So a set of voiced calls
lends its questions (codes and words, cut in the silence around them) to new scenes, and the model's own voice speaks
the answers anew. The eyes learn from many more pictures than were spoken about, and no voice gives the answer away.
Only turns of the rendered world can be lent: what they are about is known from their words.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from data_prep.dialogue import SIDES, Turn, plural, visual_turn
from data_prep.render import render_png
from data_prep.scenes import item_rng
from data_prep.tts import MODEL_VOICE, require_synthesisers, synthesise
from data_prep.world import COLOURS, SHAPES, Scene, random_scene
from mmspeech.audio.codec import Codec
from mmspeech.checkpoint import codec_hash, load_codec
from mmspeech.config import ConfigError
from mmspeech.data.shards import ShardSet, ShardSetInfo, speaker_rows, write_shards
from mmspeech.frames import frames_to_seconds, seconds_to_frames
from mmspeech.types import Sample, Visual, Word

BEFORE_SEC = 1.2  # the longest silence taken along before a question
LEAD_SEC, TAIL_SEC = 0.2, 0.6  # silence around an answer
# Silence that the codec hears before an answer and that is cut off again: its first frames after a start are unlike
# those of a silence that lasts, and would tell the model that an answer comes.
SETTLE_FRAMES = 25
TRIES = 60  # turns that are thought up for a call; one that nobody asked for is passed over
ANSWERS = 1600  # distinct answers that are spoken: descriptions are endless, and each takes half a second
TOPICS = frozenset((*SHAPES, *(plural(shape) for shape in SHAPES), *COLOURS, *SIDES))


@dataclass(frozen=True)
class Piece:
    """Frames `first` to `end` (excluded) of a voiced call: a question, with half of the gap after it. Up to `quiet_end`
    the user says nothing."""

    call: int
    first: int
    end: int
    quiet_end: int


class Bank:
    """The questions that were voiced in a shard set, by what they ask."""

    def __init__(self, voiced: ShardSet):
        from rich.progress import track

        self.voiced = voiced
        self._questions: dict[tuple, list[Piece]] = defaultdict(list)
        for call in track(range(len(voiced)), description="listen"):
            for record, question in _turns_of(voiced[call], call):
                self._questions[_topic(record["kind"], record["question"])].append(question)
        if not self._questions:
            raise ConfigError(f"{voiced.path}: no turns in its calls; expected a set packed from `data_prep speak`")

    def find(self, turn: Turn, rng: np.random.Generator) -> Piece | None:
        """A question that asks the same, by any voice in any words; None where nobody asked it."""
        questions = self._questions.get(_topic(turn.kind, turn.question))
        return None if not questions else questions[int(rng.integers(len(questions)))]

    def sound(self, piece: Piece) -> tuple[Tensor, list[Word], Tensor]:
        """Codes [2K, T] of the question, its words in seconds from its first frame, and the user's codes [K, Q] of the
        silence after it."""
        sample = self.voiced[piece.call]
        first_sec, end_sec = frames_to_seconds(piece.first), frames_to_seconds(piece.end)
        words = [word for word in sample.words if first_sec <= word.start_sec < end_sec]
        _, user = speaker_rows(sample.codes[:, piece.end : piece.quiet_end])
        return sample.codes[:, piece.first : piece.end], [_later(word, -first_sec) for word in words], user


class Mouth:
    """Speaks answers in the model's voice: the first `limit` distinct ones it is asked for."""

    def __init__(self, codec: Codec, *, limit: int = ANSWERS):
        self.codec, self.limit = codec, limit
        self._said: dict[str, tuple[Tensor, list[Word]]] = {}

    def say(self, text: str) -> tuple[Tensor, list[Word]] | None:
        """Codes [K, T] and words in seconds from the first frame; None beyond the limit."""
        if text not in self._said and len(self._said) < self.limit:
            self._said[text] = self._speak(text)
        return self._said.get(text)

    def _speak(self, text: str) -> tuple[Tensor, list[Word]]:
        said = synthesise(text, MODEL_VOICE)
        num_frames = seconds_to_frames(LEAD_SEC + said.duration_sec + TAIL_SEC, round_up=True)
        wave = torch.zeros((SETTLE_FRAMES + num_frames) * self.codec.frame_samples)
        start = SETTLE_FRAMES * self.codec.frame_samples + int(LEAD_SEC * self.codec.sample_rate_hz)
        wave[start : start + len(said.wave)] = torch.from_numpy(said.wave)
        words = [Word(word, LEAD_SEC + first_sec, LEAD_SEC + end_sec) for word, first_sec, end_sec in said.words]
        return self.codec.encode(wave[None, None])[0, :, SETTLE_FRAMES:].to(torch.int16), words


def make_remix(
    out: Path,
    *,
    like: Path,
    codec_dir: Path,
    count: int,
    seed: int,
    split: str = "train",
    size_px: int = 96,
    num_turns: int = 3,
) -> ShardSetInfo:
    """Write a set of `count` calls of up to `num_turns` turns asked in the set `like`, each about a scene of its own.

    Raises ConfigError for a set without turns, or made with another codec than that in `codec_dir`.
    """
    from rich.progress import track

    require_synthesisers()
    codec = load_codec(codec_dir)
    bank, mouth = Bank(ShardSet(like, codec_hash=codec_hash(codec))), Mouth(codec)
    samples = _samples(bank, mouth, track(range(count), description="remix"), seed, split, size_px, num_turns)
    return write_shards(out, samples, codec=bank.voiced.info.codec)


def _samples(
    bank: Bank, mouth: Mouth, numbers: Iterable[int], seed: int, split: str, size_px: int, num_turns: int
) -> Iterator[Sample]:
    for number in numbers:
        rng = item_rng(seed, split, number, "remix")
        scene = random_scene(rng, split=split)
        if turns := _true_turns(bank, mouth, scene, rng, num_turns):
            picture = Visual(render_png(scene, size_px=size_px))
            yield _join(bank, mouth, turns, f"{number:06d}", picture, split)


def _true_turns(
    bank: Bank, mouth: Mouth, scene: Scene, rng: np.random.Generator, num_turns: int
) -> list[tuple[Piece, str]]:
    """Questions with the answers that are true of the scene; no answer twice."""
    found: dict[str, Piece] = {}
    for _ in range(TRIES):
        thought = visual_turn(scene, rng)
        asked = bank.find(thought, rng)
        if asked is not None and mouth.say(thought.answer) is not None:
            found.setdefault(thought.answer, asked)
        if len(found) == num_turns:
            break
    return [(piece, answer) for answer, piece in found.items()]


def _join(bank: Bank, mouth: Mouth, turns: list[tuple[Piece, str]], name: str, picture: Visual, split: str) -> Sample:
    codes, words, now_frames = [], [], 0
    for piece, answer in turns:
        asked, asked_words, quiet = bank.sound(piece)
        said, said_words = mouth.say(answer)
        heard = quiet.repeat(1, -(-said.shape[1] // quiet.shape[1]))[:, : said.shape[1]]
        for sound, spoken in ((asked, asked_words), (torch.cat([said, heard]), said_words)):
            codes.append(sound)
            words += [_later(word, frames_to_seconds(now_frames)) for word in spoken]
            now_frames += sound.shape[1]
    return Sample(name, torch.cat(codes, dim=1), words, [picture], {"kind": "visual", "split": split})


def _topic(kind: str, question: str) -> tuple:
    """What a question asks, whatever its words."""
    return (kind, *sorted(word for word in question.split() if word in TOPICS))


def _turns_of(sample: Sample, call: int) -> Iterator[tuple[dict, Piece]]:
    """Record and question of the turns that stand alone: nobody else's words in them, no interruption."""
    records = sample.meta.get("turns", [])
    ends_sec = [0.0, *(turn["answer_end_sec"] for turn in records)]
    starts_sec = [*(turn["question_start_sec"] for turn in records[1:]), frames_to_seconds(sample.codes.shape[1])]
    for record, before_sec, after_sec in zip(records, ends_sec, starts_sec, strict=False):
        begins_sec, answered_sec = record["question_start_sec"], record["answer_end_sec"]
        if record["interrupted"] or begins_sec <= before_sec or answered_sec >= after_sec:
            continue
        first = seconds_to_frames(max(before_sec, begins_sec - BEFORE_SEC), round_up=True)
        middle = seconds_to_frames((record["question_end_sec"] + record["answer_start_sec"]) / 2)
        yield record, Piece(call, first, middle, max(middle + 1, seconds_to_frames(after_sec)))


def _later(word: Word, by_sec: float) -> Word:
    return replace(word, start_sec=word.start_sec + by_sec, end_sec=word.end_sec + by_sec)
