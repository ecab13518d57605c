"""`features`: what a checkpoint's frozen tower makes of the pictures and clips of a shard set, for training to read."""

from pathlib import Path

import torch

from mmspeech.checkpoint import load_model
from mmspeech.config import ConfigError
from mmspeech.data.features import FeatureWriter, looks
from mmspeech.data.shards import ShardSet
from mmspeech.data.visuals import PictureFormat, lay_pictures, see_visuals
from mmspeech.vision.memory import Memory

AT_ONCE = 32  # pictures or windows


def make_features(data: Path, model: str | None, out: Path, *, shard: tuple[int, int] = (0, 1)) -> tuple[int, int]:
    """Write the features of every picture, frame or window of the calls of `data` (`shard` (i, n): of every n-th) that
    are not in `out` yet. Returns how many were written, and how many calls could not be read.

    Raises ConfigError for a model without eyes, and for a folder that holds another tower's features.
    """
    from rich.progress import track

    bundle, calls = load_model(model), ShardSet(data)
    tower = bundle.model.tower
    if tower is None:
        raise ConfigError(f"{bundle.path}: {bundle.config.name} has no eyes, so there are no features to keep")
    memory = Memory.of(bundle.config.lm.fusion)
    written = failed = 0
    with FeatureWriter(out, tower, name=str(shard[0])) as writer:
        form = PictureFormat(tower.image_size_px, tower.mean, tower.std, memory, tower.window, writer.kept)
        for number in track(range(shard[0], len(calls), shard[1]), description="features"):
            call = calls[number]
            try:
                seen = see_visuals(call.visuals, num_frames=call.codes.shape[1], form=form)
            except ConfigError as error:
                (out / f"{call.id}.err").write_text(f"{error}\n", encoding="utf-8")
                failed += 1
                continue
            for frame in seen:
                if frame.duration_sec is not None:
                    writer.add_clip(frame.content_name, frame.duration_sec)
            written += _write(writer, tower, lay_pictures([seen], form)) if seen else 0
    return written, failed


@torch.no_grad()
def _write(writer: FeatureWriter, tower, pictures) -> int:
    new = [(key, place) for key, place in looks(tower, pictures) if key not in writer]
    for some in (new[at : at + AT_ONCE] for at in range(0, len(new), AT_ONCE)):
        pixels = pictures.pixels[torch.tensor([place for _, place in some])]
        features, masks = (tower.see_frames(pixels), None) if tower.joins_frames else tower(pixels)
        for row, (key, _) in enumerate(some):
            writer.add(key, features[row], None if masks is None else masks[row])
    return len(new)
