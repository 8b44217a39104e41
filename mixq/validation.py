"""Turns pydantic's errors into one line each that names the field, the rule, the value and what is known."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

MOST_REASONS = 2  # shown at once: the first mistake often makes the others

_ENUM_MEMBER = re.compile(r"<\w+\.\w+: ('[^']*')>")  # how pydantic writes the members of a Literal


def explain(error: ValidationError, model: type[BaseModel]) -> list[tuple[tuple[int | str, ...], str]]:
    """For each violation: where it is (path of keys) and a sentence. `model` is the class that was validated."""
    found = error.errors()
    return [(item["loc"], _sentence(item, model)) for item in found if not _follows(item, found)]


def few(reasons: Sequence[str]) -> list[str]:
    """The first reasons, and how many there are more: lines of one message."""
    more = [f"and {len(reasons) - MOST_REASONS} more"] if len(reasons) > MOST_REASONS else []
    return [*reasons[:MOST_REASONS], *more]


def dotted(location: Sequence[int | str]) -> str:
    return ".".join(str(part) for part in location) or "(top level)"


def _follows(item: Any, found: Sequence[Any]) -> bool:
    """A list that is too short only because none of its items is valid: these are told."""
    depth = len(item["loc"])
    return item["type"] == "too_short" and any(
        len(other["loc"]) > depth and other["loc"][:depth] == item["loc"] for other in found
    )


def _sentence(item: Any, model: type[BaseModel]) -> str:
    where = dotted(item["loc"])
    if item["type"] == "extra_forbidden":
        return f"{where}: unknown field; known: {', '.join(_fields(model, item['loc'][:-1]))}"
    if item["type"] == "missing":
        return f"{where}: required, but missing"
    if item["type"] in ("model_type", "dict_type", "mapping_type"):
        return f"{where}: must be a mapping of names to values, got {type(item['input']).__name__}"
    if item["type"] in ("tuple_type", "list_type"):
        return f"{where}: must be a list, e.g. [a, b], got {item['input']!r}"
    message = _ENUM_MEMBER.sub(r"\1", item["msg"].removeprefix("Value error, "))
    shown = repr(item["input"])
    return f"{where}: {message}" + ("" if len(shown) > 80 else f" (got {shown})")


def _fields(model: type[BaseModel], path: Sequence[int | str]) -> list[str]:
    """The field names of the model that `path` leads to."""
    current: Any = model
    for part in path:
        if not (isinstance(current, type) and issubclass(current, BaseModel)) or part not in current.model_fields:
            continue  # an index, a key or the name of a union's member: the model in it is what counts
        current = _model_in(current.model_fields[str(part)].annotation) or current
    return sorted(field.alias or name for name, field in current.model_fields.items())


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    found = (_model_in(argument) for argument in getattr(annotation, "__args__", ()))
    return next((model for model in found if model), None)
