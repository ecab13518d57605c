"""How DeepSpeed's tensor parallelism splits a speech LM over N ranks, for inference.

DeepSpeed splits, for every layer (and, of the depth transformer, every step):
- self-attention by heads: `in_proj` by rows (queries, keys and values each), `out_proj` by columns;
- cross-attention by heads: `q_proj`, `age` and `kv_proj` (keys and values each) by rows, `out_proj` by columns;
- feed-forward by hidden units: `linear_in` by rows (both halves of a gate each), `linear_out` by columns.
Whole on every rank: gates (each is computed from a whole update), norms, layer scales, embeddings, `text_linear`,
`hidden_in`, `audio_linear`.

DeepSpeed's `init_inference` is not used: it splits a fused projection ([queries; keys; values], [gate; value]) in the
middle, without a word, and its kernels know no cross-attention and no weights per step. `deepspeed.initialize` with a
partition table and no optimiser splits them right. It knows `nn.Linear` only, so that the depth transformer's matrices,
which come as one tensor for all steps, are first made into one `nn.Linear` per step. What stays whole is read once per
frame (or looked up in, as the tables are), is small beside the layers, and would cost another exchange.
"""

import contextlib
import logging
import math
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from mmspeech.config import ConfigError, LMConfig
from mmspeech.lm.depth import StepLinears
from mmspeech.lm.model import DuplexLM

ROW, COLUMN = "row", "column"
PARTITION = (
    # weights (regular expressions), how, number of matrices that are stacked in one
    (r".*\.self_attn\.in_proj\.weight$", COLUMN, 3),
    (r".*\.layers\.\d+\.in_proj\.steps\.\d+\.weight$", COLUMN, 3),
    (r".*\.layers\.\d+\.ffn_in\.steps\.\d+\.weight$", COLUMN, 2),
    (r".*\.projections\.\d+\.kv_proj\.weight$", COLUMN, 2),
    (r".*\.projections\.\d+\.(q_proj|age)\.weight$", COLUMN, 1),
    (r".*\.projections\.\d+\.out_proj\.weight$", ROW, 1),
    (r".*\.self_attn\.out_proj\.weight$", ROW, 1),
    (r".*\.ffn\.linear_out\.weight$", ROW, 1),
    (r".*\.layers\.\d+\.(out_proj|ffn_out)\.steps\.\d+\.weight$", ROW, 1),
)
FEED_FORWARD_IN = r".*\.ffn\.linear_in\.weight$"


def check_divisible(config: LMConfig, num_ranks: int) -> None:
    """ConfigError when N ranks cannot share the heads and the feed-forward of both transformers equally."""
    parts = {
        f"{count} {what} of lm.{name}": count
        for name, part in (("temporal", config.temporal), ("depth", config.depth))
        for count, what in ((part.num_heads, "heads"), (part.ffn_dim, "feed-forward units"))
    }
    uneven = [text for text, count in parts.items() if count % num_ranks]
    if uneven:
        largest = math.gcd(*parts.values())
        fitting = ", ".join(str(n) for n in range(1, largest + 1) if largest % n == 0)
        raise ConfigError(
            f"--tensor-parallel {num_ranks}: does not divide the {uneven[0]}; this model can be split over {fitting}"
        )


def check_deepspeed() -> None:
    """ConfigError when DeepSpeed is missing or too old to take a partition table. It is not imported: that is slow."""
    from importlib.metadata import version
    from importlib.util import find_spec

    found = find_spec("deepspeed")
    if found is None:
        raise ConfigError("--tensor-parallel needs DeepSpeed, which is not installed: pip install deepspeed")
    if not (Path(found.origin).parent / "module_inject" / "autotp_config.py").is_file():
        raise ConfigError(
            f"--tensor-parallel needs a DeepSpeed that takes partition_config, found {version('deepspeed')}: "
            "pip install -U deepspeed"
        )


def shard(lm: DuplexLM, *, num_ranks: int, local_rank: int, device: torch.device) -> None:
    """Keep this rank's share of the weights of `lm`, on `device`. Every rank of the process group calls it at once.

    Weights may come on the CPU: only the share goes to the device. States are to be made afterwards: they have the
    heads of this rank.
    """
    lm.requires_grad_(False)
    for layer in lm.depth.layers:
        for name in ("in_proj", "out_proj", "ffn_in", "ffn_out"):
            setattr(layer, name, StepLinears.of(getattr(layer, name)))
    gated = lm.temporal.transformer.layers[0].ffn.gated
    specs = [_spec(*row) for row in (*PARTITION, (FEED_FORWARD_IN, COLUMN, 2 if gated else 1))]
    # No "bf16" or "fp16" section, whatever the weights are: those build an optimiser.
    settings = {
        "train_micro_batch_size_per_gpu": 1,
        "tensor_parallel": {
            "autotp_size": num_ranks,
            "partition_config": {"use_default_specs": False, "layer_specs": specs},
        },
    }
    parts = nn.ModuleDict({"temporal": lm.temporal, "depth": lm.depth})
    patterns = [re.compile(pattern) for spec in specs for pattern in spec["patterns"]]
    whole = {name: w.numel() for name, w in parts.named_parameters() if any(p.match(name) for p in patterns)}
    with _quiet(), _environment({"LOCAL_RANK": str(local_rank), "DS_ACCELERATOR": device.type}):
        import deepspeed

        # Its all-reduce through shared memory takes 66 MiB of /dev/shm per rank and spins while it waits.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        deepspeed.initialize(model=parts, config=settings)
    for name, weight in parts.named_parameters():
        if name in whole and weight.numel() * num_ranks != whole[name]:
            raise RuntimeError(f"DeepSpeed left {name} with {weight.numel()} of {whole[name]} weights on this rank")
    for module in parts.modules():
        if hasattr(module, "mp_group"):
            # DeepSpeed makes a group of its own that waits half an hour for a rank that hangs.
            module.mp_group = dist.group.WORLD
    lm.to(device).eval()


def _spec(pattern: str, partition_type: str, stacked: int) -> dict[str, object]:
    spec: dict[str, object] = {"patterns": [pattern], "partition_type": partition_type}
    return spec if stacked == 1 else spec | {"shape": [stacked, -1], "partition_dim": 0}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """DeepSpeed's own log goes to what stdout is when it is first imported; ours is for results."""
    with contextlib.redirect_stdout(sys.stderr):
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)


@contextlib.contextmanager
def _environment(changes: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
