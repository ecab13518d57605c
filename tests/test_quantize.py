"""Quantised weights: how near they stay to the whole ones, what they weigh, and that they come back as stored."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from typer.testing import CliRunner

from mmspeech.checkpoint import EMBEDDED, load_model
from mmspeech.cli import app
from mmspeech.config import ConfigError
from mmspeech.lm.depth import StepLinear, StepLinears
from mmspeech.quantize import parse_kinds, quantize_model, weight_bytes

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(*arguments: str):
    return CliRunner().invoke(app, list(arguments))


def test_one_by_one_the_steps_give_what_they_gave_together():
    whole = StepLinear(4, 8, 6)
    apart = StepLinears.of(whole)
    x, rows = torch.randn(4, 5, 8), torch.randn(5, 8)
    for arguments in ((x,), (x[:3],), (rows,), (rows, 2)):
        torch.testing.assert_close(apart(*arguments), whole(*arguments))
    torch.testing.assert_close(apart(rows, count=2), whole(rows, count=2))
    torch.testing.assert_close(torch.stack([whole(row, k) for k, row in enumerate(x)]), whole(x))
    assert apart.steps[1].weight.data_ptr() == whole.weight[1].data_ptr()


def test_mmspeech_tiny_in_int8_says_the_same_and_weighs_what_its_numbers_do(tmp_path):
    """At least 98 % of text tokens over calls of its own."""
    questions = [part for name in ("what_colour", "where_is") for part in ("--audio", str(EXAMPLES / f"{name}.wav"))]
    picture = ("--image", str(EXAMPLES / "scene.png"))
    result = run("bench", "--quantize", "int8", *questions, *picture, "--out", str(tmp_path / "numbers.json"))
    assert result.exit_code == 0, result.output
    rows = json.loads((tmp_path / "numbers.json").read_text())["rows"]
    assert rows["whole"]["kl"] == 0 and rows["whole"]["text"] == rows["whole"]["codes"] == 1
    assert rows["int8"]["text"] >= 0.98 and rows["int8"]["codes"] >= 0.95 and 0 < rows["int8"]["kl"] < 0.01
    model = load_model().model
    parts = (model.lm, model.tower)
    matrices = [one.weight for part in parts for one in part.modules() if isinstance(one, nn.Linear | StepLinear)]
    # A byte a number, and a scale (float32) and a zero point (a byte) a row.
    saved = sum(3 * weight.numel() - 5 * weight.numel() // weight.shape[-1] for weight in matrices)
    assert rows["int8"]["mb"] * 1e6 == pytest.approx(weight_bytes(model) - saved, rel=1e-3)


def test_parts_are_quantised_alone():
    model = load_model().model
    before = weight_bytes(model)
    quantize_model(model, parse_kinds("depth=int8"))
    assert weight_bytes(model) < before
    kinds = {type(one.weight).__name__ for one in model.lm.temporal.modules() if isinstance(one, nn.Linear)}
    assert kinds == {"Parameter"}


def test_stored_and_loaded_it_is_the_same(tmp_path):
    result = run("quantize", str(tmp_path / "small"), "int8")
    assert result.exit_code == 0, result.output
    at_load, from_file = load_model(quantize="int8").model, load_model(tmp_path / "small").model
    columns = torch.randint(0, 60, (1, at_load.lm.layout.num_streams, 12))
    with torch.no_grad():
        assert torch.equal(at_load.lm(columns).text_logits, from_file.lm(columns).text_logits)
        pixels = torch.randn(1, 3, at_load.tower.image_size_px, at_load.tower.image_size_px)
        assert torch.equal(at_load.tower(pixels)[0], from_file.tower(pixels)[0])
    files = [path / "model.safetensors" for path in (tmp_path / "small", EMBEDDED)]
    stored = load_file(files[0])
    assert {value.dtype for value in stored.values()} >= {torch.int8}
    reply = run(
        "talk", "--audio", str(EXAMPLES / "what_colour.wav"), "--image", str(EXAMPLES / "scene.png"), "--greedy",
        "--model", str(tmp_path / "small"), "--out", str(tmp_path / "a.wav"), "--json",
    )  # fmt: skip
    assert reply.exit_code == 0 and json.loads(reply.stdout)["text"]


@pytest.mark.parametrize("text", ["int3", "depth=int8,depth=int4", "mouth=int8", "int8,depth=int8", ""])
def test_unknown_kinds_and_parts_are_refused(text):
    with pytest.raises(ConfigError, match="expected int8, int4, fp8, or PART=KIND"):
        parse_kinds(text)


def test_int4_is_not_stored(tmp_path):
    result = run("quantize", str(tmp_path / "small"), "int4")
    assert result.exit_code == 2 and "packed for the device" in result.output and not (tmp_path / "small").exists()
