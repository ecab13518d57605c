"""A frozen tower for pictures or clips behind one call, whoever made it: timm, transformers, or this project."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmspeech.config import ConfigError, StrictModel, VisionConfig, parse_config, read_mapping
from mmspeech.vision.hf import build_hf, describe_hf
from mmspeech.vision.vit import PlainViT
from mmspeech.vision.weights import load_weights, portable
from mmspeech.vision.window import Window, WindowState

OWN_MEAN = OWN_STD = (0.5, 0.5, 0.5)
TOWER_FILE = "tower.safetensors"

Run = Callable[[nn.Module, Tensor, Tensor | None], tuple[Tensor, Tensor | None]]
Join = Callable[[nn.Module, Tensor], Tensor]


class VisionTower(nn.Module):
    """Pixels to visual tokens; parameters need no gradient and dropout is off.

    model: the tower as its library made it. run: calls it and picks the tokens. join, for towers that look at each
    frame by itself before they look at a window: makes of the tokens of its frames those of the newest. `config`
    rebuilds it: mean and std are filled in, and for transformers' towers the whole vision configuration, so that
    weights are all that is missing.
    """

    def __init__(self, model: nn.Module, run: Run, *, config: VisionConfig, join: Join | None = None):
        super().__init__()
        self.model = model
        self.config = config
        self.dim = config.feature_dim
        self.image_size_px = config.image_size_px
        self.mean, self.std = config.mean, config.std
        self.window = None if config.window_frames is None else Window(config.window_frames, config.window_fps)
        self._run, self._join = run, join
        self.requires_grad_(False)
        self.eval()

    def forward(
        self,
        pixels: Tensor,
        *,
        sizes_px: Tensor | None = None,
        state: WindowState | None = None,
        onset_frames: Tensor | None = None,
        rows: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """pixels [B, 3, H, W] -> features [B, S, D] and mask [B, S] bool (True: a token) or None when all are tokens.

        sizes_px [B, 2] long: height and width of each picture inside padded pixels, for towers with variable token
        counts (Pixtral, SigLIP2 NaFlex); other towers raise ConfigError.
        A clip encoder gives the tokens of the newest frame of a window. With `state`, pixels are frames that come at
        onset_frames [B] long (of speech) and enter the windows of its streams rows [B] long. Without, pixels are whole
        windows [B, F, 3, H, W] (see `Window.places`), or stills, which fill a window each.
        """
        if self.window is None:
            if state is not None or pixels.dim() != 4:
                raise ConfigError(f"{self.config.tower} sees one picture at a time, no windows; give it [B, 3, H, W]")
            return self._run(self.model, pixels, sizes_px)
        refuse_sizes(sizes_px)
        if pixels.dim() == 5:
            return self.see_windows(self.see_frames(pixels.flatten(0, 1)).unflatten(0, pixels.shape[:2]))
        frames = self.see_frames(pixels)
        if state is None:
            return self.see_windows(frames[:, None].expand(-1, self.window.frames, *frames.shape[1:]))
        return self.see_windows(state.push(frames, onset_frames, rows, window=self.window))

    @property
    def joins_frames(self) -> bool:
        """Whether each frame is looked at by itself before windows of them are."""
        return self._join is not None

    def see_frames(self, pixels: Tensor) -> Tensor:
        """What a window holds of each frame [P, 3, H, W]: its tokens [P, S, D], or, where the encoder takes windows
        whole, the pixels themselves."""
        return pixels if self._join is None else self._run(self.model, pixels, None)[0]

    def see_windows(self, frames: Tensor) -> tuple[Tensor, Tensor | None]:
        """Windows [P, F, ...] of what `see_frames` gives, the newest last -> features [P, S, D] and their mask."""
        return self._run(self.model, frames, None) if self._join is None else (self._join(self.model, frames), None)

    def init_state(self, batch_size: int) -> WindowState | None:
        """The empty windows of so many streams, for `forward`; None for towers that see one picture at a time."""
        if self.window is None:
            return None
        like = next(self.model.parameters())
        with torch.no_grad():
            frame = self.see_frames(like.new_zeros(1, 3, self.image_size_px, self.image_size_px))[0]
        return WindowState.empty(batch_size, window=self.window, frame=frame)

    def weights(self) -> dict[str, Tensor]:
        """The weights under names that do not change with the library's version; `build_tower` reads them."""
        return portable(self.model.state_dict())


class PlainViTArgs(StrictModel):
    """`tower_args` of the tower `vit`; see PlainViT. With window_layers it sees windows (`window_frames`,
    `window_fps`): beside the tokens of the newest frame, as many numbers about what has happened there."""

    num_layers: int
    num_heads: int
    ffn_dim: int
    stem_strides: tuple[int, ...]
    stem_dims: tuple[int, ...] = ()
    window_layers: int = 0
    window_dim: int = 32


