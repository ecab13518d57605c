"""The window stage: a tower that knows pictures learns from clips what has happened at each of its places.

`python -m train.window_tower --config configs/train/tiny_window.yaml [a.b=c ...]`

The clips are NAME.mp4 with NAME.watched.json as `python -m data_prep watched` makes them. The tower of pictures stays
as it is; only its window blocks learn. Every token is asked, through one linear layer that is thrown away, what it
should say of the object on it: which way it moves and last moved, whether it has grown, how often it blinked, its
colour before, its first place, what happened to it last, how long ago and whether anything has happened since, and
what before that; and of an object that has vanished there, its shape and colour. A share of the windows begins with
frames of another clip, as when a picture is changed.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from mmspeech.config import ConfigError, VisionConfig, read_mapping
from mmspeech.vision.encoder import VisionTower, build_tower
from mmspeech.vision.image import to_pixels
from mmspeech.vision.memory import onset_of
from mmspeech.vision.video import Video
from train.command import run_stage
from train.machine import fast_precision
from train.steps import StepsConfig, run_steps, table
from train.tower import export_tower, reader_grid

MAX_OBJECTS = 8
WAYS = ("left", "right", "up", "down")
HAPPENINGS = (
    "move left", "move right", "move up", "move down", "cross", "grow", "shrink", "blink 1", "blink 2", "blink 3",
    "blink 4", "appear", "vanish", "recolour",
)  # fmt: skip
AGO_SEC = (0.5, 1.0, 1.5, 2.0, 3.0, 4.0)  # since what happened last: fine enough to tell it from what came after
PLACES = 9


class WindowStageConfig(StepsConfig):
    """Settings of the window stage. `clips` and `held_out`: folders; `tower`: the weights that know pictures.

    `cut_share`: of windows that begin with frames of another clip. `max_clips` 0: all of them.
    """

    vision: VisionConfig
    tower: str
    clips: str
    held_out: str
    shapes: list[str]
    colours: list[str]
    max_clips: int = Field(0, ge=0)
    cut_share: float = Field(0.2, ge=0, le=1)


@dataclass
class Clips:
    """Frames of clips, one clip after the other, as the tower sees each by itself: frames [N, S, D] bfloat16.

    known: of each frame's objects, by name [N, M]: x, y, radius float, all else long; -1: there is nothing to know.
    first, count [C] long: a clip's first frame and how many it has. fps: of the frames.
    """

    frames: Tensor
    known: dict[str, Tensor]
    first: Tensor
    count: Tensor
    fps: float


@dataclass(frozen=True)
class Question:
    """Something asked of tokens: the number of answers, and whether of objects that are there or of those gone."""

    answers: int
    of_gone: bool = False


def questions_of(config: WindowStageConfig) -> dict[str, Question]:
    """All but `gone`, whether an object has vanished from here, which is asked of every free place."""
    ways = 1 + len(WAYS)
    there = {
        "moving": ways, "moved": ways, "resized": 3, "blinks": 5, "was": 1 + len(config.colours), "appeared": 2,
        "first": 1 + PLACES, "event": 1 + len(HAPPENINGS), "ago": 2 + len(AGO_SEC), "latest": 2,
        "event_before": 1 + len(HAPPENINGS),
    }  # fmt: skip
    gone = {
        "gone_shape": len(config.shapes), "gone_colour": len(config.colours), "gone_ago": 2 + len(AGO_SEC),
        "gone_latest": 2,
    }  # fmt: skip
    return {name: Question(count) for name, count in there.items()} | {
        name: Question(count, of_gone=True) for name, count in gone.items()
    }


def load_clips(folder: str | Path, tower: VisionTower, config: WindowStageConfig) -> Clips:
    """Every clip under `folder`. Raises ConfigError naming the file that does not fit."""
    from rich.progress import track

    paths = sorted(Path(folder).rglob("*.watched.json"))[: config.max_clips or None]
    if not paths:
        raise ConfigError(
            f"{folder}: no clips (NAME.mp4 with NAME.watched.json); make them with `python -m data_prep watched`"
        )
    frames, known, rates = [], [], set()
    with ThreadPoolExecutor(1) as pool:  # decodes ahead of the tower
        clips = pool.map(lambda path: _read_clip(path, tower, config), paths)
        for pixels, columns, fps in track(clips, total=len(paths), description=f"clips of {folder}"):
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=fast_precision(on_cpu=True) == "bf16"):
                frames.append(tower.see_frames(pixels.contiguous(memory_format=torch.channels_last)).bfloat16())
            known.append(columns)
            rates.add(fps)
    if len(rates) > 1:
        raise ConfigError(f"{folder}: clips of {sorted(rates)} frames a second; expected one rate")
    count = torch.tensor([len(part) for part in frames])
    columns = {name: torch.cat([part[name] for part in known]) for name in known[0]}
    return Clips(torch.cat(frames), columns, count.cumsum(0) - count, count, rates.pop())


def _read_clip(path: Path, tower: VisionTower, config: WindowStageConfig) -> tuple[Tensor, dict[str, Tensor], float]:
    """Pixels [F, 3, H, W], what is known of the objects by name [F, M], and frames per second."""
    told = read_mapping(path)
    try:
        fps, frames = told["fps"], told["frames"]
        rows = [[_numbers(item, config) for item in frame] for frame in frames]
    except (KeyError, ValueError, TypeError) as error:
        raise ConfigError(
            f"{path}: {type(error).__name__}: {error}; expected what `python -m data_prep watched` writes, with the "
            "shapes and colours of the config"
        ) from error
    most = max(len(row) for row in rows)
    if most > MAX_OBJECTS:
        raise ConfigError(f"{path}: {most} objects, expected at most {MAX_OBJECTS}")
    columns = {
        name: torch.tensor([[item[name] for item in row] + [-1] * (MAX_OBJECTS - len(row)) for row in rows])
        for name in _numbers({"shape": config.shapes[0], "colour": config.colours[0]} | _NOWHERE, config)
    }
    video = Video(path.with_name(path.name.replace(".watched.json", ".mp4")))
    pictures = [frame.picture for frame in video.frames([number / fps for number in range(len(frames))])]
    pixels = torch.stack([to_pixels(one, tower.image_size_px, tower.mean, tower.std) for one in pictures])
    return pixels, columns, fps


_NOWHERE = {"x": 0.0, "y": 0.0, "radius": 0.0, "there": False}


def _numbers(item: dict[str, Any], config: WindowStageConfig) -> dict[str, float]:
    """The answers about an object as numbers; 0: none, or it never happened."""
    ago = 0 if item.get("ago_sec") is None else 1 + sum(item["ago_sec"] >= limit for limit in AGO_SEC)
    gone, latest = item.get("gone", False), int(item.get("latest", False))
    return {
        "x": float(item["x"]), "y": float(item["y"]), "radius": float(item["radius"]),
        "there": int(item["there"]), "gone": int(gone),
        "moving": _place(item.get("moving"), WAYS), "moved": _place(item.get("moved"), WAYS),
        "resized": _place(item.get("resized"), ("grow", "shrink")), "blinks": min(4, item.get("blinks", 0)),
        "was": _place(item.get("was"), config.colours), "appeared": int(item.get("appeared", False)),
        "first": 0 if item.get("first") is None else 1 + item["first"],
        "event": _place(item.get("event"), HAPPENINGS), "ago": ago,
        "latest": latest, "event_before": _place(item.get("event_before"), HAPPENINGS),
        "gone_shape": config.shapes.index(item["shape"]), "gone_colour": config.colours.index(item["colour"]),
        "gone_ago": ago, "gone_latest": latest,
    }  # fmt: skip


def _place(name: str | None, names: list[str] | tuple[str, ...]) -> int:
    return 0 if name is None else 1 + names.index(name)


class WindowReader(nn.Module):
    """One linear layer that answers every question from a token [B, S, D]; only training uses it."""

    def __init__(self, *, dim: int, questions: dict[str, Question]):
        super().__init__()
        self.widths = {"gone": 1} | {name: question.answers for name, question in questions.items()}
        self.linear = nn.Linear(dim, sum(self.widths.values()))

    def forward(self, tokens: Tensor) -> dict[str, Tensor]:
        parts = self.linear(tokens).float().split(list(self.widths.values()), dim=-1)
        return dict(zip(self.widths, parts, strict=True))


@dataclass
class Asked:
    """Which tokens [B, S] bool show an object, show where one has vanished, and are neither that nor where one blinks;
    owner [B, S] long: the object in question."""

    there: Tensor
    gone: Tensor
    empty: Tensor
    owner: Tensor


def asked_of(known: dict[str, Tensor], *, grid: int) -> Asked:
    """Who is asked about what; known [B, M] of the windows' newest frames. An object that is there hides one gone."""
    middles = (torch.arange(grid) + 0.5) / grid
    cell_y, cell_x = (axis.flatten() for axis in torch.meshgrid(middles, middles, indexing="ij"))
    away_x = (known["x"][:, None] - cell_x[:, None]).abs()  # [B, S, M]
    away_y = (known["y"][:, None] - cell_y[:, None]).abs()
    distance = torch.hypot(away_x, away_y)
    covered = (distance <= known["radius"][:, None]) | (away_x.maximum(away_y) <= 0.5 / grid)
    is_there, is_gone = (known[name] == 1 for name in ("there", "gone"))
    blinks = (known["there"] == 0) & ~is_gone
    there, gone, away = ((covered & which[:, None]).any(-1) for which in (is_there, is_gone, blinks))
    wanted = torch.where(there[..., None], is_there[:, None], is_gone[:, None])
    owner = distance.masked_fill(~(covered & wanted), torch.inf).argmin(-1)
    return Asked(there, gone & ~there, ~(there | gone | away), owner)


