"""Clips drawn at random: a scene, and one to three things that happen in it."""

from collections.abc import Callable, Mapping

import numpy as np

from data_prep.motion import (
    BLINK_SEC,
    MAX_DURATION_SEC,
    MIN_DURATION_SEC,
    REST_SEC,
    WAYS,
    Appear,
    Blink,
    Clip,
    Cross,
    Event,
    Grow,
    Move,
    Objects,
    Recolour,
    Shrink,
    Vanish,
)
from data_prep.world import Scene, any_scene, check_split, colours_on, random_coordinate, random_object

# The times of a clip are those of the frames of its file.
_STEP_SEC = 0.1
SHARES = {
    "move": 0.34, "appear": 0.12, "vanish": 0.1, "recolour": 0.1, "grow": 0.07, "shrink": 0.06, "cross": 0.1,
    "blink": 0.11,
}  # fmt: skip
_COUNT_SHARES = (0.4, 0.4, 0.2)  # of clips with one, two and three events
_TRIES = 12  # for an event of a kind
KINDS = tuple(SHARES)
EVEN = dict.fromkeys(KINDS, 1 / len(KINDS))  # what is rare in clips takes as long to learn as what is not


APART_SEC = (0.8, 1.8)  # from the end of an event to the beginning of the next
# What is asked about has just been seen when the next thing begins, and that is over before the answer is.
HURRIED_APART_SEC = (0.9, 1.3)


def random_clip(
    rng: np.random.Generator,
    *,
    split: str,
    apart_sec: tuple[float, float] = APART_SEC,
    hurried: bool = False,
    shares: Mapping[str, float] = SHARES,
) -> Clip:
    """Draw a clip that belongs to `split` (see Clip.split): drawn again until it does. Raises ConfigError.

    apart_sec: the least and the greatest time from the end of an event to the beginning of the next. hurried: at least
    two events, HURRIED_APART_SEC apart. shares: of each of KINDS among the events that are tried; not every event fits
    every scene.
    """
    check_split(split)
    while True:
        clip = _any_clip(rng, HURRIED_APART_SEC if hurried else apart_sec, shares)
        if clip is not None and clip.split == split and len(clip.events) > hurried:
            return clip


def _any_clip(rng: np.random.Generator, apart_sec: tuple[float, float], shares: Mapping[str, float]) -> Clip | None:
    """One attempt: None where things would not fit."""
    clip, start = None, any_scene(rng)
    start_sec = _on_grid(rng.uniform(2 * REST_SEC, 2.0))
    for _ in range(int(rng.choice(3, p=_COUNT_SHARES)) + 1):
        longer = _with_another(rng, start, clip, start_sec, shares)
        if longer is None:
            break
        clip, start_sec = longer, _on_grid(longer.events[-1].over_sec + rng.uniform(*apart_sec))
    if clip is None:
        return None
    least_sec = max(MIN_DURATION_SEC, clip.events[-1].over_sec + REST_SEC)
    duration_sec = min(MAX_DURATION_SEC, _on_grid(least_sec + rng.uniform(0.1, 1.5)))
    return clip.model_copy(update={"duration_sec": duration_sec})


def _with_another(
    rng: np.random.Generator, start: Scene, clip: Clip | None, start_sec: float, shares: Mapping[str, float]
) -> Clip | None:
    """The clip with one more event; None where none fits. It is as long as a clip can be."""
    objects = tuple(start.objects) if clip is None else clip.rests[-1]
    events = () if clip is None else clip.events
    make = _MAKERS[KINDS[int(rng.choice(len(KINDS), p=[shares[kind] for kind in KINDS]))]]
    for _ in range(_TRIES):
        try:
            event = make(rng, objects, start_sec, start.background.tone)
            if event is not None:
                return Clip(start=start, events=(*events, event), duration_sec=MAX_DURATION_SEC)
        except ValueError:
            continue
    return None


def _on_grid(time_sec: float) -> float:
    return round(round(time_sec / _STEP_SEC) * _STEP_SEC, 3)


def _one(rng: np.random.Generator, objects: Objects) -> int:
    there = [index for index, item in enumerate(objects) if item is not None]
    return there[int(rng.integers(len(there)))]


def _until(rng: np.random.Generator, start_sec: float, low_sec: float, high_sec: float) -> float:
    return _on_grid(start_sec + rng.uniform(low_sec, high_sec))


def _move(rng: np.random.Generator, objects: Objects, start_sec: float, tone: str) -> Event:
    index, way = _one(rng, objects), tuple(WAYS)[int(rng.integers(len(WAYS)))]
    to = random_coordinate(rng, objects[index].radius)
    end_sec = _until(rng, start_sec, 1.0, 2.5)
    return Move(object=index, way=way, to=to, start_sec=start_sec, end_sec=end_sec)


def _cross(rng: np.random.Generator, objects: Objects, start_sec: float, tone: str) -> Event | None:
    there = [index for index, item in enumerate(objects) if item is not None]
    if len(there) < 2:
        return None
    pair = tuple(sorted(int(index) for index in rng.choice(there, 2, replace=False)))
    axis = "xy"[int(rng.integers(2))]
    return Cross(objects=pair, axis=axis, start_sec=start_sec, end_sec=_until(rng, start_sec, 1.2, 2.5))


def _grow(rng: np.random.Generator, objects: Objects, start_sec: float, tone: str) -> Event:
    return Grow(object=_one(rng, objects), start_sec=start_sec, end_sec=_until(rng, start_sec, 0.6, 1.6))


def _shrink(rng: np.random.Generator, objects: Objects, start_sec: float, tone: str) -> Event:
    return Shrink(object=_one(rng, objects), start_sec=start_sec, end_sec=_until(rng, start_sec, 0.6, 1.6))


def _blink(rng: np.random.Generator, objects: Objects, start_sec: float, tone: str) -> Event:
    times = int(rng.integers(1, 4))
    length_sec = (2 * times - 1) * (BLINK_SEC + 0.1 * int(rng.integers(2)))
    return Blink(object=_one(rng, objects), times=times, start_sec=start_sec, end_sec=_on_grid(start_sec + length_sec))


def _appear(rng: np.random.Generator, objects: Objects, start_sec: float, tone: str) -> Event:
    return Appear(thing=random_object(rng, colours_on(tone), objects[_one(rng, objects)]), start_sec=start_sec)


def _vanish(rng: np.random.Generator, objects: Objects, start_sec: float, tone: str) -> Event | None:
    if sum(item is not None for item in objects) < 2:
        return None
    return Vanish(object=_one(rng, objects), start_sec=start_sec)


def _recolour(rng: np.random.Generator, objects: Objects, start_sec: float, tone: str) -> Event:
    colours = colours_on(tone)
    colour = colours[int(rng.integers(len(colours)))]
    return Recolour(object=_one(rng, objects), colour=colour, start_sec=start_sec)


_MAKERS: dict[str, Callable[..., Event | None]] = {
    "move": _move, "appear": _appear, "vanish": _vanish, "recolour": _recolour, "grow": _grow, "shrink": _shrink,
    "cross": _cross, "blink": _blink,
}  # fmt: skip