def build_tower(
    config: VisionConfig, weights: str | Path | Mapping[str, Tensor] | None = None, *, pretrained: bool = True
) -> VisionTower:
    """The tower of `config`, frozen.

    weights: a safetensors file, a directory that holds `tower.safetensors`, or tensors by name; nothing is downloaded
    then. Without weights, `timm:` and `hf:` towers come with their published ones unless `pretrained` is False, and
    `vit` starts from random numbers.
    Raises ConfigError (one line) for a tower that is unknown, not reachable, or does not match the config or weights.
    """
    config, weights = _resolve_directory(config, weights)
    load_published = pretrained and weights is None
    kind, _, name = config.tower.partition(":")
    if kind == "timm" and (config.window_frames, config.window_fps) != (None, None):
        raise ConfigError(f"{config.tower} sees one picture at a time; remove window_frames and window_fps")
    join = None
    match kind:
        case "vit":
            model, run, join, found = _build_vit(config)
        case "timm":
            model, run, found = _build_timm(config, name, load_published)
        case _:
            model, run, found = build_hf(config, name, pretrained=load_published)
    if found.pop("tower_dim") != config.tower_dim:
        width = getattr(model, "num_features", None) or model.config.hidden_size
        raise ConfigError(
            f"tower_dim is {config.tower_dim}, but {config.tower} gives {width}; set tower_dim to {width}"
        )
    if weights is not None:
        load_weights(model, weights, tower=config.tower)
    filled = {key: value for key, value in found.items() if getattr(config, key) in (None, {})}
    return VisionTower(model, run, config=config.model_copy(update=filled), join=join)


def default_config(tower: str) -> VisionConfig:
    """The VisionConfig of a timm or transformers tower from its own statistics: size, width, mean and std.

    Raises ConfigError as `build_tower` does. Downloads a configuration at most, never weights.
    """
    kind, _, name = tower.partition(":")
    if kind == "timm":
        found = _describe_timm(name)
    elif kind == "hf":
        found = describe_hf(name)
    else:
        raise ConfigError(f"tower {tower!r}: expected timm:NAME or hf:ID_OR_DIR")
    return VisionConfig(tower=tower, **found)


def _resolve_directory(config: VisionConfig, weights: Any) -> tuple[VisionConfig, Any]:
    """A tower named by a directory becomes the tower that directory describes, with its weights."""
    if config.tower == "vit" or config.tower.startswith(("timm:", "hf:")):
        return config, weights
    folder = Path(config.tower)
    if not folder.is_dir():
        raise ConfigError(
            f"tower {config.tower!r}: no such directory; expected vit, timm:NAME, hf:ID_OR_DIR or a directory"
        )
    settings = read_mapping(folder / "config.json")
    if "tower" in settings:
        inner = parse_config(VisionConfig, settings, source=str(folder / "config.json"))
        own = inner.model_dump(include={"tower", "tower_args", "tower_dim", "window_frames", "window_fps"})
        stats = {key: getattr(inner, key) for key in ("mean", "std") if getattr(config, key) is None}
        return config.model_copy(update=own | stats), folder if weights is None else weights
    if "model_type" in settings:
        return config.model_copy(update={"tower": f"hf:{folder}"}), weights
    if "architecture" in settings:
        return config.model_copy(update={"tower": f"timm:local-dir:{folder}"}), weights
    raise ConfigError(f"{folder}/config.json: describes no tower; expected the key tower, model_type or architecture")


def _build_vit(config: VisionConfig) -> tuple[nn.Module, Run, Join | None, dict[str, Any]]:
    if config.feature_layer is not None or config.keep_prefix_tokens:
        raise ConfigError("tower vit has neither feature_layer nor prefix tokens; remove those settings")
    args = parse_config(PlainViTArgs, config.tower_args, source="tower_args of vit")
    if not args.window_layers and (config.window_frames, config.window_fps) != (None, None):
        raise ConfigError("vit sees one picture at a time; remove window_frames and window_fps, or set window_layers")
    if args.window_layers and None in (config.window_frames, config.window_fps):
        raise ConfigError("tower vit with window_layers: set window_frames and window_fps too")
    model = PlainViT(
        image_size_px=config.image_size_px,
        dim=config.tower_dim,
        num_layers=args.num_layers,
        num_heads=args.num_heads,
        ffn_dim=args.ffn_dim,
        stem_strides=args.stem_strides,
        stem_dims=args.stem_dims,
        window_frames=config.window_frames or 0,
        window_layers=args.window_layers,
        window_dim=args.window_dim,
    )
    join = _join_vit if args.window_layers else None
    return model, _run_vit, join, {"tower_dim": config.tower_dim, "mean": OWN_MEAN, "std": OWN_STD}


