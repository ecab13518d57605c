"""The language model as a whole: streaming, sight, sizes, errors."""

from pathlib import Path

import pytest
import torch

from mmspeech.config import ConfigError, ModelConfig, load_config
from mmspeech.formats.groups import export_tensors
from mmspeech.formats.kyutai_keys import moshivis_groups
from mmspeech.lm.model import VisionSpeechModel

CONFIGS = Path(__file__).parents[2] / "configs" / "model"


@pytest.fixture
def seeing(make_model, make_codes):
    """A model, columns [2, R, 12] and a picture that row 0 sees from frame 0 and row 1 from frame 5."""
    model = make_model()
    visual = model.see(torch.randn(2, 4, 6), torch.tensor([0, 5]))
    return model, make_codes(model), visual


@pytest.mark.parametrize("chunk", [1, 2, 3, 7])
@torch.no_grad()
def test_streaming_equals_offline_with_sight(seeing, chunk):
    model, codes, visual = seeing
    whole = model.lm(codes, visual=visual)
    state = model.lm.init_state(2, max_steps=chunk)
    parts = [model.lm(part, visual=visual, state=state) for part in codes.split(chunk, dim=2)]
    for name in ("hidden", "text_logits", "gate"):
        joined = torch.cat([getattr(part, name) for part in parts], dim=1)
        torch.testing.assert_close(joined, getattr(whole, name), atol=1e-4, rtol=0)


@torch.no_grad()
def test_before_the_onset_the_output_is_that_without_a_picture(seeing):
    model, codes, visual = seeing
    blind, out = model.lm(codes), model.lm(codes, visual=visual)
    assert torch.equal(out.text_logits[1, :5], blind.text_logits[1, :5]) and (out.gate[1, :5] == 0).all()
    assert not torch.equal(out.text_logits[1, 5:], blind.text_logits[1, 5:]) and (out.gate[1, 5:] > 0).all()
    assert (blind.gate == 0).all()


@torch.no_grad()
def test_masked_tokens_and_rows_without_a_picture_are_blind_to_the_bit(make_model, make_codes):
    model = make_model()
    codes, features = make_codes(model), torch.randn(2, 4, 6)
    mask = torch.tensor([[True, True, False, False], [False] * 4])
    out = model.lm(codes, visual=model.see(features, torch.tensor([0, 0]), mask))
    changed = features.clone()
    changed[0, 2:], changed[1] = 9.0, 9.0
    assert torch.equal(out.hidden, model.lm(codes, visual=model.see(changed, torch.tensor([0, 0]), mask)).hidden)
    assert torch.equal(out.hidden[1], model.lm(codes).hidden[1])


@torch.no_grad()
def test_a_closed_gate_gives_the_bits_of_the_speech_model(make_model, make_codes):
    model = make_model(fusion={"gate": "scalar_tanh"})
    for gate in model.lm.temporal.fusion.gates:
        gate.alpha.zero_()
    speech = make_model(eyes=False, seed=1)
    missing = speech.load_state_dict(model.state_dict(), strict=False).unexpected_keys
    assert set(missing) == set(model.adapter_names())
    codes, visual = make_codes(model), model.see(torch.randn(2, 4, 6), torch.zeros(2, dtype=torch.long))
    assert torch.equal(model.lm(codes, visual=visual).text_logits, speech.lm(codes).text_logits)


def test_no_gradient_reaches_the_future(make_model, make_codes):
    model = make_model()
    codes = make_codes(model)
    changed = codes.clone()
    changed[:, :, 7:] = make_codes(model, seed=1)[:, :, 7:]
    with torch.no_grad():
        assert torch.equal(model.lm(codes).hidden[:, :7], model.lm(changed).hidden[:, :7])


@torch.no_grad()
def test_minus_one_embeds_to_zeros(make_model):
    model = make_model()
    nothing = torch.full((1, 7, 1), -1)
    temporal = model.lm.temporal
    assert (temporal.text_emb(nothing[:, :1]) == 0).all() and (temporal.audio_emb(nothing[:, 1:]) == 0).all()
    one = nothing.clone()
    one[0, 5] = 6
    assert torch.equal(temporal.audio_emb(one[:, 1:])[0, 0], temporal.audio_emb.weight[4 * 8 + 6])


@pytest.mark.parametrize(
    ("row", "value", "message"),
    [
        (0, 12, "row 0 holds id 12, expected -1 .* to 11"),
        (4, 8, "row 4 holds id 8, .* to 7"),
        (2, -2, "row 2 holds id -2"),
    ],
)
def test_foreign_ids_are_refused(make_model, make_codes, row, value, message):
    model = make_model()
    codes = make_codes(model)
    codes[1, row, 3] = value
    with pytest.raises(ValueError, match=message):
        model.lm(codes)
    with pytest.raises(ValueError, match=r"codes are \[2, 6, 12\], expected \[B, 7, T\]"):
        model.lm(codes[:, 1:])


def test_sight_needs_eyes_and_matching_rows(make_model, make_codes):
    model, blind = make_model(), make_model(eyes=False)
    with pytest.raises(ValueError, match="this model has no vision"):
        blind.see(torch.randn(1, 4, 6), torch.zeros(1))
    visual = model.see(torch.randn(1, 4, 6), torch.zeros(1, dtype=torch.long))
    with pytest.raises(ValueError, match="what is seen has 1 rows, the codes have 2"):
        model.lm(make_codes(model), visual=visual)
    with pytest.raises(ValueError, match="no cross-attention"):
        blind.lm(make_codes(blind), visual=visual)


