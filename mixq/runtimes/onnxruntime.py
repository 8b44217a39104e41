"""ONNX Runtime on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnxruntime

from mixq.config import Activation, LayerScheme, MixedPrecisionConfig, Precision
from mixq.errors import InputError
from mixq.graph import large
from mixq.graph.model import Layer
from mixq.graph.placement import VALUE_PRESERVING, Placement
from mixq.runtimes.base import Audit, Executable, Runtime
from mixq.runtimes.onnxruntime_audit import conversion_count, executed_nodes, kernels
from mixq.scratch import scratch_folder
from mixq.task import Inputs, Outputs

REFUSED = {
    Precision.BF16: "ONNX Runtime's CPU provider has no BF16 kernels",
    Precision.FP16: "ONNX Runtime's CPU provider casts around every FP16 op: speed and rounding are not real",
}
# What ONNX Runtime fuses with a float Gemm, before it looks for integer kernels (1.31).
GEMM_ACTIVATIONS = (
    "Clip",
    "Elu",
    "HardSigmoid",
    "LeakyRelu",
    "Relu",
    "Selu",
    "Sigmoid",
    "Softplus",
    "Softsign",
    "Tanh",
    "ThresholdedRelu",
)
INTEGER_LAYERS = ("Conv", "Gemm", "MatMul")
# What ONNX Runtime (1.31) does to a mix of INT8 and float layers if it is left to itself. It rounds the weights of a
# float layer that reads dequantized codes to 8 bits, one scale for all channels, and runs it INT8: a mix would lose
# exactly the layers that it keeps in FP32. And it moves pairs up in front of a pool behind a float layer, where
# pooling bytes takes some 20 times as long as pooling floats in the blocked layout.
DISABLED = "optimization.disable_specified_optimizers"
FOR_MIXES = "WeightBiasQuantization;QDQPropagationTransformer"
FATAL_ONLY = 4  # what it logs as an error it raises too
PROFILED_RUNS = 6


class OnnxRuntime(Runtime):
    """Fuses DequantizeLinear → op → QuantizeLinear: each op needs pairs around it, a convolution on its output too.

    Pools and reshapes are moved onto the codes where the pairs on both sides are equal. Pad and BatchNormalization
    have no rule (1.31), so they are rewritten. ReLU goes into a kernel where the output's zero point is 0.
    """

    name: ClassVar[str] = "onnxruntime"
    layout: ClassVar[Placement] = Placement(
        transparent=VALUE_PRESERVING | {"DepthToSpace", "Pad"},
        integer=frozenset(
            {
                "Add",
                "AveragePool",
                "BatchNormalization",
                "Concat",
                "GlobalAveragePool",
                "LeakyRelu",
                "Mul",
                "Sigmoid",
                "Softmax",
            }
        ),
        shrinking=frozenset({"GlobalAveragePool"}),
        up_to_codes=True,
        all_inputs=True,
        output_pairs=frozenset({"Conv"}),
        float_fusions=frozenset(("Gemm", activation) for activation in GEMM_ACTIVATIONS),
        pair_after_transparent=True,
        rewritten=frozenset({"BatchNormalization", "Pad"}),
    )

    @property
    def version(self) -> str:
        return str(onnxruntime.__version__)

    def float_refusal(self, precision: Precision) -> str | None:
        return REFUSED.get(precision)

    def int8_refusal(self, activation: Activation, layer: Layer) -> str | None:
        if activation is Activation.WEIGHT_ONLY:
            return None
        if layer.op not in INTEGER_LAYERS:
            return f"ONNX Runtime's CPU provider has no integer kernel for {layer.op}"
        if activation is Activation.DYNAMIC and layer.op == "Conv":
            return "ONNX Runtime's ConvInteger takes several times as long as its float Conv"
        return None

    def expected(self, scheme: LayerScheme, layer: Layer, config: MixedPrecisionConfig) -> str:
        if scheme.precision in REFUSED or (scheme.activation is Activation.WEIGHT_ONLY and not layer.looks_up):
            return "fp32"
        return scheme.precision.value

    def options(self, config: MixedPrecisionConfig) -> Mapping[str, str]:
        mixed = 0 < len(config.static_layers) < len(config.schemes)
        return {DISABLED: FOR_MIXES} if mixed else {}

    def typed(self, config: MixedPrecisionConfig) -> bool:
        return True

    def compile(self, model: bytes, threads: int, options: Mapping[str, str] | None = None) -> Executable:
        unknown = sorted(set(options or {}) - {DISABLED})
        if unknown:
            raise InputError(f"ONNX Runtime is opened with no other option than {DISABLED!r}, got {unknown}")
        return _Session(model, threads, options or {})


class _Session(Executable):
    def __init__(self, model: bytes, threads: int, entries: Mapping[str, str]) -> None:
        self._model, self._threads, self._entries = model, threads, entries
        self._session = _open(model, _session_options(threads, entries))
        self._names = [str(output.name) for output in self._session.get_outputs()]

    def run(self, inputs: Inputs) -> Outputs:
        found = _guarded(inputs, lambda: self._session.run(self._names, _contiguous(inputs)))
        return dict(zip(self._names, found, strict=True))

    def bind(self, inputs: Inputs) -> Callable[[], None]:
        """Inputs and outputs stay where they are, so that a call allocates and copies nothing."""
        outputs, binding = self.run(inputs), self._session.io_binding()
        for name, value in _contiguous(inputs).items():
            binding.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(value))
        for name, value in outputs.items():
            binding.bind_ortvalue_output(name, onnxruntime.OrtValue.ortvalue_from_numpy(value))
        run = self._session.run_with_iobinding
        return lambda: run(binding)

    def audit(self, layers: Sequence[Layer], inputs: Inputs, *, timed: bool = True) -> Audit:
        # Its times come with the optimized graph, which only a session made for it writes: nothing is saved without.
        with scratch_folder() as folder:
            options = _session_options(self._threads, self._entries)
            options.optimized_model_filepath = str(folder / "optimized.onnx")
            if large.split(self._model)[1] is not None:
                options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "weights")
            options.enable_profiling = True
            options.profile_file_prefix = str(folder / "profile")
            session = _open(self._model, options)
            for _ in range(PROFILED_RUNS):
                _guarded(inputs, lambda: session.run(self._names, _contiguous(inputs)))
            optimized = Path(options.optimized_model_filepath)
            nodes, count = executed_nodes(optimized, Path(session.end_profiling())), conversion_count(optimized)
        return Audit(tuple(kernels(layers, nodes, large.split(self._model)[0])), count)


def _session_options(threads: int, entries: Mapping[str, str]) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = FATAL_ONLY
    # Threads that spin after a run would slow down the model that is measured in turn with this one.
    for key, value in {"session.force_spinning_stop": "1", **entries}.items():
        options.add_session_config_entry(key, value)
    return options


def _open(model: bytes, options: Any) -> Any:
    try:
        if large.split(model)[1] is None:
            return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        with scratch_folder() as folder:  # what is mapped from its files outlives them
            path = str(large.write(model, folder))
            return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exceptions have no common base but this
        raise InputError(f"ONNX Runtime refuses the model: {_first_line(error)}") from error


def _guarded(inputs: Inputs, run: Callable[[], Any]) -> Any:
    try:
        return run()
    except Exception as error:
        shapes = {name: (str(value.dtype), value.shape) for name, value in inputs.items()}
        raise InputError(f"ONNX Runtime cannot run the model on {shapes}: {_first_line(error)}") from error


def _contiguous(inputs: Inputs) -> dict[str, Any]:
    return {name: np.ascontiguousarray(value) for name, value in inputs.items()}


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
