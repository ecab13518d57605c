"""Towers of every maker give what their own library gives, for any size, frozen, and load strictly."""

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from mmspeech.config import ConfigError, VisionConfig
from mmspeech.vision.encoder import build_tower, default_config

SIGLIP = {
    "model_type": "siglip_vision_model", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "image_size": 56, "patch_size": 14,
}  # fmt: skip
VIT = {"num_layers": 2, "num_heads": 2, "ffn_dim": 32, "stem_strides": [12]}
TIMM_SMALL = {"embed_dim": 32, "depth": 2, "num_heads": 2, "patch_size": 8}


def hf(tower: dict, **settings) -> VisionConfig:
    size = tower.get("image_size", 32)
    return VisionConfig(
        tower="hf:none", image_size_px=size, tower_dim=tower["hidden_size"], tower_args=tower, **settings
    )


def vit(**settings) -> VisionConfig:
    return VisionConfig(**{"tower": "vit", "image_size_px": 48, "tower_dim": 16, "tower_args": VIT} | settings)


def timm_vit(**settings) -> VisionConfig:
    base = {"tower": "timm:vit_tiny_patch16_224", "image_size_px": 32, "tower_dim": 32, "tower_args": TIMM_SMALL}
    return VisionConfig(**base | settings)


def scattered(module: torch.nn.Module, seed: int = 0) -> None:
    """Every parameter random, so that none is neutral (biases and positions begin as zeros)."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.data = parameter.data + 0.1 * torch.randn(parameter.shape, generator=generator)


def pixels_of(height: int, width: int, count: int = 2) -> torch.Tensor:
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("size", [(56, 56), (28, 28), (84, 84), (70, 42), (64, 64)])
def test_siglip_equals_transformers_at_any_size(size):
    tower = build_tower(hf(SIGLIP), pretrained=False)
    scattered(tower)
    pixels = pixels_of(*size)
    features, mask = tower(pixels)
    assert mask is None and features.shape == (2, (size[0] // 14) * (size[1] // 14), 32)
    expected = tower.model(pixel_values=pixels, interpolate_pos_encoding=True).last_hidden_state
    torch.testing.assert_close(features, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(features, siglip_by_hand(tower.weights(), pixels), atol=1e-5, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("size_px, patch", [(224, 14), (224, 16), (448, 14), (512, 16)])
def test_siglip_at_the_sizes_of_the_released_towers(size_px, patch):
    """Trained at 224 px; larger pictures have more patches, whose positions are interpolated."""
    tower = build_tower(hf(SIGLIP | {"image_size": 224, "patch_size": patch}), pretrained=False)
    scattered(tower)
    pixels = pixels_of(size_px, size_px, count=1)
    features, _ = tower(pixels)
    assert features.shape == (1, (size_px // patch) ** 2, 32)
    expected = tower.model(pixel_values=pixels, interpolate_pos_encoding=True).last_hidden_state
    torch.testing.assert_close(features, expected, atol=1e-5, rtol=0)


def siglip_by_hand(weights: dict[str, torch.Tensor], pixels: torch.Tensor) -> torch.Tensor:
    """The tower written from its description: valid patches, bicubic positions without antialias, post norm."""

    def linear(name: str, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])

    def norm(name: str, x: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], 1e-6)

    x = F.conv2d(
        pixels, weights["embeddings.patch_embedding.weight"], weights["embeddings.patch_embedding.bias"], stride=14
    )
    table = weights["embeddings.position_embedding.weight"].T.reshape(1, 32, 4, 4)
    if x.shape[-2:] != (4, 4):
        table = F.interpolate(table, size=x.shape[-2:], mode="bicubic", align_corners=False, antialias=False)
    x = (x + table).flatten(2).transpose(1, 2)
    for layer in (f"encoder.layers.{k}" for k in range(2)):
        y = norm(f"{layer}.layer_norm1", x)
        heads = [linear(f"{layer}.self_attn.{part}_proj", y).unflatten(-1, (4, 8)).transpose(1, 2) for part in "qkv"]
        attended = F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
        x = x + linear(f"{layer}.self_attn.out_proj", attended)
        y = F.gelu(linear(f"{layer}.mlp.fc1", norm(f"{layer}.layer_norm2", x)), approximate="tanh")
        x = x + linear(f"{layer}.mlp.fc2", y)
    return norm("post_layernorm", x)


@pytest.mark.parametrize(
    ("settings", "prefix"),
    [
        ({"model_type": "clip_vision_model", "image_size": 32, "patch_size": 8}, 1),
        ({"model_type": "dinov2", "image_size": 32, "patch_size": 8}, 1),
        ({"model_type": "dinov2_with_registers", "image_size": 32, "patch_size": 8, "num_register_tokens": 3}, 4),
    ],
)
def test_prefix_tokens_are_dropped_or_kept(settings, prefix):
    args = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4} | settings
    tower = build_tower(hf(args), pretrained=False)
    kept = build_tower(hf(args, keep_prefix_tokens=True), tower.weights())
    pixels = pixels_of(40, 24)
    features, all_tokens = tower(pixels)[0], kept(pixels)[0]
    assert features.shape == (2, 15, 32) and all_tokens.shape == (2, 15 + prefix, 32)
    torch.testing.assert_close(all_tokens[:, prefix:], features)
    # A final norm with its parameters untouched leaves tokens of mean 0 and variance 1.
    torch.testing.assert_close(features.var(-1, unbiased=False), torch.ones(2, 15), atol=1e-2, rtol=0)


@pytest.mark.parametrize("layer", [-1, -2])
def test_feature_layer_gives_a_block_before_the_norm(layer):
    tower = build_tower(hf(SIGLIP), pretrained=False)
    inner = build_tower(hf(SIGLIP, feature_layer=layer), tower.weights())
    pixels = pixels_of(56, 56)
    if layer == -1:
        torch.testing.assert_close(tower.model.post_layernorm(inner(pixels)[0]), tower(pixels)[0])
    else:
        assert not torch.allclose(inner(pixels)[0], tower(pixels)[0])
    assert inner(pixels)[0].shape == tower(pixels)[0].shape


@pytest.mark.parametrize("kind", ["pixtral", "siglip2_vision_model"])
def test_variable_token_counts_carry_a_mask(kind):
    args = {
        "model_type": kind, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "patch_size": 8,
    }  # fmt: skip
    args |= {"head_dim": 8, "image_size": 64} if kind == "pixtral" else {"num_patches": 16}
    tower = build_tower(hf(args), pretrained=False)
    scattered(tower)
    sizes = torch.tensor([[16, 24], [40, 32], [8, 8]])
    pixels = pixels_of(40, 40, count=3)
    features, mask = tower(pixels, sizes_px=sizes)
    assert mask.dtype == torch.bool and mask.sum(1).tolist() == [6, 20, 1]
    assert features.shape == (3, 20, 32) and (features[~mask] == 0).all()
    for row, (height, width) in enumerate(sizes.tolist()):
        alone, no_mask = tower(pixels[row : row + 1, :, :height, :width])
        assert no_mask is None
        torch.testing.assert_close(features[row][mask[row]], alone[0], atol=1e-5, rtol=1e-4)


def test_sizes_are_refused_by_towers_of_one_size():
    for config in (hf(SIGLIP), vit(), timm_vit()):
        tower = build_tower(config, pretrained=False)
        with pytest.raises(ConfigError, match="one size only"):
            tower(pixels_of(56, 56), sizes_px=torch.tensor([[56, 56], [28, 28]]))


def test_timm_tokens_are_those_after_the_final_norm():
    import timm

    tower = build_tower(timm_vit(), pretrained=False)
    model = timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=32, **TIMM_SMALL).eval()
    model.load_state_dict(tower.weights())
    pixels = pixels_of(32, 32)
    features, mask = tower(pixels)
    assert mask is None and features.shape == (2, 16, 32)
    torch.testing.assert_close(features, model.forward_features(pixels)[:, 1:])
    kept = build_tower(timm_vit(keep_prefix_tokens=True), tower.weights())
    torch.testing.assert_close(kept(pixels)[0], model.forward_features(pixels))
    inner = build_tower(timm_vit(feature_layer=-1), tower.weights())
    torch.testing.assert_close(model.norm(inner(pixels)[0]), features)


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("resnet18", {}),
        ("swin_tiny_patch4_window7_224", {"embed_dim": 16, "depths": (1, 1), "num_heads": (2, 2), "window_size": 4}),
        ("vit_base_patch16_siglip_224", TIMM_SMALL),
        ("beit_base_patch16_224", TIMM_SMALL),
    ],
)
def test_other_timm_towers_give_tokens(name, args):
    width = {"resnet18": 512}.get(name, 32)
    config = VisionConfig(tower=f"timm:{name}", image_size_px=64, tower_dim=width, tower_args=args)
    features, mask = build_tower(config, pretrained=False)(pixels_of(64, 64, count=1))
    assert mask is None and features.shape[0] == 1 and features.shape[2] == width and features.shape[1] > 1
    early = build_tower(config.model_copy(update={"feature_layer": -2}), pretrained=False)(pixels_of(64, 64, count=1))[
        0
    ]
    assert early.shape[1] >= features.shape[1]


def test_own_vit_equals_timm():
    import timm

    tower = build_tower(vit())
    scattered(tower)
    model = timm.create_model(
        "vit_tiny_patch16_224", num_classes=0, img_size=48, patch_size=12, embed_dim=16, depth=2, num_heads=2,
        mlp_ratio=2, class_token=False, global_pool="avg", fc_norm=False,
    ).eval()  # fmt: skip
    names = {name.replace("patch_embed.stem", "stem"): tensor for name, tensor in tower.weights().items()}
    model.load_state_dict(names)
    pixels = pixels_of(48, 48)
    torch.testing.assert_close(tower(pixels)[0], model.forward_features(pixels), atol=1e-5, rtol=1e-4)


def test_own_vit_resizes_its_positions():
    tower = build_tower(vit(tower_args=VIT | {"stem_strides": [2, 6], "stem_dims": [4]}))
    assert tower(pixels_of(48, 48))[0].shape == (2, 16, 16)
    assert tower(pixels_of(96, 36))[0].shape == (2, 24, 16)


def test_a_tower_is_frozen_and_knows_its_statistics():
    tower = build_tower(timm_vit(), pretrained=False)
    assert not tower.training and not any(parameter.requires_grad for parameter in tower.parameters())
    assert (tower.dim, tower.image_size_px, tower.mean) == (32, 32, (0.5, 0.5, 0.5))
    assert build_tower(hf(SIGLIP, mean=(0.1, 0.2, 0.3)), pretrained=False).mean == (0.1, 0.2, 0.3)
    found = default_config("timm:vit_small_patch14_dinov2")
    assert (found.tower_dim, found.image_size_px) == (384, 518)
    assert found.mean == pytest.approx((0.485, 0.456, 0.406))


@pytest.mark.parametrize("config", [vit(), timm_vit(), hf(SIGLIP)], ids=["vit", "timm", "hf"])
@pytest.mark.parametrize("form", ["tensors", "file", "directory", "whole model"])
def test_weights_round_trip(config, form, tmp_path):
    tower = build_tower(config, pretrained=False)
    scattered(tower)
    weights = tower.weights()
    if form == "whole model":
        weights = {f"image_prefix.enc.model.{name}": tensor for name, tensor in weights.items()}
        weights["llm.text_emb.weight"] = torch.zeros(1)
    if form in ("file", "directory"):
        save_file({name: tensor.contiguous() for name, tensor in weights.items()}, tmp_path / "tower.safetensors")
        weights = tmp_path / "tower.safetensors" if form == "file" else tmp_path
    again = build_tower(tower.config, weights)
    pixels = pixels_of(56, 56) if config.tower == "hf:none" else pixels_of(config.image_size_px, config.image_size_px)
    torch.testing.assert_close(again(pixels)[0], tower(pixels)[0], atol=0, rtol=0)


def test_a_directory_is_a_tower(tmp_path):
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    tower = build_tower(vit(mean=(0.1, 0.2, 0.3)))
    ours.mkdir()
    save_file(tower.weights(), ours / "tower.safetensors")
    (ours / "config.json").write_text(tower.config.model_dump_json())
    again = build_tower(VisionConfig(tower=str(ours), image_size_px=48, tower_dim=16))
    assert again.mean == (0.1, 0.2, 0.3)
    torch.testing.assert_close(again(pixels_of(48, 48))[0], tower(pixels_of(48, 48))[0])

    siglip = build_tower(hf(SIGLIP), pretrained=False)
    siglip.model.save_pretrained(theirs)
    for name in (str(theirs), f"hf:{theirs}"):
        loaded = build_tower(VisionConfig(tower=name, image_size_px=56, tower_dim=32))
        torch.testing.assert_close(loaded(pixels_of(56, 56))[0], siglip(pixels_of(56, 56))[0])
        assert loaded.config.tower_args["hidden_size"] == 32
        rebuilt = build_tower(loaded.config, loaded.weights())  # nothing but weights is needed any more
        torch.testing.assert_close(rebuilt(pixels_of(56, 56))[0], siglip(pixels_of(56, 56))[0])


def test_a_tower_inside_a_bigger_model(tmp_path):
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    text = {
        "model_type": "llama", "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
        "num_attention_heads": 2, "vocab_size": 40,
    }  # fmt: skip
    pixtral = {
        "model_type": "pixtral", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1,
        "num_attention_heads": 4, "patch_size": 8, "image_size": 32, "head_dim": 8,
    }  # fmt: skip
    model = LlavaForConditionalGeneration(
        LlavaConfig(vision_config=pixtral, text_config=text, image_token_id=39)
    ).eval()
    model.save_pretrained(tmp_path)
    tower = build_tower(VisionConfig(tower=f"hf:{tmp_path}", image_size_px=32, tower_dim=32))
    pixels = pixels_of(32, 32, count=1)
    inside = getattr(model, "model", model).vision_tower
    torch.testing.assert_close(tower(pixels)[0], inside(pixels).last_hidden_state)


def test_so400m_has_kyutais_names_and_size():
    args = {
        "model_type": "siglip_vision_model", "hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27,
        "num_attention_heads": 16, "image_size": 448, "patch_size": 14,
    }  # fmt: skip
    with torch.device("meta"):
        tower = build_tower(hf(args), pretrained=False)
    weights = tower.weights()
    assert sum(tensor.numel() for tensor in weights.values()) == 413_327_088
    assert weights["embeddings.position_embedding.weight"].shape == (1024, 1152)
    assert weights["encoder.layers.26.mlp.fc1.weight"].shape == (4304, 1152)
    assert not any(name.startswith("head") for name in weights)


def test_loading_is_strict():
    weights = build_tower(vit()).weights()
    del weights["norm.bias"]
    weights["extra.weight"] = torch.zeros(1)
    weights["norm.weight"] = torch.zeros(3)
    with pytest.raises(
        ConfigError, match=r"missing norm.bias; unexpected extra.weight; misshaped norm.weight \[3\] instead"
    ):
        build_tower(vit(), weights)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (lambda: timm_vit(tower="timm:vit_tiny_patch99"), "has no such model"),
        (lambda: timm_vit(tower="timm:vit_tiny_patch16_224.nothing"), "no such pretrained tag; there are vit_tiny"),
        (lambda: timm_vit(tower_args={"colour": 1}), r"tower_args \['colour', 'img_size'\] do not fit"),
        (
            lambda: timm_vit(tower_dim=64),
            "tower_dim is 64, but timm:vit_tiny_patch16_224 gives 32; set tower_dim to 32",
        ),
        (lambda: hf(SIGLIP | {"model_type": "bert"}), "is of type 'bert', which is not among siglip"),
        (lambda: hf(SIGLIP | {"model_type": "nothing"}), "tower_args: "),
        (lambda: hf({"hidden_size": 1}), "model_type is missing"),
        (lambda: vit(tower="nowhere/at_all"), "no such directory; expected vit, timm:NAME, hf:ID_OR_DIR"),
        (lambda: vit(tower_args=VIT | {"depth": 3}), "tower_args of vit: unknown key 'depth'"),
        (lambda: vit(feature_layer=-1), "neither feature_layer nor prefix tokens"),
    ],
)
def test_mistakes_are_one_line(config, message):
    with pytest.raises(ConfigError, match=message) as caught:
        build_tower(config(), pretrained=False)
    assert "\n" not in str(caught.value)


def test_broken_weight_files(tmp_path):
    with pytest.raises(ConfigError, match="no safetensors file there"):
        build_tower(vit(), tmp_path)
    (tmp_path / "tower.safetensors").write_bytes(b"junk")
    with pytest.raises(ConfigError, match="tower.safetensors: not a readable safetensors file"):
        build_tower(vit(), tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match="describes no tower"):
        build_tower(vit(tower=str(tmp_path)))


@pytest.mark.parametrize("tower", ["timm:vit_tiny_patch16_224", "hf:nobody-at-all/no-such-tower"])
def test_without_a_network_one_sentence_says_so(tower, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", "nowhere")
    with pytest.raises(ConfigError, match="could not be had .* give a local directory") as caught:
        build_tower(VisionConfig(tower=tower, image_size_px=224, tower_dim=192))
    assert "\n" not in str(caught.value)


def test_the_own_tower_loads_without_heavy_imports():
    script = (
        "import sys\n"
        "from mmspeech.config import VisionConfig\n"
        "from mmspeech.vision.encoder import build_tower\n"
        f"build_tower(VisionConfig(tower='vit', image_size_px=48, tower_dim=16, tower_args={VIT}))\n"
        "print([name for name in ('timm', 'transformers', 'torchvision', 'torch._dynamo') if name in sys.modules])\n"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
