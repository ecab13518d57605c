"""What a frozen tower makes of pictures and frames, kept in shards, by their content.

A folder of `features-*.safetensors`, each whole by itself: tensors `features` [N, S, D] bfloat16 (and `mask` [N, S]
bool for towers with variable token counts), and in its metadata the key of each row, how long the clips are that they
are of, and the tower it was made with. Several processes may write into one folder; who goes on leaves out what is
there.
"""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mmspeech.config import ConfigError
from mmspeech.data.visuals import Kept

if TYPE_CHECKING:
    from mmspeech.data.visuals import Pictures
    from mmspeech.types import Batch
    from mmspeech.vision.encoder import VisionTower

ROWS_PER_FILE = 256
_PREPROCESSING = {
    "image_size_px", "tower_args", "mean", "std", "feature_layer", "keep_prefix_tokens", "window_frames", "window_fps",
    "window_tokens",
}  # fmt: skip


def tower_hash(tower: "VisionTower") -> str:
    """16 hex digits naming the features of a tower: its weights to half precision, and how pictures are prepared."""
    said = tower.config.model_dump(mode="json", include=_PREPROCESSING)
    digest = hashlib.sha256(json.dumps(said, sort_keys=True).encode())
    for name, value in sorted(tower.weights().items()):
        digest.update(name.encode())
        digest.update(value.detach().to("cpu", torch.float16).contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def looks(tower: "VisionTower", seen: "Batch | Pictures") -> Iterator[tuple[str, int | list[int]]]:
    """What the tower looks at, by the key of its content: the number of a picture, or of each one in a window.

    Towers that look at each frame before they look at windows have their frames kept, others their windows.
    """
    if tower.joins_frames or seen.windows is None:
        yield from ((key, number) for number, key in enumerate(seen.picture_keys))
    else:
        for window in seen.windows.tolist():
            yield " ".join(seen.picture_keys[number] for number in window), window


class FeatureShards:
    """The features in the folder `path`; memory-mapped. ConfigError for a folder without any, or of another tower."""

    def __init__(self, path: str | Path, tower: "VisionTower"):
        self.path, wanted = Path(path), tower_hash(tower)
        self._files, self._places, self._durations_sec = [], {}, {}
        for file in sorted(self.path.glob("features-*.safetensors")):
            self._open(file, wanted)
        if not self._files:
            raise ConfigError(
                f"{self.path}: no features here; expected the output folder of `python -m data_prep features`"
            )

    def _open(self, path: Path, wanted: str) -> None:
        from safetensors import SafetensorError, safe_open

        try:
            file = safe_open(path, framework="pt")
            said = file.metadata()
            keys, made_with = json.loads(said["keys"]), said["tower"]
            durations_sec = json.loads(said["durations_sec"])
        except (SafetensorError, OSError, TypeError, KeyError, ValueError) as error:
            raise ConfigError(f"{path}: broken ({error}); delete it and make the features again") from error
        if made_with != wanted:
            raise ConfigError(f"{path}: made with tower {made_with}, the model's is {wanted}; make the features again")
        self._places |= {key: (len(self._files), row) for row, key in enumerate(keys)}
        self._durations_sec |= durations_sec
        self._files.append(file)

    def __len__(self) -> int:
        return len(self._places)

    @property
    def kept(self) -> Kept:
        """What need not be decoded."""
        return Kept(frozenset(self._places), self._durations_sec)

    def get(self, key: str) -> tuple[Tensor, Tensor | None] | None:
        """features [1, S, D] and mask [1, S] (None: all are tokens) of a key; None where it is not kept."""
        if key not in self._places:
            return None
        number, row = self._places[key]
        file = self._files[number]
        mask = file.get_slice("mask")[row : row + 1] if "mask" in file.keys() else None  # noqa: SIM118 - not a dict
        return file.get_slice("features")[row : row + 1], mask


class FeatureWriter:
    """Adds to the features in a folder; a context manager. `name` tells the files of one process from another's;
    `kept`: what was there at the beginning."""

    def __init__(self, path: str | Path, tower: "VisionTower", *, name: str = "0"):
        self.path, self.name, self._hash = Path(path), name, tower_hash(tower)
        self.path.mkdir(parents=True, exist_ok=True)
        self.kept = FeatureShards(self.path, tower).kept if any(self.path.glob("features-*")) else Kept()
        self._known, self._durations_sec = set(self.kept.keys), {}
        self._rows: list[tuple[str, Tensor, Tensor | None]] = []

    def __enter__(self) -> "FeatureWriter":
        return self

    def __exit__(self, kind, error, trace) -> None:
        if self._rows:
            self._flush()

    def __contains__(self, key: str) -> bool:
        return key in self._known

    def add_clip(self, name: str, duration_sec: float) -> None:
        """How long the clip of this content is; before its frames."""
        self._durations_sec[name] = duration_sec

    def add(self, key: str, features: Tensor, mask: Tensor | None) -> None:
        """features [S, D], mask [S] or None; what is there already stays as it is."""
        if key in self._known:
            return
        self._known.add(key)
        self._rows.append((key, features.to("cpu", torch.bfloat16), mask))
        if len(self._rows) == ROWS_PER_FILE:
            self._flush()

    def _flush(self) -> None:
        from safetensors.torch import save_file

        keys, features, masks = zip(*self._rows, strict=True)
        tensors = {"features": torch.stack(features)}
        if masks[0] is not None:
            tensors["mask"] = torch.stack(masks)
        number = len(list(self.path.glob(f"features-{self.name}-*.safetensors")))
        file = self.path / f"features-{self.name}-{number:05d}.safetensors"
        temporary = file.with_name(f".{file.name}.tmp")
        said = {"keys": json.dumps(keys), "durations_sec": json.dumps(self._durations_sec), "tower": self._hash}
        save_file(tensors, temporary, metadata=said)
        temporary.replace(file)
        self._rows, self._durations_sec = [], {}
