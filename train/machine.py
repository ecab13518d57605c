"""The processes of a run: one or many, with or without DeepSpeed. All else asks the Accelerator made here."""

import contextlib
import gc
import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from mmspeech.config import ConfigError, read_mapping
from train.settings import TrainConfig

if TYPE_CHECKING:
    from accelerate import Accelerator


def start(config: TrainConfig) -> "Accelerator":
    """The Accelerator of this process: torchrun, accelerate launch and deepspeed start several, python one.

    Raises ConfigError when the processes cannot share the batches of a step, when the DeepSpeed configuration
    contradicts the run's, or when the processes do not find each other.
    """
    from accelerate import Accelerator, InitProcessGroupKwargs

    world = int(os.environ.get("WORLD_SIZE", "1"))
    on_cpu = config.device == "cpu" or not torch.cuda.is_available()
    problems = _problems(config, world)
    accumulate = config.batches_per_step // world
    decided = {
        "train_micro_batch_size_per_gpu": 1,  # a batch of ours, however many calls it holds
        "gradient_accumulation_steps": accumulate,
        "gradient_clipping": config.optim.max_grad_norm,
    }
    plugin = None
    try:
        plugin = None if config.deepspeed is None else _plugin(Path(config.deepspeed), decided)
    except ConfigError as error:
        problems.append(str(error))
    if problems:
        raise ConfigError("; ".join(problems))
    sharded = plugin is not None or os.environ.get("ACCELERATE_USE_DEEPSPEED", "false") == "true"
    if sharded:
        _prepare_deepspeed(on_cpu=on_cpu)
    elif world > 1 and on_cpu:
        os.environ.setdefault("ACCELERATE_USE_CPU", "true")
    accelerator = Accelerator(
        mixed_precision=_precision(config, on_cpu=on_cpu),
        cpu=on_cpu and not sharded,
        gradient_accumulation_steps=accumulate,
        deepspeed_plugin=plugin,
        kwargs_handlers=[InitProcessGroupKwargs(backend="gloo")] if on_cpu and (world > 1 or sharded) else [],
    )
    if accelerator.num_processes != world:
        raise ConfigError(f"{world} processes were started, but accelerate sees {accelerator.num_processes}")
    if sharded:
        accelerator.state.deepspeed_plugin.deepspeed_config.update(decided)
    return accelerator


def _problems(config: TrainConfig, world: int) -> list[str]:
    """What this launch cannot do that the configuration asks for."""
    found = []
    if config.batches_per_step % world:
        found.append(
            f"batches_per_step {config.batches_per_step} can not be shared by {world} processes; "
            f"set a multiple of {world}"
        )
    here, devices = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), torch.cuda.device_count()
    if config.device == "cuda" and not devices:
        found.append("device is cuda, but no GPU is here; set device=cpu, or see `mmspeech doctor`")
    if config.device != "cpu" and 0 < devices < here:
        found.append(f"{here} processes were started here, but there are {devices} GPUs; start {devices}")
    if config.precision == "no" and config.frozen_precision == "bf16":
        found.append("frozen_precision bf16 needs bf16 steps: leave precision=no out, or set frozen_precision=no")
    uses_deepspeed = config.deepspeed is not None or os.environ.get("ACCELERATE_USE_DEEPSPEED", "false") == "true"
    if uses_deepspeed and config.guards.spike is not None and config.guards.spike_action == "skip":
        found.append("guards.spike_action skip: DeepSpeed can not leave an update out; set warn or stop")
    return found


def _precision(config: TrainConfig, *, on_cpu: bool) -> Literal["bf16", "no"]:
    """What steps compute in. Matrices kept in bfloat16 only are never multiplied with float32 ones."""
    if config.precision != "auto":
        return config.precision
    return "bf16" if config.frozen_precision == "bf16" else fast_precision(on_cpu=on_cpu)


def fast_precision(*, on_cpu: bool) -> Literal["bf16", "no"]:
    """bf16 where the device computes in it. CPUs that only emulate it take sixty times as long as in float32."""
    if not on_cpu:
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "no"
    # Older versions of torch do not tell what a CPU can do.
    can = getattr(torch.cpu, "get_capabilities", dict)()
    return "bf16" if can.get("amx_bf16") or can.get("avx512_bf16") else "no"


def is_sharded(accelerator: "Accelerator") -> bool:
    """Whether DeepSpeed runs the steps."""
    return accelerator.state.deepspeed_plugin is not None


def attention(accelerator: "Accelerator") -> contextlib.AbstractContextManager:
    """Around forward and backward passes. On CPUs the backward pass of fused attention is several times slower in bf16
    than that of plain products, which then stay in bf16 too."""
    if accelerator.device.type != "cpu" or accelerator.mixed_precision != "bf16":
        return contextlib.nullcontext()
    from torch.nn.attention import SDPBackend, sdpa_kernel

    torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)  # of the CPU too, for all its name
    return sdpa_kernel(SDPBackend.MATH)


def finish(accelerator: "Accelerator") -> None:
    """Part from the other processes. The caller holds no model or engine any more: one that outlives its process group
    aborts the process now and then."""
    gc.collect()
    if torch.distributed.is_initialized():
        accelerator.wait_for_everyone()
        torch.distributed.destroy_process_group()


def agree(accelerator: "Accelerator", *, stop: bool, minutes: float, bad_calls: int) -> tuple[bool, float, int]:
    """What all processes act on: whether any was asked to stop, the first one's clock, and calls left out by all."""
    if accelerator.num_processes == 1:
        return stop, minutes, bad_calls
    own = [float(stop), minutes if accelerator.is_main_process else 0.0, float(bad_calls)]
    total = accelerator.reduce(torch.tensor(own, dtype=torch.float64, device=accelerator.device), reduction="sum")
    return bool(total[0]), float(total[1]), int(total[2])


def together(accelerator: "Accelerator", value: Any) -> list[Any]:
    """The `value` of every process, in their order."""
    from accelerate.utils import gather_object

    return [value] if accelerator.num_processes == 1 else gather_object([value])


def _plugin(path: Path, decided: dict[str, Any]) -> Any:
    """The DeepSpeed configuration of a file. One that says otherwise than the run is refused."""
    from accelerate import DeepSpeedPlugin

    settings = read_mapping(path)
    wrong = [
        f"{name} is {settings[name]}, but the run's is {value}"
        for name, value in decided.items()
        if settings.get(name, "auto") not in ("auto", value)
    ]
    wrong += [f"{name!r} is the run's business (optim)" for name in ("optimizer", "scheduler") if name in settings]
    if wrong:
        raise ConfigError(f"{path}: {'; '.join(wrong)}; leave it out")
    return DeepSpeedPlugin(hf_ds_config=settings | decided)


def _prepare_deepspeed(*, on_cpu: bool) -> None:
    """DeepSpeed wants a launcher's variables even for one process; on CPUs it would compile a kernel it can spare."""
    import deepspeed

    if on_cpu:
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    if "RANK" not in os.environ:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        alone = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        os.environ.update({name: str(value) for name, value in alone.items()})
