"""PreparedStore: what long recipe steps made, kept in files, so that a resumed search does not pay for them again."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx_ir as ir

from mixq import atomic
from mixq.calibration import Statistics, TensorStatistics
from mixq.config import RecipeStep
from mixq.graph.model import Graph
from mixq.ptq.state import Prepared
from mixq.task import Array

INDEX = "index"
DIGEST = hashlib.sha256().digest_size


@dataclass(frozen=True)
class PreparedStore:
    """Files of `folder`, one for each recipe: a SHA-256, and the NumPy archive that it belongs to.

    `owner` says what else they depend on: mixq, model, calibration data, runtime.
    """

    folder: Path
    owner: str

    def save(self, steps: Sequence[RecipeStep], prepared: Prepared, start: Graph) -> None:
        """Keep what `steps` made of the graph `start`. Raises InputError where the folder cannot be written."""
        arrays: dict[str, Array] = {}

        def put(array: Array) -> str:
            name = str(len(arrays))
            arrays[name] = array
            return name

        names = prepared.graph.model.graph.initializers
        changed = [name for name in names if not np.array_equal(prepared.graph.weight(name), start.weight(name))]
        index = {
            "weights": {name: put(prepared.graph.weight(name)) for name in changed},
            "ranges": {name: [float(low), float(high)] for name, (low, high) in prepared.ranges.items()},
            "magnitudes": {layer: put(magnitude) for layer, magnitude in prepared.magnitudes.items()},
            "values": [[layer, place, put(value)] for (layer, place), value in prepared.values.items()],
            "statistics": {
                name: [found.low, found.high, found.limit, put(found.counts)]
                for name, found in prepared.statistics.tensors.items()
            },
        }
        arrays[INDEX] = np.frombuffer(json.dumps(index).encode(), np.uint8)
        file = io.BytesIO()
        np.savez_compressed(file, allow_pickle=False, **arrays)
        content = file.getvalue()
        atomic.write_bytes(self._path(steps), hashlib.sha256(content).digest() + content)

    def load(self, steps: Sequence[RecipeStep], start: Graph) -> Prepared | None:
        """What `save` was given; None where there is no such file, or one that is torn."""
        content = self._read(steps)
        if content is None:
            return None
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            index = json.loads(arrays[INDEX].tobytes())
            return Prepared(
                _with_weights(start, {name: arrays[key] for name, key in index["weights"].items()}),
                Statistics(
                    {
                        name: TensorStatistics(low, high, limit, arrays[key])
                        for name, (low, high, limit, key) in index["statistics"].items()
                    }
                ),
                {name: (low, high) for name, (low, high) in index["ranges"].items()},
                {layer: arrays[key] for layer, key in index["magnitudes"].items()},
                {(layer, place): arrays[key] for layer, place, key in index["values"]},
            )

    def _read(self, steps: Sequence[RecipeStep]) -> bytes | None:
        """The archive in the file, if it is the one that was written."""
        with suppress(OSError):
            content = self._path(steps).read_bytes()
            if hashlib.sha256(content[DIGEST:]).digest() == content[:DIGEST]:
                return content[DIGEST:]
        return None

    def _path(self, steps: Sequence[RecipeStep]) -> Path:
        described = [self.owner, *(step.model_dump_json() for step in steps)]
        return self.folder / f"{hashlib.sha256(json.dumps(described).encode()).hexdigest()[:16]}.prepared"


def _with_weights(start: Graph, weights: dict[str, Array]) -> Graph:
    if not weights:
        return start
    model = start.model.clone()
    for name, value in weights.items():
        model.graph.initializers[name].const_value = ir.tensor(value, name=name)
    return replace(start, model=model)
