"""Towers of transformers: SigLIP (also inside PaliGemma), SigLIP2, CLIP, DINOv2, Pixtral (also inside LLaVA) for
pictures; V-JEPA 2 and VideoMAE for windows of frames."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmspeech.config import ConfigError, VisionConfig, read_mapping
from mmspeech.vision.weights import load_weights, portable, read_tensors

_HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
_CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@dataclass(frozen=True)
class _Family:
    """How one kind of tower is called. `class_name` of transformers; `call` gives its output and the mask."""

    class_name: str
    statistics: tuple[tuple[float, ...], tuple[float, ...]]
    call: Callable[..., tuple[Any, Tensor | None]]
    prefix_tokens: Callable[[Any], int] = lambda config: 0
    norm: str | None = None  # a final norm the tower itself leaves to the pooled vector
    window: Callable[[Any], tuple[int, float]] | None = None  # clip encoders: frames and frames per second by default
    unused: str | None = None  # a part that is left out


def build_hf(config: VisionConfig, name: str, *, pretrained: bool):
    """(model, run, {tower_dim, tower_args, mean, std}) for `hf:name`.

    With `tower_args` (a transformers vision configuration with its model_type) nothing but weights is looked up.
    """
    import transformers

    if config.tower_args:
        whole = vision = _config_from(config.tower_args)
    else:
        whole, vision = _published_config(name)
    family = _family(vision, name)
    model_class = getattr(transformers, family.class_name)
    if hasattr(vision, "vision_use_head"):
        vision.vision_use_head = False  # the pooling head is not used
    window = _window(config, vision, family, name)
    model = model_class(vision)
    if family.unused is not None:
        setattr(model, family.unused, nn.Identity())
    if pretrained:
        _load_published(model, model_class, name, inside=whole is not vision)
    mean, std = _statistics(name, family)
    run = _runner(family, feature_layer=config.feature_layer, keep_prefix_tokens=config.keep_prefix_tokens)
    if window:
        run = _newest(run, steps=window["window_frames"] // vision.tubelet_size, take=config.window_tokens)
    args = config.tower_args or _plain(vision)
    return model, run, {"tower_dim": vision.hidden_size, "tower_args": args, "mean": mean, "std": std, **window}


def describe_hf(name: str) -> dict[str, Any]:
    """tower_dim, image_size_px, mean and std of a published tower."""
    _, vision = _published_config(name)
    mean, std = _statistics(name, _family(vision, name))
    return {"tower_dim": vision.hidden_size, "image_size_px": _size_px(vision), "mean": mean, "std": std}


def _size_px(vision: Any) -> int:
    return vision.crop_size if vision.model_type == "vjepa2" else vision.image_size


def _window(config: VisionConfig, vision: Any, family: _Family, name: str) -> dict[str, Any]:
    """window_frames and window_fps of a clip encoder, checked; nothing for image towers."""
    if family.window is None:
        if (config.window_frames, config.window_fps) != (None, None):
            raise ConfigError(f"hf:{name} sees one picture at a time; remove window_frames and window_fps")
        return {}
    frames, fps = family.window(vision)
    window_frames = frames if config.window_frames is None else config.window_frames
    if vision.model_type == "videomae" and window_frames != frames:
        raise ConfigError(f"hf:{name} looks at {frames} frames; set window_frames to {frames}, not {window_frames}")
    if window_frames % vision.tubelet_size:
        raise ConfigError(
            f"hf:{name} takes frames {vision.tubelet_size} at a time; window_frames {window_frames} is no multiple"
        )
    if config.image_size_px != _size_px(vision):
        raise ConfigError(
            f"hf:{name} takes frames of {_size_px(vision)} px only; set image_size_px to that, "
            f"not {config.image_size_px}"
        )
    return {"window_frames": window_frames, "window_fps": fps if config.window_fps is None else config.window_fps}


def _newest(run: Callable[..., Any], *, steps: int, take: str) -> Callable[..., Any]:
    """Tokens of all steps of time [B, steps * S, D] -> those of the newest frame [B, S, D]."""

    def run_window(model: nn.Module, frames: Tensor, sizes_px: Tensor | None) -> tuple[Tensor, None]:
        by_step = run(model, frames, sizes_px)[0].unflatten(1, (steps, -1))
        return by_step[:, -1] if take == "newest" else by_step.mean(dim=1), None

    return run_window


def _runner(family: _Family, *, feature_layer: int | None, keep_prefix_tokens: bool):
    def run(model: nn.Module, pixels: Tensor, sizes_px: Tensor | None) -> tuple[Tensor, Tensor | None]:
        out, mask = family.call(model, pixels, sizes_px, feature_layer is not None)
        tokens = out.last_hidden_state if feature_layer is None else out.hidden_states[feature_layer]
        if family.norm is not None and feature_layer is None:
            tokens = getattr(getattr(model, "vision_model", model), family.norm)(tokens)
        if not keep_prefix_tokens:
            tokens = tokens[:, family.prefix_tokens(model.config) :]
        return (tokens, None) if mask is None else _unpack(tokens, mask)

    return run


def _refuse_sizes(sizes_px: Tensor | None) -> None:
    if sizes_px is not None:
        raise ConfigError("sizes_px was given, but this tower takes whole pictures of one size only; leave it out")


def _call_positions(model: nn.Module, pixels: Tensor, sizes_px: Tensor | None, hidden: bool):
    """Towers with learned positions, resized (bicubic, align_corners False, no antialias) for other sizes."""
    _refuse_sizes(sizes_px)
    return model(pixel_values=pixels, interpolate_pos_encoding=True, output_hidden_states=hidden), None


def _call_plain(model: nn.Module, pixels: Tensor, sizes_px: Tensor | None, hidden: bool):
    """DINOv2, and VideoMAE with windows [B, F, 3, H, W]."""
    _refuse_sizes(sizes_px)
    return model(pixel_values=pixels, output_hidden_states=hidden), None


def _call_vjepa2(model: nn.Module, frames: Tensor, sizes_px: Tensor | None, hidden: bool):
    """frames [B, F, 3, H, W]."""
    _refuse_sizes(sizes_px)
    return model(pixel_values_videos=frames, skip_predictor=True, output_hidden_states=hidden), None


def _call_pixtral(model: nn.Module, pixels: Tensor, sizes_px: Tensor | None, hidden: bool):
    """All pictures' tokens come in one row, without padding."""
    patch = model.config.patch_size
    sizes = _sizes(pixels, sizes_px)
    out = model(pixels, image_sizes=[(int(h), int(w)) for h, w in sizes], output_hidden_states=hidden)
    return out, _mask(sizes // patch, pixels.device) if sizes_px is not None else _full_mask(pixels, patch)


def _call_siglip2(model: nn.Module, pixels: Tensor, sizes_px: Tensor | None, hidden: bool):
    """Pictures cut into patches row by row, padded to the longest."""
    patch = model.config.patch_size
    grids = _sizes(pixels, sizes_px) // patch
    mask = _mask(grids, pixels.device)
    patches = pixels.new_zeros(*mask.shape, 3 * patch * patch)
    for row, (height, width) in enumerate(grids.tolist()):
        cut = pixels[row, :, : height * patch, : width * patch].unfold(1, patch, patch).unfold(2, patch, patch)
        patches[row, : height * width] = cut.permute(1, 2, 3, 4, 0).reshape(height * width, -1)
    out = model(
        pixel_values=patches,
        pixel_attention_mask=mask,
        spatial_shapes=grids.to(pixels.device),
        output_hidden_states=hidden,
    )
    return out, mask


def _sizes(pixels: Tensor, sizes_px: Tensor | None) -> Tensor:
    """[B, 2] long, on the CPU: they decide shapes."""
    if sizes_px is None:
        return torch.tensor([pixels.shape[-2:]] * pixels.shape[0])
    if sizes_px.shape != (pixels.shape[0], 2):
        raise ConfigError(f"sizes_px has shape {list(sizes_px.shape)}, expected [{pixels.shape[0]}, 2]")
    return sizes_px.cpu()


def _mask(grids: Tensor, device: torch.device) -> Tensor:
    """Token counts of grids [B, 2] -> [B, S] bool, padding on the right."""
    counts = grids.prod(dim=1)
    return (torch.arange(int(counts.max())) < counts[:, None]).to(device)


def _full_mask(pixels: Tensor, patch: int) -> Tensor:
    return _mask(_sizes(pixels, None) // patch, pixels.device)


def _unpack(tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor | None]:
    """Tokens of all pictures in one row [1, sum S, D], or padded ones [B, S, D] -> padded, and the mask if needed."""
    if tokens.shape[:2] != mask.shape:
        padded = tokens.new_zeros(*mask.shape, tokens.shape[-1])
        padded[mask] = tokens[0]
        tokens = padded
    return (tokens, None) if bool(mask.all()) else (tokens * mask[..., None], mask)


_FAMILIES = {
    "siglip_vision_model": _Family("SiglipVisionModel", _HALF, _call_positions),
    "siglip2_vision_model": _Family("Siglip2VisionModel", _HALF, _call_siglip2),
    "clip_vision_model": _Family("CLIPVisionModel", _CLIP, _call_positions, lambda config: 1, "post_layernorm"),
    "dinov2": _Family("Dinov2Model", _IMAGENET, _call_plain, lambda config: 1),
    "dinov2_with_registers": _Family(
        "Dinov2WithRegistersModel", _IMAGENET, _call_plain, lambda config: 1 + config.num_register_tokens
    ),
    "pixtral": _Family("PixtralVisionModel", _CLIP, _call_pixtral),
    "vjepa2": _Family(
        "VJEPA2Model",
        _IMAGENET,
        _call_vjepa2,
        window=lambda config: (min(16, config.frames_per_clip), 4.0),
        unused="predictor",
    ),
    "videomae": _Family("VideoMAEModel", _IMAGENET, _call_plain, window=lambda config: (config.num_frames, 6.25)),
}


def _family(vision: Any, name: str) -> _Family:
    if vision.model_type not in _FAMILIES:
        known = ", ".join(_FAMILIES)
        raise ConfigError(f"hf:{name} is of type {vision.model_type!r}, which is not among {known}; timm may have it")
    return _FAMILIES[vision.model_type]


def _config_from(args: dict[str, Any]) -> Any:
    from transformers import AutoConfig

    if "model_type" not in args:
        raise ConfigError("tower_args of an hf: tower are a transformers vision configuration; model_type is missing")
    settings = {key: value for key, value in args.items() if key != "model_type"}
    try:
        return AutoConfig.for_model(args["model_type"], **settings)
    except ValueError as error:
        raise ConfigError(f"tower_args: {' '.join(str(error).split())[:160]}") from error


def _published_config(name: str) -> tuple[Any, Any]:
    """The whole model's configuration and the tower's in it."""
    from transformers import AutoConfig

    if Path(name).is_dir():
        read_mapping(Path(name) / "config.json")
    try:
        whole = AutoConfig.from_pretrained(name)
    except (OSError, ValueError, KeyError) as error:
        raise _unreachable(name, error) from error
    return whole, getattr(whole, "vision_config", whole)


def _plain(vision: Any) -> dict[str, Any]:
    """What differs from the defaults of the configuration's class; JSON types only."""
    settings = vision.to_diff_dict()
    for key in ("transformers_version", "architectures", "dtype", "torch_dtype", "_name_or_path"):
        settings.pop(key, None)
    return settings | {"model_type": vision.model_type}


def _statistics(name: str, family: _Family) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and std of a local directory's own preprocessor, else those the family was trained with."""
    path = Path(name) / "preprocessor_config.json"
    settings = read_mapping(path) if path.is_file() else {}
    mean, std = family.statistics
    return tuple(settings.get("image_mean", mean)), tuple(settings.get("image_std", std))


def _load_published(model: nn.Module, model_class: type, name: str, *, inside: bool) -> None:
    """`inside`: the tower is part of a bigger model; only the files that hold it are fetched."""
    if inside:
        load_weights(model, portable(_tensors_inside(name)), tower=f"hf:{name}")
        return
    try:
        published, report = model_class.from_pretrained(name, config=model.config, output_loading_info=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise _unreachable(name, error) from error
    missing = sorted(report["missing_keys"])
    if missing:
        raise ConfigError(f"hf:{name}: its weights lack {', '.join(missing[:4])}; it is not a complete tower")
    own = model.state_dict().keys()  # without the part that is left out
    model.load_state_dict({key: value for key, value in published.state_dict().items() if key in own})


def _tensors_inside(name: str) -> dict[str, Tensor]:
    if Path(name).is_dir():
        return read_tensors(Path(name))
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    try:
        try:
            index = read_mapping(hf_hub_download(name, "model.safetensors.index.json"))["weight_map"]
            files = sorted({file for key, file in index.items() if portable({key: None}) != {key: None}})
        except EntryNotFoundError:
            files = ["model.safetensors"]
        tensors = {}
        for file in files:
            tensors |= read_tensors(Path(hf_hub_download(name, file)))
        return tensors
    except OSError as error:
        raise _unreachable(name, error) from error


def _unreachable(name: str, error: Exception) -> ConfigError:
    reason = " ".join(str(error).split())[:160]
    return ConfigError(
        f"hf:{name}: could not be had ({type(error).__name__}: {reason}); "
        "check the name and the connection, or give a local directory"
    )
