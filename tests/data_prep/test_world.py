"""Scenes: a strict format, splits that share nothing, pictures that follow from the scene alone."""

import json

import numpy as np
import pytest

from data_prep.render import render, render_file
from data_prep.scenes import make_scenes
from data_prep.world import SPLITS, Scene, load_scene, random_scene
from mmspeech.config import ConfigError

CIRCLE = {"shape": "circle", "colour": "red", "size": "large", "x": 0.2, "y": 0.8}
GOOD = {"objects": [CIRCLE], "background": {"tone": "light", "kind": "plain"}, "blur": 0.0, "seed": 3}


def scenes(split: str, count: int, seed: int = 0) -> list[Scene]:
    rng = np.random.default_rng(seed)
    return [random_scene(rng, split=split) for _ in range(count)]


def with_circle(**change) -> dict:
    return GOOD | {"objects": [CIRCLE | change]}


@pytest.mark.parametrize(
    ("scene", "named"),
    [
        (GOOD | {"objects": []}, "objects"),
        (GOOD | {"objects": [CIRCLE] * 5}, "objects"),
        (GOOD | {"tone": "light"}, "tone"),
        (with_circle(shape="hexagon"), "shape"),
        (with_circle(colour="pink"), "colour"),
        (with_circle(x="0.2"), "x"),
        (with_circle(x=0.34), "border"),
        (with_circle(x=0.05), "outside"),
        (with_circle(colour="white"), "cannot be seen"),
        (GOOD | {"objects": [CIRCLE, CIRCLE | {"colour": "blue", "x": 0.25}]}, "overlap"),
        (GOOD | {"blur": 0.5}, "blur"),
    ],
)
def test_a_broken_scene_is_named(tmp_path, scene, named):
    path = tmp_path / "scene.json"
    path.write_text(json.dumps(scene))
    with pytest.raises(ConfigError, match=named) as caught:
        load_scene(path)
    assert str(path) in str(caught.value)


def test_what_is_written_reads_back(tmp_path):
    for scene in scenes("train", 20):
        path = tmp_path / "scene.json"
        path.write_text(scene.model_dump_json())
        assert load_scene(path) == scene


def test_splits_share_no_arrangement():
    def arrangements(split):
        return {
            tuple(sorted((o.place, o.size, o.colour, o.shape) for o in scene.objects)) for scene in scenes(split, 60)
        }

    found = {split: arrangements(split) for split in SPLITS}
    assert not found["train"] & found["test"] and not found["train"] & found["valid"]
    assert not found["valid"] & found["test"]


def test_the_split_depends_on_what_can_be_asked_about_only():
    for scene in scenes("test", 10):
        moved = scene.model_copy(update={"seed": scene.seed + 1, "blur": 0.003, "objects": scene.objects[::-1]})
        assert moved.split == "test"


def test_a_picture_follows_from_its_scene_alone():
    some = scenes("train", 12)
    first, again = ([np.asarray(render(scene, size_px=96)) for scene in some] for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert len({picture.tobytes() for picture in first}) == len(some)


def test_an_object_shows_its_colour_where_it_is():
    scene = Scene.model_validate_json(json.dumps(GOOD))
    for size_px in (96, 448):
        picture = np.asarray(render(scene, size_px=size_px)).astype(int)
        assert picture.shape == (size_px, size_px, 3)
        red, green, blue = picture[int(0.8 * size_px), int(0.2 * size_px)]
        assert red > 190 and green < 70 and blue < 70
        red, green, blue = picture[int(0.2 * size_px), int(0.8 * size_px)]
        assert min(red, green, blue) > 150


def test_render_refuses_other_sizes_and_formats(tmp_path):
    scene = Scene.model_validate_json(json.dumps(GOOD))
    for size_px in (95, 449):
        with pytest.raises(ConfigError, match="96"):
            render(scene, size_px=size_px)
    (tmp_path / "s.json").write_text(json.dumps(GOOD))
    with pytest.raises(ConfigError, match="png"):
        render_file(tmp_path / "s.json", tmp_path / "x.jpg", size_px=96)
    with pytest.raises(FileNotFoundError, match="nothing.json"):
        render_file(tmp_path / "nothing.json", tmp_path / "x.png", size_px=96)


def files(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_half_deleted_and_made_again_is_the_same(tmp_path):
    def make():
        make_scenes(tmp_path / "s", count=8, seed=4, split="valid", size_px=96, blind_share=0.5)

    make()
    whole = files(tmp_path / "s")
    for path in sorted((tmp_path / "s").iterdir())[::2]:
        path.unlink()
    make()
    assert files(tmp_path / "s") == whole
    assert len(whole) == 24 and not [name for name in whole if name.endswith(".tmp")]


def test_parts_make_the_whole(tmp_path):
    options = {"count": 5, "seed": 1, "split": "train", "size_px": 96, "blind_share": 0.2}
    make_scenes(tmp_path / "whole", **options)
    for part in range(2):
        make_scenes(tmp_path / "parts", **options, shard=(part, 2))
    assert files(tmp_path / "whole") == files(tmp_path / "parts")


def test_a_folder_of_other_scenes_is_refused(tmp_path):
    make_scenes(tmp_path, count=1, seed=1, split="train", size_px=96, blind_share=0.0)
    with pytest.raises(ConfigError, match="seed 1"):
        make_scenes(tmp_path, count=1, seed=2, split="train", size_px=96, blind_share=0.0)
