"""SearchSpace: what may be tried, as a YAML file. Every name in it is checked when it is loaded, with its line."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from mixq.config import Activation, FloatPrecision, LayerScheme, Precision, RecipeStep, Stage, int8_schemes
from mixq.errors import InputError, first_line
from mixq.ptq import DEFAULT_RECIPE, check_recipe
from mixq.validation import explain

Objective = Literal["latency", "size", "train_seconds"]
SamplerName = Literal["guided", "tpe", "gp", "nsga2", "random"]

MOST_REASONS = 2  # shown at once: the first mistake often makes the others
_EXAMPLE = "see search_spaces/cpu.yaml for one"


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Override(_Part):
    """Other choices for the layers that the glob `layers` matches; what is left out stays as in the space."""

    layers: str = Field(min_length=1)
    precisions: tuple[Precision, ...] | None = Field(default=None, min_length=1)
    stages: tuple[Stage, ...] | None = Field(default=None, min_length=1)
    activations: tuple[Activation, ...] | None = Field(default=None, min_length=1)


class TrainingSpace(_Part):
    """Choices for quantization-aware training; `seed`, `bank` and `scales` are one for all, as in config.Training."""

    steps: tuple[int, ...] = Field(default=(100,), min_length=1)
    learning_rate: tuple[float, ...] = Field(default=(0.1,), min_length=1)
    seed: int = Field(default=0, ge=0)
    bank: int = Field(default=0, ge=0)
    scales: bool = True

    @model_validator(mode="after")
    def _positive(self) -> TrainingSpace:
        if min(self.steps) < 1 or not all(0 < rate < 1 for rate in self.learning_rate):
            raise ValueError("steps must be at least 1 and learning rates between 0 and 1")
        return self


class Constraints(_Part):
    """Limits that a configuration must keep; None: no limit. max_drop is in the primary metric's units.

    confidence: with which the drop on data like the search split's is to be within max_drop (one-sided bound of the
    paired bootstrap); None: the drop on the search split itself decides. max_train_seconds: of one configuration.
    """

    max_drop: float | None = Field(default=0.005, ge=0, allow_inf_nan=False)
    confidence: float | None = Field(default=None, gt=0.5, lt=1)
    max_latency_ms: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    max_size_mb: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    max_train_seconds: float | None = Field(default=None, gt=0, allow_inf_nan=False)


class SearchSpace(_Part):
    """A search space; `load_space` reads one. `objectives` are minimized, the first one decides which is best."""

    precisions: tuple[Precision, ...] = Field(min_length=1)
    stages: tuple[Stage, ...] = Field(default=(Stage.PTQ,), min_length=1)
    activations: tuple[Activation, ...] = Field(default=(Activation.STATIC,), min_length=1)
    rest: tuple[FloatPrecision, ...] = Field(default=(Precision.FP32,), min_length=1)
    recipes: dict[str, tuple[RecipeStep, ...]] = Field(default={"default": DEFAULT_RECIPE}, min_length=1)
    training: TrainingSpace | None = None
    overrides: tuple[Override, ...] = ()
    groups: tuple[str, ...] = ()
    objectives: tuple[Objective, ...] = Field(default=("latency",), min_length=1)
    constraints: Constraints = Constraints()
    sampler: SamplerName = "guided"

    @property
    def depends_on_time(self) -> bool:
        """Whether what is best is a matter of times, which differ from machine to machine."""
        limits = self.constraints
        timed = limits.max_latency_ms is not None or limits.max_train_seconds is not None
        return timed or any(objective != "size" for objective in self.objectives)

    @field_validator("precisions", "stages", "activations", "rest", "objectives")
    @classmethod
    def _each_once(cls, values: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(values)) < len(values):
            raise ValueError("a value is listed twice; keep one")
        return values

    @field_validator("recipes")
    @classmethod
    def _known_steps(cls, recipes: dict[str, tuple[RecipeStep, ...]]) -> dict[str, tuple[RecipeStep, ...]]:
        for name, recipe in recipes.items():
            try:
                check_recipe(recipe)
            except InputError as error:
                raise ValueError(f"{name}: {error}") from None
        return recipes

    @field_validator("objectives")
    @classmethod
    def _first_is_of_the_model(cls, objectives: tuple[Objective, ...]) -> tuple[Objective, ...]:
        if objectives[0] == "train_seconds":
            raise ValueError("train_seconds comes first, and FP32 trains fastest; put latency or size before it")
        return objectives

    @model_validator(mode="after")
    def _training_for_qat(self) -> SearchSpace:
        stages = {*self.stages, *(stage for override in self.overrides for stage in override.stages or ())}
        if Stage.QAT in stages and self.training is None:
            raise ValueError("stage qat needs `training:` with steps and learning_rate")
        return self

    def schemes(self, layer: str) -> list[LayerScheme]:
        """The choices for a layer of this name, the last override that matches it deciding."""
        from fnmatch import fnmatchcase

        precisions, stages, activations = self.precisions, self.stages, self.activations
        for override in self.overrides:
            if fnmatchcase(layer, override.layers):
                precisions = override.precisions or precisions
                stages = override.stages or stages
                activations = override.activations or activations
        floats = [LayerScheme(precision=p) for p in precisions if p is not Precision.INT8]
        if Precision.INT8 not in precisions:
            return floats
        return floats + int8_schemes(activations, stages)


def load_space(path: str | Path) -> SearchSpace:
    """Read and check a space. Raises InputError with file, line, field, rule and what is known."""
    content, root = _parsed(path, _read(path))
    if not isinstance(content, dict):
        raise InputError(f"{path}: a search space is a mapping with at least `precisions:`; {_EXAMPLE}")
    try:
        return SearchSpace.model_validate(content)
    except ValidationError as error:
        reasons = [
            f"{path} line {_line(root, location)}: {sentence}" for location, sentence in explain(error, SearchSpace)
        ]
        more = [f"and {len(reasons) - MOST_REASONS} more"] if len(reasons) > MOST_REASONS else []
        raise InputError("\n".join(reasons[:MOST_REASONS] + more)) from None


def check_space(content: Mapping[str, Any], source: str) -> SearchSpace:
    """A space from plain values that did not come from a file. Raises InputError that names `source`."""
    try:
        return SearchSpace.model_validate(content)
    except ValidationError as error:
        raise InputError(f"{source}: {'; '.join(sentence for _, sentence in explain(error, SearchSpace))}") from None


def _read(path: str | Path) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot read the search space {path}: {error.strerror}; {_EXAMPLE}") from None
    except UnicodeDecodeError:
        raise InputError(f"the search space {path} is no text (UTF-8); {_EXAMPLE}") from None


def _parsed(path: str | Path, text: str) -> tuple[Any, Any]:
    """The values, and the YAML nodes that they came from."""
    try:
        content, root = yaml.safe_load(text), yaml.compose(text, Loader=yaml.SafeLoader)
    except (yaml.YAMLError, ValueError) as error:  # ValueError: what looks like a date and is none
        mark = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 1}" if mark else ""
        reason = getattr(error, "problem", None) or first_line(error)
        raise InputError(f"{path}{where}: not valid YAML: {reason}; {_EXAMPLE}") from None
    _refuse_repeated(path, root)
    return content, root


def _refuse_repeated(path: str | Path, node: Any) -> None:
    """YAML itself lets the last of two equal keys win, which no one means."""
    if isinstance(node, yaml.SequenceNode):
        for child in node.value:
            _refuse_repeated(path, child)
    elif isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, child in node.value:
            if key.value in seen:
                raise InputError(f"{path} line {key.start_mark.line + 1}: {key.value} is given twice; keep one")
            seen.add(str(key.value))
            _refuse_repeated(path, child)


def _line(node: Any, location: tuple[int | str, ...]) -> int:
    """The line (from 1) of the deepest YAML node on the way to `location`."""
    line = int(node.start_mark.line) + 1
    for part in location:
        if isinstance(node, yaml.MappingNode):
            found = [(key, value) for key, value in node.value if key.value == str(part)]
            if not found:
                continue
            line, node = int(found[0][0].start_mark.line) + 1, found[0][1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line = int(node.start_mark.line) + 1
    return line
