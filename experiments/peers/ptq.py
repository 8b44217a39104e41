"""mixq's full-INT8 post-training quantization beside NNCF's (on OpenVINO) and ONNX Runtime's own.

`python experiments/peers/ptq.py --out experiments/peers/ptq.md`; it needs the extra `peers`. Everything that is
compared starts from the same FP32 graph and the same calibration images, is opened alike and timed in turn.
"""

import argparse
import os
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[2]))  # the project's root: this is run by its path

from experiments.cifar10_resnet.task import ResNet20, ResNet56
from experiments.drops import drop_and_interval
from experiments.etinynet.task import EtinyNet
from experiments.peers import networks, nncf_peer, ort_peer
from experiments.tables import interval, machine_line, markdown, points, publish
from experiments.timing import geometric_mean, measure_copies
from experiments.tiny_darknet.task import TinyDarknet
from mixq import machine, measures
from mixq.batches import run_batches
from mixq.config import LayerScheme, MixedPrecisionConfig, Precision, RecipeStep
from mixq.errors import InputError
from mixq.evaluation import Candidate
from mixq.evaluator import Evaluator
from mixq.graph import Layer
from mixq.latency import Interval, PairedLatency
from mixq.runtimes import NAMES, Executable, get_runtime
from mixq.task import Outputs, Task

TRAINED: Mapping[str, Callable[[], Task]] = {
    "tiny_darknet": TinyDarknet,
    "etinynet": EtinyNet,
    "resnet20": ResNet20,
    "resnet56": ResNet56,
}
RANDOM: Mapping[str, Callable[[], Task]] = {
    "resnet18": lambda: networks.RandomWeights(lambda: networks.resnet((2, 2, 2, 2), bottleneck=False)),
    "resnet50": lambda: networks.RandomWeights(lambda: networks.resnet((3, 4, 6, 3), bottleneck=True)),
    "mobilenet_v2": lambda: networks.RandomWeights(networks.mobilenet_v2),
    "squeezenet": lambda: networks.RandomWeights(networks.squeezenet),
    "unet": lambda: networks.RandomWeights(networks.UNet),
}
TASKS = {**TRAINED, **RANDOM}

Recipe = tuple[RecipeStep, ...]
RECIPES: Mapping[str, Recipe] = {
    "minmax": (RecipeStep(name="calibrate", params={"activations": "minmax", "weights": "minmax"}),),
    "default": (),
    "adaround": (RecipeStep(name="calibrate", params={"activations": "best"}), RecipeStep(name="adaround")),
}
INT8, FP32 = LayerScheme(precision=Precision.INT8), LayerScheme(precision=Precision.FP32)
TIMED_RECIPE = RECIPES["default"]


class Contest:
    """One network on one runtime: mixq's models of it and the peer's, each made once."""

    def __init__(self, name: str, runtime: str, nncf: Any) -> None:
        """`nncf`: the module, None where no comparison with it is wanted."""
        self.name, self._nncf = name, nncf
        self.evaluator = Evaluator(TASKS[name](), get_runtime(runtime))
        self._made: dict[str, Any] = {}

    def mixq(self, recipe: Recipe) -> Candidate:
        """All layers INT8 that the runtime has an integer kernel for, the rest FP32."""
        evaluator = self.evaluator
        schemes = {layer.name: self._narrowest(layer) for layer in evaluator.graph.layers}
        return evaluator.prepare(MixedPrecisionConfig(model=evaluator.fingerprint, schemes=schemes, recipe=recipe))

    def _narrowest(self, layer: Layer) -> LayerScheme:
        refused = self.evaluator.runtime.refusal(INT8, layer)
        return FP32 if refused else INT8

    def compiled(self, candidate: Candidate) -> Executable:
        """On one thread."""
        return self.evaluator.runtime.compile(candidate.model, 1, candidate.options)

    def nncf(self, preset: str, threads: int) -> Executable:
        """NNCF's model with this preset."""
        if preset not in self._made:
            progress(f"{self.name}: NNCF quantizes, preset {preset}")
            reference, calibration = self.evaluator.reference.model, self.evaluator.data.calibration
            self._made[preset] = nncf_peer.quantize(self._nncf, reference, calibration, preset)
        return nncf_peer.opened(self._made[preset], threads)

    @cached_property
    def ort(self) -> bytes:
        """What quantize_static makes."""
        progress(f"{self.name}: quantize_static")
        return ort_peer.quantize(self.evaluator.reference.model, self.evaluator.data.calibration)


