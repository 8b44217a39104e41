"""PTQ, QAT and their mix on a depthwise network whose weights have one scale a tensor, as some hardware wants it.

    python -m experiments.cifar10_resnet.qat --out experiments/cifar10_resnet/qat.md

First all layers INT8 on integer kernels: drops of recipes, of training all layers, and of training the most sensitive
ones only. Then searches with stages [ptq], [qat] and [ptq, qat], each within the same drop and the same wall time: for
speed among FP32 and INT8 (where a CPU has BF16, that is faster than either here and loses nothing), and for the
smallest file among FP32, FP16 and INT8. Half an hour on two cores.
"""

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import mixq
from experiments.cifar10_resnet.task import MobileNet
from experiments.drops import drop_and_interval
from experiments.tables import machine_line, markdown, points, publish
from mixq import measures
from mixq.config import LayerScheme, MixedPrecisionConfig, Precision, RecipeStep, Stage, Training
from mixq.evaluator import Evaluator
from mixq.runtimes import get_runtime
from mixq.searcher.space import Objective, SearchSpace, TrainingSpace
from mixq.sensitivity import analyze

Recipe = tuple[RecipeStep, ...]
TENSOR = {"granularity": "tensor"}
CALIBRATE = RecipeStep(name="calibrate", params=TENSOR)
BEST = RecipeStep(name="calibrate", params={"activations": "best", **TENSOR})
EQUALIZE, ADAROUND, BIAS_CORRECTION = (RecipeStep(name=name) for name in ("equalize", "adaround", "bias_correction"))
QUICK = (CALIBRATE, BIAS_CORRECTION)
EQUALIZED = (EQUALIZE, BEST, ADAROUND)
RECIPES = {
    "calibrate (min–max)": (
        RecipeStep(name="calibrate", params={"activations": "minmax", "weights": "minmax", **TENSOR}),
    ),
    "calibrate, bias_correction": QUICK,
    "equalize, calibrate, bias_correction": (EQUALIZE, *QUICK),
    "calibrate (best), adaround": (BEST, ADAROUND),
    "calibrate, adaround, bias_correction": (CALIBRATE, ADAROUND, BIAS_CORRECTION),
    "equalize, calibrate (best), adaround": EQUALIZED,
}
PER_CHANNEL = (RecipeStep(name="calibrate"), BIAS_CORRECTION)
SHORT, LONG = Training(steps=60, learning_rate=0.1), Training(steps=240, learning_rate=0.1)
BANKED = Training(steps=60, learning_rate=0.1, bank=180)
SOME = (3, 8, 16)  # most sensitive layers, trained while the others are not

OBJECTIVES: tuple[Objective, ...] = ("latency", "size")
STAGES: Sequence[tuple[Stage, ...]] = ((Stage.PTQ,), (Stage.QAT,), (Stage.PTQ, Stage.QAT))


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="also write the tables to this file")
    parser.add_argument("--max-drop", type=float, default=0.01, help="of the searches")
    parser.add_argument("--seconds", type=float, default=60, help="of each search")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--only", choices=["drops", "searches"], help="one of the two tables")
    arguments = parser.parse_args()
    sections = [machine_line()]
    if arguments.only != "searches":
        said = (
            "All layers INT8, weights with one scale a tensor unless it says otherwise. KL and squared error on the "
            f"search split. {SHORT.steps} steps of 128 images; seconds with everything that they need."
        )
        sections += [said, drop_table()]
    if arguments.only != "drops":
        most = 100 * arguments.max_drop
        asked = f"Searches of {arguments.seconds:.0f} s, 1 thread, within a drop of {most:g} points."
        sections += [asked, search_table(arguments.max_drop, arguments.seconds, arguments.seeds)]
    publish(sections, arguments.out)


