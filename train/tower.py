"""The vision tower stage: a small tower learns from rendered scenes what lies under each of its tokens.

`python -m train.tower --config configs/train/tiny_tower.yaml [a.b=c ...]`

The scenes are pairs NAME.png and NAME.json as `python -m data_prep scenes` makes them. Every token is asked, through
one linear layer, whether an object lies under it and whether its centre does, the object's shape, colour, size and
place, how many objects share its colour and its shape, how many there are in all, and the way to its centre. The linear
layer is thrown away; that it sufficed is what lets a small cross-attention read the tokens later.
"""

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from mmspeech.config import ConfigError, VisionConfig, read_mapping
from mmspeech.vision.encoder import TOWER_FILE, VisionTower, build_tower
from mmspeech.vision.image import load_image
from train.command import run_stage
from train.steps import StepsConfig, run_steps, table

MAX_OBJECTS = 4
PLACES = 9  # the 3 x 3 grid, row by row


class TowerStageConfig(StepsConfig):
    """Settings of the tower stage. `scenes` and `held_out` are folders searched for scene pairs, to any depth.

    `radii`: of each size's objects, in picture widths. `max_scenes` 0: all of them.
    """

    vision: VisionConfig
    scenes: str
    held_out: str
    shapes: list[str]
    colours: list[str]
    radii: dict[str, float]
    max_scenes: int = Field(0, ge=0)


@dataclass
class Scenes:
    """Pictures with their objects, whole in memory. M objects per scene at most; `count` of them are real.

    pixels [N, 3, H, W] uint8; shape, colour, size, [N, M] long; x, y [N, M] float in 0..1; count [N] long.
    """

    pixels: Tensor
    shape: Tensor
    colour: Tensor
    size: Tensor
    x: Tensor
    y: Tensor
    count: Tensor

    def take(self, rows: Tensor) -> "Scenes":
        return Scenes(**{name: value[rows] for name, value in vars(self).items()})

    def mirrored(self, which: Tensor) -> "Scenes":
        """Left and right swapped in the scenes where `which` [N] is True."""
        pixels = torch.where(which[:, None, None, None], self.pixels.flip(-1), self.pixels)
        return Scenes(**vars(self) | {"pixels": pixels, "x": torch.where(which[:, None], 1 - self.x, self.x)})


def load_scenes(folder: str | Path, config: TowerStageConfig) -> Scenes:
    """Every scene pair under `folder`. Raises ConfigError naming the file that does not fit."""
    paths = sorted(path for path in Path(folder).rglob("*.json") if path.with_suffix(".png").is_file())
    if not paths:
        raise ConfigError(
            f"{folder}: no scene pairs (NAME.png with NAME.json); make them with `python -m data_prep scenes`"
        )
    paths = paths[: config.max_scenes or None]
    with ThreadPoolExecutor(2) as pool:
        rows = list(pool.map(lambda path: _read_scene(path, config), paths))
    names = ("shape", "colour", "size", "x", "y")
    columns = {name: torch.stack([objects[k] for _, objects, _ in rows]) for k, name in enumerate(names)}
    columns |= {name: columns[name].long() for name in ("shape", "colour", "size")}
    pixels = torch.from_numpy(np.stack([picture for picture, _, _ in rows])).permute(0, 3, 1, 2).contiguous()
    return Scenes(pixels=pixels, count=torch.tensor([count for _, _, count in rows]), **columns)


def _read_scene(path: Path, config: TowerStageConfig) -> tuple[np.ndarray, Tensor, int]:
    """Picture [H, W, 3] uint8, objects [5, M] float (unused ones are -1), and how many there are."""
    side = config.vision.image_size_px
    picture = load_image(path.with_suffix(".png"))
    if picture.size != (side, side):
        picture = picture.resize((side, side))
    objects = torch.full((5, MAX_OBJECTS), -1.0)
    items = read_mapping(path).get("objects", [])
    if not 1 <= len(items) <= MAX_OBJECTS:
        raise ConfigError(f"{path}: {len(items)} objects, expected 1 to {MAX_OBJECTS}")
    for k, item in enumerate(items):
        try:
            kinds = (config.shapes.index(item["shape"]), config.colours.index(item["colour"]))
            kinds += (list(config.radii).index(item["size"]),)
            objects[:, k] = torch.tensor([*kinds, item["x"], item["y"]])
        except (KeyError, ValueError) as error:
            raise ConfigError(
                f"{path}: object {k}: {error}; expected the shapes, colours and radii of the config"
            ) from error
    return np.asarray(picture), objects, len(items)


