"""Kyutai's layout: the stored outputs of the reference, every variant there and back, and what is refused."""

import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from mmspeech.checkpoint import CheckpointError
from mmspeech.config import ModelConfig, load_config
from mmspeech.formats.directory import convert_directory
from mmspeech.formats.groups import ConvertError, export_tensors
from mmspeech.formats.kyutai_keys import moshivis_groups
from mmspeech.formats.moshivis import read_moshivis, write_moshivis
from mmspeech.formats.moshivis_config import config_from_kyutai, config_to_kyutai
from mmspeech.lm.model import VisionSpeechModel
from mmspeech.verify import FEATURES, USER_CODES, verify
from mmspeech.verify import _compute as compute

GOLDEN = Path(__file__).parent / "moshivis-small"
SETTINGS = yaml.safe_load((GOLDEN / "config.yaml").read_text())
RELEASED = {
    "add_boi_eoi": False, "align_img_and_speech_tokens_dim": True, "encoder_name": "siglip_gemma2_448",
    "hf_repo": "kyutai/moshika-vis-pytorch-bf16", "image_size": 512, "interpolation": "bicubic",
    "mimi_codec": "tokenizer-e351c8d8-checkpoint125.safetensors", "model": "model.safetensors", "norm_extra": None,
    "norm_xa": "rms_norm", "num_crossattended_tokens": -1, "num_extra_tokens": 0,
    "text_tokenizer": "tokenizer_spm_32k_3.model", "xa_conditional_gating": True, "xa_delay": 0, "xa_dim": None,
    "xa_end": "end", "xa_gate_shared": False, "xa_gating": "sigmoid", "xa_layers": [], "xa_shared": True,
    "xa_start": "start", "xa_step": 1,
}  # fmt: skip
VARIANTS = {
    "as it is": {},
    "tanh": {"xa_gating": "tanh"},
    "one number, sigmoid": {"xa_conditional_gating": False},
    "one number, tanh": {"xa_conditional_gating": False, "xa_gating": "tanh"},
    "no gate": {"xa_gating": "none"},
    "own projections": {"xa_shared": False},
    "own projections, one gate": {"xa_shared": False, "xa_gate_shared": True},
    "one gate": {"xa_gate_shared": True},
    "one gate of one number": {"xa_gate_shared": True, "xa_conditional_gating": False},
    "some layers": {"xa_layers": [1, 2]},
    "narrow source": {"xa_dim": 40},
    "narrow source, own projections": {"xa_dim": 40, "xa_shared": False},
    "source as wide as the tower": {"align_img_and_speech_tokens_dim": False},
    "another tower": {"encoder_name": "pixtral", "norm_xa": "layer_norm"},
    "no norm behind the projection": {"norm_xa": None},
    "sizes": {
        "dim": 48, "num_heads": 3, "num_layers": 2, "hidden_scale": 4.0, "audio_card": 20, "text_card": 30,
        "depformer_dim": 24, "depformer_dim_feedforward": 96, "depformer_num_layers": 1, "context": 7,
    },
    "codebooks and delays": {"n_q": 6, "dep_q": 3, "delays": [0, 0, 2, 1, 0, 2, 1]},
    "norms": {"norm": "real_rms_norm_f32", "norm_xa": "real_rms_norm"},
    "layer norms": {"norm": "layer_norm", "norm_xa": "layer_norm_f32"},
    "blind": {"num_crossattended_tokens": 0},
}  # fmt: skip


def random_model(changes: dict) -> VisionSpeechModel:
    torch.manual_seed(0)
    model = VisionSpeechModel(config_from_kyutai(SETTINGS | changes, source="test")).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def test_the_reference_agrees():
    rows = verify(GOLDEN)
    assert {row.name for row in rows} == set(load_file(GOLDEN / "expected.safetensors")) - {
        "image_features",
        "user_codes",
    }
    assert all(row.passed for row in rows)
    assert max(row.difference for row in rows) < 1e-4


def test_a_wrong_weight_is_found(tmp_path):
    shutil.copytree(GOLDEN, tmp_path / "bad")
    tensors = load_file(tmp_path / "bad" / "model.safetensors")
    key = "llm.transformer.layers.1.cross_attention.gate.alpha.2.weight"
    save_file(tensors | {key: tensors[key] + 0.5}, tmp_path / "bad" / "model.safetensors")
    failed = {row.name for row in verify(tmp_path / "bad") if not row.passed}
    assert {"gate_mean", "hidden", "text_logits"} <= failed
    assert not failed & {"xa_source", "xa_keys", "blind_text_logits", "blind_output_tokens"}


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS.keys())
def test_verify_takes_every_variant(changes, tmp_path):
    """Outputs made with the model in memory, before it was a file; unshared projections have no xa_keys."""
    model = random_model(changes)
    lm = model.config.lm
    inputs = {USER_CODES: torch.randint(0, lm.audio_card, (1, lm.num_codebooks, 10))}
    if model.projector is not None:
        inputs[FEATURES] = torch.randn(1, 5, model.config.vision.tower_dim)
    computed = {
        name: value.clone(memory_format=torch.contiguous_format) for name, value in compute(model, inputs).items()
    }
    assert ("xa_keys" in computed) == (model.projector is not None and len(model.lm.temporal.fusion.projections) == 1)
    write_moshivis(tmp_path, model.state_dict(), model.config, copies=True)
    save_file(inputs | computed, tmp_path / "expected.safetensors")
    rows = verify(tmp_path)
    assert {row.name for row in rows} == set(computed) and all(row.passed for row in rows)
    some = {"text_logits": computed["text_logits"] + 2e-3, "output_tokens": computed["output_tokens"]}
    save_file(inputs | some, tmp_path / "expected.safetensors")
    assert {row.name: row.passed for row in verify(tmp_path)} == {"text_logits": False, "output_tokens": True}


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS.keys())
def test_every_variant_there_and_back(changes, tmp_path):
    model = random_model(changes)
    state = model.state_dict()
    write_moshivis(tmp_path / "theirs", state, model.config)
    settings = yaml.safe_load((tmp_path / "theirs" / "config.yaml").read_text())
    theirs = load_file(tmp_path / "theirs" / "model.safetensors")
    again = read_moshivis(tmp_path / "theirs")
    assert again.config.lm == model.config.lm and again.config.vision == model.config.vision
    loaded = again.build()
    back = loaded.state_dict()
    assert back.keys() == state.keys() and all(torch.equal(back[key], state[key]) for key in state)
    assert config_to_kyutai(again.config) == settings
    # No number is lost or read twice.
    assert sum(value.numel() for value in theirs.values()) == sum(value.numel() for value in state.values())
    columns = torch.randint(0, 20, (1, model.config.lm.num_streams, 5))
    visual = None
    if model.projector is not None:
        visual = loaded.see(torch.randn(1, 4, model.config.vision.tower_dim), torch.zeros(1, dtype=torch.long))
    with torch.no_grad():
        outs = [one.lm(columns, visual=visual).text_logits for one in (model, loaded)]
    assert torch.equal(*outs) and outs[0].isfinite().all()


@pytest.mark.parametrize("changes", [{}, {"xa_gate_shared": True}, {"xa_layers": [1, 2], "xa_dim": 40}], ids=str)
def test_shared_tensors_may_be_stored_once_anywhere_or_in_every_layer(changes, tmp_path):
    model = random_model(changes)
    write_moshivis(tmp_path / "x", model.state_dict(), model.config, copies=True)
    file = tmp_path / "x" / "model.safetensors"
    whole = load_file(file)
    pairs = [pair for group in moshivis_groups(model.config) for copy in group.copies for pair in copy.items()]
    assert pairs and all(torch.equal(whole[name], whole[other]) for name, other in pairs)
    assert read_moshivis(tmp_path / "x").marks
    once = export_tensors(model.state_dict(), moshivis_groups(model.config))
    assert set(whole) - set(once) == {other for _, other in pairs}
    moved = {pair[1] if pair[0] in dict(pairs) else pair[0]: pair[1] for pair in pairs}
    save_file({moved.get(key, key): value for key, value in once.items()}, file)
    back = read_moshivis(tmp_path / "x").weights
    assert all(torch.equal(back[key], value) for key, value in model.state_dict().items())
    save_file(whole | {pairs[0][1]: whole[pairs[0][1]] + 1}, file)
    with pytest.raises(ConvertError, match="differ, but they are one shared tensor"):
        read_moshivis(tmp_path / "x")


