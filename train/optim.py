"""How what trains is trained: AdamW groups, learning rates over time."""

import math

import torch
from torch import nn

from train.settings import OptimConfig


def freeze_all_but(model: nn.Module, names: list[str]) -> None:
    """Only the named parameters get gradients."""
    chosen = set(names)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in chosen)


def build_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """AdamW over what trains: matrices decay; norms, biases, gates and embeddings do not."""
    decayed, plain = [], []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            (decayed if parameter.ndim >= 2 and "emb" not in name else plain).append(parameter)
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    groups = [group for group in groups if group["params"]]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, eps=config.eps, fused=True)


def learning_rate(config: OptimConfig, *, step: int, progress: float) -> float:
    """The rate of a step (from 0); `progress` 0..1 is the share of the run that is done."""
    warm = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
    progress = min(1.0, max(0.0, progress))
    if config.schedule == "cosine":
        fall = 0.5 * (1 + math.cos(math.pi * progress))
    else:
        fall = min(1.0, (1 - progress) / config.decay_share)
    return config.learning_rate * warm * (config.final_ratio + (1 - config.final_ratio) * fall)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate
