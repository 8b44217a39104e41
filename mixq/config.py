"""The configuration: which precision every layer has, and how it gets there. One frozen, hashable JSON value."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from enum import StrEnum
from functools import cache, cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    PlainSerializer,
    ValidationError,
    model_validator,
)

from mixq.documents import parse_json, read_text
from mixq.errors import InputError
from mixq.validation import explain, few


class Precision(StrEnum):
    """Number format of a layer's arithmetic."""

    FP32 = "fp32"
    FP16 = "fp16"
    BF16 = "bf16"
    INT8 = "int8"


FloatPrecision = Literal[Precision.FP32, Precision.FP16, Precision.BF16]


class Stage(StrEnum):
    """How an INT8 layer gets its parameters: post-training quantization or quantization-aware training."""

    PTQ = "ptq"
    QAT = "qat"


class Activation(StrEnum):
    """How an INT8 layer's input is quantized: with calibrated scales, with scales found at run time, or not at all."""

    STATIC = "static"
    DYNAMIC = "dynamic"
    WEIGHT_ONLY = "weight_only"


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        return self  # frozen: a copy could not be told from it

    def __reduce__(self) -> tuple[Callable[[str], Self], tuple[str]]:
        return type(self).model_validate_json, (self.model_dump_json(),)


class LayerScheme(_Value):
    """What one layer becomes. `stage` and `activation` speak of INT8 only."""

    precision: Precision
    stage: Stage = Stage.PTQ
    activation: Activation = Activation.STATIC

    @model_validator(mode="after")
    def _int8_only(self) -> LayerScheme:
        if self.precision is not Precision.INT8 and (self.stage, self.activation) != (Stage.PTQ, Activation.STATIC):
            raise ValueError(f"stage and activation are for int8 layers only, not for {self.precision}")
        if self.stage is Stage.QAT and self.activation is not Activation.STATIC:
            raise ValueError(f"stage qat learns calibrated scales; {self.activation} layers have stage ptq")
        return self

    def __str__(self) -> str:
        parts: list[str] = [self.precision.value]
        if self.activation is not Activation.STATIC:
            parts.append(self.activation.value)
        if self.stage is not Stage.PTQ:
            parts.append(self.stage.value)
        return "-".join(parts)

    @property
    def untrained(self) -> LayerScheme:
        """The same with stage ptq: what it computes on, and how fast."""
        return self if self.stage is Stage.PTQ else LayerScheme(precision=self.precision, activation=self.activation)

    @classmethod
    def parse(cls, text: str) -> LayerScheme:
        """The inverse of str(): "int8-qat" → LayerScheme(INT8, stage=QAT)."""
        known = _schemes_by_name()
        if text not in known:
            raise InputError(f"scheme {text!r} is unknown; known: {', '.join(known)}")
        return known[text]


def all_schemes() -> list[LayerScheme]:
    """Every scheme that can be written down; what can run is the runtime's to say."""
    floats = [LayerScheme(precision=p) for p in Precision if p is not Precision.INT8]
    return floats + int8_schemes(Activation, Stage)


def int8_schemes(activations: Iterable[Activation], stages: Iterable[Stage]) -> list[LayerScheme]:
    """Every INT8 scheme of these kinds; what is trained is static."""
    wanted = list(stages)
    return [
        LayerScheme(precision=Precision.INT8, stage=stage, activation=activation)
        for activation in activations
        for stage in wanted
        if stage is Stage.PTQ or activation is Activation.STATIC
    ]


@cache
def _schemes_by_name() -> Mapping[str, LayerScheme]:
    return {str(scheme): scheme for scheme in all_schemes()}


Scalar = bool | int | FiniteFloat | str  # JSON has no other numbers


def _sorted_proxy(mapping: Mapping[str, Any]) -> Mapping[str, Any]:
    return MappingProxyType(dict(sorted(mapping.items())))


@cache
def _shared(scheme: LayerScheme) -> LayerScheme:
    """The one of all that are equal: a long search holds as many as it has trials times layers."""
    return scheme


def _sorted_schemes(schemes: Mapping[str, LayerScheme]) -> Mapping[str, LayerScheme]:
    return _sorted_proxy({name: _shared(scheme) for name, scheme in schemes.items()})


class RecipeStep(_Value):
    """One step of the PTQ recipe: its name in the table of `mixq.ptq`, and its parameters."""

    name: str
    params: Annotated[Mapping[str, Scalar], AfterValidator(_sorted_proxy), PlainSerializer(dict)] = Field(
        default_factory=dict, validate_default=True
    )

    def __hash__(self) -> int:
        return hash((self.name, tuple(self.params.items())))


