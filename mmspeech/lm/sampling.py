"""Drawing ids from logits, with settings and random numbers of its own for every row of a batch."""

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

from mmspeech.config import GenerationConfig


class Sampler:
    """Chooses the text id (part 0) and the K codes (parts 1..K) of a step for B rows.

    A row draws the same in any company: its random numbers come from its own seed, as many as its own settings need.
    `text_pad_id`: the class that `pad_mult` is for; None where text has no such class, and no setting changes it.
    """

    def __init__(
        self,
        settings: Sequence[GenerationConfig],
        seeds: Sequence[int],
        *,
        text_card: int,
        audio_card: int,
        num_codebooks: int,
        text_pad_id: int | None = None,
        device: torch.device,
    ):
        self.settings, self.seeds = list(settings), list(seeds)
        self._cards, self._num_codebooks, self._device = (text_card, audio_card), num_codebooks, device
        self._generators = [torch.Generator(device) for _ in settings]
        # [2, B, 1]: of text, of audio. Greedy rows divide by 1.
        shape = (2, len(self.settings), 1)
        self._temperature = torch.ones(shape, device=device)
        self._top_k = torch.ones(shape, dtype=torch.long, device=device)
        self._greedy = torch.zeros(shape, dtype=torch.bool, device=device)
        # [B, V]: added to the logits of text.
        self._text_bias = torch.zeros(len(self.settings), text_card, device=device)
        self._text_pad_id, self._some_biased = text_pad_id, False
        self.noise = torch.zeros(len(self.settings), 1 + num_codebooks, 0, device=device)
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
        if self._text_pad_id is not None:
            self._text_bias[row, self._text_pad_id] = chosen.pad_mult
            self._some_biased = any(s.pad_mult for s in self.settings)
        # Of text and of audio: the width of the widest row, which is what a draw looks at of all rows, whether some
        # look at less, and whether some, or all, are greedy.
        widths = [[self._width(row, kind) for row in range(len(self.settings))] for kind in range(2)]
        self._widths = [max(of_kind) for of_kind in widths]
        self._uneven = [min(of_kind) < max(of_kind) for of_kind in widths]
        greedy = [[s.text_temperature == 0 for s in self.settings], [s.audio_temperature == 0 for s in self.settings]]
        self._some_greedy, self._all_greedy = [any(of_kind) for of_kind in greedy], [all(of_kind) for of_kind in greedy]
        if max(self._widths) > self.noise.shape[2]:
            self.noise = self.noise.new_zeros(*self.noise.shape[:2], max(self._widths))
            self._ranks = torch.arange(max(self._widths), device=self._device)
        self._views: dict[tuple[int, int], tuple[Tensor, ...]] = {}

    @property
    def kind(self) -> Hashable:
        """What decides which operations `choose` runs, and on which memory: noise of another width is elsewhere."""
        flags = (*self._uneven, *self._some_greedy, *self._all_greedy, self._some_biased)
        return (*self._widths, *flags, self.noise.shape[2])

    def renew(self, count: int) -> None:
        """New random numbers for a step of the first `count` rows."""
        for row in range(count):
            settings = self.settings[row]
            if settings.text_temperature > 0 or settings.audio_temperature > 0:
                text, audio = self._width(row, 0), self._width(row, 1)
                flat = torch.empty(text + self._num_codebooks * audio, device=self._device)
                flat.exponential_(generator=self._generators[row]).log_().neg_()
                self.noise[row, 0, :text] = flat[:text]
                self.noise[row, 1:, :audio] = flat[text:].view(-1, audio)

    def choose(self, part: int, logits: Tensor) -> Tensor:
        """One id for each of the first rows from logits [n, V]: part 0 is text, part 1 + k codebook k."""
        kind = int(part > 0)
        if self._some_biased and part == 0:
            logits = logits + self._text_bias[: len(logits)]
        if self._all_greedy[kind]:
            return logits.argmax(dim=-1)
        temperature, noise, ranks, top_k, greedy = self._of(part, len(logits))
        best, ids = logits.float().topk(self._widths[kind], dim=-1)
        # The largest of log p plus Gumbel noise is a draw from p.
        scores = best / temperature + noise
        if self._uneven[kind]:
            scores = scores.masked_fill(ranks >= top_k, -torch.inf)
        pick = scores.argmax(dim=-1, keepdim=True)
        if self._some_greedy[kind]:
            pick = pick.masked_fill(greedy, 0)
        return ids.gather(1, pick)[:, 0]

    def _of(self, part: int, count: int) -> tuple[Tensor, ...]:
        """What a draw of the first rows reads, each [n, 1], [n, width] or [width]. The views are kept: to make them
        takes as long as to draw."""
        if (part, count) not in self._views:
            kind = int(part > 0)
            width = self._widths[kind]
            self._views[part, count] = (
                self._temperature[kind, :count],
                self.noise[:count, part, :width],
                self._ranks[:width],
                self._top_k[kind, :count],
                self._greedy[kind, :count],
            )
        return self._views[part, count]

    def _width(self, row: int, kind: int) -> int:
        top_k = (self.settings[row].text_top_k, self.settings[row].audio_top_k)[kind]
        return min(top_k or self._cards[kind], self._cards[kind])
