"""SearchSpace: what may be tried, as a YAML file. Every name in it is checked when it is loaded, with its line."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from mixq.config import Activation, FloatPrecision, LayerScheme, Precision, RecipeStep, Stage, int8_schemes
from mixq.errors import InputError
from mixq.ptq import DEFAULT_RECIPE, check_recipe
from mixq.validation import explain
from mixq.yaml_file import read_yaml, validated

Objective = Literal["latency", "size", "train_seconds"]
SamplerName = Literal["guided", "tpe", "gp"]

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
    """Choices for quantization-aware training; all but these are one for all, as in config.Training."""

    steps: tuple[int, ...] = Field(default=(100,), min_length=1)
    learning_rate: tuple[float, ...] = Field(default=(0.1,), min_length=1)
    seed: int = Field(default=0, ge=0)
    bank: int = Field(default=0, ge=0)
    scales: bool = True
    hints: float = Field(default=0.0, ge=0, allow_inf_nan=False)

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
    file = read_yaml(path, "the search space", _EXAMPLE)
    if not isinstance(file.content, dict):
        raise InputError(f"{path}: a search space is a mapping with at least `precisions:`; {_EXAMPLE}")
    return validated(file, SearchSpace)


def check_space(content: Mapping[str, Any], source: str) -> SearchSpace:
    """A space from plain values that did not come from a file. Raises InputError that names `source`."""
    try:
        return SearchSpace.model_validate(content)
    except ValidationError as error:
        raise InputError(f"{source}: {'; '.join(sentence for _, sentence in explain(error, SearchSpace))}") from None
