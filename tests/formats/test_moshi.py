"""The moshi package's layout and transformers': equal outputs, there and back, LoRA, and what is refused."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mmspeech.checkpoint import CheckpointError, load_speech_model
from mmspeech.config import GenerationConfig, ModelConfig, load_config
from mmspeech.formats.directory import convert_directory, read_any
from mmspeech.formats.groups import ConvertError
from mmspeech.formats.moshi import SPLIT_MARK, join_projections, read_moshi, split_projections
from mmspeech.lm.generate import FrameGenerator
from mmspeech.lm.model import VisionSpeechModel

GOLDEN = Path(__file__).parents[1] / "golden"
SMALL, PERSONA = GOLDEN / "moshi-small", GOLDEN / "personaplex-small"


@torch.no_grad()
@pytest.mark.parametrize("path", [SMALL, PERSONA], ids=lambda path: path.name)
def test_logits_are_those_of_the_moshi_package(path):
    expected, lm = load_file(path / "expected.safetensors"), read_moshi(path).build().lm
    columns, held = lm.layout.delay(expected["codes"])
    out = lm(columns[..., :-1])
    assert (out.text_logits - expected["text_logits"]).abs().max() < 1e-5
    own = columns[:, lm.layout.own, 1:]
    logits = lm.depth_logits(out.hidden, columns[:, 0, 1:], own).permute(0, 2, 1, 3)
    for k, delay in enumerate(lm.layout.delays[lm.layout.own]):  # theirs are moved back by the delays
        ours = logits[:, k, delay:]
        assert (ours - expected["logits"][:, k, : ours.shape[1]]).abs().max() < 1e-5


def test_generation_is_that_of_the_moshi_package():
    expected, lm = load_file(SMALL / "expected.safetensors"), read_moshi(SMALL).build().lm
    greedy = GenerationConfig(text_temperature=0, audio_temperature=0)
    generator = FrameGenerator(lm, 2, greedy)
    outs = [generator.step(expected["user_codes"][:, :, t]) for t in range(expected["user_codes"].shape[2])]
    ours = torch.stack([torch.cat([out.text_ids[:, None], out.codes], dim=1) for out in outs if out is not None], dim=2)
    assert torch.equal(ours, expected["output_tokens"])


@pytest.mark.parametrize("path", [SMALL, PERSONA], ids=lambda path: path.name)
def test_there_and_back_is_bit_equal(path, tmp_path):
    notes = convert_directory(path, tmp_path / "ours")
    assert [note.split(":")[0] for note in notes] == ["no codec", "no tokenizer"]
    convert_directory(tmp_path / "ours", tmp_path / "theirs")
    first, second = (load_file(one / "model.safetensors") for one in (path, tmp_path / "theirs"))
    assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)
    assert read_any(tmp_path / "theirs").config == read_any(path).config


def test_attention_may_stand_in_one_tensor_or_apart(tmp_path):
    apart = load_file(SMALL / "model.safetensors")
    whole = join_projections(apart)
    again = split_projections(whole, steps=4)
    assert again.keys() == apart.keys() and all(torch.equal(again[key], apart[key]) for key in apart)
    shutil.copytree(SMALL, tmp_path / "x")
    save_file(whole, tmp_path / "x" / "model.safetensors")
    found, first = read_moshi(tmp_path / "x"), read_moshi(SMALL)
    assert SPLIT_MARK in first.marks and SPLIT_MARK not in found.marks
    assert all(torch.equal(found.weights[key], value) for key, value in first.weights.items())


def test_sizes_are_told_by_the_tensors_where_no_settings_are(tmp_path):
    """As in the first Moshi's repository and in PersonaPlex's: heads are then as wide as the released ones."""
    (tmp_path / "x").mkdir()
    shutil.copyfile(PERSONA / "model.safetensors", tmp_path / "x" / "model.safetensors")
    lm, told = read_any(tmp_path / "x").config.lm, read_any(PERSONA).config.lm
    heads = {"temporal": {"num_heads", "context"}, "depth": {"num_heads"}}
    assert lm.model_dump(exclude=heads) == told.model_dump(exclude=heads)
    assert lm.depth_steps == 8 and lm.num_codebooks == 4


def test_a_model_of_more_depth_steps_runs_only_its_own():
    lm = read_moshi(PERSONA).build().lm
    out = FrameGenerator(lm, 1)
    out.step(torch.zeros(1, 4, dtype=torch.long))
    assert len(out.trace.depth_logits) == 4


@torch.no_grad()
def test_transformers_reads_what_we_write_and_gives_the_same_logits(tmp_path):
    """Also proves their packing of queries and keys: one wrong permutation changes every logit."""
    from transformers import MoshiForConditionalGeneration

    model, ours = _transformers_pair(tmp_path)
    theirs = MoshiForConditionalGeneration.from_pretrained(tmp_path / "theirs").eval()
    lm, count = model.lm, model.config.lm.num_codebooks
    columns = torch.randint(0, 30, (2, lm.layout.num_streams, lm.config.temporal.context))  # theirs has no window here
    embedded = theirs.decoder.model.embed_tokens(columns[:, 0])
    for k in range(2 * count):
        embedded = embedded + theirs.embed_tokens[k](columns[:, 1 + k])
    reference = theirs.decoder(inputs_embeds=embedded)
    out = lm(columns)
    assert (out.text_logits - reference.logits).abs().max() < 1e-5
    hidden, text, codes = out.hidden[:, -1], columns[:, 0, 0], columns[:, 1 : 1 + count, 0]
    depth = theirs.depth_decoder(
        input_ids=torch.cat([text[:, None], codes[:, :-1]], dim=1), last_hidden_state=hidden[:, None], use_cache=False
    )
    assert (lm.depth(hidden, text, codes) - depth.logits).abs().max() < 1e-5
    back = read_any(tmp_path / "theirs")
    assert all(torch.equal(back.weights[key], value) for key, value in model.state_dict().items())
    codec = load_file(ours / "codec.safetensors")
    assert codec.keys() == back.codec.keys() and all(torch.equal(back.codec[key], codec[key]) for key in codec)
    assert back.config.lm == model.config.lm


def _transformers_pair(tmp_path) -> tuple[VisionSpeechModel, Path]:
    """A small Moshi with a small Mimi in our layout, written in theirs."""
    from mmspeech.audio.codec import build_codec
    from mmspeech.config import MimiConfig

    transformer = {
        "dim": 16, "num_heads": 2, "num_layers": 1, "ffn_dim": 32, "context": 10, "norm": "layer", "norm_eps": 1e-5,
        "gated_ffn": False, "layer_scale": 0.5,
    }  # fmt: skip
    mimi = MimiConfig(
        num_codebooks=4, total_codebooks=4, codebook_size=32, codebook_dim=8, dim=16, num_filters=4,
        transformer=transformer,
    )  # fmt: skip
    settings = read_any(SMALL).config.model_dump()
    settings["codec"] = mimi.model_dump()
    config = ModelConfig.model_validate(settings)
    torch.manual_seed(0)
    model = VisionSpeechModel(config).eval()
    ours = tmp_path / "ours"
    ours.mkdir()
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, ours / "model.safetensors")
    save_file(
        {key: value.contiguous() for key, value in build_codec(mimi).state_dict().items()}, ours / "codec.safetensors"
    )
    (ours / "config.json").write_text(config.model_dump_json())
    convert_directory(ours, tmp_path / "theirs", layout="transformers")
    return model, ours


def test_lora_of_moshi_finetune_is_added(tmp_path):
    tensors = load_file(SMALL / "model.safetensors")
    modules = [key.removesuffix(".weight") for key, value in tensors.items() if value.dim() == 2 and "emb" not in key]
    assert any("depformer" in module and "in_projs.3" in module for module in modules)
    pairs = {}
    for module in modules:
        out_dim, in_dim = tensors[f"{module}.weight"].shape
        pairs |= {f"{module}.lora_A.weight": torch.randn(2, in_dim), f"{module}.lora_B.weight": torch.randn(out_dim, 2)}
    save_file(pairs, tmp_path / "lora.safetensors")
    found = split_projections(_plain(read_moshi(SMALL, lora=tmp_path / "lora.safetensors")), steps=4)
    for module in modules:
        sum_ = tensors[f"{module}.weight"] + 2.0 * (pairs[f"{module}.lora_B.weight"] @ pairs[f"{module}.lora_A.weight"])
        torch.testing.assert_close(found[f"{module}.weight"], sum_, atol=1e-5, rtol=0)
    untouched = load_file(SMALL / "model.safetensors")
    assert all(torch.equal(untouched[key], value) for key, value in tensors.items())


def test_lora_of_a_run_of_ours_goes_back(tmp_path):
    """Pairs over single matrices and over one for each depth step; peft lays the latter's out in its own way."""
    from train.lora import add_lora
    from train.settings import LoraSettings

    found = read_moshi(SMALL)
    model = found.build().float()
    lora = add_lora(model, LoraSettings(targets=["lm.temporal", "lm.depth"], rank=3, alpha=4.5), seed=0)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if ".lora_" in name:
                value.normal_()
    run = tmp_path / "step_1"
    run.mkdir()
    tensors = {key: value.detach().clone() for key, value in model.state_dict().items()}
    lora.write(run, tensors)
    (run / "config.json").write_text(found.config.model_dump_json())
    convert_directory(run, tmp_path / "theirs", layout="lora")
    assert json.loads((tmp_path / "theirs" / "config.json").read_text())["lora_scaling"] == 1.5
    again, merged = read_moshi(SMALL, lora=tmp_path / "theirs" / "lora.safetensors").weights, lora.merged(tensors)
    assert any(not torch.equal(again[key], value) for key, value in found.weights.items() if "depth" in key)
    for key, value in merged.items():
        torch.testing.assert_close(again[key], value, atol=1e-4, rtol=1e-5)


