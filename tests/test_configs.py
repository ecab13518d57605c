"""Every file under configs/ loads strictly, builds at its full size, and names only files that exist."""

import re
import shlex
from pathlib import Path

import pytest
import torch
import yaml
from pydantic import TypeAdapter, ValidationError

from mmspeech.config import (
    CodecConfig,
    ConfigError,
    ModelConfig,
    TransformerConfig,
    apply_overrides,
    load_config,
    parse_config,
)

ROOT = Path(__file__).resolve().parent.parent
OWN = ("model", "codec", "train")
LAUNCHES = ("accelerate", "deepspeed", "slurm")  # read by others, and run in tests/train/test_launches.py
SERVING = ("serve",)  # read by Docker
PLANS = ("eval",)  # read in tests/eval/test_ablate.py
CONFIGS = [path for path in sorted((ROOT / "configs").rglob("*.yaml")) if path.parent.name in OWN]
MOSHIVIS_ADAPTERS = 206_184_448


def read(path: Path) -> dict:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def of_folder(name: str) -> list[Path]:
    return [path for path in CONFIGS if path.parent.name == name]


def train_class(path: Path):
    """Stages with a recipe of their own have a configuration of their own; the name says which."""
    if path.stem == "tiny":
        from train.rebuild import RebuildConfig

        return RebuildConfig
    if path.stem.endswith("codec"):
        from train.codec import CodecStageConfig

        return CodecStageConfig
    if path.stem.endswith("tower"):
        from train.tower import TowerStageConfig

        return TowerStageConfig
    if path.stem.endswith("window"):
        from train.window_tower import WindowStageConfig

        return WindowStageConfig
    from train.settings import TrainConfig

    return TrainConfig


def test_every_folder_has_a_reader():
    assert {path.name for path in (ROOT / "configs").iterdir()} == {*OWN, *LAUNCHES, *SERVING, *PLANS}


@pytest.mark.parametrize("path", of_folder("model"), ids=lambda p: p.stem)
def test_models_build_at_full_size(path):
    from mmspeech.audio.codec import build_codec
    from mmspeech.lm.model import VisionSpeechModel

    config = load_config(ModelConfig, path)
    with torch.device("meta"):
        model, codec = VisionSpeechModel(config), build_codec(config.codec)
    assert codec.num_codebooks == config.lm.num_codebooks and codec.codebook_size == config.lm.audio_card
    assert codec.frame_samples == 1920
    if path.stem == "moshivis_7b":
        assert sum(parameter.numel() for parameter in model.adapter_parameters()) == MOSHIVIS_ADAPTERS


@pytest.mark.parametrize("path", of_folder("model"), ids=lambda p: p.stem)
def test_towers_of_our_own_have_the_width_they_say(path):
    from mmspeech.vision.encoder import build_tower

    config = load_config(ModelConfig, path).vision
    if config is None or config.tower != "vit":
        pytest.skip("no tower, or one of another library")
    size = config.image_size_px
    features, _ = build_tower(config)(torch.zeros(1, 3, size, size))
    assert features.shape[-1] == config.feature_dim


@pytest.mark.parametrize("path", of_folder("codec"), ids=lambda p: p.stem)
def test_codecs_build(path):
    from mmspeech.audio.codec import build_codec

    config = TypeAdapter(CodecConfig).validate_python(read(path))
    with torch.device("meta"):
        assert build_codec(config).frame_samples == 1920


@pytest.mark.parametrize("path", of_folder("train"), ids=lambda p: p.stem)
def test_training_stages_load_and_name_files_that_exist(path):
    config = load_config(train_class(path), path)
    model = getattr(getattr(config, "init", None), "model", None)
    assert model is None or (ROOT / model).is_file()


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_a_wrong_key_is_named_in_every_file(path):
    data = read(path) | {"no_such_key": 1}
    if path.parent.name == "codec":
        with pytest.raises(ValidationError, match="no_such_key"):
            TypeAdapter(CodecConfig).validate_python(data)
        return
    cls = ModelConfig if path.parent.name == "model" else train_class(path)
    with pytest.raises(ConfigError, match="unknown key 'no_such_key'"):
        parse_config(cls, data, source=str(path))