def window_losses(
    read: dict[str, Tensor], known: dict[str, Tensor], questions: dict[str, Question], *, grid: int
) -> dict[str, Tensor]:
    """A scalar per question."""
    asked = asked_of(known, grid=grid)
    free = asked.gone | asked.empty
    losses = {"gone": F.binary_cross_entropy_with_logits(read["gone"].squeeze(-1)[free], asked.gone[free].float())}
    for name, question in questions.items():
        where = asked.gone if question.of_gone else asked.there
        answers = known[name].gather(1, asked.owner)[where]
        losses[name] = F.cross_entropy(read[name][where], answers) if len(answers) else read[name].sum() * 0
    return losses


def draw_windows(clips: Clips, tower: VisionTower, config: WindowStageConfig, step: int) -> Tensor:
    """The windows of a step, frames [B, F] long, the newest last; they depend on seed and step alone.

    A clip begins at any moment between two slots; with `cut_share` another one's end is seen before it.
    """
    rng = np.random.default_rng([config.seed, step])
    drawn = [_draw_window(clips, tower, rng, cut=rng.random() < config.cut_share) for _ in range(config.batch_size)]
    return torch.stack(drawn)


def _draw_window(clips: Clips, tower: VisionTower, rng: np.random.Generator, *, cut: bool) -> Tensor:
    clip = int(rng.integers(len(clips.count)))
    newest = int(rng.integers(int(clips.count[clip]), size=2).max())  # late frames have more to tell
    shown = int(clips.first[clip]) + np.arange(newest + 1)
    if cut:
        other = int(rng.integers(len(clips.count)))
        last = 1 + int(rng.integers(int(clips.count[other])))
        shown = np.concatenate([int(clips.first[other]) + np.arange(last), shown])
    return window_of(shown, tower, fps=clips.fps, start_sec=rng.uniform(0, 1))


def window_of(shown: np.ndarray, tower: VisionTower, *, fps: float, start_sec: float) -> Tensor:
    """The frames `shown` (numbers of them), at `fps` from start_sec on -> the window after the last one [F] long."""
    onsets = torch.tensor([onset_of(start_sec + number / fps) for number in range(len(shown))])
    return torch.from_numpy(shown)[tower.window.places(onsets)[-1]]


@torch.no_grad()
def held_out_scores(
    tower: VisionTower, reader: WindowReader, clips: Clips, questions: dict[str, Question], *, grid: int
) -> dict[str, float]:
    """Of the objects at every frame of every clip, read at the token that holds their centre: the share answered
    rightly where there is something to tell, and for `quiet` where there is not."""
    hits: dict[str, list[Tensor]] = {name: [] for name in ("gone", "quiet", *questions)}
    for clip in range(len(clips.count)):
        first, count = int(clips.first[clip]), int(clips.count[clip])
        shown = np.arange(first, first + count)
        windows = torch.stack([window_of(shown[: k + 1], tower, fps=clips.fps, start_sec=0.0) for k in range(count)])
        known = {name: value[first : first + count] for name, value in clips.known.items()}
        features, _ = tower.see_windows(clips.frames[windows].float())
        read = reader(features[..., -tower.config.tower_dim :])
        asked = asked_of(known, grid=grid)
        cell_x, cell_y = ((known[axis] * grid).long().clamp(0, grid - 1) for axis in ("x", "y"))
        token = cell_y * grid + cell_x
        seen = {kind: (known[kind] == 1) & getattr(asked, kind).gather(1, token) for kind in ("there", "gone")}
        hits["gone"].append((read["gone"].squeeze(-1).gather(1, token) > 0)[seen["gone"]])
        for name, question in questions.items():
            right = read[name].argmax(-1).gather(1, token) == known[name]
            where = seen["gone" if question.of_gone else "there"]
            told = (known[name] > 0) | torch.tensor(name in ("gone_shape", "gone_colour"))
            hits[name].append(right[where & told])
            hits["quiet"].append(right[where & ~told])
    return {name: torch.cat(values).float().mean().item() for name, values in hits.items()}


