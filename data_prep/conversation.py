"""When people speak: a dialogue laid out in time, with gaps, overlaps, pauses, backchannels and interruptions."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from pydantic import Field

from data_prep.records import SaidRecord
from data_prep.track import Track
from data_prep.tts import Utterance
from data_prep.voices import Voices
from mmspeech.config import StrictModel
from mmspeech.frames import seconds_to_samples

BACKCHANNEL_AFTER_SEC = 0.15  # a phrase of the other's
LEAST_TALK_SEC = 0.4  # before somebody is interrupted
LEAST_GAP_SEC = 0.1  # between what one and the same side says


class Manners(StrictModel):
    """Times are in seconds, ranges (shortest, longest); shares are probabilities.

    From one turn's end to the next one's beginning: drawn from a normal distribution, cut off at `gap_limits_sec`;
    below 0 they overlap. People's gaps are about 0.2 s long on average, with a spread of about as much (Stivers et al.
    2009; Heldner and Edlund 2010).
    """

    start_sec: tuple[float, float] = (0.3, 1.5)
    end_sec: tuple[float, float] = (0.5, 1.2)
    gap_mean_sec: float = 0.25
    gap_spread_sec: float = Field(0.25, ge=0)
    gap_limits_sec: tuple[float, float] = (-0.6, 1.5)
    pause_share: float = Field(0.25, ge=0, le=1)  # at marks inside a turn
    pause_sec: tuple[float, float] = (0.15, 0.8)
    long_turn_sec: float = Field(3.0, gt=0)
    backchannel_share: float = Field(0.4, ge=0, le=1)  # of long turns
    barge_in_share: float = Field(0.15, ge=0, le=1)  # of the model's long turns that something follows
    barge_in_stop_sec: float = Field(0.3, gt=0)
    backchannels: dict[str, tuple[str, ...]] = {"en": ("mm hmm", "yeah", "right", "okay", "i see")}


@dataclass
class Conversation:
    """tracks: of "main" and "user". said: for each turn what, who, when, and whether it was
    interrupted. ends_sec: of what each side said last. end_sec: of the call."""

    tracks: dict[str, Track] = field(default_factory=lambda: {"main": Track(), "user": Track()})
    said: list[dict[str, Any]] = field(default_factory=list)
    ends_sec: dict[str, float] = field(default_factory=lambda: {"main": 0.0, "user": 0.0})
    end_sec: float = 0.0

    def keep(self, turn: SaidRecord, own: Utterance, start_sec: float, *, until_sec: float | None) -> None:
        """Lay a turn down, cut off at `until_sec` if that comes before its end."""
        end_sec = self.tracks[turn.speaker].add(own, start_sec, until_sec=until_sec)
        self.ends_sec[turn.speaker] = end_sec
        interrupted = until_sec is not None and until_sec < start_sec + own.duration_sec
        times = {"start_sec": round(start_sec, 3), "end_sec": round(end_sec, 3), "interrupted": interrupted}
        self.said.append({"speaker": turn.speaker, "text": turn.text} | times)


def lay_out(
    turns: tuple[SaidRecord, ...],
    voices: Voices,
    cast: dict[str, str],
    *,
    language: str,
    manners: Manners,
    rng: np.random.Generator,
) -> Conversation:
    """Speak the turns, each side in its voice of `cast`, one after the other as people do."""
    call = Conversation()
    spoken = [_with_pauses(voices, turn.text, cast[turn.speaker], language, manners, rng) for turn in turns]
    now_sec = max(rng.uniform(*manners.start_sec), turns[0].start_sec or 0.0)
    for number, (turn, own) in enumerate(zip(turns, spoken, strict=True)):
        next_sec, cut_sec = now_sec + own.duration_sec, None
        if number + 1 < len(turns):
            after = turns[number + 1]
            next_sec = max(_next_start(turn, after, own, now_sec, manners, rng), after.start_sec or 0.0)
            next_sec = max(next_sec, call.ends_sec[after.speaker] + LEAST_GAP_SEC)
            if next_sec < now_sec + own.duration_sec + manners.gap_limits_sec[0]:
                cut_sec = next_sec + manners.barge_in_stop_sec
        call.keep(turn, own, now_sec, until_sec=cut_sec)
        if own.duration_sec > manners.long_turn_sec and rng.random() < manners.backchannel_share:
            known = manners.backchannels.get(language, ())
            listener = "main" if turn.speaker == "user" else "user"
            if known:
                said = voices.say(known[rng.integers(len(known))], cast[listener], language)
                _backchannel(call, listener, said, own, now_sec, next_sec, rng)
        now_sec = next_sec
    call.end_sec = max(call.ends_sec.values()) + rng.uniform(*manners.end_sec)
    return call


def _next_start(
    last: SaidRecord, turn: SaidRecord, spoken: Utterance, start_sec: float, manners: Manners, rng
) -> float:
    """When the next turn begins: after a gap, a little too early, or in the middle of what the model says."""
    end_sec = start_sec + spoken.duration_sec
    if last.speaker == turn.speaker:
        return end_sec + rng.uniform(*manners.pause_sec)
    gap_sec = float(np.clip(rng.normal(manners.gap_mean_sec, manners.gap_spread_sec), *manners.gap_limits_sec))
    long = last.speaker == "main" and spoken.duration_sec > manners.long_turn_sec
    if long and rng.random() < manners.barge_in_share:
        latest_sec = end_sec + manners.gap_limits_sec[0] - manners.barge_in_stop_sec
        return rng.uniform(start_sec + LEAST_TALK_SEC, max(latest_sec, start_sec + LEAST_TALK_SEC))
    return max(end_sec + gap_sec, start_sec + LEAST_TALK_SEC)


def _with_pauses(voices: Voices, text: str, voice: str, language: str, manners: Manners, rng) -> Utterance:
    """A turn, with silences at some of its marks."""
    parts, held = [], []
    for word in text.split():
        held.append(word)
        if word[-1] in ",.;:!?" and rng.random() < manners.pause_share:
            parts.append(" ".join(held))
            held = []
    parts += [" ".join(held)] if held else []
    side, now_sec = Track(), 0.0
    for number, part in enumerate(_speakable(parts)):
        now_sec = side.add(
            voices.say(part, voice, language), now_sec + (rng.uniform(*manners.pause_sec) if number else 0)
        )
    return Utterance(side.wave(seconds_to_samples(now_sec)), side.words, side.phones)


def _speakable(parts: list[str]) -> list[str]:
    """Parts without a letter or digit go with the one before."""
    kept: list[str] = []
    for part in parts:
        if kept and not any(letter.isalnum() for letter in part):
            kept[-1] = f"{kept[-1]} {part}"
        else:
            kept.append(part)
    return kept


def _backchannel(
    call: Conversation, listener: str, said: Utterance, own: Utterance, start_sec: float, next_sec: float, rng
) -> None:
    """The listener says that they listen, after a word in the middle of a long turn; not just before they speak."""
    latest_sec = min(own.duration_sec, next_sec - start_sec) - said.duration_sec - BACKCHANNEL_AFTER_SEC - LEAST_GAP_SEC
    places = [end for _, _, end in own.words if max(1.0, call.ends_sec[listener] - start_sec) < end < latest_sec]
    if places:
        begin_sec = start_sec + places[rng.integers(len(places))] + BACKCHANNEL_AFTER_SEC
        call.ends_sec[listener] = call.tracks[listener].add(said, begin_sec)
