"""The tower stage: its questions have the right answers, and a resumed run is the unbroken one."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from mmspeech.config import ConfigError, VisionConfig
from mmspeech.vision.encoder import build_tower
from train import steps
from train import tower as stage

SHAPES, COLOURS, RADII = ["circle", "square"], ["red", "blue"], {"small": 0.09, "large": 0.15}
OBJECTS = [
    {"shape": "circle", "colour": "red", "size": "small", "x": 0.19, "y": 0.8},
    {"shape": "square", "colour": "red", "size": "large", "x": 0.8, "y": 0.2},
]


def write_scene(folder, name: str, objects: list[dict], seed: int = 0) -> None:
    folder.mkdir(exist_ok=True)
    picture = np.random.default_rng(seed).integers(0, 256, (48, 48, 3), dtype=np.uint8)
    Image.fromarray(picture).save(folder / f"{name}.png")
    (folder / f"{name}.json").write_text(json.dumps({"objects": objects}))
    (folder / f"{name}.dialogue.json").write_text("{}")


def config(tmp_path, **settings) -> stage.TowerStageConfig:
    args = {"num_layers": 1, "num_heads": 2, "ffn_dim": 16, "stem_strides": [2, 3], "stem_dims": [4]}
    vision = VisionConfig(tower="vit", image_size_px=48, tower_dim=8, tower_args=args)
    base = {
        "vision": vision, "scenes": str(tmp_path / "scenes"), "held_out": str(tmp_path / "scenes"),
        "out": str(tmp_path / "out"), "shapes": SHAPES, "colours": COLOURS, "radii": RADII, "batch_size": 3,
        "max_steps": 4, "warmup_steps": 1, "save_every_steps": 2,
    }  # fmt: skip
    return stage.TowerStageConfig(**base | settings)


@pytest.fixture
def scenes_dir(tmp_path):
    for k in range(4):
        write_scene(tmp_path / "scenes", f"{k}", OBJECTS[: 1 + k % 2], seed=k)
    return tmp_path / "scenes"


def test_targets_of_a_known_scene(tmp_path, scenes_dir):
    scenes = stage.load_scenes(scenes_dir, config(tmp_path))
    assert scenes.pixels.shape == (4, 3, 48, 48) and scenes.count.tolist() == [1, 2, 1, 2]
    targets = stage.token_targets(scenes, grid=8, radii=list(RADII.values()))
    assert targets["centre"].sum(1).tolist() == [1, 2, 1, 2]
    assert targets["centre"][1].view(8, 8).nonzero().tolist() == [[1, 6], [6, 1]]
    assert targets["owner"][1].view(8, 8)[1, 6] == 1 and (targets["occupied"] >= targets["centre"]).all()
    offset = targets["offset"][1].view(8, 8, 2)[6, 1]
    torch.testing.assert_close(offset, torch.tensor([0.19 * 8 - 1.5, 0.8 * 8 - 6.5]))
    answers = {name: value[1, :2].tolist() for name, value in stage.object_answers(scenes).items()}
    assert answers == {
        "shape": [0, 1], "colour": [0, 0], "size": [0, 1], "place": [6, 2], "same_colour": [1, 1], "same_shape": [0, 0]
    }  # fmt: skip


def test_mirroring_moves_picture_and_objects(tmp_path, scenes_dir):
    scenes = stage.load_scenes(scenes_dir, config(tmp_path))
    mirrored = scenes.mirrored(torch.tensor([True, False, False, True]))
    torch.testing.assert_close(mirrored.pixels[0], scenes.pixels[0].flip(-1))
    torch.testing.assert_close(mirrored.x[3, :2], 1 - scenes.x[3, :2])
    torch.testing.assert_close(mirrored.x[1], scenes.x[1])


def test_a_resumed_run_is_the_unbroken_one(tmp_path, scenes_dir, monkeypatch):
    stage.train_tower(config(tmp_path, out=str(tmp_path / "whole")))
    save = steps.save_atomically

    def save_and_die(path, state):
        save(path, state)
        raise KeyboardInterrupt

    broken = config(tmp_path, out=str(tmp_path / "broken"))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(steps, "save_atomically", save_and_die)
        stage.train_tower(broken)
    scores = stage.train_tower(broken)
    whole, resumed = (load_file(tmp_path / run / "tower.safetensors") for run in ("whole", "broken"))
    for name, tensor in whole.items():
        torch.testing.assert_close(resumed[name], tensor, atol=0, rtol=0)
    assert json.loads((tmp_path / "broken" / "metrics.json").read_text())["held_out"] == scores
    assert not list((tmp_path / "broken").glob("*.tmp"))
    tower = build_tower(VisionConfig(tower=str(tmp_path / "whole"), image_size_px=48, tower_dim=8))
    assert tower(torch.zeros(1, 3, 48, 48))[0].shape == (1, 64, 8)


@pytest.mark.parametrize(
    ("objects", "message"),
    [
        ([], "0 objects, expected 1 to 4"),
        ([OBJECTS[0] | {"colour": "pink"}], "object 0: 'pink' is not in list; expected the shapes, colours and radii"),
        ([{"shape": "circle"}], "object 0: 'colour'"),
    ],
)
def test_bad_scenes_are_named(tmp_path, scenes_dir, objects, message):
    write_scene(scenes_dir, "bad", objects)
    with pytest.raises(ConfigError, match=f"bad.json: {message}"):
        stage.load_scenes(scenes_dir, config(tmp_path))
    with pytest.raises(ConfigError, match="no scene pairs"):
        stage.load_scenes(tmp_path / "nowhere", config(tmp_path))
