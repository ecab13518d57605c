"""Bytes, files and Pillow images -> one upright RGB picture -> pixels a tower reads."""

import io
import struct
import warnings
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from mmspeech.config import ConfigError

MAX_PIXELS = 64_000_000
_FORMATS = "PNG, JPEG, WebP, GIF, BMP or TIFF"
# What Pillow's decoders raise on broken data, beside OSError.
_BROKEN = (SyntaxError, ValueError, TypeError, IndexError, KeyError, EOFError, struct.error, zlib.error, OverflowError)


class ImageError(ConfigError):
    """A picture that cannot be used; one line naming it, what was expected and what to do."""


def load_image(source: str | Path | bytes | Image.Image, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The picture, upright (EXIF), as RGB; transparency lies on white; of an animation, the first frame.

    16-bit and float greys are scaled to 8 bits. Raises ImageError for what is missing, empty, cut off, not a picture,
    or has more than `max_pixels` (told from the header, before anything is decoded).
    """
    with warnings.catch_warnings():
        # What Pillow warns of is either harmless or becomes an error of ours.
        warnings.filterwarnings("ignore", module="PIL")
        if isinstance(source, Image.Image):
            _check_size(source, "picture", max_pixels)
            return _decode(source, "picture")
        name = "picture" if isinstance(source, bytes) else str(source)
        with _open(source, name) as opened:
            _check_size(opened, name, max_pixels)
            return _decode(opened, name)


def to_pixels(
    image: Image.Image, size_px: int | tuple[int, int], mean: Sequence[float], std: Sequence[float]
) -> Tensor:
    """RGB image -> [3, H, W] float, (value in 0..1 - mean) / std.

    size_px: a side of the square, or (height, width); the aspect ratio is not kept. Bicubic with antialiasing.
    """
    height, width = (size_px, size_px) if isinstance(size_px, int) else size_px
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    pixels = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).float() / 255
    return (pixels - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)


def to_padded_pixels(
    images: Sequence[Image.Image], max_size_px: int, mean: Sequence[float], std: Sequence[float], *, patch_px: int
) -> tuple[Tensor, Tensor]:
    """Pictures of any shape for towers with variable token counts: the aspect ratio is kept.

    The longer side is at most max_size_px; sides are rounded up to whole patches. Returns pixels [B, 3, H, W], zeros on
    the right and below, and sizes_px [B, 2] long (height, width).
    """
    sizes = [_patched_size(image, max_size_px, patch_px) for image in images]
    pixels = torch.zeros(len(images), 3, max(h for h, _ in sizes), max(w for _, w in sizes))
    for row, (image, (height, width)) in enumerate(zip(images, sizes, strict=True)):
        pixels[row, :, :height, :width] = to_pixels(image, (height, width), mean, std)
    return pixels, torch.tensor(sizes)


def _patched_size(image: Image.Image, max_size_px: int, patch_px: int) -> tuple[int, int]:
    """(height, width), multiples of patch_px."""
    scale = min(1.0, max_size_px / max(image.size))
    width, height = (max(1, -(-int(side * scale) // patch_px)) * patch_px for side in image.size)
    return height, width


def _open(source: str | Path | bytes, name: str) -> Image.Image:
    """The header read, nothing decoded."""
    if isinstance(source, bytes):
        empty, data = not source, io.BytesIO(source)
    else:
        path = data = Path(source)
        if not path.exists():
            raise ImageError(f"{name}: no such file; give the path of a picture ({_FORMATS})")
        if path.is_dir():
            raise ImageError(f"{name}: is a directory; give the path of one picture ({_FORMATS})")
        empty = path.stat().st_size == 0
    if empty:
        raise ImageError(f"{name}: is empty (0 bytes); expected a picture ({_FORMATS})")
    try:
        return Image.open(data)
    except Image.DecompressionBombError as error:
        raise ImageError(
            f"{name}: has far more than {MAX_PIXELS / 1e6:g} million pixels; scale it down first"
        ) from error
    except UnidentifiedImageError as error:
        raise ImageError(f"{name}: is not a picture Pillow can read; convert it to {_FORMATS}") from error
    except (OSError, *_BROKEN) as error:
        raise ImageError(f"{name}: cannot be opened ({_reason(error)}); expected a picture ({_FORMATS})") from error


def _check_size(image: Image.Image, name: str, max_pixels: int) -> None:
    width, height = image.size
    if width * height == 0:
        raise ImageError(f"{name}: has no pixels ({width} x {height}); expected at least 1 x 1")
    if width * height > max_pixels:
        raise ImageError(
            f"{name}: {width} x {height} is {width * height / 1e6:.0f} million pixels, "
            f"expected at most {max_pixels / 1e6:g} million; scale it down first"
        )


def _decode(image: Image.Image, name: str) -> Image.Image:
    try:
        image.load()
    except (OSError, *_BROKEN) as error:
        raise ImageError(f"{name}: is cut off or broken ({_reason(error)}); save or download it again") from error
    try:
        image = ImageOps.exif_transpose(image)
    except (OSError, *_BROKEN):
        image = image.copy()  # unreadable EXIF says nothing about which side is up
    return _to_rgb(image)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        return _wide_grey(image).convert("RGB")
    if "A" in image.mode or "a" in image.mode or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def _wide_grey(image: Image.Image) -> Image.Image:
    """Greys of more than 8 bits -> L. Integers are taken as 16-bit, floats as 0..1 when none is larger."""
    values = np.asarray(image).astype(np.float32)
    values = np.nan_to_num(values, posinf=np.inf)
    scale = 255.0 if image.mode == "F" and values.max() <= 1 else 1.0 if image.mode == "F" else 255 / 65535
    return Image.fromarray((values * scale).round().clip(0, 255).astype(np.uint8))


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:120] or type(error).__name__
