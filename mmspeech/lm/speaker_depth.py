"""The depth transformer of speaking models: as the duplex one, with fewer matrices than steps and small embeddings."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmspeech.config import TransformerConfig
from mmspeech.lm.depth import EMBEDDING_STD, DepthLayer, DepthState, StepLinear
from mmspeech.nn.layers import build_norm


class TextEmbedding(nn.Module):
    """Ids [...] -> [..., D]; -1 gives zeros. `rank`: the width of the table's rows, if not D.

    With `pairs` an id holds two tokens, `(second + 1) * card + first`, of which the second may be none; each goes
    through a matrix of its own.
    """

    def __init__(self, card: int, dim: int, *, rank: int | None = None, pairs: bool = False):
        super().__init__()
        self.card, width = card, rank or dim
        self.weight = nn.Parameter(torch.empty(card, width))
        nn.init.normal_(self.weight, std=EMBEDDING_STD)
        self.first = nn.Linear(width, dim, bias=False) if pairs or rank else None
        self.second = nn.Linear(width, dim, bias=False) if pairs else None

    def forward(self, ids: Tensor) -> Tensor:
        present, ids = (ids >= 0)[..., None].to(self.weight.dtype), ids.clamp(min=0)
        if self.second is None:
            y = F.embedding(ids, self.weight)
            return (y if self.first is None else self.first(y)) * present
        second = ids // self.card - 1
        y = self.second(F.embedding(second.clamp(min=0), self.weight)) * (second >= 0)[..., None].to(self.weight.dtype)
        return (self.first(F.embedding(ids % self.card, self.weight)) + y) * present


class SpeakerDepth(nn.Module):
    """hidden [..., D] -> logits of K codebooks. Ids as of TextEmbedding and, for codes, -1 (zeros) to `audio_card`."""

    def __init__(
        self,
        options: TransformerConfig,
        *,
        source_dim: int,
        text_card: int,
        audio_card: int,
        num_codebooks: int,
        schedule: tuple[int, ...] | None,
        rank: int | None,
        pairs: bool,
        out_norm: tuple[str, float] | None,
    ):
        super().__init__()
        dim = options.dim
        self.num_codebooks = num_codebooks
        self.hidden_in = StepLinear(num_codebooks, source_dim, dim, schedule=schedule)
        self.text_emb = TextEmbedding(text_card + 1, dim, rank=rank, pairs=pairs)
        self.audio_emb = nn.ModuleList(TextEmbedding(audio_card + 1, dim, rank=rank) for _ in range(num_codebooks - 1))
        self.layers = nn.ModuleList(
            DepthLayer(
                dim=dim, num_heads=options.num_heads, ffn_dim=options.ffn_dim, num_steps=num_codebooks,
                norm=options.norm, norm_eps=options.norm_eps, schedule=schedule,
            )
            for _ in range(options.num_layers)
        )  # fmt: skip
        norms = (
            build_norm(out_norm[0], dim, eps=out_norm[1]) if out_norm else nn.Identity() for _ in range(num_codebooks)
        )
        self.out_norms = nn.ModuleList(norms)
        self.audio_linear = StepLinear(num_codebooks, dim, audio_card)

    def init_state(self, batch_size: int) -> DepthState:
        options = {"device": self.text_emb.weight.device, "dtype": self.text_emb.weight.dtype}
        return DepthState(
            [layer.init_state(batch_size, num_steps=self.num_codebooks, **options) for layer in self.layers]
        )

    def forward(self, hidden: Tensor, text: Tensor, codes: Tensor) -> Tensor:
        """Teacher-forced: hidden [..., D], text [...], codes [..., K] of the same frames -> logits [..., K, card]."""
        lead, hidden, text = text.shape, hidden.reshape(-1, hidden.shape[-1]), text.reshape(-1)
        earlier = codes.reshape(-1, codes.shape[-1])[:, :-1].unbind(1)
        tokens = [self.text_emb(text), *(table(ids) for table, ids in zip(self.audio_emb, earlier, strict=True))]
        x = self.hidden_in(hidden) + torch.stack(tokens)
        for layer in self.layers:
            x = layer(x)
        x = torch.stack([norm(rows) for norm, rows in zip(self.out_norms, x, strict=True)])
        return self.audio_linear(x).transpose(0, 1).unflatten(0, lead)

    @torch.no_grad()
    def sample(
        self, hidden: Tensor, text: Tensor, choose: Callable[[int, Tensor], Tensor], *, state: DepthState, count: int
    ) -> Tensor:
        """hidden [B, D], text [B] -> the first `count` codes [B, count]; `choose(k, logits [B, card])` picks [B]."""
        projected = self.hidden_in(hidden, count=count)
        token, codes = self.text_emb(text), []
        for k in range(count):
            x = projected[k] + token
            for layer, own in zip(self.layers, state.layers, strict=True):
                x = layer.step(x, k, own)
            codes.append(choose(k, self.audio_linear(self.out_norms[k](x), k)))
            if k + 1 < count:
                token = self.audio_emb[k](codes[-1])
        return torch.stack(codes, dim=1)