def test_lora_takes_its_scaling_from_beside_it_and_misfits_are_named(tmp_path):
    pair = {"linears.0.lora_A.weight": torch.ones(2, 16), "linears.0.lora_B.weight": torch.ones(32, 2)}
    save_file(pair, tmp_path / "lora.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"lora_scaling": 0.5}))
    before, after = (_plain(read_moshi(SMALL, lora=lora)) for lora in (None, tmp_path / "lora.safetensors"))
    torch.testing.assert_close(after["linears.0.weight"], before["linears.0.weight"] + 1.0)
    for wrong, message in (
        ({"linears.9.lora_A.weight": torch.ones(2, 16), "linears.9.lora_B.weight": torch.ones(32, 2)}, "linears.9"),
        ({"linears.0.lora_A.weight": torch.ones(2, 17), "linears.0.lora_B.weight": torch.ones(32, 2)}, "another model"),
        ({"linears.0.lora_A.weight": torch.ones(2, 16)}, "without their other half"),
        (pair | {"linears.0.weight": torch.ones(2)}, "unknown"),
    ):
        save_file(wrong, tmp_path / "lora.safetensors")
        with pytest.raises(ConvertError, match=message):
            read_moshi(SMALL, lora=tmp_path / "lora.safetensors")


def _plain(found) -> dict[str, torch.Tensor]:
    from mmspeech.formats.groups import export_tensors
    from mmspeech.formats.kyutai_keys import moshi_groups

    return export_tensors(found.weights, moshi_groups(found.config))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dep_q": 0}, "not a duplex model .* `mmspeech transcribe`"),
        ({"norm_emb": True, "hue": 1}, "unknown key 'hue'; norm_emb True is not supported"),
        ({"norm": "batch"}, "norm 'batch': expected one of layer_norm"),
        ({"quantize": True}, "quantize True is not supported"),
    ],
)
def test_settings_we_cannot_compute_are_refused(changes, message, tmp_path):
    shutil.copytree(SMALL, tmp_path / "x")
    settings = json.loads((SMALL / "config.json").read_text()) | changes
    (tmp_path / "x" / "config.json").write_text(json.dumps(settings))
    with pytest.raises(ConvertError, match=message):
        read_any(tmp_path / "x")


