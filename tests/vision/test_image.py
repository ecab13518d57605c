"""Pictures of every kind come out upright, RGB and within limits; bad ones say so in one line."""

import io

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from mmspeech.config import ConfigError
from mmspeech.vision.image import ImageError, load_image, to_padded_pixels, to_pixels

RED = (200, 40, 30)


def encoded(image: Image.Image, format: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=format, **options)
    return buffer.getvalue()


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_undone(orientation):
    upright = Image.new("RGB", (32, 16), "white")
    upright.paste(RED, (0, 0, 8, 16))  # a red band on the left
    undo = {
        1: None, 2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }[orientation]  # fmt: skip
    stored = upright if undo is None else upright.transpose(undo)
    exif = Image.Exif()
    exif[0x0112] = orientation
    loaded = load_image(encoded(stored, "PNG", exif=exif))
    assert loaded.size == (32, 16)
    np.testing.assert_array_equal(np.asarray(loaded), np.asarray(upright))


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_common_formats(format, tmp_path):
    path = tmp_path / f"picture.{format.lower()}"
    path.write_bytes(encoded(Image.new("RGB", (20, 10), RED), format))
    image = load_image(path)
    assert (image.mode, image.size) == ("RGB", (20, 10))
    assert np.abs(np.asarray(image).astype(int) - RED).max() <= 6


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "LAB", "I", "F", "I;16"]
)
def test_every_mode_becomes_rgb(mode):
    image = Image.new("L", (5, 4), 255).convert("L") if mode == "I;16" else Image.new("RGB", (5, 4), "white")
    image = Image.fromarray(np.full((4, 5), 65535, np.uint16)) if mode == "I;16" else image.convert(mode)
    if mode in ("I", "F"):
        image = Image.fromarray(np.full((4, 5), 65535, np.int32) if mode == "I" else np.ones((4, 5), np.float32))
    loaded = load_image(image)
    assert (loaded.mode, loaded.size) == ("RGB", (5, 4))
    assert np.asarray(loaded).min() >= 250


def test_sixteen_bit_greys_keep_their_steps():
    values = np.array([[0, 257, 32896, 65535]], np.uint16)
    loaded = np.asarray(load_image(encoded(Image.fromarray(values))))
    np.testing.assert_array_equal(loaded[0, :, 0], [0, 1, 128, 255])


def test_transparency_lies_on_white():
    image = Image.new("RGBA", (2, 1), (0, 0, 0, 0))
    image.putpixel((1, 0), (*RED, 255))
    assert [load_image(encoded(image)).getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), RED]
    palette = Image.new("P", (1, 1), 0)
    palette.putpalette([0, 0, 0])
    assert load_image(encoded(palette, "GIF", transparency=0)).getpixel((0, 0)) == (255, 255, 255)


def test_an_animation_gives_its_first_frame():
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    loaded = load_image(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]))
    assert loaded.getpixel((0, 0))[0] > 200


def test_one_pixel_works():
    pixels = to_pixels(load_image(encoded(Image.new("RGB", (1, 1), "white"))), 96, (0.5,) * 3, (0.5,) * 3)
    assert pixels.shape == (3, 96, 96)
    torch.testing.assert_close(pixels, torch.ones(3, 96, 96))


def test_too_many_pixels_are_refused_before_decoding(tmp_path):
    path = tmp_path / "huge.png"
    Image.new("1", (10_000, 10_000)).save(path)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])  # cut off: decoding would fail otherwise
    with pytest.raises(ImageError, match=r"huge.png: 10000 x 10000 is 100 million pixels, expected at most 64 million"):
        load_image(path)
    with pytest.raises(ImageError, match="scale it down"):
        load_image(Image.new("1", (9000, 9000)))
    load_image(Image.new("1", (10, 10)), max_pixels=100)


def test_a_decompression_bomb_is_refused():
    data = bytearray(encoded(Image.new("1", (8, 8)), "BMP"))
    data[18:26] = (100_000).to_bytes(4, "little") * 2
    with pytest.raises(ImageError, match="scale it down"):
        load_image(bytes(data))


@pytest.mark.parametrize("format", ["PNG", "JPEG", "GIF", "WEBP", "TIFF"])
def test_a_cut_off_picture_is_refused(format, tmp_path):
    path = tmp_path / "cut"
    data = encoded(noise(64, 64), format)
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(ImageError, match="cut: ") as caught:
        load_image(path)
    assert "\n" not in str(caught.value)


def test_other_bad_files(tmp_path):
    with pytest.raises(ImageError, match="nowhere.png: no such file"):
        load_image(tmp_path / "nowhere.png")
    with pytest.raises(ImageError, match="is a directory"):
        load_image(tmp_path)
    (tmp_path / "empty.png").write_bytes(b"")
    with pytest.raises(ImageError, match=r"empty.png: is empty \(0 bytes\)"):
        load_image(tmp_path / "empty.png")
    with pytest.raises(ImageError, match="picture: is empty"):
        load_image(b"")
    (tmp_path / "text.png").write_text("not a picture")
    with pytest.raises(ImageError, match="text.png: is not a picture"):
        load_image(tmp_path / "text.png")
    assert issubclass(ImageError, ConfigError)


@pytest.mark.parametrize("seed", range(20))
def test_flipped_bytes_never_raise_anything_else(seed):
    rng = np.random.default_rng(seed)
    for format in ("PNG", "JPEG", "GIF", "TIFF", "BMP"):
        data = bytearray(encoded(noise(16, 16), format))
        for at in rng.integers(0, len(data), 8):
            data[at] = rng.integers(256)
        try:
            load_image(bytes(data))
        except ImageError as error:
            assert "\n" not in str(error)


def test_pixels_are_bicubic_with_antialias_and_normalised():
    image = noise(61, 47)
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
    pixels = to_pixels(image, (32, 24), mean, std)
    raw = torch.from_numpy(np.array(image)).permute(2, 0, 1).float()
    resized = F.interpolate(raw[None], size=(32, 24), mode="bicubic", antialias=True)[0].clamp(0, 255)
    expected = (resized / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    torch.testing.assert_close(pixels, expected, atol=1.5 / 255 / 0.2, rtol=0)


def test_padded_pixels_keep_the_aspect():
    images = [
        Image.new("RGB", (100, 50), "white"),
        Image.new("RGB", (10, 30), "white"),
        Image.new("RGB", (1, 400), "white"),
    ]
    pixels, sizes_px = to_padded_pixels(images, 64, (0.5,) * 3, (0.5,) * 3, patch_px=16)
    assert sizes_px.tolist() == [[32, 64], [32, 16], [64, 16]]
    assert pixels.shape == (3, 3, 64, 64)
    for picture, (height, width) in zip(pixels, sizes_px.tolist(), strict=True):
        assert (picture[:, :height, :width] == 1).all()
        assert picture.sum() == 3 * height * width
