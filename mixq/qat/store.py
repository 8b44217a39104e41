"""What trainings leave, as an ArrayStore keeps it: networks, and states to go on from."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from mixq.array_store import ArrayStore
from mixq.calibration import Statistics
from mixq.ptq import Prepared, packed, unpacked
from mixq.qat.course import State, Trained
from mixq.task import Array

LONG = 1.0  # seconds: what took longer is kept


def save_trained(store: ArrayStore | None, key: str, trained: Trained, start: Prepared) -> None:
    """Keep a trained network, all but what it has of `start`, in the store, if there is one."""
    if store is not None and trained.seconds > LONG:
        index, arrays = packed(replace(trained.prepared, statistics=Statistics({})), start.graph)
        store.save(key, {**index, "losses": list(trained.losses), "seconds": trained.seconds}, arrays)


def load_trained(store: ArrayStore | None, key: str, start: Prepared) -> Trained | None:
    """What `save_trained` was given; None where the store has not got it."""
    found = None if store is None else store.load(key)
    if found is None:
        return None
    index, arrays = found
    prepared = replace(unpacked(index, arrays, start.graph), statistics=start.statistics)
    return Trained(prepared, tuple(index["losses"]), index["seconds"])


def save_state(store: ArrayStore | None, key: str, state: State) -> None:
    """Keep a state in the store, if there is one."""
    if store is not None and state.seconds > LONG:
        arrays = {f"tensor {name}": _array(value) for name, value in state.tensors.items()}
        for number, moments in state.optimizer.items():
            arrays |= {f"adam {number} {name}": _array(value) for name, value in moments.items()}
        store.save(key, {"step": state.step, "losses": state.losses, "seconds": state.seconds}, arrays)


def load_state(store: ArrayStore | None, key: str) -> State | None:
    """What `save_state` was given; None where the store has not got it."""
    found = None if store is None else store.load(key)
    if found is None:
        return None
    index, arrays = found
    state = State(index["step"], index["losses"], index["seconds"])
    for name, array in arrays.items():
        kind, _, rest = name.partition(" ")
        if kind == "tensor":
            state.tensors[rest] = torch.from_numpy(array)
        else:
            number, _, moment = rest.partition(" ")
            moments: dict[str, Any] = state.optimizer.setdefault(int(number), {})
            moments[moment] = torch.from_numpy(array)
    return state


def _array(tensor: torch.Tensor) -> Array:
    array: Array = tensor.detach().cpu().numpy()
    return array
