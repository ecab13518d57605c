"""The 7B models at full size, as names and shapes: every layout there and back, without the memory."""

import json
from pathlib import Path

import pytest
import torch

from mmspeech.config import ModelConfig, load_config
from mmspeech.formats import moshi_transformers
from mmspeech.formats.groups import export_tensors, import_tensors, shapes_of
from mmspeech.formats.kyutai_keys import candle_groups, moshi_groups, moshivis_groups
from mmspeech.formats.moshi import join_projections, split_projections

MOSHIVIS = load_config(ModelConfig, Path(__file__).parents[2] / "configs" / "model" / "moshivis_7b.yaml")


def blind(*, depth_codebooks: int | None = None) -> ModelConfig:
    """Moshi, or PersonaPlex with its 16 depth steps."""
    settings = MOSHIVIS.model_dump()
    settings["vision"] = settings["lm"]["fusion"] = None
    if depth_codebooks is not None:
        settings["lm"]["depth_codebooks"] = settings["lm"]["depth"]["context"] = depth_codebooks
    settings["lm"]["temporal"]["norm"] = settings["lm"]["depth"]["norm"] = "rms"
    return ModelConfig.model_validate(settings)


def empty(shapes: dict) -> dict[str, torch.Tensor]:
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def sizes(tensors: dict[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


LAYOUTS = {
    "moshivis": (MOSHIVIS, moshivis_groups),
    "moshi": (blind(), moshi_groups),
    "personaplex": (blind(depth_codebooks=16), moshi_groups),
    "candle": (blind(), candle_groups),
    "candle with eyes": (MOSHIVIS, candle_groups),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_there_and_back(layout):
    config, groups = LAYOUTS[layout]
    ours = shapes_of(config)
    theirs = export_tensors(empty(ours), groups(config))
    again = import_tensors(dict(theirs), groups(config), ours, source=layout)
    assert sizes(again) == ours
    assert sum(t.numel() for t in theirs.values()) == sum(t.numel() for t in again.values()) > 7e9


def test_moshi_with_attention_apart():
    config, groups = LAYOUTS["moshi"]
    theirs = export_tensors(empty(shapes_of(config)), groups(config))
    apart = split_projections(theirs, steps=config.lm.depth_steps)
    assert apart["depformer.layers.5.self_attn.in_projs.7.weight"].shape == (3072, 1024)
    assert apart["transformer.layers.31.self_attn.out_projs.0.weight"].shape == (4096, 4096)
    assert sizes(join_projections(apart)) == sizes(theirs)


def test_moshi_of_transformers_has_what_its_class_has():
    from transformers import MoshiConfig, MoshiForConditionalGeneration

    config = blind()
    with torch.device("meta"):
        model = MoshiForConditionalGeneration(
            MoshiConfig(**json.loads(json.dumps(moshi_transformers._config_to(config))))
        )
    expected = {name: shape for name, shape in sizes(model.state_dict()).items() if "audio_encoder." not in name}
    packed = export_tensors(empty(shapes_of(config)), moshi_transformers._groups(config))
    theirs = moshi_transformers._unpack(packed, config.lm)
    assert sizes(theirs) == expected
    packed = moshi_transformers._pack(theirs, config.lm)
    again = import_tensors(packed, moshi_transformers._groups(config), shapes_of(config), source="transformers")
    assert sizes(again) == shapes_of(config)
