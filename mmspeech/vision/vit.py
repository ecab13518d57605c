"""A small plain vision transformer, for towers this project trains itself.

timm and transformers hold every published tower, but importing either takes longer than a small model takes to answer;
so the embedded tower is built from torch alone. With one stem stride the parameter names and the arithmetic are those
of timm's `VisionTransformer` without a class token.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class _Attention(nn.Module):
    def __init__(self, *, dim: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, dim = x.shape
        qkv = self.qkv(x).view(batch, tokens, 3, self.num_heads, dim // self.num_heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        return self.proj(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).reshape(x.shape))


class _Mlp(nn.Module):
    def __init__(self, *, dim: int, ffn_dim: int):
        super().__init__()
        self.fc1 = nn.Linear(dim, ffn_dim)
        self.fc2 = nn.Linear(ffn_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class _Block(nn.Module):
    def __init__(self, *, dim: int, num_heads: int, ffn_dim: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = _Attention(dim=dim, num_heads=num_heads)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = _Mlp(dim=dim, ffn_dim=ffn_dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class _PatchEmbed(nn.Module):
    """Convolutions whose strides multiply to the patch size; the last one (`proj`) makes the tokens.

    With one stride this is the usual patch projection. Overlapping strided convolutions before it let a tower of this
    size tell outlines apart after far fewer pictures.
    """

    def __init__(self, *, dim: int, strides: Sequence[int], stem_dims: Sequence[int]):
        super().__init__()
        channels = (3, *stem_dims)
        self.stem = nn.Sequential(
            *(
                nn.Sequential(
                    nn.Conv2d(channels[i], channels[i + 1], 3, stride=stride, padding=1),
                    nn.GroupNorm(1, channels[i + 1]),
                    nn.GELU(),
                )
                for i, stride in enumerate(strides[:-1])
            )
        )
        self.proj = nn.Conv2d(channels[-1], dim, strides[-1], stride=strides[-1])

    def forward(self, pixels: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, D, H // patch, W // patch]."""
        return self.proj(self.stem(pixels))


class WindowBlocks(nn.Module):
    """Tokens of the frames of a window [B, F, S, D], the newest last -> [B, S, D]: what each place has seen happen.

    The frames of a place stand side by side (`frame_dim` numbers of each), so that their order is known: a linear layer
    and, for what is counted and compared, two with a GELU between them make one token of them. Attention goes from
    place to place.
    """

    def __init__(
        self,
        *,
        num_frames: int,
        num_tokens: int,
        dim: int,
        frame_dim: int,
        num_layers: int,
        num_heads: int,
        ffn_dim: int,
    ):
        super().__init__()
        self.frame = nn.Linear(dim, frame_dim)
        self.merge = nn.Linear(num_frames * frame_dim, dim)
        self.compare = nn.Sequential(nn.Linear(num_frames * frame_dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))
        self.pos_embed = nn.Parameter(torch.empty(1, num_tokens, dim))
        self.blocks = nn.ModuleList(_Block(dim=dim, num_heads=num_heads, ffn_dim=ffn_dim) for _ in range(num_layers))
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        self.apply(_init_linear)

    def forward(self, tokens: Tensor) -> Tensor:
        history = self.frame(tokens).transpose(1, 2).flatten(2)
        x = self.merge(history) + self.compare(history) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


class PlainViT(nn.Module):
    """Pixels [B, 3, H, W] -> all tokens after the final norm [B, S, D], row by row.

    image_size_px: side of the square the learned positions belong to; other sizes get them resized (bicubic,
    align_corners False, no antialias). stem_strides: multiply to the patch size. stem_dims: channels of every stem
    convolution but the last, one fewer than stem_strides. window_layers: of the blocks that look at the tokens of the
    last `window_frames` pictures (see WindowBlocks); 0: `window` is None.
    """

    def __init__(
        self,
        *,
        image_size_px: int,
        dim: int,
        num_layers: int,
        num_heads: int,
        ffn_dim: int,
        stem_strides: Sequence[int],
        stem_dims: Sequence[int] = (),
        window_frames: int = 0,
        window_layers: int = 0,
        window_dim: int = 32,
    ):
        super().__init__()
        if len(stem_dims) != len(stem_strides) - 1:
            raise ValueError(f"stem_dims has {len(stem_dims)} entries, expected {len(stem_strides) - 1}")
        if dim % num_heads:
            raise ValueError(f"dim {dim} is not a multiple of num_heads {num_heads}")
        patch_px = 1
        for stride in stem_strides:
            patch_px *= stride
        if image_size_px < patch_px:
            raise ValueError(f"image_size_px {image_size_px} is smaller than one patch of {patch_px}")
        self.patch_px = patch_px
        self.grid = image_size_px // patch_px
        self.patch_embed = _PatchEmbed(dim=dim, strides=stem_strides, stem_dims=stem_dims)
        self.pos_embed = nn.Parameter(torch.empty(1, self.grid**2, dim))
        self.blocks = nn.ModuleList(_Block(dim=dim, num_heads=num_heads, ffn_dim=ffn_dim) for _ in range(num_layers))
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.window = None
        if window_layers:
            self.window = WindowBlocks(
                num_frames=window_frames,
                num_tokens=self.grid**2,
                dim=dim,
                frame_dim=window_dim,
                num_layers=window_layers,
                num_heads=num_heads,
                ffn_dim=ffn_dim,
            )
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        self.apply(_init_linear)

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.patch_embed(pixels)
        height, width = x.shape[-2:]
        x = x.flatten(2).transpose(1, 2) + self._positions(height, width)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def _positions(self, height: int, width: int) -> Tensor:
        """[1, height * width, D]."""
        if (height, width) == (self.grid, self.grid):
            return self.pos_embed
        table = self.pos_embed.transpose(1, 2).unflatten(2, (self.grid, self.grid))
        return (
            F.interpolate(table, size=(height, width), mode="bicubic", align_corners=False).flatten(2).transpose(1, 2)
        )


def _init_linear(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
