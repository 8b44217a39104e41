"""Group: the processes that train one twin together, each on its rows of every batch; mostly there is one.

Started by torchrun, the first of them runs the command; the others follow it (`follow`): they are told which twin to
build, and at every step which batch to take, and give back the gradients of their rows. All state is the first one's.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed

from mixq.errors import InputError, first_line
from mixq.graph.model import deserialize
from mixq.qat.loss import Hints, Lessons, distance
from mixq.qat.memory import reused
from mixq.task import Inputs
from mixq.twin import Twin

PATIENCE = timedelta(days=365)  # a follower waits for as long as the first process does something else

Message = Mapping[str, Any]


@dataclass(frozen=True)
class Group:
    """rank: of this process among `size`."""

    rank: int = 0
    size: int = 1

    @classmethod
    def current(cls) -> Group:
        """Of this process; alone where it was not started by torchrun."""
        if not torch.distributed.is_initialized():
            return cls()
        return cls(torch.distributed.get_rank(), torch.distributed.get_world_size())

    @property
    def device(self) -> torch.device:
        """Where this process trains: the GPU of its rank on this host if torch sees one."""
        if not torch.cuda.is_available():
            return torch.device("cpu")
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())

    def open(
        self, model: Callable[[], bytes], names: Collection[str], tied: Mapping[str, str], hints: Hints | None
    ) -> None:
        """Let the followers build the twin that this process has, and learn from what it does."""
        told = {} if hints is None else {"hints": {"tensors": hints.tensors, "weight": hints.weight}}
        self._tell({"names": list(names), "tied": dict(tied), **told}, model, lambda: hints.model if hints else b"")

    def close(self) -> None:
        """Let the followers go."""
        self._tell({"stop": True})

    def evaluate(self, twin: Twin, lessons: Lessons, index: int) -> float:
        """The distance of the twin's outputs from the answers to a batch; by this process alone."""
        inputs = self._tensors(lessons.batches[index], slice(None))
        return distance(twin(inputs), lessons.answers(index, self.device)).item()

    def backward(self, twin: Twin, lessons: Lessons, index: int, skipped: Collection[str]) -> float:
        """Leaves the gradient of a whole batch's loss in the twin's parameters; that loss."""
        self._tell({"batch": index, "skipped": sorted(skipped)})
        return self._share(twin, lessons, index, skipped)

    def follow(self, lessons: Lessons) -> None:
        """Do what the first process says until it closes the group."""
        twin: Twin | None = None
        wanted = lessons
        while True:
            message, model, teacher = self._hear()
            if "stop" in message:
                return
            if "names" in message:
                hints = message.get("hints")
                wanted = lessons.hinted(hints and Hints(tuple(hints["tensors"]), hints["weight"], teacher))
                twin = Twin(deserialize(model), message["names"], message["tied"]).to(self.device)
            elif twin is not None:
                for parameter in twin.parameters():
                    parameter.grad = None
                self._share(twin, wanted, message["batch"], message["skipped"])

    def _share(self, twin: Twin, lessons: Lessons, index: int, skipped: Collection[str]) -> float:
        """The part of this process: parameters from the first one, gradients to it."""
        parameters = list(twin.parameters())
        if self.size > 1:
            for parameter in parameters:
                torch.distributed.broadcast(parameter.data, 0)
        inputs = lessons.batches[index]
        count = len(next(iter(inputs.values())))
        part = slice(count * self.rank // self.size, count * (self.rank + 1) // self.size)
        value = torch.zeros((), device=self.device)
        if part.start < part.stop:
            found = lessons.loss(
                twin(self._tensors(inputs, part), skipped), lessons.answers(index, self.device).rows(part)
            )
            found = found * ((part.stop - part.start) / count)
            torch.autograd.backward(found)
            value = found.detach()
        if self.size > 1:
            torch.distributed.reduce(value, 0)
            for parameter in parameters:
                parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                torch.distributed.reduce(parameter.grad, 0)
        return value.item()

    def _tensors(self, inputs: Inputs, part: slice) -> dict[str, torch.Tensor]:
        return {name: torch.from_numpy(np.array(value[part])).to(self.device) for name, value in inputs.items()}

    def _tell(self, message: Message, model: Callable[[], bytes] = bytes, teacher: Callable[[], bytes] = bytes) -> None:
        """To the followers, if there are any."""
        if self.size > 1:
            for content in (json.dumps(message).encode(), model(), teacher()):
                data = torch.from_numpy(np.frombuffer(content, np.uint8).copy()).to(self.device)
                torch.distributed.broadcast(torch.tensor([len(content)], device=self.device), 0)
                if len(content):
                    torch.distributed.broadcast(data, 0)

    def _hear(self) -> tuple[Message, bytes, bytes]:
        parts = []
        for _ in range(3):
            length = torch.zeros(1, dtype=torch.int64, device=self.device)
            torch.distributed.broadcast(length, 0)
            data = torch.zeros(int(length), dtype=torch.uint8, device=self.device)
            if len(data):
                torch.distributed.broadcast(data, 0)
            parts.append(data.cpu().numpy().tobytes())
        message: Message = json.loads(parts[0])
        return message, parts[1], parts[2]


ALONE = Group()
_UNSET = "start mixq with torchrun, which sets WORLD_SIZE, RANK and the others, or unset them"


def started_by_torchrun() -> bool:
    """Whether this process is one of several."""
    size = os.environ.get("WORLD_SIZE", "1")
    if not size.isdecimal():
        raise InputError(f"the environment variable WORLD_SIZE must be a whole number, got {size!r}; {_UNSET}")
    return int(size) > 1


@contextmanager
def joined() -> Iterator[Group]:
    """The group of the processes that torchrun started; the followers are let go at the end."""
    import torch.distributed.nn.functional  # imported later, as onnx's export does, its defaults keep the group alive

    backend = "nccl" if torch.cuda.is_available() else "gloo"
    try:
        torch.distributed.init_process_group(backend, timeout=PATIENCE)
    except (ValueError, RuntimeError) as error:
        raise InputError(f"the processes cannot join: {first_line(error)}; {_UNSET}") from error
    group = Group.current()
    try:
        yield group
        if group.rank == 0:
            group.close()
    finally:
        torch.distributed.destroy_process_group()


def follow(lessons: Lessons, group: Group, threads: int) -> None:
    """Train along with the first process of `group`."""
    torch.set_num_threads(threads)
    with reused():
        group.follow(lessons)
