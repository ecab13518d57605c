"""Drawing ids from logits, with settings and random numbers of its own for every row of a batch."""

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

from mmspeech.config import GenerationConfig


class Sampler:
    """Chooses the text id (part 0) and the K codes (parts 1..K) of a step for B rows.

    A row draws the same in any company: its random numbers come from its own seed, as many as its own settings need.
    """

    def __init__(
        self,
        settings: Sequence[GenerationConfig],
        seeds: Sequence[int],
        *,
        text_card: int,
        audio_card: int,
        num_codebooks: int,
        device: torch.device,
    ):
        self.settings, self.seeds = list(settings), list(seeds)
        self._cards, self._num_codebooks, self._device = (text_card, audio_card), num_codebooks, device
        self._generators = [torch.Generator(device) for _ in settings]
        # [2, B]: of text, of audio. Greedy rows divide by 1.
        self._temperature = torch.ones(2, len(self.settings), device=device)
        self._top_k = torch.ones(2, len(self.settings), dtype=torch.long, device=device)
        self._greedy = torch.zeros(2, len(self.settings), dtype=torch.bool, device=device)
        self.noise = torch.ones(len(self.settings), 1 + num_codebooks, 0, device=device)
        for row in range(len(self.settings)):
            self.reset(row)

    def reset(self, row: int, *, seed: int | None = None, settings: GenerationConfig | None = None) -> None:
        """A row starts over, with another seed or other settings where given."""
        self.seeds[row] = self.seeds[row] if seed is None else seed
        self.settings[row] = self.settings[row] if settings is None else settings
        self._generators[row].manual_seed(self.seeds[row])
        chosen = self.settings[row]
        for kind, temperature in enumerate((chosen.text_temperature, chosen.audio_temperature)):
            self._greedy[kind, row] = temperature == 0
            self._temperature[kind, row] = temperature or 1.0
            self._top_k[kind, row] = self._width(row, kind)
        # Widths of the widest row: what a draw looks at of all rows.
        self._widths = [max(self._width(row, kind) for row in range(len(self.settings))) for kind in range(2)]
        self._all_greedy = [
            not any(s.text_temperature for s in self.settings),
            not any(s.audio_temperature for s in self.settings),
        ]
        if max(self._widths) > self.noise.shape[2]:
            self.noise = self.noise.new_ones(*self.noise.shape[:2], max(self._widths))

    @property
    def kind(self) -> Hashable:
        """What decides which operations `choose` runs, and on which memory: noise of another width is elsewhere."""
        return (*self._widths, *self._all_greedy, self.noise.shape[2])

    def renew(self, count: int) -> None:
        """New random numbers for a step of the first `count` rows."""
        for row in range(count):
            settings = self.settings[row]
            if settings.text_temperature > 0 or settings.audio_temperature > 0:
                text, audio = self._width(row, 0), self._width(row, 1)
                flat = torch.empty(text + self._num_codebooks * audio, device=self._device)
                flat.exponential_(generator=self._generators[row])
                self.noise[row, 0, :text] = flat[:text]
                self.noise[row, 1:, :audio] = flat[text:].view(-1, audio)

    def choose(self, part: int, logits: Tensor) -> Tensor:
        """One id for each of the first rows from logits [n, V]: part 0 is text, part 1 + k codebook k."""
        kind, rows = int(part > 0), slice(len(logits))
        if self._all_greedy[kind]:
            return logits.argmax(dim=-1)
        width = self._widths[kind]
        best, ids = logits.float().topk(width, dim=-1)
        beyond = torch.arange(width, device=ids.device) >= self._top_k[kind, rows, None]
        weights = torch.softmax((best / self._temperature[kind, rows, None]).masked_fill(beyond, -torch.inf), dim=-1)
        # The largest of p / Exp(1) is a draw from p.
        pick = (weights / self.noise[rows, part, :width]).argmax(dim=-1)
        return ids.gather(1, pick.masked_fill(self._greedy[kind, rows], 0)[:, None])[:, 0]

    def _width(self, row: int, kind: int) -> int:
        top_k = (self.settings[row].text_top_k, self.settings[row].audio_top_k)[kind]
        return min(top_k or self._cards[kind], self._cards[kind])
