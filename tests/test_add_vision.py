"""`mmspeech add-vision`: the same speech, bit for bit, until the adapters are trained."""

from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from mmspeech.checkpoint import build_empty, load_weights, read_tensors
from mmspeech.cli import app
from mmspeech.config import ModelConfig, load_config
from mmspeech.formats.directory import convert_directory
from mmspeech.lm.model import VisionSpeechModel
from mmspeech.types import VisualContext

SMALL = Path(__file__).parent / "golden" / "moshi-small"
TOWER = "timm:test_vit.r160_in1k"


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A small Moshi in our layout."""
    path = tmp_path_factory.mktemp("base") / "ours"
    convert_directory(SMALL, path)
    return path


def loaded(path: Path) -> VisionSpeechModel:
    """The model of a directory, without its tower, which would have to be downloaded."""
    config = load_config(ModelConfig, path / "config.json")
    model = build_empty(lambda: VisionSpeechModel(config))
    load_weights(model, read_tensors(path / "model.safetensors"), source=path)
    return model


def test_nothing_changes_until_the_adapters_learn(base, tmp_path):
    out = tmp_path / "eyes"
    result = CliRunner().invoke(app, ["add-vision", str(base), str(out), "lm.fusion.layers=[1]", "--tower", TOWER])
    assert result.exit_code == 0, result.output
    config = load_config(ModelConfig, out / "config.json")
    assert config.vision.tower == TOWER and config.lm.fusion.layers == (1,)
    blind, seeing = loaded(base), loaded(out)
    columns = torch.randint(0, 30, (1, 9, 6))
    visual = seeing.see(torch.randn(1, 4, config.vision.tower_dim), torch.zeros(1, dtype=torch.long))
    assert isinstance(visual, VisualContext)
    first, second = blind.lm(columns).text_logits, seeing.lm(columns, visual=visual).text_logits
    assert torch.equal(first, second)
    learning = torch.optim.SGD(seeing.adapter_parameters(), lr=1.0)
    for _ in range(2):
        visual = seeing.see(torch.randn(1, 4, config.vision.tower_dim), torch.zeros(1, dtype=torch.long))
        seeing.lm(columns, visual=visual).text_logits[..., 0].sum().backward()
        learning.step()
    after = seeing.lm(columns, visual=visual).text_logits
    assert not torch.equal(first, after) and torch.equal(first, seeing.lm(columns).text_logits)


def test_what_sees_already_and_unknown_towers_are_refused(base, tmp_path):
    for arguments, message in (
        ([str(Path(__file__).parents[1] / "mmspeech" / "pretrained" / "tiny"), str(tmp_path / "x")], "sees already"),
        ([str(base), str(tmp_path / "x"), "--tower", "timm:no_such_tower"], "has no such model"),
        ([str(base), str(tmp_path / "x"), "lm.fusion.gait=1", "--tower", TOWER], "did you mean 'gate'"),
    ):
        result = CliRunner().invoke(app, ["add-vision", *arguments])
        assert result.exit_code == 2 and message in result.output, result.output
        assert not (tmp_path / "x").exists()
