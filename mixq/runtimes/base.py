"""Runtime and Executable: what mixq needs of an inference engine."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from mixq.config import Activation, LayerScheme, MixedPrecisionConfig, Precision, Stage
from mixq.graph.model import Layer
from mixq.graph.placement import Placement
from mixq.runtimes.probes import sums_saturate
from mixq.task import Inputs, Outputs


@dataclass(frozen=True, slots=True)
class Kernel:
    """What the runtime executed for one layer.

    executed: the precision of the arithmetic (fp32, bf16, fp16, int8), or "fused" where another kernel took the
    layer in and the runtime does not say how; kernel: the runtime's own name for it; time_us: microseconds of one
    run (None where not profiled).
    """

    layer: str
    executed: str
    kernel: str
    time_us: float | None = None


@dataclass(frozen=True, slots=True)
class Audit:
    """What the runtime executed: the kernel of each layer, in the layers' order; how many executed nodes turn floats
    into codes or back, beside the layers' own kernels."""

    kernels: tuple[Kernel, ...]
    conversions: int


class Executable(ABC):
    """A compiled model. Not safe for use by several threads at once."""

    @abstractmethod
    def run(self, inputs: Inputs) -> Outputs:
        """Outputs by name, freshly owned. Inputs of any batch size."""

    def view(self, inputs: Inputs) -> Outputs:
        """As `run`, but the next call may overwrite the outputs: copying large ones takes as long as computing them."""
        return self.run(inputs)

    @abstractmethod
    def bind(self, inputs: Inputs) -> Callable[[], None]:
        """A call that runs the model on these inputs and does nothing else: what latency is measured on."""

    @abstractmethod
    def audit(self, layers: Sequence[Layer], inputs: Inputs, *, timed: bool = True) -> Audit:
        """Read from what the runtime really executes on `inputs`.

        timed: with the time of each kernel, which may take a second, instrumented compilation; without, it may be
        missing.
        """


class Runtime(ABC):
    """One inference engine on this machine's CPU."""

    name: ClassVar[str]
    layout: ClassVar[Placement]

    @property
    def placement(self) -> Placement:
        """Where pairs stand for its kernels, and how those add on this CPU."""
        return replace(self.layout, sums_saturate=sums_saturate(type(self)))

    @property
    @abstractmethod
    def version(self) -> str:
        """The engine's version."""

    def refusal(self, scheme: LayerScheme, layer: Layer) -> str | None:
        """Why `layer` cannot have this scheme here; None where it can."""
        if scheme.precision is Precision.INT8:
            return _meaningless(scheme, layer) or self.int8_refusal(scheme.activation, layer)
        return self.float_refusal(scheme.precision)

    @abstractmethod
    def float_refusal(self, precision: Precision) -> str | None:
        """Why nothing can be computed in this float type here."""

    @abstractmethod
    def int8_refusal(self, activation: Activation, layer: Layer) -> str | None:
        """Why `layer`, for which this kind of activation has a meaning, cannot be INT8 with it here."""

    @abstractmethod
    def expected(self, scheme: LayerScheme, layer: Layer, config: MixedPrecisionConfig) -> str:
        """The precision that `layer`, with this scheme in `config`, executes in on this CPU, e.g. fp32 for fp16.

        Of an embedding whose rows are codes: int8.
        """

    @abstractmethod
    def options(self, config: MixedPrecisionConfig) -> Mapping[str, str]:
        """The engine's own options that this configuration is to be opened with, beside threads."""

    @abstractmethod
    def typed(self, config: MixedPrecisionConfig) -> bool:
        """Whether the float types stand in the graph as Casts; False where an option brings them about."""

    @abstractmethod
    def compile(self, model: bytes, threads: int, options: Mapping[str, str] | None = None) -> Executable:
        """Compile serialized ONNX. Raises InputError where the engine refuses the model or an option."""


def _meaningless(scheme: LayerScheme, layer: Layer) -> str | None:
    """Why an INT8 scheme says nothing about a layer, whatever the runtime."""
    if layer.looks_up and scheme.activation is not Activation.WEIGHT_ONLY:
        return "an embedding computes nothing that could be quantized but its weight; its INT8 is weight_only"
    if layer.weight is None and scheme.activation is Activation.WEIGHT_ONLY:
        return "a product of two activations has no weight"
    if layer.weight is None and scheme.stage is Stage.QAT:
        return "a product of two activations has nothing to train"
    return None