@dataclass(frozen=True)
class Timing:
    """A network's latency: the peer and FP32 against mixq; `peer`: which of the peer's models was the fastest.

    conversions: executed nodes that turn floats into codes or back, in the peer's model and in mixq's.
    """

    network: str
    peer: str
    against_peer: PairedLatency
    against_fp32: PairedLatency
    conversions: tuple[int, int]


def time_network(contest: Contest, seconds: float) -> Timing:
    """Every model of the peer against mixq's, and FP32 against mixq's. The peer's fastest counts."""
    evaluator, example = contest.evaluator, contest.evaluator.data.example
    quantized = contest.mixq(TIMED_RECIPE)
    ours = partial(contest.compiled, quantized)
    if evaluator.runtime.name == "openvino":
        peers = {preset: partial(contest.nncf, preset, 1) for preset in nncf_peer.PRESETS}
    else:
        peers = {"quantize_static": partial(evaluator.runtime.compile, contest.ort, 1)}
    progress(f"{contest.name}: timing on {evaluator.runtime.name}")
    found = {name: measure_copies(peer, ours, example, seconds) for name, peer in peers.items()}
    fastest = min(found, key=lambda name: found[name].speedup.median)
    against_fp32 = measure_copies(partial(contest.compiled, evaluator.reference), ours, example, seconds)
    progress("; ".join(f"{name} ÷ mixq: {interval(pair.speedup)}" for name, pair in found.items()))
    theirs, own = (model().audit((), example, timed=False).conversions for model in (peers[fastest], ours))
    return Timing(contest.name, fastest, found[fastest], against_fp32, (theirs, own))


@dataclass(frozen=True)
class Accuracy:
    """What one quantized model of a network loses; drops in the metric's units."""

    network: str
    model: str
    drop: float
    interval: tuple[float, float]
    output_mse: float


def judge_network(contest: Contest) -> Iterator[Accuracy]:
    """mixq's recipes, then NNCF's preset of the smaller drop, on the search split."""
    evaluator = contest.evaluator
    split = evaluator.data.split("search")
    for name, recipe in RECIPES.items():
        progress(f"{contest.name}: accuracy, mixq {name}")
        yield _accuracy(contest, f"mixq {name}", evaluator.outputs(contest.mixq(recipe), split))
    found = []
    for preset in nncf_peer.PRESETS:
        executable = contest.nncf(preset, machine.cores())
        outputs = run_batches(executable, split.batches, evaluator.data.batch_rows)
        found.append(_accuracy(contest, f"NNCF {preset}", outputs))
    yield min(found, key=lambda accuracy: (accuracy.drop, accuracy.output_mse))


def _accuracy(contest: Contest, model: str, outputs: Outputs) -> Accuracy:
    drop, bounds = drop_and_interval(contest.evaluator, "search", outputs)
    error = measures.relative_mse(contest.evaluator.reference_outputs("search"), outputs)
    return Accuracy(contest.name, model, drop, bounds, error)


