"""Dynamic axes: one network for inputs of every size, captured, quantized and run; what is not so is refused."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from mixq.config import LayerScheme, Precision, uniform
from mixq.dataset import TaskData
from mixq.dynamic_axes import checked_axes
from mixq.errors import InputError
from mixq.evaluator import Evaluator
from mixq.graph import Graph, capture, serialize
from mixq.graph.capture import relative_error
from mixq.runtimes import NAMES, get_runtime
from mixq.task import Array, Inputs, Outputs, Task
from tests.helpers import Net, images, ort_run, reference_run

EXAMPLE: Inputs = {"image": np.zeros((2, 3, 8, 8), np.float32), "mask": np.zeros((2, 4), np.int64)}


@pytest.mark.parametrize(
    ("axes", "said"),
    [
        (7, "NAME must be a dict input → axes"),
        ({"picture": (2,)}, "NAME names the input 'picture'; calibration yields image, mask"),
        ({"image": 2}, r"NAME\['image'\] must list axes, e.g. \(2, 3\), got 2"),
        ({"image": "23"}, r"NAME\['image'\] must list axes"),
        *(({"image": (axis,)}, r"a whole number from 1 to 3.*0 is the batch") for axis in (0, 4, -1, 2.0, True, None)),
        ({"mask": (2,)}, r"NAME\['mask'\] holds 2; .*from 1 to 1"),
    ],
)
def test_bad_axes_are_refused(axes: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        checked_axes("NAME", axes, EXAMPLE)


def test_axes_are_sorted_and_named_once() -> None:
    assert checked_axes("NAME", {"image": [3, 2, 3], "mask": []}, EXAMPLE) == {"image": (2, 3), "mask": ()}


class Dense(torch.nn.Module):
    """Down, up and across: an image of every even size gives scores by place, and their mean by class."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.down = torch.nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.up = torch.nn.ConvTranspose2d(8, 8, 2, stride=2)
        self.across = torch.nn.Conv2d(11, 4, 1)
        self.eval()

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        found = self.up(torch.relu(self.down(image)))
        scores: torch.Tensor = self.across(torch.cat([image, torch.relu(found)], 1)).mean((2, 3))
        return scores


class Tokens(torch.nn.Module):
    """A bag of as many tokens as there are; where the mask is 0 there is none."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = torch.nn.Embedding(20, 8)
        self.hidden = torch.nn.Linear(8, 16)
        self.out = torch.nn.Linear(16, 3)
        self.eval()

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        words = torch.relu(self.hidden(self.embedding(ids))) * mask[:, :, None]
        scores: torch.Tensor = self.out(words.sum(1) / mask.sum(1, keepdim=True))
        return scores


def sized(height: int, width: int, rows: int = 3) -> dict[str, Array]:
    rng = np.random.default_rng(height * width)
    return {"image": rng.standard_normal((rows, 3, height, width), dtype=np.float32)}


def sentences(length: int, rows: int = 3) -> dict[str, Array]:
    ids = np.random.default_rng(length).integers(0, 20, (rows, length))
    return {"ids": ids, "mask": np.ones((rows, length), np.float32)}


def by_torch(module: torch.nn.Module, inputs: Inputs) -> Array:
    double = {n: torch.from_numpy(v.astype(np.float64) if v.dtype.kind == "f" else v) for n, v in inputs.items()}
    with torch.no_grad():
        found: Array = module.double()(**double).numpy()
    return found


@pytest.fixture(scope="module")
def dense() -> Graph:
    return capture(Dense(), sized(8, 8), ort_run, {"image": (2, 3)})


@pytest.mark.parametrize("size", [(8, 8), (16, 10), (2, 4), (6, 30)])
@pytest.mark.parametrize("runtime", NAMES)
def test_an_image_of_any_size(runtime: str, size: tuple[int, int], dense: Graph) -> None:
    inputs = sized(*size)
    (found,) = get_runtime(runtime).compile(serialize(dense.model), 1).run(inputs).values()
    assert relative_error(by_torch(Dense(), inputs), found) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("calibrated", [1, 2, 3, 8])
def test_a_sentence_of_any_length(calibrated: int) -> None:
    """Also where calibration's length is that of its batch, or 1, which exporters like to take for constants."""
    graph = capture(Tokens(), sentences(calibrated), ort_run, {"ids": (1,), "mask": [1]})
    for length in (1, 2, 3, 17):
        inputs = sentences(length)
        (found,) = reference_run(serialize(graph.model))(inputs).values()
        assert relative_error(by_torch(Tokens(), inputs), found) < 1e-5


@pytest.mark.slow
def test_without_it_the_size_is_calibrations() -> None:
    graph = capture(Dense(), sized(8, 8), ort_run)
    with pytest.raises(InputError, match="image"):
        ort_run(serialize(graph.model))(sized(16, 10))