def drop_table() -> str:
    """A row a way to INT8."""
    evaluator = Evaluator(MobileNet(), get_runtime("openvino"))
    layers = evaluator.graph.layer_names
    rows = [_row(evaluator, "PTQ: scales per channel", _config(evaluator, PER_CHANNEL))]
    rows += [_row(evaluator, f"PTQ: {name}", _config(evaluator, recipe)) for name, recipe in RECIPES.items()]
    ranking = analyze(evaluator, [LayerScheme(precision=Precision.INT8)], QUICK, rows=200).ranking(_scheme(Stage.PTQ))
    for count in SOME:
        name = f"mixed: the {count} most sensitive layers QAT, {SHORT.steps} steps"
        rows.append(_row(evaluator, name, _config(evaluator, QUICK, SHORT, ranking[:count])))
    for training in (SHORT, LONG, BANKED):
        bank = f" after {training.bank} shared ones" if training.bank else ""
        rows.append(_row(evaluator, f"QAT: {training.steps} steps{bank}", _config(evaluator, QUICK, training, layers)))
    hinted = [training.model_copy(update={"hints": 1.0}) for training in (SHORT, LONG)]
    starts: list[tuple[str, Recipe, Training]] = [
        *(("adaround", (BEST, ADAROUND), training) for training in (SHORT, LONG, *hinted)),
        *(("equalize and adaround", EQUALIZED, training) for training in (LONG, hinted[-1])),
    ]
    for start, recipe, training in starts:
        name = f"QAT: {training.steps} steps, from {start}{', with hints' if training.hints else ''}"
        rows.append(_row(evaluator, name, _config(evaluator, recipe, training, layers)))
    head = ("way to INT8", "drop, search [95 %]", "drop, holdout [95 %]", "KL", "squared error", "seconds")
    return markdown(head, rows)


def search_table(max_drop: float, seconds: float, seeds: int) -> str:
    """A row a search."""
    rows = []
    for objective in OBJECTIVES:
        for stages in STAGES:
            for seed in range(seeds):
                _say(f"search for {objective}, stages {', '.join(stages)}, seed {seed}")
                rows.append(_searched(objective, stages, max_drop, seconds, seed))
    measures = ("size", "speed-up [95 %]", "drop, search", "drop, holdout [95 %]")
    return markdown(("for", "stages", "seed", *measures, "layers", "best after", "trials"), rows)


def _searched(objective: Objective, stages: tuple[Stage, ...], max_drop: float, seconds: float, seed: int) -> list[str]:
    space = SearchSpace(
        precisions=(Precision.FP32, *([Precision.FP16] if objective == "size" else []), Precision.INT8),
        stages=stages,
        rest=(Precision.FP32,),
        objectives=(objective,),
        recipes={"quick": QUICK, "adaround": (BEST, ADAROUND), "equalized": EQUALIZED},
        training=TrainingSpace(steps=(60, 240), learning_rate=(0.1,)) if Stage.QAT in stages else None,
    )
    with tempfile.TemporaryDirectory() as folder:
        found = mixq.search(
            MobileNet(),
            space,
            folder,
            max_drop=max_drop,
            timeout=seconds,
            trials=10**6,
            seed=seed,
            tracking="none",
            quiet=True,
        )
    named = [objective, ", ".join(stages), str(seed)]
    best = found.best.evaluation if found.best else None
    if found.best is None or best is None:
        return [*named, "", "none found", "", "", "", "", str(len(found.trials))]
    summary = found.summary["best"]
    assert isinstance(summary, dict)
    holdout = summary["holdout"]
    speed = best.speedup
    counts = ", ".join(f"{number} {name}" for name, number in found.best.config.counts().items())
    return [
        *named,
        f"1/{best.compression:.2f}",
        f"{speed.median:.2f} [{speed.low:.2f}, {speed.high:.2f}]",
        f"{100 * best.drop:+.2f}",
        points(holdout["drop"], tuple(holdout["drop_interval"])),
        counts,
        f"{found.best.elapsed_s:.0f} s",
        str(len(found.trials)),
    ]


def _scheme(stage: Stage) -> LayerScheme:
    return LayerScheme(precision=Precision.INT8, stage=stage)


def _config(
    evaluator: Evaluator,
    recipe: tuple[RecipeStep, ...],
    training: Training | None = None,
    trained: Sequence[str] = (),
) -> MixedPrecisionConfig:
    names = evaluator.graph.layer_names
    schemes = {name: _scheme(Stage.QAT if name in trained else Stage.PTQ) for name in names}
    return MixedPrecisionConfig(model=evaluator.fingerprint, schemes=schemes, recipe=recipe, training=training)


def _row(evaluator: Evaluator, name: str, config: MixedPrecisionConfig) -> list[str]:
    _say(name)
    began = time.perf_counter()
    candidate = evaluator.prepare(config)
    seconds = time.perf_counter() - began
    drops = [
        points(*drop_and_interval(evaluator, split, evaluator.outputs(candidate, evaluator.data.split(split))))
        for split in ("search", "holdout")
    ]
    split, reference = evaluator.data.split("search"), evaluator.reference_outputs("search")
    outputs = evaluator.outputs(candidate, split)
    scores = measures.class_measures(reference, outputs, split.targets)
    error = measures.relative_mse(reference, outputs)
    return [name, *drops, f"{scores.kl:.4f}" if scores else "", f"{error:.4f}", f"{seconds:.0f}"]


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    main()
