"""What training recovers of EtinyNet in INT8: `python -m experiments.etinynet.qat --out experiments/etinynet/qat.md`.

All layers INT8, on the runtime's integer kernels. Trained on 1,000 unlabelled images, judged on 650 others, five views
of each: more answers tell small drops apart that one answer an image cannot. About 25 minutes on two cores.
"""

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from experiments.classification import LabelledImages
from experiments.drops import drop_and_interval
from experiments.etinynet.task import EtinyNet
from experiments.imagenet import VIEWS, labelled_files, read_views, varied
from experiments.tables import machine_line, markdown, points, publish
from mixq import measures
from mixq.config import LayerScheme, MixedPrecisionConfig, Precision, RecipeStep, Stage, Training, uniform
from mixq.evaluation import Candidate
from mixq.evaluator import Evaluator
from mixq.runtimes import get_runtime
from mixq.task import Inputs

BATCH = 25
COPIES = 1

Recipe = tuple[RecipeStep, ...]
ADAROUND, BIAS_CORRECTION = RecipeStep(name="adaround"), RecipeStep(name="bias_correction")
RECIPES: dict[str, Recipe] = {
    "calibrate (min–max)": (RecipeStep(name="calibrate", params={"activations": "minmax", "weights": "minmax"}),),
    "calibrate": (RecipeStep(name="calibrate"),),
    "calibrate, bias_correction": (RecipeStep(name="calibrate"), BIAS_CORRECTION),
    "equalize, calibrate, bias_correction": (
        RecipeStep(name="equalize"),
        RecipeStep(name="calibrate"),
        BIAS_CORRECTION,
    ),
    "calibrate, adaround": (RecipeStep(name="calibrate"), ADAROUND),
    "equalize, calibrate, adaround": (RecipeStep(name="equalize"), RecipeStep(name="calibrate"), ADAROUND),
    "calibrate (best), adaround": (RecipeStep(name="calibrate", params={"activations": "best"}), ADAROUND),
}
BEST = "equalize, calibrate, adaround"
# From the best recipe there is little left to learn: small steps, and the scales that AdaRound has chosen codes for.
TRAININGS = [
    ("calibrate, bias_correction", Training(steps=500, learning_rate=0.1, hints=1.0)),
    *((BEST, Training(steps=500, learning_rate=0.03, scales=False, seed=seed)) for seed in range(3)),
]


class EtinyNetViews(EtinyNet):
    """Training: the 1,000 images of `train_like`, without labels. Search: five views of each validation image."""

    rows_per_sample = VIEWS

    def training(self) -> Iterator[Inputs]:
        """Each image as it is, and COPIES varied copies of it, BATCH at a time."""
        images, rng = self._read_once("training").images, np.random.default_rng(0)
        for copy in range(1 + COPIES):
            for start in range(0, len(images), BATCH):
                part = images[start : start + BATCH]
                yield {"image": self.preprocess(np.stack([varied(image, rng) for image in part]) if copy else part)}

    def read(self, part: str) -> LabelledImages:
        """As EtinyNet's, but for the views."""
        if part != "search":
            return super().read(part)
        files = labelled_files(part)
        images = np.concatenate([read_views(file) for file, _ in files])
        return LabelledImages(images, np.repeat([label for _, label in files], VIEWS).astype(np.int64))


def main() -> None:
    """Measures each recipe and the training, and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="also write the table to this file")
    arguments = parser.parse_args()
    evaluator = Evaluator(EtinyNetViews(), get_runtime("openvino"))
    # The seconds of steps that rows share count for the first of them.
    rows = [_row(evaluator, f"PTQ: {name}", _config(evaluator, recipe)) for name, recipe in RECIPES.items()]
    for start, training in TRAININGS:
        hints = " with hints" if training.hints else ""
        name = f"QAT: {training.steps} steps of {BATCH} images{hints}, from {start}, seed {training.seed}"
        rows.append(_row(evaluator, name, _config(evaluator, RECIPES[start], training)))
    head = ("all 44 layers INT8", "drop, points [95 %]", "KL", "squared error", "INT8 kernels", "prepared in")
    publish([machine_line(), _data_line(evaluator), markdown(head, rows)], arguments.out)


def _config(evaluator: Evaluator, recipe: Recipe, training: Training | None = None) -> MixedPrecisionConfig:
    scheme = LayerScheme(precision=Precision.INT8, stage=Stage.QAT if training else Stage.PTQ)
    return uniform(evaluator.fingerprint, evaluator.graph.layer_names, scheme, recipe=recipe, training=training)


def _row(evaluator: Evaluator, name: str, config: MixedPrecisionConfig) -> list[str]:
    began = time.perf_counter()
    candidate = evaluator.prepare(config, _progress)
    seconds = time.perf_counter() - began
    print(flush=True)
    return [name, *_measured(evaluator, candidate), f"{seconds:.0f} s"]


def _measured(evaluator: Evaluator, candidate: Candidate) -> list[str]:
    split, reference = evaluator.data.split("search"), evaluator.reference_outputs("search")
    outputs = evaluator.outputs(candidate, split)
    drop, bounds = drop_and_interval(evaluator, "search", outputs)
    scores = measures.class_measures(reference, outputs, split.targets)
    kernels = evaluator.profile(candidate)
    int8 = sum(kernel.executed == "int8" for kernel in kernels)
    return [
        points(drop, bounds),
        f"{scores.kl:.4f}" if scores else "",
        f"{measures.relative_mse(reference, outputs):.4f}",
        f"{int8} of {len(kernels)}",
    ]


def _data_line(evaluator: Evaluator) -> str:
    rows = evaluator.data.split("search").rows
    top1 = evaluator.reference_metrics["top1"]
    return (
        f"Judged on {rows // VIEWS} images, {VIEWS} views each, none of them trained on: FP32 top-1 {100 * top1:.2f} %."
    )


def _progress(line: str) -> None:
    print(f"\r{line:78}", end="", flush=True)


if __name__ == "__main__":
    main()
