"""A training step of the quantized twin beside one of the FP32 network itself: `python -m
experiments.cifar10_resnet.step_time --out experiments/cifar10_resnet/step_time.md`.

Same batch, same loss, Adam for both, two threads, interleaved. The FP32 network is the torch module in train mode, in
the faster of its two memory layouts (channels last) and in the usual one. With hints the twin's loss also has tensors
inside the network, for which FP32 runs at every step. Some two minutes.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch

from experiments.cifar10_resnet.task import MobileNet, ResNet20
from experiments.etinynet.task import EtinyNet
from experiments.tables import machine_line, markdown, publish
from mixq import machine
from mixq.config import LayerScheme, Precision, RecipeStep, Stage, Training, uniform
from mixq.evaluator import Evaluator
from mixq.qat.memory import reused
from mixq.runtimes import get_runtime
from mixq.task import Task

TASKS: Mapping[str, tuple[Callable[[], Task], int]] = {
    "MobileNet, CIFAR-10": (MobileNet, 128),
    "ResNet-20, CIFAR-10": (ResNet20, 128),
    "EtinyNet, ImageNet": (EtinyNet, 32),
}
MINMAX = RecipeStep(name="calibrate", params={"activations": "minmax", "weights": "minmax"})
ROUNDS = 12


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="also write the table to this file")
    arguments = parser.parse_args()
    with reused():
        rows = [_row(name, task(), count) for name, (task, count) in TASKS.items()]
    times = ("FP32 ms", "FP32 channels last ms", "twin ms", "twin with hints ms")
    head = ("network", "rows", *times, "twin ÷ FP32", "twin ÷ channels last", "twin with hints ÷ channels last")
    publish([machine_line(), markdown(head, rows)], arguments.out)


def _row(name: str, task: Task, rows: int) -> list[str]:
    evaluator = Evaluator(task, get_runtime("openvino"))
    batch = {key: value[:rows] for key, value in evaluator.lessons.batches[0].items()}
    evaluator.lessons.batches = [batch]
    steps, hinted = (_twin_steps(evaluator, Training(steps=10**6, learning_rate=1e-6, hints=hints)) for hints in (0, 1))
    (image,) = batch.values()
    plain = _own_step(evaluator.data.model(), torch.from_numpy(image))
    last = _own_step(evaluator.data.model(), torch.from_numpy(image).contiguous(memory_format=torch.channels_last))
    torch.set_num_threads(machine.cores())
    calls: tuple[Callable[[], object], ...] = (plain, last, lambda: next(steps), lambda: next(hinted))
    found = [_timed(calls) for _ in range(2 + ROUNDS)][2:]
    medians = [f"{1e3 * statistics.median(times):.0f}" for times in zip(*found, strict=True)]
    ratios = [_spread([times[one] / times[other] for times in found]) for one, other in ((2, 0), (2, 1), (3, 1))]
    return [name, str(rows), *medians, *ratios]


def _twin_steps(evaluator: Evaluator, training: Training) -> Iterator[float]:
    """Of a twin with all layers INT8."""
    scheme = LayerScheme(precision=Precision.INT8, stage=Stage.QAT)
    config = uniform(evaluator.fingerprint, evaluator.graph.layer_names, scheme, recipe=(MINMAX,), training=training)
    course, _ = evaluator.trainer.course(config, evaluator.trainer.start(config), training)
    return course.run(training.steps, training.steps)


def _own_step(network: torch.nn.Module, image: torch.Tensor) -> Callable[[], None]:
    """One step of the FP32 network in training, towards its own first answers."""
    network.train()
    if image.is_contiguous(memory_format=torch.channels_last):
        for parameter in network.parameters():
            if parameter.ndim == 4:
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-6, fused=True)
    with torch.no_grad():
        wanted = network(image)

    def step() -> None:
        optimizer.zero_grad()
        torch.autograd.backward(torch.mean((network(image) - wanted) ** 2))
        optimizer.step()

    return step


def _timed(calls: tuple[Callable[[], object], ...]) -> list[float]:
    found = []
    for call in calls:
        began = time.perf_counter()
        call()
        found.append(time.perf_counter() - began)
    return found


def _spread(ratios: list[float]) -> str:
    """Median and quartiles."""
    low, middle, high = statistics.quantiles(ratios, n=4)
    return f"{middle:.2f} [{low:.2f}, {high:.2f}]"


if __name__ == "__main__":
    main()
