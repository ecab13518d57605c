"""The window stage: its questions have the right answers, it learns, and a resumed run is the unbroken one."""

import json

import pytest
import torch
from safetensors.torch import load_file

from data_prep.watched import make_watched
from mmspeech.config import ConfigError, VisionConfig
from mmspeech.vision.encoder import build_tower
from train import steps
from train import window_tower as stage
from train.tower import export_tower

SHAPES = ["circle", "square", "triangle", "star", "cross"]
COLOURS = ["red", "green", "blue", "yellow", "purple", "orange", "white", "black"]
ARGS = {"num_layers": 1, "num_heads": 2, "ffn_dim": 16, "stem_strides": [4, 4], "stem_dims": [8]}
PLAIN = VisionConfig(tower="vit", image_size_px=96, tower_dim=16, tower_args=ARGS)


@pytest.fixture(scope="module")
def clips_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("watched")
    make_watched(folder / "clips", count=4, seed=1, split="train")
    torch.manual_seed(0)
    (folder / "tower").mkdir()
    export_tower(build_tower(PLAIN), folder / "tower", {})
    return folder


def config(folder, **settings) -> stage.WindowStageConfig:
    windows = {"window_frames": 4, "window_fps": 2.5, "tower_args": ARGS | {"window_layers": 1, "window_dim": 8}}
    base = {
        "vision": PLAIN.model_copy(update=windows), "tower": str(folder / "tower"), "clips": str(folder / "clips"),
        "held_out": str(folder / "clips"), "out": str(folder / "out"), "shapes": SHAPES, "colours": COLOURS,
        "batch_size": 4, "max_steps": 4, "warmup_steps": 1, "save_every_steps": 2,
    }  # fmt: skip
    return stage.WindowStageConfig(**base | settings)


def known(**values) -> dict[str, torch.Tensor]:
    base = {"x": [0.3, 0.3], "y": [0.3, 0.3], "radius": [0.09, 0.2], "there": [1, 0], "gone": [0, 1]}
    return {name: torch.tensor([value]) for name, value in (base | values).items()}


def test_what_is_there_hides_what_is_gone():
    asked = stage.asked_of(known(), grid=10)
    assert asked.there.view(10, 10)[3, 3] and asked.owner.view(10, 10)[3, 3] == 0
    beside = asked.gone.view(10, 10)[3, 1]
    assert beside and asked.owner.view(10, 10)[3, 1] == 1
    assert not (asked.there & asked.gone).any() and asked.empty.view(10, 10)[8, 8]


def test_of_what_blinks_nothing_is_asked_while_it_is_away():
    asked = stage.asked_of(known(there=[0, 0], gone=[0, 0]), grid=10)
    assert not asked.there.any() and not asked.gone.any() and not asked.empty.view(10, 10)[3, 3]


def test_windows_hold_the_frames_up_to_the_newest(clips_dir):
    settings = config(clips_dir)
    tower = stage._whole_tower(settings)
    clips = stage.load_clips(settings.clips, tower, settings)
    assert len(clips.frames) == int(clips.count.sum()) == len(clips.known["moved"])
    shown = stage.window_of(torch.arange(7).numpy(), tower, fps=2.0, start_sec=0.0)
    assert shown.tolist() == [3, 4, 5, 6]  # 0.4 s a slot, a frame every 0.5 s
    assert stage.window_of(torch.arange(5).numpy(), tower, fps=2.0, start_sec=0.0).tolist() == [2, 3, 3, 4]
    windows = stage.draw_windows(clips, tower, settings, step=3)
    assert windows.shape == (4, 4) and torch.equal(windows, stage.draw_windows(clips, tower, settings, step=3))
    assert (windows.diff() >= 0).float().mean() > 0.7  # but where one clip is cut to another


def test_a_resumed_run_is_the_unbroken_one_and_pictures_stay_as_they_were(clips_dir, monkeypatch):
    stage.train_window(config(clips_dir, out=str(clips_dir / "whole")))
    save = steps.save_atomically

    def save_and_die(path, state):
        save(path, state)
        raise KeyboardInterrupt

    broken = config(clips_dir, out=str(clips_dir / "broken"))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(steps, "save_atomically", save_and_die)
        stage.train_window(broken)
    scores = stage.train_window(broken)
    whole, resumed, plain = (load_file(clips_dir / run / "tower.safetensors") for run in ("whole", "broken", "tower"))
    assert whole.keys() == resumed.keys() and all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert plain.keys() < whole.keys() and all(torch.equal(whole[name], plain[name]) for name in plain)
    told = json.loads((clips_dir / "broken" / "metrics.json").read_text())["held_out"]
    assert told == pytest.approx(scores, nan_ok=True)


def test_it_learns_what_there_is_to_learn(clips_dir):
    """A clip or two by heart: the loss falls to a fraction."""
    out = clips_dir / "learned"
    stage.train_window(config(clips_dir, out=str(out), max_steps=60, batch_size=16, learning_rate=5e-3, max_clips=1))
    losses = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in losses if line["kind"] == "train"]
    assert losses[-1] < 0.5 * losses[0]


def test_bad_clips_are_named(clips_dir, tmp_path):
    settings = config(clips_dir, colours=COLOURS[:1])
    with pytest.raises(ConfigError, match=r"watched.json: ValueError: .*; expected what `python -m data_prep watched`"):
        stage.load_clips(settings.clips, stage._whole_tower(settings), settings)
    with pytest.raises(ConfigError, match="no clips"):
        stage.load_clips(tmp_path / "nowhere", stage._whole_tower(settings), settings)
    with pytest.raises(ConfigError, match="window_layers is 0"):
        stage._whole_tower(config(clips_dir, vision=PLAIN))
