"""`watched`: clips with what a watcher knows at each of their frames, for towers that learn to see motion.

NAME.mp4, NAME.json (the clip) and NAME.watched.json:

    {"fps": 2.0, "frames": [[{"shape": "star", "colour": "red", ...}, ...], ...]}

one list of objects for each frame at k / fps seconds. What is told of an object is on `Watched`.
"""

import json
import math
from pathlib import Path
from typing import Literal

from pydantic import Field

from data_prep.files import write_atomic
from data_prep.film import film
from data_prep.happenings import EVEN, random_clip
from data_prep.motion import (
    SEEN_FPS,
    Appear,
    Blink,
    Clip,
    Cross,
    Event,
    Grow,
    Look,
    Move,
    Recolour,
    Shrink,
    Vanish,
    Way,
)
from data_prep.scenes import item_rng
from data_prep.world import check_split
from mmspeech.config import StrictModel

Happening = Literal[
    "move left", "move right", "move up", "move down", "cross", "grow", "shrink", "blink 1", "blink 2", "blink 3",
    "blink 4", "appear", "vanish", "recolour",
]  # fmt: skip


class Watched(StrictModel):
    """An object as it is at a time, and what has happened to it in the clip so far.

    there: it can be seen. gone: it has vanished; shape, colour, x, y and radius (in picture widths) are as it was last
    seen. Neither: it is away for the moment of a blink. moving: since the frame before. moved: the last time. blinks:
    how often it went away for a moment. was: its colour before it changed. first: its place at the beginning, 0..8 row
    by row (None: it was not there). event: what happened to it last and is over; ago_sec: since when; latest: nothing
    has happened to any object after that. event_before: what happened to it before that.
    """

    shape: str
    colour: str
    x: float
    y: float
    radius: float
    there: bool
    gone: bool = False
    moving: Way | None = None
    moved: Way | None = None
    resized: Literal["grow", "shrink"] | None = None
    blinks: int = 0
    was: str | None = None
    appeared: bool = False
    first: int | None = Field(None, ge=0, le=8)
    event: Happening | None = None
    ago_sec: float | None = None
    latest: bool = False
    event_before: Happening | None = None


def watch(clip: Clip, at_sec: float) -> list[Watched]:
    """What is known of each object at a time of the clip; objects that have not appeared yet are left out."""
    begun = [event for event in clip.events if _has_begun(event, at_sec)]
    looks = clip.state(at_sec)
    born = len(clip.start.objects) + sum(isinstance(event, Appear) for event in begun)
    return [_watched(clip, index, looks[index], begun, at_sec) for index in range(born)]


def _has_begun(event: Event, at_sec: float) -> bool:
    """Whether something of it can be seen: at the very beginning of a move or growth nothing can."""
    early_sec = -1e-6 if isinstance(event, Move | Cross | Grow | Shrink) else 1e-6
    return event.start_sec <= at_sec + early_sec


def _watched(clip: Clip, index: int, look: Look | None, begun: list[Event], at_sec: float) -> Watched:
    own = [(number, event) for number, event in enumerate(begun) if index in _touched(clip, number)]
    over = [(number, event) for number, event in own if event.over_sec <= at_sec + 1e-6]
    last = look or _last_look(clip, index, begun)
    known = {"there": look is not None, "gone": any(isinstance(event, Vanish) for _, event in over)}
    for number, event in own:
        known |= _told(clip, index, number, event, at_sec)
    if index < len(clip.start.objects):
        known["first"] = clip.start.objects[index].row * 3 + clip.start.objects[index].column
    if over:
        last_event, finished = over[-1][1], [event for event in begun if event.over_sec <= at_sec + 1e-6]
        known |= {"event": _happening(last_event), "ago_sec": round(at_sec - last_event.over_sec, 3)}
        known["latest"] = finished[-1] is last_event
    if len(over) > 1:
        known["event_before"] = _happening(over[-2][1])
    place = {name: round(getattr(last, name), 4) for name in ("x", "y", "radius")}
    return Watched(shape=last.shape, colour=last.colour, **place, **known)


def _touched(clip: Clip, number: int) -> tuple[int, ...]:
    """The objects an event happens to, with the one that appears."""
    event = clip.events[number]
    return (len(clip.rests[number]),) if isinstance(event, Appear) else event.touched


def _happening(event: Event) -> str:
    match event:
        case Move():
            return f"move {event.way}"
        case Blink():
            return f"blink {event.times}"
    return event.kind


def _last_look(clip: Clip, index: int, begun: list[Event]) -> Look:
    """How an object that is not there looked when it was."""
    return Look.of(next(rest[index] for rest in reversed(clip.rests[: len(begun)]) if rest[index] is not None))


def _told(clip: Clip, index: int, number: int, event: Event, at_sec: float) -> dict:
    match event:
        case Move() | Cross():
            ways = (event.way,) if isinstance(event, Move) else event.ways(clip.rests[number])
            way = ways[event.touched.index(index)]
            return {"moved": way, "moving": way if at_sec - 1 / SEEN_FPS < event.over_sec - 1e-6 else None}
        case Grow() | Shrink():
            return {"resized": event.kind}
        case Blink():
            parts = math.floor((at_sec - event.start_sec) / event.part_sec + 1e-6)
            return {"blinks": min(event.times, parts // 2 + 1)}
        case Recolour():
            return {"was": clip.rests[number][index].colour}
        case Appear():
            return {"appeared": True}
    return {}


def watch_clip(clip: Clip) -> list[list[Watched]]:
    """What is known at each frame that enters a call."""
    return [watch(clip, number / SEEN_FPS) for number in range(math.ceil(clip.duration_sec * SEEN_FPS - 1e-6))]


def make_watched(
    out: Path, *, count: int, seed: int, split: str, size_px: int = 96, shard: tuple[int, int] = (0, 1)
) -> None:
    """Write `count` clips with what is known of them; those that are there are kept. `shard` (i, n): only every n-th,
    beginning with i. Raises ConfigError for an unknown split or size."""
    from rich.progress import track

    check_split(split)
    out.mkdir(parents=True, exist_ok=True)
    for index in track(range(shard[0], count, shard[1]), description=f"watched {split}"):
        path = out / f"{index:06d}.watched.json"
        if path.is_file():  # written last
            continue
        clip = random_clip(item_rng(seed, split, index, "watched"), split=split, shares=EVEN)
        write_atomic(path.with_name(f"{index:06d}.mp4"), film(clip, size_px=size_px))
        write_atomic(path.with_name(f"{index:06d}.json"), clip.model_dump_json().encode())
        frames = [[item.model_dump(exclude_defaults=True) for item in frame] for frame in watch_clip(clip)]
        write_atomic(path, json.dumps({"fps": SEEN_FPS, "frames": frames}).encode())