def test_every_key_that_does_not_fit_is_named(tmp_path):
    shutil.copytree(SMALL, tmp_path / "x")
    tensors = load_file(SMALL / "model.safetensors")
    tensors["text_linear.wait"] = tensors.pop("text_linear.weight")
    tensors["emb.3.weight"] = torch.zeros(2, 2)
    save_file(tensors, tmp_path / "x" / "model.safetensors")
    expected = "1 missing: text_linear.weight; 1 unexpected: text_linear.wait; 1 misshaped: emb.3.weight"
    with pytest.raises(CheckpointError, match=expected):
        convert_directory(tmp_path / "x", tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["moshivis", "moshi", "transformers"])
def test_the_7b_model_with_few_layers_goes_there_and_back_on_disk(layout, tmp_path):
    """Full widths and vocabularies, one layer of each transformer: about 1.5 GB in bfloat16."""
    config = load_config(ModelConfig, Path(__file__).parents[2] / "configs" / "model" / "moshivis_7b.yaml")
    settings = config.model_dump()
    settings["lm"]["temporal"]["num_layers"] = settings["lm"]["depth"]["num_layers"] = 1
    if layout != "moshivis":
        settings |= {"vision": None, "lm": settings["lm"] | {"fusion": None}}
        settings["lm"]["depth"]["norm"] = "rms"
    config = ModelConfig.model_validate(settings)
    with torch.device("meta"):
        shapes = {key: value.shape for key, value in VisionSpeechModel(config).state_dict().items()}
    state = {key: torch.empty(shape, dtype=torch.bfloat16).normal_() for key, shape in shapes.items()}
    ours = tmp_path / "ours"
    ours.mkdir()
    save_file(state, ours / "model.safetensors")
    (ours / "config.json").write_text(config.model_dump_json())
    convert_directory(ours, tmp_path / "theirs", layout=layout)
    convert_directory(tmp_path / "theirs", tmp_path / "again")
    again = load_file(tmp_path / "again" / "model.safetensors")
    assert again.keys() == state.keys() and all(torch.equal(again[key], state[key]) for key in state)
    if layout == "moshi":
        assert load_speech_model(tmp_path / "again", config, dtype=torch.bfloat16).lm.layout.num_streams == 17
