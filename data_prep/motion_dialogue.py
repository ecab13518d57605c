"""What is asked and said about clips, with the true answers and the times at which they are true.

As in data_prep/dialogue.py an answer says again what was asked before it tells what is seen: its first words tell
what kind of thing comes.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from data_prep import motion_forms
from data_prep.motion import Appear, Blink, Clip, Cross, Event, Grow, Move, Recolour, Shrink, Vanish, seen_sec
from data_prep.motion_forms import (
    APPEARED,
    COLOUR_BEFORE,
    COMMENTARY,
    DID_MOVE,
    GREW,
    HAPPENED,
    HOW_OFTEN,
    IS_MOVING,
    NOW_AFTER,
    NOW_BEFORE,
    VANISHED,
    WHAT_MOVED,
    WHERE_FIRST,
    WHICH_WAY,
    WHICH_WAY_NOW,
)
from data_prep.world import SceneObject
from data_prep.world_dialogue import NUMBERS, PLACE_NAMES, Turn, articles, form_turn, pick, visual_turn

JUST_SEC = 3.0  # how long after an event one may ask what just happened
LATEST_SEC = 2.0  # after the clip's end a question is over
ANSWERING_SEC = 0.4  # what is asked about stays as it is until the answer begins
BRIEFLY_SEC = 1.6  # shorter than an answer takes: what is seen while it is said is not what was asked about any more
ASKED_BEFORE_SEC = 1.4  # the least time from the end of a request for commentary to the first event's end

AGREED = "okay"


@dataclass(frozen=True)
class Comment:
    """What the model says of its own accord about an event: `event_sec` is when that is over, in seconds of the
    clip; any of `answers` is a right way to say it."""

    text: str
    answers: tuple[str, ...]
    event_sec: float


@dataclass(frozen=True)
class TimedTurn:
    """A turn that is true when its question ends between two times, in seconds of the clip. `comments` follow it."""

    turn: Turn
    earliest_sec: float
    latest_sec: float = math.inf
    comments: tuple[Comment, ...] = ()

    def true_sec(self, rng: np.random.Generator, *, room_sec: float) -> float:
        """A time for the question to end, `room_sec` after the earliest at most."""
        return self.earliest_sec + rng.uniform(0.0, min(room_sec, self.latest_sec - self.earliest_sec))

    def record(self, sight: int) -> dict:
        """As scenes.TurnRecord; `sight`: which of the things shown in its call it is about."""
        latest_sec = None if math.isinf(self.latest_sec) else round(self.latest_sec, 3)
        record = self.turn.record() | {"sight": sight, "when": [round(self.earliest_sec, 3), latest_sec]}
        return record | ({"comments": [asdict(comment) for comment in self.comments]} if self.comments else {})


def names_of(clip: Clip) -> list[list[str]]:
    """For each object what it can be called at any time of the clip without doubt."""
    looks = [{rest[k].name for rest in clip.rests if k < len(rest) and rest[k]} for k in range(clip.num_objects)]
    shapes = Counter(next(iter(look)).split()[1] for look in looks)
    named = Counter(name for look in looks for name in look)
    found = []
    for look in looks:
        (shape,) = {name.split()[1] for name in look}
        names = [shape] if shapes[shape] == 1 else []
        found.append(names + [name for name in look if len(look) == 1 and named[name] == 1])
    return found


def sentence(event: Event, before: tuple[SceneObject | None, ...]) -> tuple[str, tuple[str, ...]]:
    """What is said of an event, and what a right reply holds; `before`: the objects, by number, before it."""
    if isinstance(event, Appear):
        return articles(f"a {event.thing.name} appears"), (f"{event.thing.name} appears",)
    if isinstance(event, Cross):
        one, two = sorted((before[index] for index in event.objects), key=lambda item: getattr(item, event.axis))
        orders = [(one.name, two.name), (two.name, one.name)]
        answers = tuple(f"the {a} and the {b} pass" for a, b in orders)
        return answers[0], answers
    name = before[event.object].name
    said = f"{name} {_happens(event)}"
    return f"the {said}", (said,)


def _happens(event: Event) -> str:
    match event:
        case Move():
            return f"moves {event.way}"
        case Recolour():
            return f"turns {event.colour}"
        case Blink():
            return f"blinks {_times(event.times)}"
        case Vanish():
            return "vanishes"
        case Grow():
            return "grows"
        case Shrink():
            return "shrinks"


def _times(count: int) -> str:
    return f"{NUMBERS[count]} {'time' if count == 1 else 'times'}"


def _of_kind(clip: Clip, *kinds: type) -> list[tuple[int, Event]]:
    return [(number, event) for number, event in enumerate(clip.events) if isinstance(event, kinds)]


def _moves(clip: Clip) -> list[tuple[int, str, Event]]:
    """Everything that moves: object, way and event."""
    found = []
    for number, event in _of_kind(clip, Move, Cross):
        ways = (event.way,) if isinstance(event, Move) else event.ways(clip.rests[number])
        found += [(index, way, event) for index, way in zip(event.touched, ways, strict=True)]
    return found


def _only(clip: Clip, rng, kinds: tuple[type, ...], *, bare: bool = True) -> tuple[int, Event, str] | None:
    """An event of these kinds, the only one of its object, with a name for that object: "it" when there is no other
    such event in the clip."""
    found = _of_kind(clip, *kinds)
    counts, names = Counter(event.object for _, event in found), names_of(clip)
    choices = [(number, event, f"the {name}") for number, event in found for name in names[event.object]]
    choices = [choice for choice in choices if counts[choice[1].object] == 1]
    if bare and len(found) == 1:
        choices.append((*found[0], "it"))
    return pick(rng, choices) if choices else None


def _before_next(clip: Clip, number: int) -> float:
    """Until when what an event has made stays as it is."""
    return clip.events[number + 1].start_sec - ANSWERING_SEC if number + 1 < len(clip.events) else math.inf


def _which_way(clip: Clip, rng) -> TimedTurn | None:
    moves, names = _moves(clip), names_of(clip)
    counts = Counter(index for index, _, _ in moves)
    choices = [(move, f"the {name}") for move in moves if counts[move[0]] == 1 for name in names[move[0]]]
    if len(moves) == 1:
        choices.append((moves[0], "it"))
    if not choices:
        return None
    (_, way, event), name = pick(rng, choices)
    half_sec = seen_sec((event.start_sec + event.over_sec) / 2)
    turn = form_turn(rng, "which_way", WHICH_WAY, f"{name} moves {way}", (f"moves {way}",), name=name)
    if rng.random() < 0.5 and half_sec < event.over_sec + 1.0:
        turn = form_turn(rng, "which_way", WHICH_WAY_NOW, f"{name} moves {way}", (f"moves {way}",), name=name)
        return TimedTurn(turn, half_sec, event.over_sec + 1.0)
    return TimedTurn(turn, seen_sec(event.over_sec))


def _did_move(clip: Clip, rng) -> TimedTurn | None:
    """Yes and no come equally often; no: never, not yet, or (is it moving) not any more."""
    names, now, yes = names_of(clip), rng.random() < 0.5, rng.random() < 0.7
    asked = [index for index in range(len(clip.start.objects)) if names[index]]
    if yes:
        asked = [index for index, _, _ in _moves(clip) if index in asked]
    if not asked:
        return None
    index = pick(rng, asked)
    own = [event for moved, _, event in _moves(clip) if moved == index]
    gone = [event.start_sec for _, event in _of_kind(clip, Vanish) if event.object == index]
    last_sec = gone[0] if gone else math.inf
    if yes:
        half_sec, over_sec = seen_sec((own[0].start_sec + own[0].over_sec) / 2), own[0].over_sec
        when = (half_sec, over_sec) if now else (seen_sec(over_sec), math.inf)
    elif not own:
        when = (1.0, last_sec)
    elif now and rng.random() < 0.6:
        when = (seen_sec(own[-1].over_sec) + 1.0, last_sec)
    else:
        when = (1.0, own[0].start_sec - ANSWERING_SEC)
    if when[0] > when[1]:
        return None
    forms, name = IS_MOVING if now else DID_MOVE, f"the {pick(rng, names[index])}"
    said = "yes" if yes else "no"
    told = ("it moves" if yes else "it does not") if now else ("it moved" if yes else "it did not")
    answer = f"{'now ' if now else ''}{name} {said} {told}"
    return TimedTurn(form_turn(rng, "did_move", forms, answer, (said,), name=name), *when)


def _what_moved(clip: Clip, rng) -> TimedTurn | None:
    moves = _of_kind(clip, Move, Cross)
    if len(moves) != 1 or isinstance(moves[0][1], Cross):
        return None
    number, event = moves[0]
    name = clip.rests[number][event.object].name
    turn = form_turn(rng, "what_moved", WHAT_MOVED, f"what moved is the {name}", (name,))
    return TimedTurn(turn, seen_sec(event.over_sec))


def _appeared(clip: Clip, rng) -> TimedTurn | None:
    if len(found := _of_kind(clip, Appear)) != 1:
        return None
    event = found[0][1]
    name = event.thing.name
    turn = form_turn(rng, "appeared", APPEARED, articles(f"what appeared is a {name}"), (name,))
    return TimedTurn(turn, seen_sec(event.over_sec), event.over_sec + JUST_SEC)


def _vanished(clip: Clip, rng) -> TimedTurn | None:
    if len(found := _of_kind(clip, Vanish)) != 1:
        return None
    number, event = found[0]
    name = clip.rests[number][event.object].name
    turn = form_turn(rng, "vanished", VANISHED, f"what vanished is the {name}", (name,))
    return TimedTurn(turn, seen_sec(event.over_sec), event.over_sec + JUST_SEC)


def _colour_before(clip: Clip, rng) -> TimedTurn | None:
    if (found := _only(clip, rng, (Recolour,))) is None:
        return None
    number, event, name = found
    colour = clip.rests[number][event.object].colour
    turn = form_turn(rng, "colour_before", COLOUR_BEFORE, f"{name} was {colour}", (f"was {colour}",), name=name)
    return TimedTurn(turn, seen_sec(event.over_sec))


def _how_often(clip: Clip, rng) -> TimedTurn | None:
    names = names_of(clip)
    still = [index for index in range(len(clip.start.objects)) if names[index]]
    still = [index for index in still if all(event.object != index for _, event in _of_kind(clip, Blink))]
    if still and rng.random() < 0.06:
        name, count, earliest_sec = f"the {pick(rng, names[pick(rng, still)])}", 0, 2.0
    elif (found := _only(clip, rng, (Blink,))) is None:
        return None
    else:
        _, event, name = found
        count, earliest_sec = event.times, seen_sec(event.over_sec)
    said = _times(count)
    return TimedTurn(form_turn(rng, "how_often", HOW_OFTEN, f"{name} blinks {said}", (said,), name=name), earliest_sec)


def _where_first(clip: Clip, rng) -> TimedTurn | None:
    """Of an object that was there at the start and has moved."""
    names = names_of(clip)
    moved = [(k, event) for k, _, event in _moves(clip) if k < len(clip.start.objects) and names[k]]
    if not moved or len(moved) != len({k for k, _ in moved}):
        return None
    index, event = pick(rng, moved)
    item = clip.start.objects[index]
    place, name = PLACE_NAMES[item.row][item.column], f"the {pick(rng, names[index])}"
    turn = form_turn(rng, "where_first", WHERE_FIRST, f"at first {name} was {place}", (place,), name=name)
    return TimedTurn(turn, seen_sec(event.over_sec))


def _grew(clip: Clip, rng) -> TimedTurn | None:
    if (found := _only(clip, rng, (Grow, Shrink))) is None:
        return None
    _, event, name = found
    said = "grows" if isinstance(event, Grow) else "shrinks"
    return TimedTurn(form_turn(rng, "grew", GREW, f"{name} {said}", (said,), name=name), seen_sec(event.over_sec))


def _happened(clip: Clip, rng) -> TimedTurn | None:
    number = int(rng.integers(len(clip.events)))
    event = clip.events[number]
    answer, answers = sentence(event, clip.rests[number])
    latest_sec = min(event.over_sec + JUST_SEC, _before_next(clip, number))
    turn = form_turn(rng, "happened", HAPPENED, f"just now {answer}", answers)
    return TimedTurn(turn, seen_sec(event.over_sec), latest_sec)


def _now(clip: Clip, rng) -> TimedTurn | None:
    """A question of the still world about what is there after an event: the newest frames tell, older ones do not."""
    number = int(rng.integers(len(clip.events)))
    turn = visual_turn(clip.scene_after(number + 1), rng)
    if rng.random() < 0.5:
        question = f"{turn.question} {pick(rng, NOW_AFTER)}"
    else:
        question = f"{pick(rng, NOW_BEFORE)} {turn.question}"
    turn = Turn(turn.kind, question if rng.random() < 0.7 else turn.question, turn.answer, turn.answers)
    return TimedTurn(turn, seen_sec(clip.events[number].over_sec), _before_next(clip, number))


Maker = Callable[[Clip, np.random.Generator], TimedTurn | None]
GROUPS: dict[str, tuple[tuple[Maker, float], ...]] = {
    "motion": ((_which_way, 2.4), (_did_move, 1.6), (_what_moved, 0.8)),
    "change": ((_appeared, 1.4), (_vanished, 1.4), (_grew, 1.2), (_how_often, 1.2), (_happened, 0.6)),
    "present": ((_now, 2.4),),
    "past": ((_colour_before, 1.6), (_where_first, 1.0)),
}


# What is asked of what has happened; all other turns of `clip_turns` are about what is there.
EVENT_KINDS = frozenset((
    "which_way", "did_move", "what_moved", "appeared", "vanished", "grew", "how_often", "happened", "colour_before",
    "where_first",
))  # fmt: skip


def clip_turns(
    clip: Clip, rng: np.random.Generator, *, groups: tuple[str, ...] = tuple(GROUPS), tries: int = 100
) -> Iterator[TimedTurn]:
    """Questions about the clip, as many as are found in so many tries, each with one right answer and a time to ask
    it; the same may come twice."""
    makers, weights = zip(*(pair for group in groups for pair in GROUPS[group]), strict=True)
    shares = np.array(weights) / sum(weights)
    for _ in range(tries):
        timed = makers[int(rng.choice(len(makers), p=shares))](clip, rng)
        if timed is None:
            continue
        latest_sec = min(timed.latest_sec, clip.duration_sec + LATEST_SEC)
        if timed.earliest_sec <= latest_sec:
            yield TimedTurn(timed.turn, timed.earliest_sec, latest_sec)


# Of the kinds of turns in training; 1 for all others. What has many answers, or is true for a moment only, takes the
# most learning.
KIND_WEIGHTS = {
    "happened": 2.5, "happened briefly": 12.0, "how_often": 3.5, "where_first": 4.0, "colour_before": 1.2,
    "appeared": 1.2, "vanished": 1.2, "did_move": 0.4, "there": 0.7,
}  # fmt: skip


def draw_turn(turns: Sequence[TimedTurn], rng: np.random.Generator) -> TimedTurn:
    """One of them: first its kind (all that is there is one kind beside those of what has happened), then the turn."""
    kinds = [_weighed_as(timed) for timed in turns]
    names = sorted(set(kinds))
    weights = np.array([KIND_WEIGHTS.get(name, 1.0) for name in names])
    kind = names[int(rng.choice(len(names), p=weights / weights.sum()))]
    return pick(rng, [timed for timed, own in zip(turns, kinds, strict=True) if own == kind])


def _weighed_as(timed: TimedTurn) -> str:
    kind = timed.turn.kind
    if kind not in EVENT_KINDS:
        return "there"
    briefly = kind == "happened" and timed.latest_sec - timed.earliest_sec < BRIEFLY_SEC
    return f"{kind} briefly" if briefly else kind


def commentary(clip: Clip, rng: np.random.Generator) -> TimedTurn:
    """The model is asked to tell what happens, before it does."""
    comments = []
    for event, before in zip(clip.events, clip.rests[:-1], strict=True):
        text, answers = sentence(event, before)
        comments.append(Comment(text, answers, event.over_sec))
    turn = form_turn(rng, "commentary", COMMENTARY, AGREED, (AGREED,))
    return TimedTurn(turn, -1.0, clip.events[0].over_sec - ASKED_BEFORE_SEC, tuple(comments))


def clip_vocabulary() -> list[str]:
    """Every word that may be said about clips beside those of dialogue.vocabulary(), by either side."""
    from data_prep.world_dialogue import vocabulary

    texts = [form.replace("{name}", "").replace("|", "") for group in motion_forms.ALL for form in group]
    texts.append("it was moves left right up down turns blinks vanishes grows shrinks appears pass time times")
    return sorted({word for text in texts for word in text.split()} - set(vocabulary()))