def _whole_tower(config: WindowStageConfig) -> VisionTower:
    """The tower that knows pictures, with fresh window blocks that may learn."""
    fresh = build_tower(config.vision, pretrained=False)
    own = dict(config.vision.tower_args) | {"window_layers": 0}
    plain = config.vision.model_copy(update={"tower_args": own, "window_frames": None, "window_fps": None})
    known = build_tower(plain, config.tower).weights()
    tower = build_tower(config.vision, fresh.weights() | known)
    if tower.model.window is None:
        raise ConfigError("vision.tower_args.window_layers is 0; this stage trains those layers")
    tower.model.window.requires_grad_(True)
    return tower


def train_window(config: WindowStageConfig) -> dict[str, float]:
    """Run or resume the stage; writes tower.safetensors, config.json, metrics.json to `out` and returns the scores."""
    torch.manual_seed(config.seed)
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    tower, questions = _whole_tower(config), questions_of(config)
    reader = WindowReader(dim=config.vision.tower_dim, questions=questions)
    grid = reader_grid(config.vision, tower)
    held_out, clips = load_clips(config.held_out, tower, config), load_clips(config.clips, tower, config)

    def losses_of(step: int) -> dict[str, Tensor]:
        windows = draw_windows(clips, tower, config, step)
        known = {name: value[windows[:, -1]] for name, value in clips.known.items()}
        frames = clips.frames[windows]
        # Under autocast the blocks take them as they are kept: half the bytes to gather.
        read = reader(tower.model.window(frames if torch.is_autocast_enabled("cpu") else frames.float()))
        return window_losses(read, known, questions, grid=grid)

    def scores_of() -> dict[str, float]:
        return held_out_scores(tower, reader, held_out, questions, grid=grid)

    both = nn.ModuleDict({"window": tower.model.window, "reader": reader})
    run_steps(config, both, name="window", losses_of=losses_of, scores_of=scores_of)
    tower.half().float()  # weights are stored in half precision, and scored as stored
    export_tower(tower, out, scores := scores_of())
    return scores


def main() -> None:
    scores = run_stage(__doc__.splitlines()[0], WindowStageConfig, train_window)
    print("held out: " + table(scores))


if __name__ == "__main__":
    main()
