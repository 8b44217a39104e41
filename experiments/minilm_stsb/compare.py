"""MiniLM: mixq's model beside NNCF's and ONNX Runtime's own; and the same file on longer sentences, in batches.

`python -m experiments.minilm_stsb.compare --openvino DIR --onnxruntime DIR --out experiments/minilm_stsb/compare.md`,
with the folders that the searches of the README wrote. Each model is timed beside FP32 on its own runtime, interleaved,
one row of 64 tokens on one thread. FP32, and what the others quantize, is the network as captured: without what mixq
rewrites for a runtime.
"""

import argparse
import json
import logging
from collections.abc import Callable
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory

import onnx
import openvino

from experiments.drops import drop_and_interval
from experiments.minilm_stsb.task import MiniLM
from experiments.peers.nncf_peer import load_nncf, opened, single_rows
from experiments.tables import interval, machine_line, markdown, publish
from experiments.timing import measure_copies
from mixq.batches import run_batches
from mixq.dataset import TaskData
from mixq.evaluator import Evaluator
from mixq.runtimes import Executable, get_runtime

Compile = Callable[[int], Executable]
"""Threads → a compiled model."""


class LongMiniLM(MiniLM):
    """The same sentences, padded to 128 tokens."""

    length = 128


def exported(folder: Path) -> Compile:
    """The model of an export, opened as its certificate says."""
    how = json.loads((folder / "certificate.json").read_text())["open"]
    model, runtime = (folder / "best.onnx").read_bytes(), get_runtime(how["runtime"])
    return lambda threads: runtime.compile(model, threads, how["options"])


def of_nncf(evaluator: Evaluator) -> Compile:
    """NNCF's post-training quantization for transformers, preset "mixed"."""
    nncf = load_nncf()
    rows = list(single_rows(evaluator.data.calibration))
    with redirect_stdout(StringIO()):
        made = nncf.quantize(
            openvino.Core().read_model(evaluator.reference.model),
            nncf.Dataset(rows),
            preset=nncf.QuantizationPreset("mixed"),
            model_type=nncf.ModelType.TRANSFORMER,
            subset_size=len(rows),
        )
    return lambda threads: opened(made, threads)


def of_onnxruntime(evaluator: Evaluator) -> tuple[Compile, int]:
    """ONNX Runtime's own dynamic quantization, weights per channel; and its bytes."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    logging.getLogger().setLevel(logging.ERROR)  # it logs advice to the root
    with TemporaryDirectory(prefix="mixq-") as folder:
        made = Path(folder) / "made.onnx"
        model = onnx.load_model_from_string(evaluator.reference.model)
        quantize_dynamic(model, made, per_channel=True, weight_type=QuantType.QInt8)
        found = made.read_bytes()
    return lambda threads: get_runtime("onnxruntime").compile(found, threads), len(found)


def row(name: str, evaluator: Evaluator, compiled: Compile, size: int | None, seconds: float) -> list[str]:
    """One line of the table."""
    runtime, reference = evaluator.runtime, evaluator.reference
    ratio = measure_copies(
        lambda: runtime.compile(reference.model, 1, reference.options),
        lambda: compiled(1),
        evaluator.data.example,
        seconds,
    )
    drops = []
    for split in ("search", "holdout"):
        outputs = run_batches(compiled(2), evaluator.data.split(split).batches, evaluator.data.batch_rows)
        drop, (low, high) = drop_and_interval(evaluator, split, outputs)
        drops.append(f"{drop:+.4f} [{low:+.4f}, {high:+.4f}]")
    share = "–" if size is None else f"{size / len(reference.model):.3f}"
    return [name, runtime.name, f"{ratio.candidate.median:.2f}", interval(ratio.speedup), share, *drops]


def longer(evaluator: Evaluator, compiled: Compile) -> str:
    """What the file of 64 tokens and one row gives for 128 tokens and 8 rows, beside FP32."""
    data = TaskData(LongMiniLM(), batch_rows=8)
    split, metric = data.split("holdout"), evaluator.primary
    reference = evaluator.runtime.compile(evaluator.reference.model, 2, evaluator.reference.options)
    before, after = (
        metric.of(run_batches(executable, split.batches, 8), split.targets) for executable in (reference, compiled(2))
    )
    return f"{evaluator.runtime.name}: Spearman {after:.4f}, FP32 {before:.4f}, drop {before - after:+.4f}"


def main() -> None:
    """The table, and the longer sentences."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--openvino", type=Path, required=True, help="what a search for OpenVINO wrote")
    parser.add_argument("--onnxruntime", type=Path, required=True, help="what a search for ONNX Runtime wrote")
    parser.add_argument("--seconds", type=float, default=20.0, help="of timing a row")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    rows, notes = [], []
    for name, folder in (("openvino", given.openvino), ("onnxruntime", given.onnxruntime)):
        evaluator, ours = Evaluator(MiniLM(), get_runtime(name), 1), exported(folder)
        rows.append(row("mixq", evaluator, ours, (folder / "best.onnx").stat().st_size, given.seconds))
        if name == "openvino":
            rows.append(row("NNCF INT8", evaluator, of_nncf(evaluator), None, given.seconds))
        else:
            theirs, size = of_onnxruntime(evaluator)
            rows.append(row("quantize_dynamic", evaluator, theirs, size, given.seconds))
        notes.append(longer(evaluator, ours))
    head = ["model", "runtime", "ms", "FP32 ÷ it", "size ÷ FP32", "drop, search", "drop, holdout"]
    page = [
        "Spearman correlation on STS-B; 64 tokens, one row, one thread; ratios over 5 compiled copies, 95 % intervals.",
        markdown(head, rows),
        "The same files on 128 tokens in batches of 8, holdout:\n\n" + "\n".join(f"- {note}" for note in notes),
        machine_line(),
    ]
    publish(page, given.out)


if __name__ == "__main__":
    main()
