"""The bank's training: the network with precisions drawn anew at every step, so that every mix finds a good start.

As in slimmable networks (Yu & Huang 2019, section 3: the sandwich rule), the hardest case, all INT8, is always among
what is trained: at every other step. At the others each layer is INT8 with a probability that is drawn too.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from mixq.graph.plan import Plan
from mixq.graph.quantize import pair_name, weight_name
from mixq.qat.course import Skips
from mixq.qat.learned import readers
from mixq.twin import Twin


def sampled_skips(twin: Twin, plan: Plan, layers: Sequence[str], seed: int) -> Skips:
    """The pairs to skip at each step: of the layers that are float then, and of the tensors that only they read."""
    readers_of = {group: readers(group, plan, layers) for group in plan.groups}

    def skips(step: int) -> Collection[str]:
        if step % 2 == 0:
            return frozenset()
        rng = np.random.default_rng([seed, step])
        chance = rng.random()
        floats = {layer for layer in layers if rng.random() > chance}
        names = {pair_name(weight_name(layer)) for layer in floats}
        for group, reading in readers_of.items():
            if reading and reading <= floats:
                names |= {pair_name(tensor) for tensor in group}
        return names & twin.pairs

    return skips
