"""What the frozen tower makes of a batch: from shards, from memory, or by looking."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mmspeech.data.features import FeatureShards, looks
from mmspeech.data.visuals import Kept
from mmspeech.types import Batch

if TYPE_CHECKING:
    from mmspeech.vision.encoder import VisionTower

Seen = tuple[Tensor, Tensor | None]


class FeatureCache:
    """Knows what a frozen tower makes of pictures, frames and windows, by their content: what `shards` hold, and at
    most `size` of those it was asked for.

    Frames of towers that look at each frame before they look at windows are not kept in memory: they are many, hardly
    come again, and are cheap to look at together.
    """

    def __init__(self, tower: "VisionTower", *, size: int, shards: FeatureShards | None = None):
        self.tower, self.size, self.shards = tower, size, shards
        self._known: dict[str, Seen] = {}

    @property
    def kept(self) -> Kept:
        """What need not be decoded."""
        return Kept() if self.shards is None else self.shards.kept

    @torch.no_grad()
    def fill(self, batch: Batch) -> None:
        """Set `batch.features` [P, S, Dv] (and features_mask)."""
        if batch.pixels is None:
            return
        if self.tower.joins_frames:
            batch.features, batch.features_mask = self.tower.see_windows(self._frames(batch)[batch.windows])
            return
        found = [self._look(batch, key, place) for key, place in looks(self.tower, batch)]
        batch.features = torch.cat([features for features, _ in found])
        masks = [mask for _, mask in found]
        batch.features_mask = None if masks[0] is None else torch.cat(masks)

    def _frames(self, batch: Batch) -> Tensor:
        """What the tower makes of each frame by itself [P, S, D]."""
        kept = [self._stored(key, batch) for key, _ in looks(self.tower, batch)]
        new = [place for place, found in enumerate(kept) if found is None]
        if len(new) == len(kept):
            return self.tower.see_frames(batch.pixels)
        looked = iter(self.tower.see_frames(batch.pixels[new]).split(1) if new else ())
        return torch.cat([next(looked) if found is None else found[0] for found in kept])

    def _look(self, batch: Batch, key: str, place: int | list[int]) -> Seen:
        """Of a picture of the batch, or of a window: the places of its pictures.

        What is remembered is made by itself, so that features do not depend on the company a picture happened to have.
        """
        if key not in self._known:
            found = self._stored(key, batch) or self.tower(batch.pixels[place][None])
            if len(self._known) >= self.size:
                return found
            self._known[key] = found
        return self._known[key]

    def _stored(self, key: str, batch: Batch) -> Seen | None:
        found = None if self.shards is None else self.shards.get(key)
        if found is None:
            return None
        features, mask = found
        return features.to(batch.pixels), None if mask is None else mask.to(batch.pixels.device)
