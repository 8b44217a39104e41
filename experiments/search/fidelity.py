"""How well the search's own models predict what is then measured: latency, and the distance from FP32.

    python -m experiments.search.fidelity --data FOLDER

Random mixes of FP32, INT8 and, where the CPU has it, BF16, in runs of layers of random length, are measured on
OpenVINO. Latency: the first mixes teach the cost model, measured as briefly as a search does; the others, measured for
longer, test it. They are measured twice, and the second measurement's rank correlation with the first stands beside the
model's with their mean. Error: random mixes of FP32 and
INT8; the prediction comes from the analysis of single layers on 200 rows that every search makes, the measured KL from
the whole search split.
"""

import argparse
import os
import sys
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from scipy.stats import kendalltau, spearmanr

from experiments.cifar10_resnet.task import ResNet20
from experiments.etinynet.task import EtinyNet
from experiments.tables import machine_line, markdown
from experiments.tiny_darknet.task import TinyDarknet
from mixq import measures
from mixq.analysis import ANALYSIS_ROWS
from mixq.config import LayerScheme, Precision
from mixq.evaluator import Evaluator
from mixq.latency import Interval, measure_pair
from mixq.runtimes import get_runtime
from mixq.searcher.choices import Choices, Params, make_choices
from mixq.searcher.cost import CostModel, Observation, take_profiles
from mixq.searcher.solve import Errors
from mixq.searcher.space import SearchSpace
from mixq.sensitivity import analyze
from mixq.task import Task

TASKS: Mapping[str, Callable[[], Task]] = {"resnet20": ResNet20, "tiny_darknet": TinyDarknet, "etinynet": EtinyNet}
SPACE = SearchSpace.model_validate({"precisions": ["fp32", "bf16", "int8"], "rest": ["fp32", "bf16"]})
INT8 = LayerScheme(precision=Precision.INT8)
TAUGHT = (0, 5, 10, 20, 40)
TESTED = 40
SECONDS = 0.3  # a measurement that teaches
TESTED_SECONDS = 1.0  # one that tests
MIXES = 40  # for the error


def random_mix(choices: Choices, rng: np.random.Generator, kinds: Sequence[str]) -> Params:
    """Runs of layers in one precision each, short in some mixes and long in others."""
    changes, kind = rng.random(), str(rng.choice(kinds))
    found = {}
    for unit in choices.units:
        if rng.random() < changes:
            kind = str(rng.choice(kinds))
        found[unit.name] = kind
    rest = str(rng.choice([rest.value for rest in choices.rest if rest.value in kinds]))
    return {**found, "rest": rest, "recipe": next(iter(choices.recipes))}


def latency_rows(name: str, evaluator: Evaluator, choices: Choices) -> list[list[str]]:
    """A row for each number of trials that the model has learned from."""
    model = CostModel(choices, evaluator.graph, take_profiles(evaluator, choices))
    rng = np.random.default_rng(0)
    kinds = list(dict.fromkeys(str(scheme) for unit in choices.units for scheme in unit.schemes))
    mixes = [random_mix(choices, rng, kinds) for _ in range(max(TAUGHT) + TESTED)]
    taught, tests = mixes[: max(TAUGHT)], mixes[-TESTED:]
    seen = [observation(model, mix, speedups(evaluator, choices, mix, SECONDS)[0]) for mix in taught]
    tested = [speedups(evaluator, choices, mix, TESTED_SECONDS, 2) for mix in tests]
    costs = 1 / np.array([[one.median for one in pair] for pair in tested])
    wanted = costs.mean(1)
    again = float(spearmanr(*costs.T).statistic)
    noise = np.median([one.deviation / one.cost for one in seen])
    rows = []
    for count in TAUGHT:
        model.fit(seen[:count])
        found = np.array([model.predict(mix) for mix in tests])
        errors = np.abs(found / wanted - 1)
        correlation = float(spearmanr(found, wanted).statistic)
        figures = [f"{np.median(errors):.1%}", f"{np.quantile(errors, 0.9):.1%}", f"{correlation:.3f}"]
        spread = f"{wanted.min():.2f} … {wanted.max():.2f}"
        rows.append([name, str(count), *figures, f"{again:.3f}", spread, f"{noise:.1%}"])
    return rows


def speedups(evaluator: Evaluator, choices: Choices, mix: Params, seconds: float, times: int = 1) -> list[Interval]:
    """`times` measurements beside FP32."""
    runtime, example = evaluator.runtime, evaluator.data.example
    reference, candidate = evaluator.reference, evaluator.prepare(choices.config(mix))
    calls = [runtime.compile(one.model, 1, one.options).bind(example) for one in (reference, candidate)]
    return [measure_pair(calls[0], calls[1], seconds).speedup for _ in range(times)]


def observation(model: CostModel, mix: Params, speedup: Interval) -> Observation:
    """What a trial that measured `speedup` would teach."""
    return model.observe(mix, 1 / speedup.median, (1 / speedup.low - 1 / speedup.high) / 4)


def error_row(name: str, evaluator: Evaluator, choices: Choices) -> list[str]:
    """Predicted against measured KL."""
    sensitivity = analyze(evaluator, [INT8], rows=ANALYSIS_ROWS)
    errors, alone = Errors(choices, sensitivity.interactions), sensitivity.errors(INT8)
    split, reference = evaluator.data.split("search"), evaluator.reference_outputs("search")
    rng = np.random.default_rng(1)
    predicted, summed, measured = [], [], []
    for _ in range(MIXES):
        mix = random_mix(choices, rng, ("fp32", "int8"))
        outputs = evaluator.outputs(evaluator.prepare(choices.config(mix)), split)
        scores = measures.class_measures(reference, outputs, split.targets)
        if scores is None:
            raise SystemExit(f"{name}: its outputs are no class scores")
        predicted.append(errors.error(mix))
        summed.append(sum(error for layer, error in alone.items() if mix[layer] == "int8"))
        measured.append(scores.kl)
    ratios = np.array(measured) / np.maximum(predicted, 1e-12)
    low, middle, high = np.quantile(ratios, [0.1, 0.5, 0.9])
    taus = [float(kendalltau(found, measured).statistic) for found in (predicted, summed)]
    return [name, *(f"{tau:.3f}" for tau in taus), f"{middle:.2f} [{low:.2f}, {high:.2f}]", f"{max(measured):.4f}"]


def main(argv: Sequence[str]) -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--data", help="the folder of the data sets; by default that of MIXQ_DATA")
    arguments = parser.parse_args(argv)
    if arguments.data:
        os.environ["MIXQ_DATA"] = arguments.data
    latency, error = [], []
    for name in arguments.models:
        evaluator = Evaluator(TASKS[name](), get_runtime("openvino"))
        choices = make_choices(SPACE, evaluator.graph, evaluator.runtime, evaluator.fingerprint)
        latency += latency_rows(name, evaluator, choices)
        error.append(error_row(name, evaluator, choices))
    head = [
        "network",
        "trials learned from",
        "median error",
        "90 %",
        "Spearman ρ",
        "ρ of a second measurement",
        "latency ÷ FP32's",
        "timing's noise",
    ]
    print(markdown(head, latency), end="\n\n")
    print(markdown(["network", "τ", "τ, errors summed", "measured ÷ predicted KL [10, 90 %]", "largest KL"], error))
    print(f"\n{machine_line()}")


if __name__ == "__main__":
    main(sys.argv[1:])