def test_directories_there_and_back_are_bit_equal(tmp_path):
    notes = convert_directory(GOLDEN, tmp_path / "ours")
    assert [note.split(":")[0] for note in notes] == ["no vision tower in the file", "no codec", "no tokenizer"]
    assert load_config(ModelConfig, tmp_path / "ours" / "config.json").lm.depth.norm == "rms_variance"
    convert_directory(tmp_path / "ours", tmp_path / "theirs")
    first, second = (load_file(path / "model.safetensors") for path in (GOLDEN, tmp_path / "theirs"))
    assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)
    settings = yaml.safe_load((tmp_path / "theirs" / "config.yaml").read_text())
    assert all(settings[key] == value for key, value in SETTINGS.items() if key in settings)


def test_tower_and_tokenizer_travel_along(tmp_path):
    shutil.copytree(GOLDEN, tmp_path / "theirs")
    tower = {"image_prefix.enc.model.post_layernorm.weight": torch.arange(4.0)}
    save_file(load_file(GOLDEN / "model.safetensors") | tower, tmp_path / "theirs" / "model.safetensors")
    (tmp_path / "theirs" / SETTINGS["text_tokenizer"]).write_bytes(b"pieces")
    assert len(convert_directory(tmp_path / "theirs", tmp_path / "ours")) == 1
    assert list(load_file(tmp_path / "ours" / "tower.safetensors")) == ["post_layernorm.weight"]
    convert_directory(tmp_path / "ours", tmp_path / "again")
    again = load_file(tmp_path / "again" / "model.safetensors")
    assert torch.equal(again["image_prefix.enc.model.post_layernorm.weight"], torch.arange(4.0))
    assert (tmp_path / "again" / SETTINGS["text_tokenizer"]).read_bytes() == b"pieces"


def test_stored_precision_stays(tmp_path):
    model = random_model({}).to(torch.bfloat16)
    write_moshivis(tmp_path / "x", model.state_dict(), model.config)
    assert {value.dtype for value in read_moshivis(tmp_path / "x").weights.values()} == {torch.bfloat16}


def test_the_released_settings_are_our_configuration_file():
    ours = load_config(ModelConfig, Path(__file__).parents[2] / "configs" / "model" / "moshivis_7b.yaml")
    assert config_from_kyutai(RELEASED, source="released") == ours
    nested = {"fuse": {"xa_gating": "sigmoid"}} | {k: v for k, v in RELEASED.items() if k != "xa_gating"}
    assert config_from_kyutai(nested, source="released") == ours


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"xa_gatin": "tanh"}, "unknown key 'xa_gatin'"),
        ({"xa_start": "boi"}, "xa_start 'boi' is not supported"),
        ({"activation": "gelu", "xa_step": 2}, "activation 'gelu' is not .*; xa_step 2 is not supported"),
        ({"n_q": 12}, "n_q 12 with dep_q 8: expected n_q = 2 x dep_q, or the same"),
        ({"norm": "batch_norm"}, "norm 'batch_norm': expected one of layer_norm"),
        ({"encoder_name": "eye"}, "encoder_name 'eye': expected one of siglip_gemma2_448"),
        ({"num_crossattended_tokens": 5}, "num_crossattended_tokens 5: expected -1"),
    ],
)
def test_settings_we_cannot_compute_are_refused(changes, message):
    with pytest.raises(ConvertError, match=message):
        config_from_kyutai(SETTINGS | changes, source="config.yaml")


