"""Group: the processes that train one twin together, each on its rows of every batch; mostly there is one."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import torch

from mixq.qat.loss import Answers, Loss, distance
from mixq.task import Inputs
from mixq.twin import Twin


@dataclass(frozen=True)
class Group:
    """rank: of this process among `size`."""

    rank: int = 0
    size: int = 1

    @property
    def device(self) -> torch.device:
        """Where this process trains: the GPU of its rank if torch sees one."""
        if not torch.cuda.is_available():
            return torch.device("cpu")
        return torch.device("cuda", self.rank % torch.cuda.device_count())

    def evaluate(self, twin: Twin, inputs: Inputs, answers: Answers) -> float:
        """The distance of the twin's outputs from the answers, on the whole batch; alike in all processes."""
        return distance(twin(self._tensors(inputs, slice(None))), answers).item()

    def backward(self, twin: Twin, inputs: Inputs, answers: Answers, loss: Loss, skipped: Collection[str]) -> float:
        """Leaves the gradient of the whole batch's loss in the twin's parameters; that loss."""
        count = len(next(iter(inputs.values())))
        part = slice(count * self.rank // self.size, count * (self.rank + 1) // self.size)
        found = loss(twin(self._tensors(inputs, part), skipped), answers.rows(part))
        found = found * ((part.stop - part.start) / count)
        torch.autograd.backward(found)
        return found.item()

    def _tensors(self, inputs: Inputs, part: slice) -> dict[str, torch.Tensor]:
        return {name: torch.from_numpy(np.array(value[part])).to(self.device) for name, value in inputs.items()}


ALONE = Group()
