"""Clip encoders on a sliding window: what transformers' own classes give, and frame by frame as in one go."""

import pytest
import torch
from small_model import clip_model

from mmspeech.config import ConfigError, VisionConfig
from mmspeech.vision.encoder import build_tower, default_config
from mmspeech.vision.window import Window, WindowState

VJEPA = {
    "model_type": "vjepa2", "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 8,
    "crop_size": 32, "frames_per_clip": 8, "tubelet_size": 2, "pred_hidden_size": 24, "pred_num_hidden_layers": 1,
    "pred_num_attention_heads": 2,
}  # fmt: skip
MAE = {
    "model_type": "videomae", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 2, "patch_size": 8, "image_size": 32, "num_frames": 8, "tubelet_size": 2,
    "use_mean_pooling": False,
}  # fmt: skip
TOWERS = {"vjepa2": VJEPA, "videomae": MAE, "videomae without a norm": MAE | {"use_mean_pooling": True}}


def saved(settings, folder):
    """A checkpoint of transformers' own class with random weights, none of them neutral; its directory and it."""
    import transformers

    config_class, model_class = {
        "vjepa2": (transformers.VJEPA2Config, transformers.VJEPA2Model),
        "videomae": (transformers.VideoMAEConfig, transformers.VideoMAEModel),
    }[settings["model_type"]]
    torch.manual_seed(0)
    model = model_class(config_class(**{key: settings[key] for key in settings if key != "model_type"})).eval()
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape)
    model.save_pretrained(folder)
    return model


def config(folder, settings=VJEPA, **more):
    return VisionConfig(tower=str(folder), image_size_px=32, tower_dim=settings["hidden_size"], **more)


