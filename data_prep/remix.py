"""`remix`: voiced questions asked again, under other pictures and clips and with the answers that are true of those.

A question goes with many answers and an answer with many scenes: "on the left is a red star". So sets of voiced calls
lend their questions (codes and words, cut in the silence around them) to new scenes, and the model's own voice speaks
the answers anew. The eyes learn from many more pictures than were spoken about, and no voice gives the answer away.
Clips begin such that what is said is true when it is said. Only turns of the rendered world can be lent: what they are
about is known from their words.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from data_prep.bank import Bank, Piece, Question
from data_prep.clips import COMMENTARY_APART_SEC
from data_prep.film import film
from data_prep.happenings import random_clip
from data_prep.motion import SEEN_FPS, Clip, seen_sec
from data_prep.motion_dialogue import TimedTurn, clip_turns, commentary, draw_turn
from data_prep.mouth import LEAD_SEC, TAIL_SEC, Mouth
from data_prep.render import render_png
from data_prep.scenes import item_rng
from data_prep.tts import require_synthesisers
from data_prep.world import random_scene
from data_prep.world_dialogue import LEARNT_KINDS, Turn, blind_turn, shown_turn, visual_turn
from data_prep.world_speak import COMMENT_WITHIN_SEC, FIRST_ROOM_SEC, LONG_ANSWER_SEC, Timing
from mmspeech.audio.codec import codec_hash
from mmspeech.checkpoint import load_codec
from mmspeech.config import StrictModel
from mmspeech.data.shards import ShardSetInfo, speaker_rows, write_shards
from mmspeech.frames import frames_to_seconds, seconds_to_frames
from mmspeech.types import Sample, Visual, Word

TRIES = 60  # turns that are thought up for a call; one that nobody asked for is passed over
CLIP_TRIES = 8  # clips that are thought up for a call
CLIP_TURN_TRIES = 30  # turns about each: enough to find most kinds, so that their weights decide
EARLY_SHARE = 0.5  # of the calls about clips: the call begins after its clip, as when training takes a part of a call


class RemixSettings(StrictModel):
    """What decides on the calls of a remix.

    `num_turns`: of a call about a still picture or about none, at most. `clips`, `swaps` and `blind` are shares of all
    calls (a swap: one turn each about two pictures; blind: nothing is shown), `commentary` of those about clips,
    `hurried` of the other clips (see happenings.HURRIED_APART_SEC), `barge_ins` of the answers that another question
    follows and that are long enough to be interrupted.
    """

    seed: int = Field(0, ge=0)
    split: str = "train"
    size_px: int = 96
    num_turns: int = Field(3, ge=1)
    clips: float = Field(0.0, ge=0, le=1)
    swaps: float = Field(0.0, ge=0, le=1)
    blind: float = Field(0.0, ge=0, le=1)
    commentary: float = Field(0.2, ge=0, le=1)
    hurried: float = Field(0.3, ge=0, le=1)
    barge_ins: float = Field(0.0, ge=0, le=1)

    @model_validator(mode="after")
    def _shares_fit(self):
        if self.clips + self.swaps + self.blind > 1:
            shares = f"clips {self.clips}, swaps {self.swaps} and blind calls {self.blind}"
            raise ValueError(f"the shares of {shares} are more than 1 together")
        return self


@dataclass
class Draft:
    """A call while it is put together: lines of codes with the frame each begins in, and its first row."""

    bank: Bank
    mouth: Mouth
    visuals: list[Visual] = field(default_factory=list)
    words: list[Word] = field(default_factory=list)
    end_frame: int = 0
    _lines: list[tuple[int, int, Tensor]] = field(default_factory=list)
    _quiet: list[tuple[int, Tensor]] = field(default_factory=list)

    def ask(self, piece: Piece) -> None:
        """The question, after all that was said."""
        self.ask_heard(self.bank.hear(piece))

    def ask_heard(self, heard: Question, *, wait_frames: int = 0) -> None:
        """The question as it sounds, so many frames after all that was said."""
        self._quiet.append((self.end_frame, heard.quiet))
        self._add(heard.codes, heard.words, self.end_frame + wait_frames)

    def say(self, text: str, *, at: int | None = None) -> None:
        """A sentence of the model with the silence around it, in place of what silence there is; None: at the end."""
        codes, words = self.mouth.say(text)
        self._add(codes, words, self.end_frame if at is None else at)

    def can_be_interrupted(self, text: str) -> bool:
        """Whether a sentence is long enough."""
        return self.mouth.can_say(text) and self.mouth.say(text)[1][-1].end_sec > LEAD_SEC + LONG_ANSWER_SEC

    def say_until_asked(self, text: str, piece: Piece, rng: np.random.Generator) -> None:
        """A sentence of the model that breaks off soon after the user begins to ask the next question."""
        heard, begin = self.bank.hear(piece), self.end_frame
        asked_sec = rng.uniform(LEAD_SEC + 0.5, self.mouth.say(text)[1][-1].end_sec - 0.4)
        codes, words = self.mouth.break_off(text, until_sec=asked_sec + Timing().barge_in_stop_sec)
        self._add(codes, words, begin)
        lead = seconds_to_frames(heard.words[0].start_sec)
        late = seconds_to_frames(asked_sec) - lead  # where the question's own silence begins, after the answer's begin
        early = max(0, -late)
        spoken = [word.later(-frames_to_seconds(early)) for word in heard.words]
        _, user = speaker_rows(heard.codes[:, early:])
        self._quiet.append((begin + late + early, heard.quiet))
        self._add(user, spoken, begin + late + early, first_row=len(user))

    def _add(self, codes: Tensor, words: Iterable[Word], at: int, *, first_row: int = 0) -> None:
        self._lines.append((at, first_row, codes))
        self.words += [word.later(frames_to_seconds(at)) for word in words]
        self.end_frame = max(self.end_frame, at + codes.shape[1])

    def codes(self) -> Tensor:
        """[2K, T]: the lines, one over the other; where the user says nothing, the silence after the last question, and
        before the first the one after that."""
        num_rows = self.bank.codec.num_codebooks
        silence = torch.tensor(self.bank.codec.silence_codes * 2, dtype=torch.int16)[:, None]
        codes = silence.repeat(1, self.end_frame)
        for at, quiet in self._quiet:
            room = self.end_frame - at
            codes[num_rows:, at:] = quiet.repeat(1, -(-room // quiet.shape[1]))[:, :room]
        for at, row, line in self._lines:
            codes[row : row + line.shape[0], at : at + line.shape[1]] = line
        return codes


def make_remix(
    out: Path, settings: RemixSettings, *, like: Sequence[Path], codec_dir: Path, count: int
) -> ShardSetInfo:
    """Write a set of `count` calls of turns asked in the sets `like`, each about scenes or a clip of its own.

    A call for which nobody asked is left out. Raises ConfigError for sets without turns, or made with another codec
    than that in `codec_dir`.
    """
    from rich.progress import track

    require_synthesisers()
    codec = load_codec(codec_dir)
    bank, mouth = Bank(like, codec_hash=codec_hash(codec)), Mouth(codec)
    samples = _samples(bank, mouth, track(range(count), description="remix"), settings)
    return write_shards(out, samples, codec=bank.codec)


def _samples(bank: Bank, mouth: Mouth, numbers: Iterable[int], settings: RemixSettings) -> Iterator[Sample]:
    for number in numbers:
        rng = item_rng(settings.seed, settings.split, number, "remix")
        kind, make = _maker(settings, number)
        if (draft := make(bank, mouth, rng, settings)) is not None:
            meta = {"kind": kind, "split": settings.split}
            yield Sample(f"{number:06d}", draft.codes(), draft.words, draft.visuals, meta)


Maker = Callable[[Bank, Mouth, np.random.Generator, RemixSettings], Draft | None]


def _maker(settings: RemixSettings, number: int) -> tuple[str, Maker]:
    drawn = item_rng(settings.seed, settings.split, number, "remix kind").random()
    for kind, share, make in (
        ("clip", settings.clips, _of_clip),
        ("swap", settings.swaps, _of_swap),
        ("blind", settings.blind, _of_nothing),
    ):
        if drawn < share:
            return kind, make
        drawn -= share
    return "visual", _of_scene


def _of_scene(bank: Bank, mouth: Mouth, rng: np.random.Generator, settings: RemixSettings) -> Draft | None:
    scene, draft = random_scene(rng, split=settings.split), Draft(bank, mouth)
    draft.visuals.append(Visual(render_png(scene, size_px=settings.size_px)))
    return _converse(draft, lambda: shown_turn(scene, rng, kinds=LEARNT_KINDS), rng, settings)


def _of_nothing(bank: Bank, mouth: Mouth, rng: np.random.Generator, settings: RemixSettings) -> Draft | None:
    scene = random_scene(rng, split=settings.split)
    return _converse(Draft(bank, mouth), lambda: blind_turn(scene, rng), rng, settings)


def _converse(draft: Draft, think: Callable[[], Turn], rng, settings: RemixSettings) -> Draft | None:
    num_turns = 1 + int(rng.integers(settings.num_turns))
    turns = _asked_turns(draft.bank, draft.mouth, think, rng, num_turns)
    asked = False  # in the middle of the answer before
    for number, (piece, answer) in enumerate(turns, start=1):
        if not asked:
            draft.ask(piece)
        asked = number < len(turns) and draft.can_be_interrupted(answer) and rng.random() < settings.barge_ins
        if asked:
            draft.say_until_asked(answer, turns[number][0], rng)
        else:
            draft.say(answer)
    return draft if draft.words else None


def _of_swap(bank: Bank, mouth: Mouth, rng: np.random.Generator, settings: RemixSettings) -> Draft | None:
    """The second picture comes when the first answer and the silence after it are over, or a little later."""
    draft = Draft(bank, mouth)
    for late_sec in (0.0, rng.uniform(0.0, 0.4)):
        scene = random_scene(rng, split=settings.split)
        start_sec = round(frames_to_seconds(draft.end_frame) + late_sec, 3)
        draft.visuals.append(Visual(render_png(scene, size_px=settings.size_px), start_sec))
        turns = _asked_turns(bank, mouth, partial(visual_turn, scene, rng, kinds=LEARNT_KINDS), rng, 1)
        if not turns:
            return None
        piece, answer = turns[0]
        draft.ask(piece)
        draft.say(answer)
    return draft


def _of_clip(bank: Bank, mouth: Mouth, rng: np.random.Generator, settings: RemixSettings) -> Draft | None:
    """One turn, or one request to tell and what is told."""
    telling = rng.random() < settings.commentary
    for _ in range(CLIP_TRIES):
        draft = Draft(bank, mouth)
        if telling:
            clip = random_clip(rng, split=settings.split, apart_sec=COMMENTARY_APART_SEC)
            start_sec = _tell(draft, commentary(clip, rng), rng)
        else:
            clip = random_clip(rng, split=settings.split, hurried=rng.random() < settings.hurried)
            start_sec = _ask_about(draft, clip, rng)
        if start_sec is not None:
            draft.visuals.append(Visual(film(clip, size_px=settings.size_px), start_sec, "clip", SEEN_FPS))
            return draft
    return None


def _asked_turns(
    bank: Bank, mouth: Mouth, think: Callable[[], Turn], rng: np.random.Generator, num_turns: int
) -> list[tuple[Piece, str]]:
    """Questions of what `think` comes up with, and their answers; no answer twice."""
    found: dict[str, Piece] = {}
    for _ in range(TRIES):
        thought = think()
        asked = bank.find(thought, rng)
        answer = asked.answer if asked is not None and thought.kind == "repeat" else thought.answer
        if asked is not None and mouth.can_say(answer):
            found.setdefault(answer, asked)
        if len(found) == num_turns:
            break
    return [(piece, answer) for answer, piece in found.items()]


def _ask_about(draft: Draft, clip: Clip, rng: np.random.Generator) -> float | None:
    """A question about the clip with its answer; returns when the clip begins, None when nobody asked any."""
    found: dict[TimedTurn, Piece] = {}
    for timed in clip_turns(clip, rng, tries=CLIP_TURN_TRIES):
        asked = draft.bank.find(timed.turn, rng)
        if asked is not None and draft.mouth.can_say(timed.turn.answer):
            found[timed] = asked
    if not found:
        return None
    timed = draw_turn(list(found), rng)
    return _place(draft, found[timed], timed, rng, early=rng.random() < EARLY_SHARE)


def _place(draft: Draft, asked: Piece, timed: TimedTurn, rng: np.random.Generator, *, early: bool) -> float:
    """The turn such that its question ends when it is true; not `early`: after silence while the clip begins. Returns
    when the clip begins."""
    true_sec = timed.true_sec(rng, room_sec=FIRST_ROOM_SEC)
    heard = draft.bank.hear(asked)
    asked_sec = heard.words[-1].end_sec
    wait_frames = 0 if early else seconds_to_frames(max(0.0, true_sec - asked_sec), round_up=True)
    draft.ask_heard(heard, wait_frames=wait_frames)
    draft.say(timed.turn.answer)
    return round(frames_to_seconds(wait_frames) + asked_sec - true_sec, 3)


def _tell(draft: Draft, timed: TimedTurn, rng: np.random.Generator) -> float | None:
    """The request, and each comment soon after its event; None when one would come too late, or nobody asked."""
    asked = draft.bank.find(timed.turn, rng)
    texts = [timed.turn.answer, *(comment.text for comment in timed.comments)]
    if asked is None or not all(map(draft.mouth.can_say, texts)):
        return None
    start_sec = _place(draft, asked, timed, rng, early=False)
    for comment in timed.comments:
        react_sec = start_sec + seen_sec(comment.event_sec) + rng.uniform(*Timing().reaction_sec)
        free_frame = draft.end_frame - seconds_to_frames(TAIL_SEC)
        at = max(free_frame, seconds_to_frames(react_sec - LEAD_SEC, round_up=True))
        if frames_to_seconds(at) + LEAD_SEC > start_sec + comment.event_sec + COMMENT_WITHIN_SEC:
            return None
        draft.say(comment.text, at=at)
    return start_sec
