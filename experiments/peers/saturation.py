"""Weights where kernels add in 16 bits: `python -m experiments.peers.saturation --out experiments/peers/saturation.md`.

For CPUs without VNNI or AMX. All layers INT8 on the runtimes' own kernels; three ways to choose the scale of a channel.
"""

import argparse
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from unittest.mock import patch

import numpy as np

from experiments.cifar10_resnet.task import ResNet20
from experiments.drops import drop_and_interval
from experiments.etinynet.task import EtinyNet
from experiments.tables import machine_line, markdown, points, publish
from experiments.tiny_darknet.task import TinyDarknet
from mixq import affine, measures
from mixq.config import LayerScheme, Precision, RecipeStep, uniform
from mixq.evaluator import Evaluator
from mixq.graph.model import Layer
from mixq.ptq import calibrate
from mixq.ptq.neighbours import pair_sums, with_room
from mixq.runtimes import NAMES, get_runtime
from mixq.task import Array, Task

TASKS: Mapping[str, Callable[[], Task]] = {"resnet20": ResNet20, "etinynet": EtinyNet, "tiny_darknet": TinyDarknet}
INTRODUCTION = """# peers: weights for kernels that add in 16 bits

    python -m experiments.peers.saturation

CPUs without VNNI or AMX: `vpmaddubsw` adds two products of bytes in 16 bits and cuts off what does not fit. All layers
INT8, `calibrate` alone, on the runtimes' own kernels. Half the range is what NNCF's overflow fix and quantize_static's
`reduce_range` do; here depthwise layers, which need it not, keep theirs. Room for pairs: the scale of a channel is as
large as its largest sum of two neighbouring weights wants."""
RECIPE = (RecipeStep(name="calibrate"),)

Scale = Callable[[Array, Array, Layer, float], Array]


def _whole_range(magnitude: Array, weight: Array, layer: Layer, most: float) -> Array:
    return magnitude


def _half_range(magnitude: Array, weight: Array, layer: Layer, most: float) -> Array:
    """Codes up to 63, of which any two fit; depthwise layers, which need it not, keep theirs."""
    return np.where(pair_sums(weight, layer) > 0, magnitude * affine.S8[1] / (affine.MOST_OF_PAIR // 2 - 1), magnitude)


WAYS: Mapping[str, Scale] = {
    "as if sums fitted": _whole_range,
    "half the range": _half_range,
    "room for pairs (mixq)": with_room,
}


def main(argv: Sequence[str] | None = None) -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--data", help="the folder of the data sets; by default that of MIXQ_DATA")
    parser.add_argument("--out", type=Path, help="also write the table to this file")
    arguments = parser.parse_args(argv)
    if arguments.data:
        os.environ["MIXQ_DATA"] = arguments.data
    rows = [
        [model, runtime, name, *_measured(model, runtime, scale)]
        for model in arguments.models
        for runtime in NAMES
        for name, scale in WAYS.items()
    ]
    head = ["network, all INT8", "runtime", "scales of weights", "squared error", "drop, points [95 %]"]
    publish([INTRODUCTION, machine_line(), markdown(head, rows)], arguments.out)


def _measured(model: str, runtime: str, scale: Scale) -> list[str]:
    evaluator = Evaluator(TASKS[model](), get_runtime(runtime))
    if not evaluator.runtime.placement.sums_saturate:
        raise SystemExit(f"{runtime} adds in 32 bits on this CPU: there is nothing to compare")
    scheme = LayerScheme(precision=Precision.INT8)
    config = uniform(evaluator.fingerprint, evaluator.graph.layer_names, scheme, recipe=RECIPE)
    with patch.object(calibrate, "with_room", scale):
        candidate = evaluator.prepare(config)
    outputs = evaluator.outputs(candidate, evaluator.data.split("search"))
    error = measures.relative_mse(evaluator.reference_outputs("search"), outputs)
    return [f"{error:.4f}", points(*drop_and_interval(evaluator, "search", outputs))]


if __name__ == "__main__":
    main()