def test_files_that_do_not_fit_are_named(tmp_path):
    tensors = load_file(GOLDEN / "model.safetensors")
    bad = tmp_path / "bad"
    shutil.copytree(GOLDEN, bad)
    tensors["llm.text_linear.wait"] = tensors.pop("llm.text_linear.weight")
    tensors["audio_emb.3.weight"] = torch.zeros(2, 2)
    save_file(tensors, bad / "model.safetensors")
    expected = (
        r"model.safetensors: .*1 missing: llm.text_linear.weight; 1 unexpected: llm.text_linear.wait; "
        r"1 misshaped: audio_emb.3.weight \[2, 2\] \(expected \[33, 64\]\)"
    )
    with pytest.raises(CheckpointError, match=expected):
        read_moshivis(bad)
    (bad / "model.safetensors").rename(bad / "model.pt")
    with pytest.raises(ConvertError, match=r"expected model.safetensors \(model.pt is a pickle, which can run code\)"):
        read_moshivis(bad)
    with pytest.raises(ConvertError, match="no config.yaml; expected a directory in Kyutai's layout"):
        read_moshivis(tmp_path)
    with pytest.raises(ConvertError, match="neither config.yaml .* nor a checkpoint of ours"):
        convert_directory(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_expected_files_that_do_not_fit_are_named(tmp_path):
    shutil.copytree(GOLDEN, tmp_path / "bad")
    expected = load_file(GOLDEN / "expected.safetensors")
    inputs = {name: expected[name] for name in (FEATURES, USER_CODES)}
    for stored, message in (
        ({"hidden": expected["hidden"]}, "lacks image_features, user_codes"),
        (expected | {"mood": torch.zeros(1)}, "holds mood, which this model does not compute"),
        (inputs, "holds no outputs, so nothing could be compared"),
        (
            expected | {USER_CODES: expected[USER_CODES][:, :3].clone()},
            r"user_codes is \[1, 3, 40\], expected \[1, 8, N\]",
        ),
        (expected | {FEATURES: torch.zeros(1, 9, 7)}, r"image_features is \[1, 9, 7\], expected \[1, N, 1152\]"),
        (expected | {USER_CODES: expected[USER_CODES] + 1000}, "user_codes must be whole numbers from -1 to 32"),
    ):
        save_file(stored, tmp_path / "bad" / "expected.safetensors")
        with pytest.raises(ConvertError, match=message):
            verify(tmp_path / "bad")
    (tmp_path / "bad" / "expected.safetensors").unlink()
    with pytest.raises(ConvertError, match="no expected.safetensors; expected a checkpoint in Kyutai's layout"):
        verify(tmp_path / "bad")


def test_nothing_that_is_there_is_written_over(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.json").write_text("{}")
    for there in (tmp_path / "mine", GOLDEN, tmp_path / "mine" / "config.json"):
        with pytest.raises(ConvertError, match="already there and not empty; choose a new directory"):
            convert_directory(GOLDEN, there)
    assert (tmp_path / "mine" / "config.json").read_text() == "{}" and (GOLDEN / "model.safetensors").is_file()
    (tmp_path / "empty").mkdir()
    convert_directory(GOLDEN, tmp_path / "empty")
    assert (tmp_path / "empty" / "config.json").is_file()


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("lm", "temporal", "norm"), "layer", "lm.temporal.norm layer"),
        (("lm", "temporal", "max_period"), None, "without rotary positions"),
        (("lm", "fusion", "gate_hidden"), 5, r"gate_hidden 5 \(theirs is always dim / 8\)"),
        (("lm", "fusion", "gate_shift"), 2.0, r"gate_shift 2.0 \(theirs is always -4\)"),
        (("lm", "fusion"), {"memory_frames": 3}, r"memory_frames 3 \(theirs see a single picture\)"),
        (("lm", "fusion"), {"memory_frames": 3, "age_buckets": 8}, r"age_buckets 8 \(theirs know no time\)"),
        (("vision", "pool"), "mean2x2", "vision.pool mean2x2"),
        (("vision", "projector_hidden"), 5, "vision.projector_hidden"),
        (("vision", "tower_dim"), 99, "vision.tower_dim 99"),
        (("lm", "depth", "norm_eps"), 0.1, "norm rms_variance with eps 0.1"),
        (("lm", "temporal", "ffn_dim"), 1, None),
    ],
)
def test_what_their_layout_cannot_hold_is_named(path, value, message):
    settings = config_from_kyutai(SETTINGS, source="test").model_dump()
    inner = settings
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    if path[-1] == "tower_dim":
        inner["tower"] = "timm:other"
    config = ModelConfig.model_validate(settings)
    if message is None:
        assert config_from_kyutai(config_to_kyutai(config), source="test").lm == config.lm
        return
    with pytest.raises(ConvertError, match=message):
        config_to_kyutai(config)
