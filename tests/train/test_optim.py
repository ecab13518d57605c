"""What trains, decay groups and schedules."""

import pytest

from mmspeech.config import ConfigError
from mmspeech.lm.trainable import trainable_names
from train.optim import build_optimizer, freeze_all_but, learning_rate
from train.settings import OptimConfig


@pytest.fixture
def model(small_checkpoint):
    from mmspeech.checkpoint import load_model

    return load_model(small_checkpoint).model


def test_groups_of_names_are_exact(model):
    everything = {name for name, _ in model.named_parameters() if not name.startswith("tower.")}
    adapters = set(model.adapter_names())
    assert adapters and adapters < everything
    assert set(trainable_names(model, ["all"])) == everything
    assert set(trainable_names(model, ["adapters"])) == adapters
    assert set(trainable_names(model, ["speech"])) == everything - adapters
    assert set(trainable_names(model, ["all", "!lm.depth"])) == {n for n in everything if not n.startswith("lm.depth.")}
    assert set(trainable_names(model, ["*.norm1.*"])) == {n for n in everything if ".norm1." in n}


def test_patterns_that_match_nothing_are_refused(model):
    with pytest.raises(ConfigError, match="'tower' matches no parameter"):
        trainable_names(model, ["tower"])
    with pytest.raises(ConfigError, match="leaves no parameter"):
        trainable_names(model, ["speech", "!lm"])


def test_decay_leaves_norms_and_embeddings_alone(model):
    names = trainable_names(model, ["all"])
    freeze_all_but(model, names)
    optimizer = build_optimizer(model, OptimConfig(weight_decay=0.1))
    of = {id(p): name for name, p in model.named_parameters()}
    groups = {group["weight_decay"]: {of[id(p)] for p in group["params"]} for group in optimizer.param_groups}
    assert groups[0.1] | groups[0.0] == set(names) and not groups[0.1] & groups[0.0]
    assert not any("norm" in name or "emb" in name or name.endswith("bias") for name in groups[0.1])
    assert "lm.temporal.text_linear.weight" in groups[0.1]


@pytest.mark.parametrize("schedule", ["cosine", "wsd"])
def test_schedules_warm_up_and_end_at_the_final_ratio(schedule):
    config = OptimConfig(learning_rate=2.0, schedule=schedule, warmup_steps=10, decay_share=0.25, final_ratio=0.1)
    assert learning_rate(config, step=0, progress=0.0) == pytest.approx(0.2)
    assert learning_rate(config, step=9, progress=0.0) == pytest.approx(2.0)
    assert learning_rate(config, step=999, progress=1.0) == pytest.approx(0.2)
    rates = [learning_rate(config, step=50, progress=p / 20) for p in range(21)]
    assert all(a >= b for a, b in zip(rates, rates[1:], strict=False))
    if schedule == "wsd":
        assert rates[15] == pytest.approx(2.0) and rates[16] < 2.0