class Fixed(torch.nn.Module):
    """A classifier that flattens: its images have one size."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(3 * 64, 2)
        self.eval()

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.linear(image.flatten(1))
        return found


def test_a_torch_module_that_fixes_a_size_is_refused() -> None:
    with pytest.raises(InputError, match=r"cannot run other sizes on its dynamic axes.*\(3, 3, 4, 4\).*leave out"):
        capture(Fixed(), sized(8, 8), ort_run, {"image": (2, 3)})


def file(folder: Path, *, fixed: bool) -> Path:
    """Written for 8 × 8 images; `fixed`: with that size inside the graph too."""
    net = Net(3, 8, 8, name="image")
    last = net.op("Relu", net.conv("image", 4, "first"))
    last = net.gemm(net.op("Flatten", last), 4 * 64, 4) if fixed else net.gemm(net.pooled(last), 4, 4)
    onnx.save(net.model(last), folder / "model.onnx")
    return folder / "model.onnx"


@pytest.mark.parametrize("runtime", NAMES)
def test_a_file_of_one_size_is_freed_where_the_graph_bears_it(runtime: str, tmp_path: Path) -> None:
    path = file(tmp_path, fixed=False)
    compile_run = get_runtime(runtime).compile
    graph = capture(path, sized(8, 8), lambda model: compile_run(model, 1).run, {"image": (2, 3)})
    inputs = sized(12, 5)
    ((want,), (have,)) = (
        reference_run(path.read_bytes())(inputs).values(),
        compile_run(serialize(graph.model), 1).run(inputs).values(),
    )
    assert relative_error(want, have) < 1e-5


def test_a_file_that_fixes_a_size_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot run other sizes on its dynamic axes.*\(3, 3, 16, 16\).*leave out"):
        capture(file(tmp_path, fixed=True), sized(8, 8), ort_run, {"image": (2, 3)})


class Varied(Task):
    """Calibrated on one size, searched on two others."""

    primary = "top1"
    dynamic_axes: Mapping[str, Sequence[int]] = {"image": (2, 3)}

    def model(self) -> torch.nn.Module:
        return Dense()

    def calibration(self) -> Iterator[Inputs]:
        yield sized(8, 8, 20)
        yield sized(16, 8, 20)

    def batches(self, split: str) -> Iterator[tuple[Inputs, Array]]:
        for size in ((12, 6), (12, 6), (8, 20)):
            yield sized(*size, 7), np.arange(7) % 4

    def metrics(self, outputs: Outputs, targets: Array) -> dict[str, float]:
        (scores,) = outputs.values()
        return {"top1": float((scores.argmax(1) == targets).mean())}


@pytest.mark.slow
@pytest.mark.parametrize("runtime", NAMES)
def test_a_task_of_several_sizes_is_evaluated(runtime: str) -> None:
    evaluator = Evaluator(Varied(), get_runtime(runtime), latency_budget_s=0.0)
    int8 = LayerScheme(precision=Precision.INT8)
    able = [layer.name for layer in evaluator.graph.layers if evaluator.runtime.refusal(int8, layer) is None]
    config = uniform(evaluator.fingerprint, evaluator.graph.layer_names, LayerScheme(precision=Precision.FP32))
    config = config.model_copy(update={"schemes": {**config.schemes, **dict.fromkeys(able, int8)}})
    evaluation = evaluator.evaluate(evaluator.prepare(config))
    split = evaluator.data.split("search")
    want = np.concatenate([by_torch(Dense(), batch) for batch in split.batches])
    (reference,) = evaluator.reference_outputs("search").values()
    assert relative_error(want, reference) < 1e-5
    assert evaluation.silent == ()
    assert 0 < evaluation.output_mse < 1e-2


def test_sizes_that_vary_on_other_axes_are_refused() -> None:
    class Undeclared(Varied):
        dynamic_axes: Mapping[str, Sequence[int]] = {"image": [2]}

    with pytest.raises(InputError, match=r"Undeclared\.batches\('search'\): .*\(3, 12, 6\).*\(3, 8, 8\).*dynamic_axes"):
        TaskData(Undeclared()).split("search")


def test_a_tasks_bad_axes_are_refused_by_its_name() -> None:
    class Wrong(Varied):
        dynamic_axes: Mapping[str, Sequence[int]] = {"image": (0,)}

    with pytest.raises(InputError, match=r"Wrong\.dynamic_axes\['image'\] holds 0"):
        TaskData(Wrong()).split("search")


def test_outputs_whose_rows_vary_in_size_are_refused() -> None:
    class ByPlace(Varied):
        def model(self) -> torch.nn.Module:
            return torch.nn.Sequential(torch.nn.Conv2d(3, 2, 3)).eval()

        dynamic_axes: Mapping[str, Sequence[int]] = {"input": (2, 3)}

        def calibration(self) -> Iterator[Inputs]:
            yield {"input": images(4, name="image")["image"]}

        def batches(self, split: str) -> Iterator[tuple[Inputs, Array]]:
            for inputs, targets in super().batches(split):
                yield {"input": inputs["image"]}, targets

    evaluator = Evaluator(ByPlace(), get_runtime("onnxruntime"), latency_budget_s=0.0)
    with pytest.raises(InputError, match=r"rows of the shapes \(2, 10, 4\), \(2, 6, 18\)"):
        evaluator.reference_outputs("search")