def latency_table(timings: Sequence[Timing], peer: str) -> str:
    """Ratios above 1: mixq's model is the faster one."""
    rows = [
        [
            timing.network,
            f"{timing.against_peer.candidate.median:.3f}",
            f"{timing.against_peer.reference.median:.3f} ({timing.peer})",
            interval(timing.against_peer.speedup),
            interval(timing.against_fp32.speedup),
            f"{timing.conversions[1]} ({timing.conversions[0]})",
        ]
        for timing in timings
    ]
    means = [geometric_mean([speedup(timing) for timing in timings]) for speedup in (_over_peer, _over_fp32)]
    rows.append(["geometric mean", "", "", *map(interval, means), ""])
    return markdown(
        [
            "network",
            "mixq ms",
            f"{peer} ms",
            f"{peer} ÷ mixq [95 %]",
            "FP32 ÷ mixq [95 %]",
            f"conversions: mixq ({peer})",
        ],
        rows,
    )


def _over_peer(timing: Timing) -> Interval:
    return timing.against_peer.speedup


def _over_fp32(timing: Timing) -> Interval:
    return timing.against_fp32.speedup


def accuracy_table(accuracies: Sequence[Accuracy]) -> str:
    """Drops in points of the primary metric."""
    rows = [
        [found.network, found.model, points(found.drop, found.interval), f"{found.output_mse:.2e}"]
        for found in accuracies
    ]
    return markdown(["network", "model", "drop, points [95 %]", "output MSE ÷ FP32's mean square"], rows)


def compare(arguments: argparse.Namespace) -> Iterator[str]:
    """The sections of the page, one after the other."""
    runtimes = NAMES if arguments.runtime == "both" else (arguments.runtime,)
    nncf = nncf_peer.load_nncf() if "openvino" in runtimes else None
    timings: dict[str, list[Timing]] = {runtime: [] for runtime in runtimes}
    accuracies: list[Accuracy] = []
    for name in arguments.models:
        for runtime in runtimes:
            contest = Contest(name, runtime, nncf)
            if not arguments.accuracy_only:
                timings[runtime].append(time_network(contest, arguments.seconds))
            if not arguments.latency_only and runtime == "openvino" and name in TRAINED:
                accuracies += judge_network(contest)
    for runtime, found in timings.items():
        if found:
            peer = "NNCF" if runtime == "openvino" else "quantize_static"
            yield f"## Full INT8 on {runtime}, batch 1, one thread\n\n{latency_table(found, peer)}"
    if accuracies:
        yield f"## Full INT8 on openvino, search split\n\n{accuracy_table(accuracies)}"


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The command line; MIXQ_DATA is set from it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=_models, default=list(TASKS), help=f"by default all: {','.join(TASKS)}")
    parser.add_argument("--runtime", choices=[*NAMES, "both"], default="both")
    parser.add_argument("--seconds", type=float, default=3.0, help="for each pair of models (default %(default)s)")
    parser.add_argument("--data", help="the folder of the data sets; by default that of MIXQ_DATA")
    parser.add_argument("--out", type=Path, help="a file that the tables are written to as well")
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--accuracy-only", action="store_true")
    only.add_argument("--latency-only", action="store_true")
    arguments = parser.parse_args(argv)
    if arguments.accuracy_only and arguments.runtime == "onnxruntime":
        parser.error("--accuracy-only: accuracy is compared on openvino; take --runtime openvino or both")
    if arguments.data:
        os.environ["MIXQ_DATA"] = arguments.data
    return arguments


def _models(text: str) -> list[str]:
    unknown = sorted(set(text.split(",")) - set(TASKS))
    if unknown:
        raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: unknown; known: {', '.join(TASKS)}")
    return text.split(",")


def progress(line: str) -> None:
    """Say on stderr what is going on."""
    print(line, file=sys.stderr, flush=True)


def main(argv: Sequence[str]) -> int:
    """Print the page, and write it to --out. Returns the exit code: 2 for bad input."""
    arguments = parse(argv)
    try:
        sections = list(compare(arguments))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    command = shlex.join(["python", "experiments/peers/ptq.py", *argv])
    publish(["# peers: post-training quantization", f"    {command}", machine_line(), *sections], arguments.out)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
