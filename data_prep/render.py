"""Drawing a scene: Pillow, antialiased by drawing larger and scaling down."""

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from data_prep.files import write_atomic
from data_prep.world import Scene, load_scene
from mmspeech.config import ConfigError

MIN_SIZE_PX, MAX_SIZE_PX = 96, 448
_SUPERSAMPLING = 4
_RGB = {
    "red": (222, 36, 36),
    "green": (40, 165, 60),
    "blue": (40, 90, 230),
    "yellow": (246, 220, 40),
    "purple": (150, 50, 190),
    "orange": (245, 135, 25),
    "white": (250, 250, 250),
    "black": (12, 12, 12),
}
_GREY_RANGE = {"light": (190, 225), "dark": (45, 80)}
_COLOUR_JITTER = 12
_MAX_TURN_RAD = math.radians(10)


def _regular(points: int, *, radii: tuple[float, ...], turn: float) -> list[tuple[float, float]]:
    """Corners around the origin, the first one straight up; the radii take turns."""
    angles = [turn - math.pi / 2 + 2 * math.pi * k / points for k in range(points)]
    return [(math.cos(a) * radii[k % len(radii)], math.sin(a) * radii[k % len(radii)]) for k, a in enumerate(angles)]


def _outline(shape: str, turn: float) -> list[tuple[float, float]]:
    if shape == "square":
        return _regular(4, radii=(1.0,), turn=turn + math.pi / 4)
    if shape == "triangle":
        return _regular(3, radii=(1.0,), turn=turn)
    if shape == "star":
        return _regular(10, radii=(1.0, 0.42), turn=turn)
    arm, width = 0.95, 0.31  # the cross: a plus sign
    quarter = [(width, -arm), (width, -width), (arm, -width)]
    corners = [(x * c - y * s, x * s + y * c) for c, s in ((1, 0), (0, 1), (-1, 0), (0, -1)) for x, y in quarter]
    cos, sin = math.cos(turn), math.sin(turn)
    return [(x * cos - y * sin, x * sin + y * cos) for x, y in corners]


class Thing(Protocol):
    """What can be drawn: centre and radius in picture widths."""

    shape: str
    colour: str
    x: float
    y: float
    radius: float


@dataclass(frozen=True)
class _Traits:
    """What makes an object unlike others of its shape and colour."""

    jitter: np.ndarray
    turn_rad: float

    @classmethod
    def drawn(cls, rng: np.random.Generator) -> "_Traits":
        jitter = rng.integers(-_COLOUR_JITTER, _COLOUR_JITTER + 1, 3)
        return cls(jitter, float(rng.uniform(-_MAX_TURN_RAD, _MAX_TURN_RAD)))


def _draw_object(draw: ImageDraw.ImageDraw, item: Thing, size_px: int, traits: _Traits) -> None:
    fill = tuple(int(v) for v in np.clip(np.array(_RGB[item.colour]) + traits.jitter, 0, 255))
    x, y, radius = item.x * size_px, item.y * size_px, item.radius * size_px
    if item.shape == "circle":
        draw.ellipse([x - 0.9 * radius, y - 0.9 * radius, x + 0.9 * radius, y + 0.9 * radius], fill=fill)
    else:
        outline = _outline(item.shape, traits.turn_rad)
        draw.polygon([(x + dx * radius, y + dy * radius) for dx, dy in outline], fill=fill)


def _background(scene: Scene, size_px: int, rng: np.random.Generator) -> Image.Image:
    grey = rng.uniform(*_GREY_RANGE[scene.background.tone])
    base = np.clip(grey + rng.uniform(-12, 12, 3), 0, 255)
    pixels = np.broadcast_to(base, (size_px, size_px, 3)).copy()
    if scene.background.kind == "gradient":
        angle, strength = rng.uniform(0, 2 * math.pi), rng.uniform(10, 28)
        across = np.linspace(-0.5, 0.5, size_px)
        pixels += (strength * (np.cos(angle) * across[None, :] + np.sin(angle) * across[:, None]))[..., None]
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


class Painter:
    """Draws pictures that share what the eye should not depend on: background, noise, small differences of objects.

    All of it follows from the background, blur and seed of `scene`. `num_objects`: how many things there are to draw.
    Raises ConfigError when size_px is outside 96..448.
    """

    def __init__(self, scene: Scene, *, num_objects: int, size_px: int):
        if not MIN_SIZE_PX <= size_px <= MAX_SIZE_PX:
            raise ConfigError(f"size {size_px} px; expected {MIN_SIZE_PX} to {MAX_SIZE_PX}")
        self._size_px, self._blur_px = size_px, scene.blur * size_px
        rng = np.random.default_rng(scene.seed)
        # Drawn large and scaled down; the background is smooth, so it is made small and scaled up.
        background = _background(scene, size_px, rng)
        self._ground = background.resize((size_px * _SUPERSAMPLING,) * 2, Image.Resampling.BILINEAR)
        self._traits = [_Traits.drawn(rng) for _ in range(num_objects)]
        self._noise: np.ndarray | None = None
        if scene.background.kind == "noise":
            self._noise = rng.standard_normal((size_px, size_px, 3)) * rng.uniform(3, 9)

    def picture(self, things: Sequence[Thing | None]) -> Image.Image:
        """The things as RGB, size_px x size_px; None: one that is not there now."""
        large = self._ground.copy()
        draw = ImageDraw.Draw(large)
        for item, traits in zip(things, self._traits, strict=True):
            if item is not None:
                _draw_object(draw, item, self._size_px * _SUPERSAMPLING, traits)
        picture = large.reduce(_SUPERSAMPLING)
        if self._blur_px > 0:
            picture = picture.filter(ImageFilter.GaussianBlur(self._blur_px))
        if self._noise is not None:
            picture = Image.fromarray(np.clip(np.asarray(picture) + self._noise, 0, 255).astype(np.uint8))
        return picture


def render(scene: Scene, *, size_px: int = 96) -> Image.Image:
    """The picture of `scene`, RGB, size_px x size_px; the same scene and size always give the same pixels.

    Raises ConfigError when size_px is outside 96..448.
    """
    return Painter(scene, num_objects=len(scene.objects), size_px=size_px).picture(scene.objects)


def render_png(scene: Scene, *, size_px: int = 96) -> bytes:
    """The picture of `scene` as the bytes of a PNG file."""
    buffer = io.BytesIO()
    render(scene, size_px=size_px).save(buffer, format="PNG")
    return buffer.getvalue()


def render_file(scene_path: Path, out: Path, *, size_px: int) -> None:
    """`render` verb: draw the scene of a JSON file into a PNG file. Raises ConfigError or FileNotFoundError."""
    if out.suffix.lower() != ".png":
        raise ConfigError(f"{out}: expected a name that ends in .png, the only format of a picture that is written")
    picture = render_png(load_scene(scene_path), size_px=size_px)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(out, picture)