def test_eyes_come_whole(make_model):
    whole = make_model().config
    with pytest.raises(ConfigError, match="vision and lm.fusion belong together"):
        VisionSpeechModel(whole.model_copy(update={"vision": None}))
    for fusion in ({"layers": (0, 2)}, {"layers": ()}):
        with pytest.raises(ConfigError, match="lm.fusion.layers .*: expected indices from 0 to 1"):
            make_model(fusion=fusion)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"context": 2}, "context 2 < 3 codebooks"),
        ({"max_period": 1e4}, "max_period must be null"),
        ({"gated_ffn": False}, "gated_ffn must be true"),
        ({"layer_scale": 0.1}, "layer_scale must be null"),
    ],
)
def test_depth_settings_that_cannot_be(make_model, change, message):
    depth = make_model().config.lm.depth.model_dump() | change
    with pytest.raises(ConfigError, match=f"lm.depth: {message}"):
        make_model(depth=depth)


@torch.no_grad()
def test_two_models_of_different_width_and_two_pictures(make_model, make_codes):
    small, wide = make_model(), make_model(temporal=make_model().config.lm.temporal.model_dump() | {"dim": 32})
    codes, zero = make_codes(small, batch_size=1), torch.zeros(1, dtype=torch.long)
    sights = [small.see(torch.randn(1, 4, 6), zero), small.see(torch.randn(1, 4, 6), zero)]
    alone = [small.lm(codes, visual=visual).hidden for visual in sights]
    wide.lm(codes, visual=wide.see(torch.randn(1, 4, 6), zero))
    states = [small.lm.init_state(1), small.lm.init_state(1)]
    steps = [
        [small.lm(column, visual=v, state=s).hidden for v, s in zip(sights, states, strict=True)]
        for column in codes.split(1, dim=2)
    ]
    for k in range(2):
        torch.testing.assert_close(torch.cat([pair[k] for pair in steps], dim=1), alone[k], atol=1e-4, rtol=0)


def test_bfloat16(make_model, make_codes):
    model = make_model()
    codes = make_codes(model)
    with torch.no_grad():
        exact = model.lm(codes).hidden
        model.to(torch.bfloat16)
        visual = model.see(torch.randn(2, 4, 6), torch.zeros(2, dtype=torch.long))
        out = model.lm(codes, visual=visual, state=model.lm.init_state(2, max_steps=12))
        assert out.hidden.dtype == torch.bfloat16 and out.gate.dtype == torch.float32
        assert (model.lm(codes).hidden.float() - exact).abs().mean() < 0.2


def test_seven_billion_has_the_published_shapes():
    config = load_config(ModelConfig, CONFIGS / "moshivis_7b.yaml")
    with torch.device("meta"):
        model = VisionSpeechModel(config)
    adapters = set(model.adapter_names())
    assert sum(parameter.numel() for parameter in model.adapter_parameters()) == 206_184_448
    assert sum(p.numel() for name, p in model.named_parameters() if name not in adapters) == 7_687_729_152
    theirs = {
        key: tuple(value.shape) for key, value in export_tensors(model.state_dict(), moshivis_groups(config)).items()
    }
    layer = "llm.transformer.layers.31"
    assert (
        theirs.items()
        >= {
            "llm.text_emb.weight": (32001, 4096),
            "llm.out_norm.alpha": (1, 1, 4096),
            "llm.text_linear.weight": (32000, 4096),
            f"{layer}.self_attn.in_proj_weight": (12288, 4096),
            f"{layer}.self_attn.out_proj.weight": (4096, 4096),
            f"{layer}.norm_cross.alpha": (1, 1, 4096),
            f"{layer}.gating.linear_in.weight": (22528, 4096),
            f"{layer}.gating.linear_out.weight": (4096, 11264),
            f"{layer}.cross_attention.gate.alpha.0.weight": (512, 4096),
            f"{layer}.cross_attention.gate.alpha.2.weight": (4096, 512),
            "llm.transformer.layers.0.cross_attention.mha.in_proj_weight": (12288, 4096),
            "llm.transformer.layers.0.cross_attention.mha.out_proj.weight": (4096, 4096),
            "audio_emb.15.weight": (2049, 4096),
            "depformer_in.7.weight": (1024, 4096),
            "depformer_text_emb.weight": (32001, 1024),
            "depformer_emb.6.weight": (2049, 1024),
            "depformer.layers.5.self_attn.in_proj_weight": (24576, 1024),
            "depformer.layers.5.self_attn.out_proj.weight": (8192, 1024),
            "depformer.layers.5.norm2.alpha": (1, 1, 1024),
            "depformer.layers.5.gating.7.linear_in.weight": (5632, 1024),
            "depformer.layers.5.gating.7.linear_out.weight": (1024, 2816),
            "audio_linears.7.weight": (2048, 1024),
            "image_prefix.proj_xa.weight": (4096, 1152),
            "image_prefix.proj_xa.bias": (4096,),
            "image_prefix.norm_xa.alpha": (1, 1, 4096),
        }.items()
    )
    assert len(theirs) == 515 - 31 * 2 + 3


def test_the_tiny_configuration_builds():
    config = load_config(ModelConfig, CONFIGS / "tiny.yaml")
    blind = config.model_copy(update={"vision": None, "lm": config.lm.model_copy(update={"fusion": None})})
    with torch.device("meta"):
        model = VisionSpeechModel(blind)
    assert model.adapter_names() == []
