"""The model of a run as if one process held it: to sample from between two steps of training."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    from train.learner import Learner

_HOOKS = ("_forward_hooks", "_forward_pre_hooks")


@contextmanager
def whole_model(learner: "Learner") -> Iterator[None]:
    """Inside, `learner.origin.model` evaluates, and holds every parameter whole. All processes enter and leave
    together; each may use the model alone, for as long as the launch's time limit for waiting allows."""
    model = learner.origin.model
    modes = [(module, module.training) for module in model.modules()]
    parameters = list(model.parameters())
    with ExitStack() as stack:
        if any(hasattr(parameter, "ds_id") for parameter in parameters):
            from deepspeed.runtime.zero import GatheredParameters

            stack.enter_context(GatheredParameters(parameters))
            stack.enter_context(_no_hooks(model))
        model.eval()
        try:
            yield
        finally:
            for module, training in modes:
                module.training = training
    learner.accelerator.wait_for_everyone()


@contextmanager
def _no_hooks(model: nn.Module) -> Iterator[None]:
    """ZeRO-3 hangs hooks on every module that gather and free its parameters, all processes together."""
    kept = [(module, name, getattr(module, name)) for module in model.modules() for name in _HOOKS]
    for module, name, hooks in kept:
        setattr(module, name, type(hooks)())
    try:
        yield
    finally:
        for module, name, hooks in kept:
            setattr(module, name, hooks)
