"""`mmspeech bench --batches`: steps of many calls, of a checkpoint or of a configuration alone."""

import json

import pytest
import yaml
from small_model import small_model
from test_cli import assert_one_line_error, mmspeech


@pytest.fixture
def configuration(tmp_path):
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(small_model()))
    return path


def test_a_configuration_alone_can_be_timed(configuration, tmp_path):
    out = tmp_path / "batches.json"
    options = ("--batches", "1,3", "--random-weights", "--model", configuration, "--frames", 10, "--out", out)
    result = mmspeech("bench", *options)
    assert result.exit_code == 0, result.output
    found = json.loads(out.read_text())
    assert found["how"]["weights"] == "random" and found["how"]["frames"] == 10
    assert [row["calls"] for row in found["rows"]] == [1, 3]
    bound = found["how"]["roofline"]
    assert 0 < bound["weights_gb"] < 0.01 and bound["copy_gb_per_sec"] > 0.1 and bound["least_ms"] > 0
    for row in found["rows"]:
        assert all(0 < times["p50"] <= times["p99"] for times in row["ms"].values()), row


def test_a_checkpoint_can_be_timed(remembering_checkpoint):
    result = mmspeech("bench", "--batches", "2", "--model", remembering_checkpoint, "--frames", 10)
    assert result.exit_code == 0, result.output
    assert "the checkpoint's weights" in result.stdout


@pytest.mark.parametrize("batches", ["many", "4,", "0", "2,-1"])
def test_numbers_that_are_none_are_named(batches, configuration):
    result = mmspeech("bench", "--batches", batches, "--random-weights", "--model", configuration)
    assert_one_line_error(result, repr(batches))


def test_graphs_need_a_gpu(configuration):
    options = ("--random-weights", "--model", configuration, "--cuda-graphs")
    assert_one_line_error(mmspeech("bench", "--batches", "2", *options), "--cuda-graphs: cpu has none")


def test_random_weights_need_a_configuration(tmp_path):
    assert_one_line_error(mmspeech("bench", "--random-weights"), "file of a configuration")
    missing = tmp_path / "none.yaml"
    assert_one_line_error(mmspeech("bench", "--random-weights", "--model", missing), "none.yaml")
