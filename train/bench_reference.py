"""The other side of `train.bench`: the model of the PyPI package `moshi`, trained the way moshi-finetune trains it."""

import os

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmspeech.config import ConfigError, LMConfig
from train.bench import LORA_ALPHA_PER_RANK, Side, Work, count_flops, held_bytes, model_config, random_codes
from train.settings import OptimConfig

FIRST_CODEBOOK = 100.0
TEXT_PAD = 0.5


def reference_side(train: str, work: Work, *, lengths: list[int]) -> Side:
    """`train`: all parameters; temporal: LoRA on the linear layers of the temporal transformer; lora: on all of them,
    as moshi-finetune does. Calls of `lengths` frames are padded to `work.frames`, as its reader does.

    Weights lie in bf16 (where `work.precision` says so) beside float32 copies of those that learn.
    """
    lm = model_config(work.shape, eyes=False).lm
    model = _model(lm, work)
    if train != "all":
        from moshi.modules.lora import replace_all_linear_with_lora

        part = model.transformer if train == "temporal" else model
        replace_all_linear_with_lora(part, work.lora_rank, LORA_ALPHA_PER_RANK)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("lora_" in name)
    model.train()
    learner = _Learner(model)
    codes = random_codes(lm, rows=work.rows, frames=work.frames)
    for row, length in enumerate(lengths):
        codes[row, :, length:] = -1
    codes = codes.to(work.device)
    flops = work.rows * count_flops(lambda: learner.step(codes[-1:]))
    for transformer in (model.transformer, model.depformer):
        transformer.checkpointing = work.recompute
    return Side("moshi", lambda: learner.step(codes), sum(lengths), flops, learner.held_bytes)


def _model(lm: LMConfig, work: Work) -> nn.Module:
    if work.device.type == "cpu":
        # Compiling its norms for a CPU takes minutes and is left out of its layers anyway.
        os.environ["NO_TORCH_COMPILE"] = "1"
    try:
        from moshi.models.lm import LMModel
    except ImportError as error:
        raise ConfigError(f"--reference needs the package moshi ({error}): pip install moshi") from error
    temporal, depth = lm.temporal, lm.depth
    torch.manual_seed(0)
    model = LMModel(
        delays=list(lm.delays),
        n_q=2 * lm.num_codebooks,
        dep_q=lm.num_codebooks,
        card=lm.audio_card,
        text_card=lm.text_card,
        dim=temporal.dim,
        num_heads=temporal.num_heads,
        num_layers=temporal.num_layers,
        hidden_scale=_outer(temporal.ffn_dim) / temporal.dim,
        norm="rms_norm_f32",
        gating="silu",
        positional_embedding="rope",
        max_period=temporal.max_period,
        context=temporal.context,
        causal=True,
        depformer_dim=depth.dim,
        depformer_dim_feedforward=_outer(depth.ffn_dim),
        depformer_num_heads=depth.num_heads,
        depformer_num_layers=depth.num_layers,
        depformer_multi_linear=True,
        depformer_weights_per_step=True,
        depformer_gating="silu",
        depformer_pos_emb="none",
        device=work.device,
        dtype=torch.bfloat16 if work.precision == "bf16" else torch.float32,
    )
    return model


def _outer(inner: int) -> int:
    """Its feed-forward takes two thirds of the width that it is given."""
    return inner * 3 // 2


class _Learner:
    """A step as theirs: losses, gradients in float32, clipping, AdamW, weights back into their precision."""

    def __init__(self, model: nn.Module):
        self.model = model
        self.learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.masters = [parameter.detach().float().requires_grad_() for parameter in self.learning]
        options = OptimConfig()
        self.optimizer = torch.optim.AdamW(
            self.masters, lr=1e-6, betas=options.betas, eps=options.eps, weight_decay=options.weight_decay
        )

    def step(self, codes: Tensor) -> None:
        self.model.zero_grad()
        out = self.model(codes)
        text, own = codes[:, :1], codes[:, 1 : 1 + self.model.dep_q]
        text_weight = torch.where((text == 3) | (text == 0), TEXT_PAD, 1.0) * out.text_mask
        audio_weight = out.mask.float()
        audio_weight[:, 0] *= FIRST_CODEBOOK
        loss = _weighted(out.text_logits, text, text_weight) + _weighted(out.logits, own, audio_weight)
        loss.backward()
        for master, parameter in zip(self.masters, self.learning, strict=True):
            master.grad = None if parameter.grad is None else parameter.grad.float()
        torch.nn.utils.clip_grad_norm_(self.masters, 1.0)
        self.optimizer.step()
        with torch.no_grad():
            for master, parameter in zip(self.masters, self.learning, strict=True):
                if master.data_ptr() != parameter.data_ptr():
                    parameter.copy_(master)
                master.grad = None
        loss.item()

    def held_bytes(self) -> int:
        return held_bytes(self.model, self.optimizer)


def _weighted(logits: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """sum(weight * cross-entropy) / sum(weight) in float32; logits may be NaN where the weight is 0."""
    entropy = F.cross_entropy(logits.flatten(0, -2).float(), target.clamp(min=0).flatten(), reduction="none")
    weight = weight.flatten()
    return torch.where(weight > 0, entropy * weight, 0.0).sum() / weight.sum()
