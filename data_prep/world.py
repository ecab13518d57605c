"""The small world of coloured shapes: its scene format, its rules, and drawing scenes at random.

A scene is a JSON object (strict: unknown keys, wrong types and broken rules are errors):

    {"objects": [{"shape": "circle", "colour": "red", "size": "small", "x": 0.2, "y": 0.75}, ...],   1 to 4
     "background": {"tone": "light", "kind": "plain"}, "blur": 0.0, "seed": 7}

x grows to the right and y downwards, both in 0..1 and at the object's centre. Rules: objects lie inside the picture,
do not overlap, and keep CELL_MARGIN from the borders of the 3 x 3 grid of place words, so that a place has one name;
white never lies on a light background, nor black on a dark one. `seed` decides what the eye should not depend on:
exact colours, small turns, gradient direction, noise.
"""

import hashlib
import json
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from mmspeech.config import ConfigError

SHAPES = ("circle", "square", "triangle", "star", "cross")
COLOURS = ("red", "green", "blue", "yellow", "purple", "orange", "white", "black")
SIZES = ("small", "large")
RADII = {"small": 0.09, "large": 0.15}  # of the circle around the shape, in picture widths
CELL_MARGIN = 0.045
GAP = 0.03  # least distance between the circles around two objects
HIDDEN_ON = {"light": "white", "dark": "black"}
PLACES = (("top left", "top", "top right"), ("left", "middle", "right"), ("bottom left", "bottom", "bottom right"))
SPLITS = ("train", "valid", "test")
TONES = ("light", "dark")
BACKGROUND_KINDS = ("plain", "gradient", "noise")

Shape = Literal["circle", "square", "triangle", "star", "cross"]
Colour = Literal["red", "green", "blue", "yellow", "purple", "orange", "white", "black"]


class StrictModel(BaseModel):
    """Immutable; unknown keys and values of another type are refused."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


def _cell(value: float) -> int:
    return min(int(value * 3), 2)


class SceneObject(StrictModel):
    """One thing in the picture; x and y are its centre in picture widths, from the top left."""

    shape: Shape
    colour: Colour
    size: Literal["small", "large"]
    x: float = Field(ge=0, le=1)
    y: float = Field(ge=0, le=1)

    @property
    def radius(self) -> float:
        """Of the circle around the shape, in picture widths."""
        return RADII[self.size]

    @property
    def column(self) -> int:
        """0 left, 1 middle, 2 right."""
        return _cell(self.x)

    @property
    def row(self) -> int:
        """0 top, 1 middle, 2 bottom."""
        return _cell(self.y)

    @property
    def place(self) -> str:
        """One of PLACES."""
        return PLACES[self.row][self.column]

    @property
    def name(self) -> str:
        """Colour and shape, as in "red circle"."""
        return f"{self.colour} {self.shape}"

    @model_validator(mode="after")
    def _well_placed(self) -> "SceneObject":
        for axis, value in (("x", self.x), ("y", self.y)):
            where = f"{self.name}: {axis} {value}"
            if not self.radius <= value <= 1 - self.radius:
                raise ValueError(f"{where} puts a {self.size} object outside the picture")
            if min(abs(value - 1 / 3), abs(value - 2 / 3)) < CELL_MARGIN:
                raise ValueError(f"{where} lies within {CELL_MARGIN} of a border between two places")
        return self


class Background(StrictModel):
    """What lies behind the objects."""

    tone: Literal["light", "dark"]
    kind: Literal["plain", "gradient", "noise"]


class Scene(StrictModel):
    """What a picture shows; see the module for the rules."""

    objects: list[SceneObject] = Field(min_length=1, max_length=4)
    background: Background
    blur: float = Field(default=0.0, ge=0, le=0.01)  # standard deviation, in picture widths
    seed: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _clear(self) -> "Scene":
        for k, one in enumerate(self.objects):
            if one.colour == HIDDEN_ON[self.background.tone]:
                raise ValueError(f"{one.name} cannot be seen on a {self.background.tone} background")
            for other in self.objects[:k]:
                if _overlap(one, other):
                    raise ValueError(f"{one.name} and {other.name} overlap or touch; move them apart")
        return self

    @property
    def split(self) -> str:
        """Which split the scene belongs to: 90 % of all scenes train, 3 % valid, 7 % test.

        Decided by a hash of what can be asked about: the set of (place, size, colour, shape). Background, blur, seed
        and the exact position within a place do not matter, so no two splits share an arrangement.
        """
        return split_of(sorted(look_of(item) for item in self.objects))


def look_of(item: SceneObject) -> list[str]:
    """What can be asked about an object."""
    return [item.place, item.size, item.colour, item.shape]


def split_of(key: list) -> str:
    """The split that a hash of `key` decides on: 90 % train, 3 % valid, 7 % test."""
    bucket = int.from_bytes(hashlib.sha256(json.dumps(key).encode()).digest()[:4], "big") % 100
    return "train" if bucket < 90 else "valid" if bucket < 93 else "test"


def _overlap(one: SceneObject, other: SceneObject) -> bool:
    return float(np.hypot(one.x - other.x, one.y - other.y)) < one.radius + other.radius + GAP


def load_scene(path: str | Path) -> Scene:
    """Read a scene JSON. Raises FileNotFoundError, or ConfigError with one line naming the file and the fault."""
    return load_record(Scene, path, name="scene", module="world")


RecordT = TypeVar("RecordT", bound=StrictModel)


def load_record(cls: type[RecordT], path: str | Path, *, name: str, module: str) -> RecordT:
    """Read the JSON of a `name` whose format data_prep/`module`.py tells. Raises as load_scene."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such {name} file")
    try:
        return cls.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or name
        fault = f"{where}: {first['msg'].removeprefix('Value error, ')}"
        raise ConfigError(f"{path}: not a {name}: {fault} (the format is in data_prep/{module}.py)") from error


