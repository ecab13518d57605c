"""The small world in motion: a clip is a scene to begin with and what happens in it, one thing after another.

A clip is a JSON object (strict, as scenes are; see data_prep/world.py):

    {"start": {"objects": [...], "background": {...}, "blur": 0.0, "seed": 7},
     "events": [{"kind": "move", "object": 0, "way": "left", "to": 0.2, "start_sec": 1.0, "end_sec": 2.4}, ...],
     "duration_sec": 5.0}

Objects are numbered: those of the start, then each that appears. Times are seconds of the clip. Whenever nothing
moves, what is there is a scene that keeps all rules of the world; on the way from place to place an object only
stays inside the picture and clear of the others.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import Field, ValidationError, model_validator

from data_prep.world import GAP, RADII, Colour, Scene, SceneObject, StrictModel, load_record, look_of, split_of

SEEN_FPS = 2.0  # frames of a clip that enter a call per second: nothing happens too fast to be seen at this rate
REST_SEC = 0.5  # between two events, before the first and after the last, so that a frame shows how things are
MIN_LONG_SEC = 0.4  # of what does not happen at once
BLINK_SEC = 0.5  # the shortest time an object is away, or back, while it blinks
MIN_TRAVEL = 0.2  # of a move, in picture widths
MIN_DURATION_SEC, MAX_DURATION_SEC = 4.0, 8.0
WAYS = {"left": ("x", -1), "right": ("x", 1), "up": ("y", -1), "down": ("y", 1)}

Way = Literal["left", "right", "up", "down"]
Sec = Annotated[float, Field(ge=0, le=MAX_DURATION_SEC)]
Number = Annotated[int, Field(ge=0, le=7)]
Objects = tuple[SceneObject | None, ...]


@dataclass(frozen=True)
class Look:
    """How an object looks at one moment: centre and radius in picture widths."""

    shape: str
    colour: str
    x: float
    y: float
    radius: float

    @classmethod
    def of(cls, item: SceneObject) -> "Look":
        return cls(item.shape, item.colour, item.x, item.y, item.radius)


class _Event(StrictModel):
    start_sec: Sec

    @property
    def over_sec(self) -> float:
        """When it is over; for what happens at once, when it happens."""
        return self.start_sec

    @property
    def touched(self) -> tuple[int, ...]:
        """The objects it happens to."""
        return (self.object,)

    def after(self, objects: Objects) -> Objects:
        """The objects when it is over. Raises ValueError where a rule is broken."""
        raise NotImplementedError


class _LongEvent(_Event):
    end_sec: Sec

    @property
    def over_sec(self) -> float:
        return self.end_sec


class Move(_LongEvent):
    """An object glides; `to` is its new x or y."""

    kind: Literal["move"] = "move"
    object: Number
    way: Way
    to: float = Field(ge=0, le=1)

    def after(self, objects: Objects) -> Objects:
        item, (axis, sign) = _there(objects, self.object), WAYS[self.way]
        if sign * (self.to - getattr(item, axis)) < MIN_TRAVEL:
            raise ValueError(f"{axis} {getattr(item, axis)} to {self.to} is no move {self.way} by {MIN_TRAVEL} or more")
        return _changed(objects, self.object, **{axis: self.to})


class Cross(_LongEvent):
    """Two objects pass each other: they change places along one axis."""

    kind: Literal["cross"] = "cross"
    objects: tuple[Number, Number]
    axis: Literal["x", "y"]

    @property
    def touched(self) -> tuple[int, ...]:
        return self.objects

    def ways(self, objects: Objects) -> tuple[str, str]:
        """Which way each of the two goes, from `objects` before it."""
        one, two = (getattr(_there(objects, index), self.axis) for index in self.objects)
        low, high = ("left", "right") if self.axis == "x" else ("up", "down")
        return (high, low) if one < two else (low, high)

    def after(self, objects: Objects) -> Objects:
        (i, j), other = self.objects, "y" if self.axis == "x" else "x"
        one, two = _there(objects, i), _there(objects, j)
        if i == j or abs(getattr(one, self.axis) - getattr(two, self.axis)) < MIN_TRAVEL:
            raise ValueError(f"{one.name} and {two.name} do not lie {MIN_TRAVEL} apart in {self.axis}")
        if abs(getattr(one, other) - getattr(two, other)) < one.radius + two.radius + GAP:
            raise ValueError(f"{one.name} and {two.name} would touch when they pass")
        objects = _changed(objects, i, **{self.axis: getattr(two, self.axis)})
        return _changed(objects, j, **{self.axis: getattr(one, self.axis)})


class Grow(_LongEvent):
    """A small object becomes large."""

    kind: Literal["grow"] = "grow"
    object: Number

    def after(self, objects: Objects) -> Objects:
        return _resized(objects, self.object, to="large")


class Shrink(_LongEvent):
    """A large object becomes small."""

    kind: Literal["shrink"] = "shrink"
    object: Number

    def after(self, objects: Objects) -> Objects:
        return _resized(objects, self.object, to="small")


class Blink(_LongEvent):
    """An object is away for a moment, `times` times, and is back at the end; away and back last equally long."""

    kind: Literal["blink"] = "blink"
    object: Number
    times: int = Field(ge=1, le=4)

    @property
    def part_sec(self) -> float:
        """How long it is away, or back in between."""
        return (self.end_sec - self.start_sec) / (2 * self.times - 1)

    def after(self, objects: Objects) -> Objects:
        if self.part_sec < BLINK_SEC - 1e-6:
            raise ValueError(f"{self.times} blinks need {BLINK_SEC * (2 * self.times - 1)} s, so that each can be seen")
        _there(objects, self.object)
        return objects


class Appear(_Event):
    """A new object is there; it gets the next number."""

    kind: Literal["appear"] = "appear"
    thing: SceneObject

    @property
    def touched(self) -> tuple[int, ...]:
        return ()

    def after(self, objects: Objects) -> Objects:
        return (*objects, self.thing)


class Vanish(_Event):
    """An object is gone; it keeps its number."""

    kind: Literal["vanish"] = "vanish"
    object: Number

    def after(self, objects: Objects) -> Objects:
        _there(objects, self.object)
        return tuple(None if index == self.object else item for index, item in enumerate(objects))


class Recolour(_Event):
    """An object has another colour."""

    kind: Literal["recolour"] = "recolour"
    object: Number
    colour: Colour

    def after(self, objects: Objects) -> Objects:
        if _there(objects, self.object).colour == self.colour:
            raise ValueError(f"object {self.object} is {self.colour} already")
        return _changed(objects, self.object, colour=self.colour)


Event = Annotated[
    Move | Cross | Grow | Shrink | Blink | Appear | Vanish | Recolour,
    Field(discriminator="kind"),
]


class Clip(StrictModel):
    """What a clip shows; see the module for the rules."""

    start: Scene
    events: tuple[Event, ...] = Field(min_length=1, max_length=4)
    duration_sec: float = Field(ge=MIN_DURATION_SEC, le=MAX_DURATION_SEC)

    @model_validator(mode="after")
    def _possible(self) -> "Clip":
        before_sec = 0.0
        for number, event in enumerate(self.events):
            where = f"events.{number} ({event.kind})"
            if event.start_sec < before_sec + REST_SEC - 1e-6:
                raise ValueError(f"{where}: begins at {event.start_sec} s, expected {REST_SEC} s after {before_sec} s")
            if isinstance(event, _LongEvent) and event.over_sec < event.start_sec + MIN_LONG_SEC - 1e-6:
                raise ValueError(f"{where}: expected it to last {MIN_LONG_SEC} s or more")
            before_sec = event.over_sec
        if before_sec > self.duration_sec - REST_SEC + 1e-6:
            raise ValueError(f"the last event ends at {before_sec} s, expected {REST_SEC} s before the clip's end")
        for number, (event, scene) in enumerate(zip(self.events, self.rests[:-1], strict=True)):
            if blocked := _in_the_way(event, scene, self.rests[number + 1]):
                raise ValueError(f"events.{number} ({event.kind}): {blocked} is in the way")
        return self

    @cached_property
    def rests(self) -> tuple[Objects, ...]:
        """The objects, by number, before the first event and after each; None: gone, absent: not there yet."""
        found: list[Objects] = [tuple(self.start.objects)]
        for number, event in enumerate(self.events):
            try:
                found.append(event.after(found[-1]))
                self._scene(found[-1])
            except ValueError as error:
                fault = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
                raise ValueError(f"events.{number} ({event.kind}): {fault.removeprefix('Value error, ')}") from None
        return tuple(found)

    @property
    def num_objects(self) -> int:
        """Of all times together."""
        return len(self.rests[-1])

    def _scene(self, objects: Objects) -> Scene:
        there = [item for item in objects if item is not None]
        return Scene(objects=there, background=self.start.background, blur=self.start.blur, seed=self.start.seed)

    def state(self, at_sec: float) -> tuple[Look | None, ...]:
        """How each object looks at a time, by number; None: it is not there."""
        number = sum(event.over_sec <= at_sec + 1e-6 for event in self.events)
        looks = [None if item is None else Look.of(item) for item in self.rests[number]]
        if number < len(self.events) and (event := self.events[number]).start_sec <= at_sec + 1e-6:
            passed = (at_sec - event.start_sec) / (event.over_sec - event.start_sec)
            for index in event.touched:
                looks[index] = _on_the_way(event, self.rests[number][index], self.rests[number + 1][index], passed)
        return (*looks, *[None] * (self.num_objects - len(looks)))

    def scene_at(self, at_sec: float) -> Scene | None:
        """What is there at a time as a scene; None while something happens."""
        if any(event.start_sec <= at_sec < event.over_sec for event in self.events):
            return None
        return self.scene_after(sum(event.over_sec <= at_sec + 1e-6 for event in self.events))

    def scene_after(self, number: int) -> Scene:
        """What is there after so many events, until the next one begins."""
        return self._scene(self.rests[number])

    @property
    def split(self) -> str:
        """Which split the clip belongs to; see Scene.split.

        Decided by a hash of what can be asked about: the objects at the start, and of each event its kind, how often,
        and what it makes of which objects. When things happen does not matter.
        """
        happened = []
        for event, before, after in zip(self.events, self.rests[:-1], self.rests[1:], strict=True):
            gone = sorted(look_of(item) for item in before if item is not None and item not in after)
            new = sorted(look_of(item) for item in after if item is not None and item not in before)
            happened.append([event.kind, gone, new, *_named(event, before)])
        return split_of([sorted(look_of(item) for item in self.start.objects), happened])


def load_clip(path: str | Path) -> Clip:
    """Read a clip JSON. Raises FileNotFoundError, or ConfigError with one line naming the file and the fault."""
    return load_record(Clip, path, name="clip", module="motion")


def seen_sec(at_sec: float) -> float:
    """When the first frame of a call's clip shows what is there from `at_sec` on, in seconds of the clip."""
    return math.ceil(at_sec * SEEN_FPS - 1e-6) / SEEN_FPS


