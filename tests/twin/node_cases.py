"""ONNX's own node tests, as far as a Twin can run them: a model, its inputs and the outputs that ONNX expects."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx.backend.test.loader import load_model_tests

from mixq.twin import unsupported_ops

Arrays = Sequence[npt.NDArray[Any]]

HALF = {np.dtype(np.float16): 2e-3, np.dtype(ml_dtypes.bfloat16): 2e-2}  # with the tolerance that rounding asks for
# torch computes with these; of uint16 to uint64 it knows little more than the names.
COMPUTED = {np.dtype(name) for name in ("float32", "float64", "int8", "int16", "int32", "int64", "uint8", "bool")}

# ONNX wrote down these outputs with four digits.
ROUNDED = {"test_averagepool_2d_ceil_last_window_starts_on_pad": 1e-3, "test_gridsample_bicubic": 1e-4}

# ONNX has no case for these; test_norms.py has.
WITHOUT_CASE = {"GlobalLpPool"}

# What a Twin refuses on purpose: the words of the refusal → the cases.
REFUSED = {
    # The statistics and the dropped elements of a training graph are not ours to compute: models come in eval mode.
    "training_mode": (
        "test_batchnorm_example_training_mode",
        "test_batchnorm_epsilon_training_mode",
        "test_training_dropout_default",
        "test_training_dropout_default_mask",
        "test_training_dropout",
        "test_training_dropout_mask",
    ),
    # No runtime of ours has kernels for quantization in blocks.
    "block_size": ("test_dequantizelinear_blocked", "test_quantizelinear_blocked_asymmetric"),
    # Nothing but MaxUnpool reads the positions.
    "MaxPool gives 1 outputs": (
        "test_maxpool_with_argmax_2d_precomputed_pads",
        "test_maxpool_with_argmax_2d_precomputed_strides",
    ),
    # The largest element of nothing: torch refuses it, and no network asks for it.
    "non-zero size": ("test_reduce_max_empty_set", "test_reduce_max_empty_set_bool", "test_reduce_min_empty_set"),
    "tf_crop_and_resize": (
        "test_resize_tf_crop_and_resize",
        "test_resize_tf_crop_and_resize_axes_2_3",
        "test_resize_tf_crop_and_resize_axes_3_2",
        "test_resize_tf_crop_and_resize_extrapolation_value",
    ),
    "antialias": (
        "test_resize_downsample_scales_cubic_antialias",
        "test_resize_downsample_scales_linear_antialias",
        "test_resize_downsample_sizes_cubic_antialias",
        "test_resize_downsample_sizes_linear_antialias",
    ),
}


@dataclass(frozen=True)
class NodeCase:
    name: str
    model: ir.Model
    data: Sequence[tuple[Arrays, Arrays]]

    @property
    def tolerance(self) -> float:
        """Float32's; or, where a 16-bit float comes in or goes out, that of the coarsest of them."""
        float32 = ROUNDED.get(self.name, 1e-5)
        return max(HALF.get(array.dtype, float32) for data in self.data for part in data for array in part)


@cache
def node_cases() -> dict[str, NodeCase]:
    """By name, every case whose ops are all in the table and whose inputs and outputs are all of a type of torch."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # some cases overflow on purpose while they are made
        loaded = load_model_tests(kind="node")
    cases = [
        NodeCase(case.name, ir.from_proto(case.model), case.data_sets)
        for case in loaded
        if case.model is not None and case.data_sets is not None
    ]
    return {case.name: case for case in cases if _computed(case) and not unsupported_ops(case.model)}


def refusals() -> dict[str, str]:
    """Case name → the words of the refusal."""
    return {name: words for words, names in REFUSED.items() for name in names}


def _computed(case: NodeCase) -> bool:
    values = [value for data in case.data for part in data for value in part]
    return all(isinstance(value, np.ndarray | np.generic) and value.dtype in COMPUTED | HALF.keys() for value in values)
