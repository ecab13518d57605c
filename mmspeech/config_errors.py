"""What pydantic found wrong with a configuration, in words."""

import difflib
from typing import Any, get_args

from pydantic import BaseModel


def describe(cls: type[BaseModel], problem: dict[str, Any]) -> str:
    """One problem of a ValidationError, with its dotted key; an unknown key with the nearest known one."""
    location = [str(part) for part in problem["loc"]]
    key = ".".join(location)
    if problem["type"] == "extra_forbidden":
        near = difflib.get_close_matches(location[-1], _field_names(cls, location[:-1]), n=1)
        return f"unknown key '{key}'" + (f" (did you mean '{near[0]}'?)" if near else "")
    if problem["type"] == "missing":
        return f"missing key '{key}'"
    got = problem.get("input")
    shown = "" if isinstance(got, dict | BaseModel) else f" (got {got!r})"
    return f"'{key or 'config'}': {problem['msg']}{shown}"


def _field_names(cls: type[BaseModel], parents: list[str]) -> list[str]:
    """Names of the fields where an unknown key stood, following nested models and unions."""
    models = [cls]
    for parent in parents:
        found = [getattr(model.model_fields.get(parent), "annotation", None) for model in models]
        models = [m for annotation in found for m in _models_in(annotation)] or models
    return [name for model in models for name in model.model_fields]


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [m for arg in get_args(annotation) for m in _models_in(arg)]