def clip_of(num_frames):
    return torch.randn(num_frames, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture(params=TOWERS)
def both(request, tmp_path):
    """(transformers' model, our tower, its settings)."""
    settings = TOWERS[request.param]
    model = saved(settings, tmp_path)
    return model, build_tower(config(tmp_path, settings)), settings


@torch.no_grad()
def theirs(model, windows):
    kind = "pixel_values_videos" if model.config.model_type == "vjepa2" else "pixel_values"
    extra = {"skip_predictor": True} if model.config.model_type == "vjepa2" else {}
    return model(**{kind: windows}, **extra).last_hidden_state


def test_the_newest_tokens_are_those_of_transformers(both):
    model, tower, settings = both
    windows = clip_of(16).unflatten(0, (2, 8))
    features, mask = tower(windows)
    expected = theirs(model, windows)
    assert mask is None and features.shape == (2, 16, settings["hidden_size"])
    torch.testing.assert_close(features, expected[:, -16:], atol=1e-5, rtol=0)
    mean = build_tower(tower.config.model_copy(update={"window_tokens": "mean"}), tower.weights())
    torch.testing.assert_close(mean(windows)[0], expected.unflatten(1, (4, 16)).mean(1), atol=1e-5, rtol=0)
    assert not any("predictor" in name for name in tower.weights())
    assert (tower.window.frames, tower.mean) == (8, (0.485, 0.456, 0.406))


def test_motion_is_seen(both):
    """The same newest frame after others has other tokens; a still does what a window of it does."""
    _, tower, _ = both
    still, other = clip_of(2)
    moving = torch.cat([other.expand(7, -1, -1, -1), still[None]])
    tokens = [tower(x)[0] for x in (still[None], still.expand(1, 8, -1, -1, -1), moving[None])]
    torch.testing.assert_close(tokens[0], tokens[1], atol=0, rtol=0)
    assert (tokens[2] - tokens[0]).abs().max() > 1e-2


@pytest.mark.parametrize("rate_hz", [2.0, 4.0, 7.3])
def test_frame_by_frame_equals_the_whole_clip(both, rate_hz):
    """Whatever the rate frames come at, two streams side by side, one of them reset on the way."""
    _, tower, _ = both
    clip, onsets = clip_of(14), torch.ceil(torch.arange(14) / rate_hz * 12.5).long()
    whole = tower(clip[tower.window.places(onsets)])[0]
    state = tower.init_state(3)
    rows = torch.tensor([2, 0])
    pointers = [tensor.data_ptr() for tensor in state.tensors()]
    for index in range(14):
        if index == 9:
            state.reset(torch.tensor([True, False, False]))
        frames = torch.stack([clip[index], clip[index - 9] if index >= 9 else clip[0]])
        times = torch.stack([onsets[index], onsets[index - 9] if index >= 9 else onsets[0]])
        tokens, _ = tower(frames, state=state, onset_frames=times, rows=rows)
        torch.testing.assert_close(tokens[0], whole[index], atol=1e-5, rtol=0)
        if index >= 9:
            torch.testing.assert_close(tokens[1], whole[index - 9], atol=1e-5, rtol=0)
    assert [tensor.data_ptr() for tensor in state.tensors()] == pointers


def test_a_window_holds_the_newest_frame_of_each_slot():
    frames = torch.arange(8.0)[:, None, None, None].expand(-1, 3, 2, 2)
    onsets, window = torch.tensor([0, 1, 4, 7, 20, 20, 21, 113]), Window(4, 4.0)  # 0, 0.08, 0.32, 0.56, 1.6 ... s
    expected = [
        [0, 0, 0, 0], [0, 0, 0, 1], [0, 0, 1, 2], [0, 1, 2, 3],
        [3, 3, 3, 4], [3, 3, 3, 5], [3, 3, 3, 6], [6, 6, 6, 7],
    ]  # fmt: skip
    state = WindowState.empty(1, window=window, frame=frames[0])
    row = torch.tensor([0])
    pushed = [state.push(frames[k : k + 1], onsets[k : k + 1], row, window=window) for k in range(8)]
    assert [pixels[0, :, 0, 0, 0].tolist() for pixels in pushed] == window.places(onsets).tolist() == expected
    assert Window(2, 6.25).slots(torch.arange(-3, 5)).tolist() == [-2, -1, -1, 0, 0, 1, 1, 2]


def test_a_late_time_counts_as_now():
    window = Window(2, 4.0)
    state = WindowState.empty(1, window=window, frame=torch.zeros(3, 1, 1))
    for onset, value in ((13, 1.0), (3, 2.0)):
        held = state.push(torch.full((1, 3, 1, 1), value), torch.tensor([onset]), torch.tensor([0]), window=window)
    assert held[0, :, 0, 0, 0].tolist() == [1.0, 2.0] and state.slot.tolist() == [4]


@pytest.mark.parametrize("layer", [-1, -2])
def test_feature_layer(both, layer, tmp_path):
    model, tower, _ = both
    inner = build_tower(tower.config.model_copy(update={"feature_layer": layer}), tower.weights())
    windows = clip_of(8)[None]
    blocks = []
    layers = model.encoder.layer
    hook = layers[layer].register_forward_hook(
        lambda module, args, out: blocks.append(out[0] if isinstance(out, tuple) else out)
    )
    theirs(model, windows)
    hook.remove()
    torch.testing.assert_close(inner(windows)[0], blocks[0][:, -16:], atol=1e-5, rtol=0)


def test_a_tower_comes_back_from_its_own_config_and_weights(both):
    _, tower, _ = both
    again = build_tower(tower.config, tower.weights())
    torch.testing.assert_close(again(clip_of(8)[None])[0], tower(clip_of(8)[None])[0], atol=0, rtol=0)


def test_default_config_knows_the_size(tmp_path):
    saved(VJEPA, tmp_path)
    found = default_config(f"hf:{tmp_path}")
    assert (found.image_size_px, found.tower_dim) == (32, 48)


@pytest.mark.parametrize(
    ("settings", "more", "message"),
    [
        (MAE, {"window_frames": 4}, "looks at 8 frames; set window_frames to 8, not 4"),
        (VJEPA, {"window_frames": 5}, "takes frames 2 at a time; window_frames 5 is no multiple"),
        (VJEPA, {"image_size_px": 64}, "takes frames of 32 px only; set image_size_px to that, not 64"),
    ],
)
def test_windows_that_do_not_fit(settings, more, message, tmp_path):
    saved(settings, tmp_path)
    with pytest.raises(ConfigError, match=message):
        build_tower(config(tmp_path, settings).model_copy(update=more))


def test_image_towers_take_no_windows():
    plain = {
        "tower": "vit", "image_size_px": 32, "tower_dim": 16,
        "tower_args": {"num_layers": 1, "num_heads": 2, "ffn_dim": 16, "stem_strides": [8]},
    }  # fmt: skip
    with pytest.raises(ConfigError, match="sees one picture at a time; remove window_frames"):
        build_tower(VisionConfig(**plain, window_frames=8))
    siglip = {"model_type": "siglip_vision_model", "hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1}
    hf = VisionConfig(tower="hf:none", image_size_px=32, tower_dim=16, tower_args=siglip, window_fps=4)
    with pytest.raises(ConfigError, match="sees one picture at a time; remove window_frames"):
        build_tower(hf, pretrained=False)
    tower = build_tower(VisionConfig(**plain))
    assert tower.init_state(1) is None
    with pytest.raises(ConfigError, match="one picture at a time, no windows"):
        tower(torch.zeros(1, 4, 3, 32, 32))


def test_window_blocks_see_each_frame_once_and_know_their_order():
    vision = VisionConfig.model_validate(clip_model("vit")["vision"])
    tower = build_tower(vision)
    plain = {"window_layers": 0}
    still = build_tower(
        vision.model_copy(update={"tower_args": vision.tower_args | plain, "window_frames": None, "window_fps": None}),
        {name: tensor for name, tensor in tower.weights().items() if not name.startswith("window.")},
    )
    clip = torch.rand(3, 3, 32, 32)
    tokens = still(clip)[0]
    assert tower.dim == vision.feature_dim == 2 * still.dim
    whole, mask = tower(clip[None])
    assert mask is None
    torch.testing.assert_close(whole[0, :, : still.dim], tokens[-1])
    torch.testing.assert_close(tower.see_windows(tokens[None])[0], whole)
    turned = tower(clip[[1, 0, 2]][None])[0]
    assert torch.equal(turned[0, :, : still.dim], whole[0, :, : still.dim])
    assert (turned - whole).abs().max() > 1e-4
    state, row = tower.init_state(1), torch.tensor([0])
    for number, onset_frame in enumerate((0, 7, 13)):  # half a second apart
        seen, _ = tower(clip[number : number + 1], state=state, onset_frames=torch.tensor([onset_frame]), rows=row)
        expected = tower(clip[[0] * (2 - number) + [*range(number + 1)]][None])[0]
        torch.testing.assert_close(seen, expected)


def test_window_blocks_need_a_window():
    vision = VisionConfig.model_validate(clip_model("vit")["vision"])
    with pytest.raises(ConfigError, match="set window_frames and window_fps too"):
        build_tower(vision.model_copy(update={"window_fps": None}))