def _named(event: Event, before: Objects) -> list:
    """Where an event changes nothing for good: to whom it happens, and how often."""
    return [look_of(before[event.object]), event.times] if isinstance(event, Blink) else []


def _there(objects: Objects, index: int) -> SceneObject:
    if index >= len(objects) or objects[index] is None:
        raise ValueError(f"object {index} is not there")
    return objects[index]


def _changed(objects: Objects, index: int, **values: object) -> Objects:
    """The objects with another one in a place; it must keep the rules of its own."""
    new = SceneObject(**_there(objects, index).model_dump() | values)
    return (*objects[:index], new, *objects[index + 1 :])


def _resized(objects: Objects, index: int, *, to: str) -> Objects:
    if _there(objects, index).size == to:
        raise ValueError(f"object {index} is {to} already")
    return _changed(objects, index, size=to)


def _in_the_way(event: Event, before: Objects, after: Objects) -> str:
    """The name of an object that one which glides would touch; empty when there is none."""
    if not isinstance(event, Move | Cross):
        return ""
    for index in event.touched:
        start, end = before[index], after[index]
        for other in (item for k, item in enumerate(before) if item is not None and k not in event.touched):
            if _distance(other, start, end) < other.radius + start.radius + GAP:
                return other.name
    return ""


def _distance(point: SceneObject, start: SceneObject, end: SceneObject) -> float:
    """From an object to the way between two places, in picture widths."""
    way = np.array([end.x - start.x, end.y - start.y])
    there = np.array([point.x - start.x, point.y - start.y])
    return float(np.linalg.norm(there - way * np.clip(there @ way / (way @ way), 0, 1)))


def _on_the_way(event: Event, before: SceneObject, after: SceneObject, passed: float) -> Look | None:
    """`passed`: 0..1, how much of the time of the event is over."""
    if isinstance(event, Blink):
        return None if int(passed * (2 * event.times - 1) + 1e-6) % 2 == 0 else Look.of(before)
    done = passed * passed * (3 - 2 * passed)  # things start and stop softly
    x, y, radius = (
        a + done * (b - a)
        for a, b in zip(_place(before), _place(after), strict=True)
    )  # fmt: skip
    return Look(before.shape, before.colour, x, y, radius)


def _place(item: SceneObject) -> Sequence[float]:
    return item.x, item.y, RADII[item.size]
