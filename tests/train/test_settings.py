"""The stage configurations in configs/train are valid, and contradictions are refused in words."""

from pathlib import Path

import pytest

from mmspeech.config import ConfigError, ModelConfig, load_config, parse_config
from train.settings import InitConfig, TrainConfig, VariantShares

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("stage", ["tiny_lm", "tiny_vision"])
def test_stage_configurations_are_valid(stage):
    config = load_config(TrainConfig, ROOT / "configs" / "train" / f"{stage}.yaml", ["root=/elsewhere"])
    assert config.run_dir.is_relative_to("/elsewhere")
    load_config(ModelConfig, ROOT / config.init.model)


def test_unknown_keys_name_the_nearest():
    settings = {"run": "x", "init": {"checkpoint": "y"}, "trainable": ["all"], "max_step": 3}
    with pytest.raises(ConfigError, match="unknown key 'max_step'.*did you mean 'max_steps'") as caught:
        parse_config(TrainConfig, settings, source="x.yaml")
    assert "missing key 'data'" in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "give checkpoint, model, or both"),
        ({"model": "m.yaml"}, "codec and tokenizer go with a fresh model"),
        ({"checkpoint": "c", "codec": "d"}, "codec and tokenizer go with a fresh model"),
        ({"checkpoint": "c", "blind": True}, "blind goes with model"),
        ({"model": "m", "codec": "c", "tokenizer": "t", "fresh_adapters": True}, "fresh_adapters goes with checkpoint"),
    ],
)
def test_origins_that_contradict_themselves(settings, message):
    with pytest.raises(ConfigError, match=message):
        parse_config(InitConfig, settings, source="x.yaml")


def test_some_variant_is_needed():
    with pytest.raises(ConfigError, match="at least one variant"):
        parse_config(VariantShares, {"dialogue": 0}, source="x.yaml")
