"""Affine quantization: the only copy of the arithmetic.

A real number x is held as an integer q with x ≈ scale · (q − zero_point) (Jacob et al. 2018, section 2.1).
Rounding is to the nearest, ties to even, as ONNX QuantizeLinear defines it and as the integer kernels do it.

Every function takes the array namespace `xp` (numpy, or torch for what must be differentiated), so that the
simulation in training and the integers in the exported file come from the same lines.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

U8 = (0, 255)
S8 = (-128, 127)
MIDDLE = 128  # U8 less this is S8
S32 = (-(2**31), 2**31 - 1)

# Where two products of a U8 and an S8 code are added in 16 bits, what the two weights' codes may add up to, so that
# nothing saturates; and what the weights may in units of their scale, if each is rounded to the nearest code or to
# either neighbour: the sum of two codes is whole.
MOST_OF_PAIR = (2**15 - 1) // U8[1]
NEAREST, EITHER = MOST_OF_PAIR - 0.01, MOST_OF_PAIR - 1.0

# A range narrower than this cannot be told from a constant. The product of two scales, the unit of a bias, has to be a
# normal float32 too.
SMALLEST_SCALE = 2.0**-60


@dataclass(frozen=True, slots=True)
class QParams:
    """scale (float32, > 0) and zero_point (int32), both 0-d per tensor or 1-d along `axis` per channel."""

    scale: Array
    zero_point: Array
    axis: int | None = None

    def __post_init__(self) -> None:
        scale = np.asarray(self.scale, np.float32)
        zero_point = np.asarray(self.zero_point, np.int32)
        if not np.all(np.isfinite(scale)) or np.any(scale <= 0):
            raise ValueError(f"scale must be finite and positive, got {scale.min()} … {scale.max()}")
        if scale.shape != zero_point.shape or scale.ndim != (self.axis is not None):
            raise ValueError(f"scale {scale.shape} and zero_point {zero_point.shape} do not fit axis={self.axis}")
        object.__setattr__(self, "scale", scale)
        object.__setattr__(self, "zero_point", zero_point)


def asymmetric(low: float, high: float) -> QParams:
    """u8 parameters per tensor for values in [low, high]; zero is always representable exactly."""
    return QParams(*scale_and_zero_point(low, high))


def scale_and_zero_point(low: Array | float, high: Array | float) -> tuple[Array, Array]:
    """Those of `asymmetric`, of many ranges at once: float32 and int32, of the shape of `low` and `high`."""
    low, high = np.minimum(low, 0.0), np.maximum(high, 0.0)
    scale = np.maximum((high - low) / 255, SMALLEST_SCALE).astype(np.float32)
    return scale, np.clip(np.rint(-low / scale), *U8).astype(np.int32)


def even(low: float, high: float) -> QParams:
    """u8 parameters for values in [low, high] with the zero point MIDDLE, or 0 where no value is negative.

    Less MIDDLE, the codes are s8 ones with the zero point 0.
    """
    if low >= 0:
        return asymmetric(low, high)
    scale = np.float32(max(float(high) / S8[1], float(low) / S8[0], SMALLEST_SCALE))
    return QParams(np.asarray(scale), np.asarray(MIDDLE))


def symmetric(magnitude: Array, axis: int | None) -> QParams:
    """s8 parameters, zero_point 0, for values in [−magnitude, magnitude]; one magnitude a channel along `axis`, or 0-d.

    ±magnitude have the codes ±127, so that the negative of a weight has a code too.
    """
    scale = np.maximum(np.asarray(magnitude, np.float64) / S8[1], SMALLEST_SCALE).astype(np.float32)
    return QParams(scale, np.zeros(scale.shape, np.int32), axis)


def with_room_for_bias(magnitude: Array, bias: Array, data_scale: Array | float) -> Array:
    """`magnitude`, widened where the bias, in units of data scale × weight scale, would not fit 31 bits."""
    return np.maximum(magnitude, np.abs(bias) * S8[1] / (float(data_scale) * 2.0**30))


def with_room_for_pairs(magnitude: Array, pair_sums: Array, most: float) -> Array:
    """`magnitude`, widened where the largest sum of a pair of weights, one a channel, is above `most` in codes."""
    return np.maximum(magnitude, pair_sums * S8[1] / most)


def along(value: Any, axis: int | None, ndim: int) -> Any:
    """`value` (0-d, or 1-d along `axis`) shaped so that it broadcasts over an array of rank `ndim`."""
    if axis is None:
        return value
    shape = [1] * ndim
    shape[axis] = -1
    return value.reshape(shape)


def codes(x: Any, scale: Any, zero_point: Any, limits: tuple[int, int], xp: Any = np) -> Any:
    """Integer codes of x, kept in x's own float type: clip(round(x / scale) + zero_point, *limits)."""
    return xp.clip(xp.round(x / scale) + zero_point, limits[0], limits[1])


def values(q: Any, scale: Any, zero_point: Any) -> Any:
    """The real numbers that the codes q stand for: scale · (q − zero_point)."""
    return (q - zero_point) * scale


def rounded(x: Any, scale: Any, zero_point: Any, limits: tuple[int, int], xp: Any = np) -> Any:
    """values(codes(x)) with less memory traffic: the zero point cancels, and one array is worked on in place."""
    found = x / scale
    xp.round(found, out=found)
    xp.clip(found, limits[0] - zero_point, limits[1] - zero_point, out=found)
    found *= scale
    return found


def quantize(x: Array, qparams: QParams, limits: tuple[int, int]) -> Array:
    """x as integers: uint8 for U8, int8 for S8, int32 for S32. NaN is refused (ValueError)."""
    if np.isnan(x).any():
        raise ValueError("cannot quantize NaN")
    scale = along(qparams.scale, qparams.axis, x.ndim)
    zero_point = along(qparams.zero_point, qparams.axis, x.ndim)
    # int32 codes need float64: float32 holds integers exactly only up to 2**24.
    wide = np.float64 if limits == S32 else np.float32
    dtype = {U8: np.uint8, S8: np.int8, S32: np.int32}[limits]
    return np.asarray(codes(x.astype(wide), scale.astype(wide), zero_point, limits), dtype)


def dequantize(q: Array, qparams: QParams) -> Array:
    """float32 values of the codes q."""
    scale = along(qparams.scale, qparams.axis, q.ndim)
    zero_point = along(qparams.zero_point, qparams.axis, q.ndim)
    return np.asarray(values(q.astype(np.float64), scale, zero_point), np.float32)


def fake_quantize(x: Array, qparams: QParams, limits: tuple[int, int]) -> Array:
    """x rounded to what its codes can hold: dequantize(quantize(x))."""
    return dequantize(quantize(x, qparams, limits), qparams)
