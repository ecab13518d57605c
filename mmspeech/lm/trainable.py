"""Which parameters learn: names chosen by patterns."""

from difflib import get_close_matches
from fnmatch import fnmatchcase

from torch import nn

from mmspeech.config import ConfigError
from mmspeech.lm.depth import StepLinear

TOWER_PREFIX = "tower."
GROUPS = ("all", "speech", "adapters")


def trainable_names(model: nn.Module, patterns: list[str]) -> list[str]:
    """Names of the parameters that `patterns` choose, in the model's order: `all`, `speech` (all but the adapters),
    `adapters`, or patterns such as `lm.depth.*`; `!pattern` takes away.

    The tower is never among them. Raises ConfigError naming every pattern that matches nothing.
    """
    adapters = set(model.adapter_names())
    names = [name for name, _ in model.named_parameters() if not name.startswith(TOWER_PREFIX)]
    chosen: set[str] = set()
    unknown = []
    for pattern in patterns:
        wanted = pattern.removeprefix("!")
        matched = {name for name in names if _matches(name, wanted, is_adapter=name in adapters)}
        if not matched:
            unknown.append(_nothing(pattern, names))
        chosen = chosen - matched if pattern.startswith("!") else chosen | matched
    if unknown:
        raise ConfigError("trainable: " + "; ".join(unknown))
    if not chosen:
        raise ConfigError(f"trainable: {patterns} leaves no parameter to train")
    return [name for name in names if name in chosen]


def lora_names(model: nn.Module, targets: list[str]) -> list[str]:
    """Names of the matrices that the patterns `targets` choose for LoRA, in the model's order: those of the speech LM's
    linear layers, also the depth transformer's; the vision adapters learn whole.

    Raises ConfigError for a target without any.
    """
    able = [*linear_layers(model)]
    chosen: set[str] = set()
    for pattern in targets:
        try:
            matched = trainable_names(model, [pattern.removeprefix("!")])
        except ConfigError as error:
            raise ConfigError(f"lora.targets: {str(error).removeprefix('trainable: ')}") from error
        found = set(able) & set(matched)
        if not found:
            parts = ", ".join(sorted({".".join(name.split(".")[:3]) for name in able}))
            named = matched[0] + (f" and {len(matched) - 1} more" if len(matched) > 1 else "")
            raise ConfigError(
                f"lora.targets: {pattern!r} is {named}, which LoRA can not wrap; "
                f"it wraps matrices of {parts}; what is not among them learns by `trainable`"
            )
        chosen = chosen - found if pattern.startswith("!") else chosen | found
    if not chosen:
        raise ConfigError(f"lora.targets: {targets} leaves no matrix to wrap")
    return [name for name in able if name in chosen]


def linear_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The linear layers of the speech LM without its adapters, by the name of their matrix."""
    adapters = set(model.adapter_names())
    linear = ((name, module) for name, module in model.named_modules() if isinstance(module, nn.Linear | StepLinear))
    return {f"{name}.weight": module for name, module in linear if f"{name}.weight" not in adapters}


def _nothing(pattern: str, names: list[str]) -> str:
    parts = sorted({".".join(name.split(".")[:depth]) for name in names for depth in (2, 3)})
    near = get_close_matches(pattern.strip("!.*"), [*GROUPS, *parts], n=1)
    roots = sorted({".".join(name.split(".")[:2]) for name in names})
    expected = f"did you mean {near[0]!r}?" if near else f"expected {', '.join(GROUPS)} or a part of {', '.join(roots)}"
    return f"{pattern!r} matches no parameter; {expected}"


def _matches(name: str, pattern: str, *, is_adapter: bool) -> bool:
    if pattern == "all":
        return True
    if pattern == "speech":
        return not is_adapter
    if pattern == "adapters":
        return is_adapter
    return fnmatchcase(name, pattern) or name.startswith(pattern.rstrip("*").rstrip(".") + ".")