class TokenReader(nn.Module):
    """One linear layer that answers every question from a token [B, S, D]; only training uses it."""

    def __init__(self, *, dim: int, shapes: int, colours: int, sizes: int):
        super().__init__()
        self.widths = {
            "occupied": 1, "centre": 1, "total": MAX_OBJECTS, "offset": 2,
            "shape": shapes, "colour": colours, "size": sizes, "place": PLACES,
            "same_colour": MAX_OBJECTS, "same_shape": MAX_OBJECTS,
        }  # fmt: skip
        self.linear = nn.Linear(dim, sum(self.widths.values()))

    def forward(self, tokens: Tensor) -> dict[str, Tensor]:
        parts = self.linear(tokens).float().split(list(self.widths.values()), dim=-1)
        return dict(zip(self.widths, parts, strict=True))


def object_answers(scenes: Scenes) -> dict[str, Tensor]:
    """The answers about each object [B, M] long; counts are one less than the number."""
    real = torch.arange(MAX_OBJECTS) < scenes.count[:, None]
    column, row = (scenes.x * 3).long().clamp(0, 2), (scenes.y * 3).long().clamp(0, 2)
    answers = {"shape": scenes.shape, "colour": scenes.colour, "size": scenes.size, "place": row * 3 + column}
    for name in ("colour", "shape"):
        kinds = answers[name]
        answers[f"same_{name}"] = ((kinds[:, :, None] == kinds[:, None]) & real[:, None]).sum(-1) - 1
    return {name: torch.where(real, value, 0) for name, value in answers.items()}


def token_targets(scenes: Scenes, *, grid: int, radii: list[float]) -> dict[str, Tensor]:
    """What each of the grid * grid tokens should say.

    `occupied` and `centre` [B, S] bool, `offset` [B, S, 2] in cells, `owner` [B, S] long (which object lies there).
    """
    middles = (torch.arange(grid) + 0.5) / grid
    cell_y, cell_x = (axis.flatten() for axis in torch.meshgrid(middles, middles, indexing="ij"))
    away_x = scenes.x[:, None] - cell_x[:, None]  # [B, S, M]
    away_y = scenes.y[:, None] - cell_y[:, None]
    real = (torch.arange(MAX_OBJECTS) < scenes.count[:, None])[:, None]
    holds_centre = (away_x.abs().maximum(away_y.abs()) <= 0.5 / grid) & real
    distance = torch.hypot(away_x, away_y)
    radius = torch.tensor(radii)[scenes.size.clamp(min=0)][:, None]
    covered = ((distance <= radius) & real) | holds_centre
    owner = distance.masked_fill(~covered, torch.inf).argmin(-1)
    offset = torch.stack([away_x, away_y], dim=-1).gather(2, owner[..., None, None].expand(-1, -1, 1, 2)).squeeze(2)
    return {"occupied": covered.any(-1), "centre": holds_centre.any(-1), "offset": offset * grid, "owner": owner}


def reading_losses(read: dict[str, Tensor], scenes: Scenes, *, grid: int, radii: list[float]) -> dict[str, Tensor]:
    """A scalar per question; questions about an object are asked of the tokens it covers."""
    targets = token_targets(scenes, grid=grid, radii=radii)
    occupied, owner = targets["occupied"], targets["owner"]
    losses = {
        name: F.binary_cross_entropy_with_logits(read[name].squeeze(-1), targets[name].float())
        for name in ("occupied", "centre")
    }
    total = (scenes.count - 1)[:, None].expand(occupied.shape)
    losses["total"] = F.cross_entropy(read["total"].flatten(0, 1), total.flatten())
    losses["offset"] = F.smooth_l1_loss(read["offset"][occupied], targets["offset"][occupied])
    for name, answer in object_answers(scenes).items():
        losses[name] = F.cross_entropy(read[name][occupied], answer.gather(1, owner)[occupied])
    return losses