def test_every_step_of_the_rebuild_is_a_command_that_exists():
    from command_lines import check

    for step in load_config(train_class(Path("tiny")), ROOT / "configs/train/tiny.yaml").steps:
        check(["python", "-m", *shlex.split(step.run)])


def test_the_tiny_stages_fit_the_tiny_model():
    """The codec and the tower trained by their own stages are those of the model configuration."""
    model = load_config(ModelConfig, ROOT / "configs/model/tiny.yaml")
    codec = load_config(train_class(Path("tiny_codec")), ROOT / "configs/train/tiny_codec.yaml").codec
    tower = load_config(train_class(Path("tiny_tower")), ROOT / "configs/train/tiny_tower.yaml").vision
    window = load_config(train_class(Path("tiny_window")), ROOT / "configs/train/tiny_window.yaml").vision
    assert codec.model_copy(update={"num_phones": 0}) == model.codec
    assert window == model.vision
    same = ("tower", "image_size_px", "tower_dim")
    assert all(getattr(tower, name) == getattr(model.vision, name) for name in same)
    assert tower.tower_args.items() <= model.vision.tower_args.items()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_head": 4}, "unknown key 'num_head' (did you mean 'num_heads'?)"),
        ({"dim": None}, "'dim'"),
        ({"dim": -1}, "'dim': Input should be greater than 0 (got -1)"),
        ({"dim": 30, "num_heads": 4}, "30 is not a multiple of num_heads 4"),
        ({"norm": "batch"}, "'norm'"),
    ],
)
def test_what_is_wrong_is_said(change, message):
    good = {"dim": 32, "num_heads": 4, "num_layers": 1, "ffn_dim": 8, "context": 5}
    with pytest.raises(ConfigError, match=re.escape(message)):
        parse_config(TransformerConfig, good | change, source="x.yaml")


def test_all_problems_are_told_at_once():
    with pytest.raises(ConfigError) as caught:
        parse_config(TransformerConfig, {"dim": "wide", "nrom": "rms"}, source="x.yaml")
    for part in (
        "x.yaml",
        "'dim'",
        "'nrom' (did you mean 'norm'?)",
        "missing key 'num_heads'",
        "missing key 'context'",
    ):
        assert part in str(caught.value)


def test_overrides_set_dotted_keys_and_refuse_nonsense(tmp_path):
    data = {"a": {"b": 1}, "c": 2}
    assert apply_overrides(data, ["a.b=3", "d.e=[1, 2]"]) == {"a": {"b": 3}, "c": 2, "d": {"e": [1, 2]}}
    assert data == {"a": {"b": 1}, "c": 2}
    for wrong, message in (
        ("a.b", "expected key.sub=value"), ("c.x=1", "'c' is a value"), ("a.b=[1", "not valid YAML; quote it"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=message):
            apply_overrides(data, [wrong])
    with pytest.raises(ConfigError, match="'a.b': expected.*'c' is a value"):
        apply_overrides(data, ["a.b", "c.x=1"])


def test_files_that_are_no_configuration(tmp_path):
    (tmp_path / "list.yaml").write_text("[1, 2]")
    (tmp_path / "broken.yaml").write_text("a: [1")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "twice.yaml").write_text("a: {dim: 1, num_heads: 2, dim: 3}")
    (tmp_path / "twice.json").write_text('{"dim": 1, "dim": 2}')
    for name, message in (
        ("none.yaml", "no such configuration file; files there: binary.yaml, broken.yaml, list.yaml, twice.yaml"),
        ("list.yaml", "expected a mapping"),
        ("broken.yaml", "not valid"),
        ("binary.yaml", "not valid"),
        ("twice.yaml", "key 'dim' stands there twice.*line 1"),
        ("twice.json", "key 'dim' stands there twice"),
    ):
        with pytest.raises(ConfigError, match=message):
            load_config(TransformerConfig, tmp_path / name)
