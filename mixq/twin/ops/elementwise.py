"""Arithmetic, logic and activations: the part of the table whose outputs have the (broadcast) shape of the inputs."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from mixq.twin.ops import activation, arith
from mixq.twin.ops.signature import Op, plain, spread

ELEMENTWISE: dict[str, Op] = {
    # arithmetic
    "Abs": plain(torch.abs),
    "Add": plain(torch.add),
    "Ceil": plain(torch.ceil),
    "Clip": spread(arith.clip),
    "CumSum": spread(arith.cumulative_sum),
    "Div": plain(arith.divide),
    "Erf": plain(torch.erf),
    "Exp": plain(torch.exp),
    "Floor": plain(torch.floor),
    "Log": plain(torch.log),
    "Max": plain(arith.maximum),
    "Min": plain(arith.minimum),
    "Mod": spread(arith.modulo),
    "Mul": plain(torch.mul),
    "Neg": plain(torch.neg),
    "Pow": plain(arith.power),
    "Reciprocal": plain(torch.reciprocal),
    "Round": plain(torch.round),
    "Sign": plain(torch.sign),
    "Sqrt": plain(torch.sqrt),
    "Sub": plain(torch.sub),
    "Sum": plain(arith.add_all),
    "Trilu": spread(arith.triangle),
    # trigonometry
    "Acos": plain(torch.acos),
    "Acosh": plain(torch.acosh),
    "Asin": plain(torch.asin),
    "Asinh": plain(torch.asinh),
    "Atan": plain(torch.atan),
    "Atanh": plain(torch.atanh),
    "Cos": plain(torch.cos),
    "Cosh": plain(torch.cosh),
    "Sin": plain(torch.sin),
    "Sinh": plain(torch.sinh),
    "Tan": plain(torch.tan),
    # comparisons and logic
    "And": plain(torch.logical_and),
    "BitwiseAnd": plain(torch.bitwise_and),
    "BitwiseNot": plain(torch.bitwise_not),
    "BitwiseOr": plain(torch.bitwise_or),
    "BitwiseXor": plain(torch.bitwise_xor),
    "Equal": plain(torch.eq),
    "Greater": plain(torch.gt),
    "GreaterOrEqual": plain(torch.ge),
    "IsInf": spread(arith.is_inf),
    "IsNaN": plain(torch.isnan),
    "Less": plain(torch.lt),
    "LessOrEqual": plain(torch.le),
    "Not": plain(torch.logical_not),
    "Or": plain(torch.logical_or),
    "Where": plain(torch.where),
    "Xor": plain(torch.logical_xor),
    # activations
    "Celu": spread(activation.celu),
    "Elu": spread(activation.elu),
    "Gelu": spread(activation.gelu),
    "HardSigmoid": spread(activation.hard_sigmoid),
    "HardSwish": plain(F.hardswish),
    "LeakyRelu": spread(activation.leaky_relu),
    "LogSoftmax": spread(activation.log_softmax),
    "Mish": plain(F.mish),
    "PRelu": plain(activation.prelu),
    "Relu": plain(torch.relu),
    "Selu": spread(activation.selu),
    "Shrink": spread(activation.shrink),
    "Sigmoid": plain(torch.sigmoid),
    "Softmax": spread(activation.softmax),
    "Softplus": plain(F.softplus),
    "Softsign": plain(F.softsign),
    "Tanh": plain(torch.tanh),
    "ThresholdedRelu": spread(activation.thresholded_relu),
}