@torch.no_grad()
def held_out_scores(
    tower: VisionTower, reader: TokenReader, scenes: Scenes, config: TowerStageConfig
) -> dict[str, float]:
    """Shares of objects (read at the token that holds their centre) and of scenes answered rightly."""
    hits: dict[str, list[Tensor]] = {}
    grid, radii = reader_grid(config.vision, tower), list(config.radii.values())
    for rows in torch.arange(len(scenes.count)).split(256):
        part = scenes.take(rows)
        features, _ = tower(normalised(part.pixels, tower))
        read = reader(features)
        real = torch.arange(MAX_OBJECTS) < part.count[:, None]
        token = (part.y * grid).long().clamp(0, grid - 1) * grid + (part.x * grid).long().clamp(0, grid - 1)
        occupied = read["occupied"].squeeze(-1) > 0
        right = {"found": occupied.gather(1, token)}
        for name, answer in object_answers(part).items():
            right[name] = read[name].argmax(-1).gather(1, token) == answer
        right["object"] = right["found"] & right["colour"] & right["shape"] & right["place"]
        right["total"] = read["total"].mean(1).argmax(-1) == part.count - 1
        right["scene"] = (right["object"] | ~real).all(1) & right["total"]
        # Tokens an object's border crosses may say either; those well away from every object must say nothing.
        right["empty"] = ~occupied[~token_targets(part, grid=grid, radii=[r + 1 / grid for r in radii])["occupied"]]
        for name, value in right.items():
            hits.setdefault(name, []).append(value[real] if value.shape == real.shape else value)
    return {name: torch.cat(values).float().mean().item() for name, values in hits.items()}


def reader_grid(vision: VisionConfig, tower: VisionTower) -> int:
    """Tokens along a side; the questions need a square of them."""
    side = vision.image_size_px
    with torch.no_grad():
        tokens = tower(torch.zeros(1, 3, side, side))[0].shape[1]
    grid = round(tokens**0.5)
    if grid * grid != tokens:
        raise ConfigError(
            f"{vision.tower} gives {tokens} tokens, which is not a square; this stage trains square towers"
        )
    return grid


def normalised(pixels: Tensor, tower: VisionTower) -> Tensor:
    """uint8 [B, 3, H, W] -> float, as `to_pixels` gives."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (tower.mean, tower.std))
    return ((pixels.float() / 255 - mean) / std).contiguous(memory_format=torch.channels_last)


def draw_batch(scenes: Scenes, config: TowerStageConfig, step: int) -> Scenes:
    """The batch of a step depends on nothing but seed and step, so a resumed run sees what an unbroken one sees."""
    rng = np.random.default_rng([config.seed, step])
    rows = torch.from_numpy(rng.integers(len(scenes.count), size=config.batch_size))
    return scenes.take(rows).mirrored(torch.from_numpy(rng.random(config.batch_size) < 0.5))


def train_tower(config: TowerStageConfig) -> dict[str, float]:
    """Run or resume the stage; writes tower.safetensors, config.json, metrics.json to `out` and returns the scores."""
    torch.manual_seed(config.seed)
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    tower = build_tower(config.vision, pretrained=False).requires_grad_(True).to(memory_format=torch.channels_last)
    reader = TokenReader(dim=tower.dim, shapes=len(config.shapes), colours=len(config.colours), sizes=len(config.radii))
    grid, radii = reader_grid(config.vision, tower), list(config.radii.values())
    scenes, held_out = load_scenes(config.scenes, config), load_scenes(config.held_out, config)

    def losses_of(step: int) -> dict[str, Tensor]:
        batch = draw_batch(scenes, config, step)
        features, _ = tower(normalised(batch.pixels, tower))
        return reading_losses(reader(features), batch, grid=grid, radii=radii)

    def scores_of() -> dict[str, float]:
        return held_out_scores(tower, reader, held_out, config)

    both = nn.ModuleDict({"tower": tower, "reader": reader})
    run_steps(config, both, name="tower", losses_of=losses_of, scores_of=scores_of)
    tower.half().float()  # weights are stored in half precision, and scored as stored
    export_tower(tower, out, scores := scores_of())
    return scores


def export_tower(tower: VisionTower, out: Path, scores: dict[str, float]) -> None:
    """tower.safetensors (fp16), config.json (VisionConfig), metrics.json (held-out shares)."""
    from safetensors.torch import save_file

    save_file({name: tensor.half().contiguous() for name, tensor in tower.weights().items()}, out / f"{TOWER_FILE}.tmp")
    (out / f"{TOWER_FILE}.tmp").replace(out / TOWER_FILE)
    (out / "config.json").write_text(tower.config.model_dump_json(indent=2) + "\n", encoding="utf-8")
    (out / "metrics.json").write_text(json.dumps({"held_out": scores}, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    scores = run_stage(__doc__.splitlines()[0], TowerStageConfig, train_tower)
    print("held out: " + table(scores))


if __name__ == "__main__":
    main()
