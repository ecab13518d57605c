"""What a speaking model is told beside its text: voices and labels, as vectors that it adds or looks at."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from mmspeech.config import ConfigError, StrictModel


class ConditionConfig(StrictModel):
    """One condition: a label out of `values`, looked up in a table of `num_rows` (and one for none), or, without
    values, vectors [T, dim] as they are."""

    dim: int = Field(gt=0)
    num_rows: int = Field(0, ge=0)
    values: tuple[str, ...] = ()


class ConditionsConfig(StrictModel):
    """All of them by name; which are summed into each step, and which are looked at. `position_scale`: of sinusoids
    added to what is looked at (0: none)."""

    parts: dict[str, ConditionConfig] = {}
    summed: tuple[str, ...] = ()
    looked_at: tuple[str, ...] = ()
    position_scale: float = 0.0


@dataclass
class Conditions:
    """Rows of conditions. added [B, 1, D] or None; source [B, S, D], what is looked at, or None."""

    added: Tensor | None = None
    source: Tensor | None = None


@dataclass(frozen=True)
class Vectors:
    """tensor [T, dim]; mask [T] bool, false where it means nothing."""

    tensor: Tensor
    mask: Tensor


class Condition(nn.Module):
    """A label or vectors -> [1, T, D]; what is not there is a learned vector."""

    def __init__(self, config: ConditionConfig, out_dim: int):
        super().__init__()
        self.config = config
        self.table = nn.Embedding(config.num_rows + 1, config.dim) if config.values else None
        self.proj = nn.Linear(config.dim, out_dim, bias=False)
        self.padding = nn.Parameter(0.2 * torch.randn(out_dim))

    def forward(self, value: str | Vectors | None) -> Tensor:
        """Raises ConfigError for a label that is not one of the values, and for no vectors."""
        if self.table is not None:
            return self._label(value)
        if not isinstance(value, Vectors):
            raise ConfigError(f"{value!r}: expected vectors of width {self.config.dim}, such as a voice's")
        there = value.mask[:, None].to(self.padding.dtype)
        return (self.proj(value.tensor.to(self.padding)) * there + self.padding * (1 - there))[None]

    def _label(self, value: str | None) -> Tensor:
        if value is None:
            return self.padding[None, None]
        if value not in self.config.values:
            raise ConfigError(f"{value!r} is none of the values it was trained with: {', '.join(self.config.values)}")
        row = torch.tensor([[self.config.values.index(value)]], device=self.padding.device)
        return self.proj(self.table(row))


class ConditionSet(nn.Module):
    """All conditions of a model. Kept in float32 whatever the model is in, as they were trained."""

    def __init__(self, config: ConditionsConfig, out_dim: int):
        super().__init__()
        self.config = config
        self.parts = nn.ModuleDict({name: Condition(part, out_dim) for name, part in config.parts.items()})

    @torch.no_grad()
    def forward(self, rows: list[dict[str, str | Vectors | None]]) -> Conditions:
        """One dictionary a row, by name; labels that are missing count as none. Raises ConfigError for
        unknown ones, and for vectors that are missing."""
        made = [self._row(values) for values in rows]
        return Conditions(*(torch.cat(parts) if parts[0] is not None else None for parts in zip(*made, strict=True)))

    def _row(self, values: dict[str, str | Vectors | None]) -> tuple[Tensor | None, Tensor | None]:
        if unknown := sorted(values.keys() - self.config.parts.keys()):
            known = ", ".join(self.config.parts) or "none"
            raise ConfigError(f"this model knows no condition {unknown[0]!r} (it knows: {known})")
        made = {name: part(values.get(name)) for name, part in self.parts.items()}
        added = sum(made[name] for name in self.config.summed) if self.config.summed else None
        if not self.config.looked_at:
            return added, None
        source = torch.cat([made[name] for name in self.config.looked_at], dim=1)
        if self.config.position_scale:
            source = source + self.config.position_scale * sinusoids(source.shape[1], source.shape[2]).to(source)
        return added, source


def sinusoids(length: int, dim: int, *, max_period: float = 10_000.0) -> Tensor:
    """[length, dim]: cosines, then sines, of positions at dim / 2 rates from 1 down to 1 / max_period."""
    rates = max_period ** -torch.linspace(0, 1, dim // 2)
    phase = torch.arange(length)[:, None] * rates
    return torch.cat([phase.cos(), phase.sin()], dim=1)


def nothing_like(values: dict[str, str | Vectors | None]) -> dict[str, str | Vectors | None]:
    """The same conditions without what they say: what guidance leads away from."""
    return {
        name: Vectors(torch.zeros_like(value.tensor), torch.zeros_like(value.mask))
        if isinstance(value, Vectors)
        else None
        for name, value in values.items()
    }


def voices_as_vectors(voices: list[Tensor], *, max_voices: int) -> Vectors:
    """Voices [T, dim] of equal length, the first speaker's first, and masked room up to `max_voices`."""
    if not 0 < len(voices) <= max_voices:
        raise ConfigError(f"{len(voices)} voices: expected 1 to {max_voices}")
    if len({tuple(voice.shape) for voice in voices}) > 1:
        raise ConfigError(f"voices of different sizes {[tuple(v.shape) for v in voices]}: take them from one model")
    length = len(voices[0])
    tensor = F.pad(torch.cat(voices), (0, 0, 0, (max_voices - len(voices)) * length))
    return Vectors(tensor, torch.arange(len(tensor)) < len(voices) * length)