def _join_vit(model: nn.Module, tokens: Tensor) -> Tensor:
    """tokens [B, F, S, D] -> [B, S, 2D]: the newest frame's, and what the window says of their places."""
    return torch.cat([tokens[:, -1], model.window(tokens)], dim=-1)


def _run_vit(model: nn.Module, pixels: Tensor, sizes_px: Tensor | None) -> tuple[Tensor, None]:
    refuse_sizes(sizes_px)
    return model(pixels), None


def refuse_sizes(sizes_px: Tensor | None) -> None:
    if sizes_px is not None:
        raise ConfigError("sizes_px was given, but this tower takes whole pictures of one size only; leave it out")


def _build_timm(config: VisionConfig, name: str, pretrained: bool) -> tuple[nn.Module, Run, dict[str, Any]]:
    import timm

    args = dict(config.tower_args)
    published = _timm_cfg(name)
    if published.fixed_input_size:
        # Learned positions are resized once, while loading, to the size in use.
        args.setdefault("img_size", config.image_size_px)
    try:
        model = timm.create_model(name, pretrained=pretrained, num_classes=0, **args)
    except TypeError as error:
        raise ConfigError(f"timm:{name}: tower_args {sorted(args)} do not fit this model: {error}") from error
    except (OSError, RuntimeError) as error:
        raise _unreachable(f"timm:{name}", error) from error
    layer, keep = config.feature_layer, config.keep_prefix_tokens
    if layer is not None and not hasattr(model, "forward_intermediates"):
        raise ConfigError(f"timm:{name} gives no intermediate layers; remove feature_layer")

    def run(model: nn.Module, pixels: Tensor, sizes_px: Tensor | None) -> tuple[Tensor, None]:
        refuse_sizes(sizes_px)
        return _timm_tokens(model, pixels, feature_layer=layer, keep_prefix_tokens=keep), None

    cfg = model.pretrained_cfg
    return model, run, {"tower_dim": model.num_features, "mean": tuple(cfg["mean"]), "std": tuple(cfg["std"])}


def _timm_tokens(model: nn.Module, pixels: Tensor, *, feature_layer: int | None, keep_prefix_tokens: bool) -> Tensor:
    """[B, S, D] after the final norm, or as a block or stage left them.

    Class and register tokens, which have no place in the picture, are dropped unless kept.
    """
    pixels = pixels.to(next(model.parameters()).dtype)
    prefix = getattr(model, "num_prefix_tokens", 0)
    if feature_layer is not None:
        (grid,) = model.forward_intermediates(
            pixels, indices=[feature_layer], norm=False, intermediates_only=True, output_fmt="NCHW"
        )
        return grid.flatten(2).mT
    tokens = model.forward_features(pixels)
    if tokens.ndim == 4:  # convolutional towers give maps
        tokens = tokens.flatten(1, 2) if getattr(model, "output_fmt", "NCHW") == "NHWC" else tokens.flatten(2).mT
    if isinstance(getattr(model, "norm", None), nn.Identity) and hasattr(model, "fc_norm"):
        tokens = model.fc_norm(tokens)  # towers trained with mean pooling have their final norm behind it
    return tokens if keep_prefix_tokens else tokens[:, prefix:]


def _timm_cfg(name: str) -> Any:
    import timm
    from timm.models import PretrainedCfg

    if name.startswith("local-dir:"):
        settings = read_mapping(Path(name.removeprefix("local-dir:")) / "config.json")
        return _timm_cfg(settings["architecture"])
    if name.startswith("hf-hub:"):
        return PretrainedCfg()
    if not timm.is_model(name.partition(".")[0]):
        near = timm.list_models(f"*{name.partition('.')[0][:12]}*")[:4]
        hint = f"; near it: {', '.join(near)}" if near else ""
        raise ConfigError(f"timm:{name}: timm {timm.__version__} has no such model{hint}")
    try:
        return timm.get_pretrained_cfg(name)
    except RuntimeError as error:
        tags = ", ".join(timm.list_pretrained(name.partition(".")[0]))
        raise ConfigError(f"timm:{name}: no such pretrained tag; there are {tags}") from error


def _describe_timm(name: str) -> dict[str, Any]:
    import timm

    cfg = _timm_cfg(name)
    with torch.device("meta"):
        width = timm.create_model(name, pretrained=False, num_classes=0).num_features
    return {"tower_dim": width, "image_size_px": cfg.input_size[-1], "mean": tuple(cfg.mean), "std": tuple(cfg.std)}


def _unreachable(tower: str, error: Exception) -> ConfigError:
    reason = " ".join(str(error).split())[:160]
    return ConfigError(
        f"{tower}: could not be had ({type(error).__name__}: {reason}); "
        "check the name and the connection, or give a local directory"
    )