def random_coordinate(rng: np.random.Generator, radius: float) -> float:
    """A place for the centre of an object, inside the picture and away from the borders between places."""
    cell = rng.integers(3)
    low = max(cell / 3 + CELL_MARGIN, radius) + 1e-3
    high = min((cell + 1) / 3 - CELL_MARGIN, 1 - radius) - 1e-3
    return round(float(rng.uniform(low, high)), 4)


def random_object(rng: np.random.Generator, colours: list[str], like: SceneObject | None) -> SceneObject:
    """`like`: half of the later objects share its shape or its colour, so that there is something to count."""
    size = SIZES[rng.integers(2)]
    shape, colour = SHAPES[rng.integers(len(SHAPES))], colours[rng.integers(len(colours))]
    if like is not None and rng.random() < 0.5:
        shape, colour = (like.shape, colour) if rng.random() < 0.5 else (shape, like.colour)
    x, y = random_coordinate(rng, RADII[size]), random_coordinate(rng, RADII[size])
    return SceneObject(shape=shape, colour=colour, size=size, x=x, y=y)


def check_split(split: str) -> None:
    """Raises ConfigError for an unknown split."""
    if split not in SPLITS:
        raise ConfigError(f"unknown split {split!r}; expected one of {', '.join(SPLITS)}")


def random_scene(rng: np.random.Generator, *, split: str) -> Scene:
    """Draw a scene that belongs to `split` (see Scene.split): drawn again until it does. Raises ConfigError."""
    check_split(split)
    while True:
        if (scene := any_scene(rng)).split == split:
            return scene


def any_scene(rng: np.random.Generator) -> Scene:
    """Draw a scene of whatever split."""
    tone = TONES[rng.integers(2)]
    background = Background(tone=tone, kind=BACKGROUND_KINDS[rng.integers(3)])
    count = int(rng.choice(4, p=(0.2, 0.3, 0.3, 0.2))) + 1
    objects: list[SceneObject] = []
    while len(objects) < count:
        new = random_object(rng, colours_on(tone), objects[rng.integers(len(objects))] if objects else None)
        if not any(_overlap(new, other) for other in objects):
            objects.append(new)
    blur = round(float(rng.uniform(0, 0.008)), 4) if rng.random() < 0.4 else 0.0
    return Scene(objects=objects, background=background, blur=blur, seed=int(rng.integers(2**31)))


def colours_on(tone: str) -> list[str]:
    """The colours that can be seen on a background."""
    return [colour for colour in COLOURS if colour != HIDDEN_ON[tone]]