class Training(_Value):
    """How the layers with stage QAT are trained.

    steps: batches; learning_rate: how far one step moves a weight at most, ÷ its quantization step, where nothing is
    left of the outputs; less where more is left (`mixq.qat.course`), so that one rate suits most networks; bank: steps
    of the start that all configurations share, 0 for none; scales: whether the quantization steps are learned too, or
    stay as calibrated; hints: how much the tensors between the blocks of the network count, where its outputs count 1
    (a Task's own loss stands alone).
    """

    steps: int = Field(ge=1)
    learning_rate: float = Field(gt=0, allow_inf_nan=False)
    seed: int = Field(default=0, ge=0)
    bank: int = Field(default=0, ge=0)
    scales: bool = True
    hints: float = Field(default=0.0, ge=0, allow_inf_nan=False)

    def __str__(self) -> str:
        """As in "50 steps at 0.1, from a shared start of 100 steps, hints 1": what is the default is left out."""
        said = [f"{self.steps} steps at {self.learning_rate:g}"]
        said += [f"from a shared start of {self.bank} steps"] if self.bank else []
        said += [] if self.scales else ["scales as calibrated"]
        said += [f"hints {self.hints:g}"] if self.hints else []
        said += [f"seed {self.seed}"] if self.seed else []
        return ", ".join(said)


_WRITTEN = "give a best.json that a search or an export wrote"


class MixedPrecisionConfig(_Value):
    """A scheme for every layer of the model with fingerprint `model`; the only thing that decides what it computes.

    `rest` is the precision of everything that is not a layer, `recipe` the ordered PTQ steps, `training` is given
    exactly when a layer has stage QAT. Two configurations are equal when their JSON is; `id` names it.
    """

    format: Literal[1] = 1
    model: str
    schemes: Annotated[Mapping[str, LayerScheme], AfterValidator(_sorted_schemes), PlainSerializer(dict)]
    rest: FloatPrecision = Precision.FP32
    recipe: tuple[RecipeStep, ...] = ()
    training: Training | None = None

    @model_validator(mode="after")
    def _training_where_qat(self) -> MixedPrecisionConfig:
        if bool(self.qat_layers) != (self.training is not None):
            raise ValueError("training is given exactly when a layer has stage qat")
        return self

    @cached_property
    def id(self) -> str:
        """16 hexadecimal digits of the SHA-256 of the canonical JSON."""
        return hashlib.sha256(self.to_json(indent=None).encode()).hexdigest()[:16]

    def __hash__(self) -> int:
        return hash(self.id)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, MixedPrecisionConfig) and self.id == other.id

    @property
    def qat_layers(self) -> list[str]:
        return [name for name, scheme in self.schemes.items() if scheme.stage is Stage.QAT]

    def layers_with(self, precision: Precision) -> list[str]:
        return [name for name, scheme in self.schemes.items() if scheme.precision is precision]

    def int8_layers(self, activation: Activation) -> list[str]:
        """The INT8 layers with this kind of activations."""
        return [name for name in self.layers_with(Precision.INT8) if self.schemes[name].activation is activation]

    @property
    def static_layers(self) -> list[str]:
        """The INT8 layers that read codes, whose scales are calibrated."""
        return self.int8_layers(Activation.STATIC)

    def counts(self) -> dict[str, int]:
        """Number of layers by scheme, e.g. {"bf16": 3, "int8": 40, "int8-qat": 1}."""
        names = sorted(str(scheme) for scheme in self.schemes.values())
        return {name: names.count(name) for name in dict.fromkeys(names)}

    def to_json(self, indent: int | None = 2) -> str:
        return json.dumps(self.model_dump(mode="json"), indent=indent, sort_keys=True, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str, source: str = "configuration") -> MixedPrecisionConfig:
        """Raises InputError, naming `source`, where the text is not a whole and valid configuration."""
        try:
            return cls.model_validate(parse_json(text, source))
        except ValidationError as error:
            reasons = "; ".join(few([sentence for _, sentence in explain(error, cls)]))
            raise InputError(f"{source}: {reasons}") from None

    @classmethod
    def load(cls, path: str | Path) -> MixedPrecisionConfig:
        """Read `path` (JSON). Raises InputError for a missing, unreadable or invalid file."""
        return cls.from_json(read_text(path, "the configuration", _WRITTEN), str(path))

    def check_for(self, model: str, layers: Iterable[str]) -> None:
        """Raises InputError unless this is a configuration of the model with this fingerprint and these layers."""
        known = list(layers)
        unknown = sorted(set(self.schemes) - set(known))
        missing = sorted(set(known) - set(self.schemes))
        if unknown:
            raise InputError(f"the configuration names unknown layers {unknown}; known: {', '.join(known)}")
        if missing:
            raise InputError(f"the configuration has no scheme for the layers {missing}; every layer needs one")
        if self.model != model:
            raise InputError(
                f"the configuration is for the model {self.model}, this one is {model}: weights, topology, "
                "calibration data or metric differ; search again, or use the task that it was made for"
            )


def uniform(
    model: str,
    layers: Iterable[str],
    scheme: LayerScheme,
    rest: FloatPrecision = Precision.FP32,
    recipe: tuple[RecipeStep, ...] = (),
    training: Training | None = None,
) -> MixedPrecisionConfig:
    """Every layer with the same scheme."""
    return MixedPrecisionConfig(
        model=model, schemes=dict.fromkeys(layers, scheme), rest=rest, recipe=recipe, training=training
    )
