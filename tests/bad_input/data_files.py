"""Models whose weights lie in another file, and are not where they should be."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
from onnx import numpy_helper

from tests.helpers import Net

WEIGHT = "first.weight"
# Name of the model → where it says that the weight lies, beside the folder's weights.bin.
ENTRIES: dict[str, dict[str, str]] = {
    "data_missing": {"location": "none.bin"},
    "data_short": {"location": "short.bin"},
    "data_outside": {"location": "../outside.bin"},
    "data_absolute": {"location": "{folder}/weights.bin"},
    "data_linked": {"location": "link.bin"},
    "data_before": {"location": "weights.bin", "offset": "-4"},
}


def write_external(folder: Path, make: Callable[[], Net], network: Callable[[Net], str]) -> None:
    """The models of ENTRIES, and the files that they point to, as far as there are any."""
    for name, entries in ENTRIES.items():
        net = make()
        model = net.model(network(net))
        (weight,) = (tensor for tensor in model.graph.initializer if tensor.name == WEIGHT)
        data = numpy_helper.to_array(weight).tobytes()
        point(weight, {"offset": "0", "length": str(len(data)), **entries}, folder)
        (folder / f"{name}.onnx").write_bytes(model.SerializeToString())
    for path in (folder / "weights.bin", folder.parent / "outside.bin"):
        path.write_bytes(data)
    (folder / "short.bin").write_bytes(data[:10])
    (folder / "link.bin").symlink_to(folder.parent / "outside.bin")


def point(weight: onnx.TensorProto, entries: dict[str, str], folder: Path) -> None:
    """Let `weight` lie in another file."""
    for name in ("raw_data", "float_data"):
        weight.ClearField(name)
    weight.data_location = onnx.TensorProto.EXTERNAL
    for key, value in entries.items():
        entry = weight.external_data.add()
        entry.key, entry.value = key, value.format(folder=folder)
