"""The search split on the way: batches in a fixed random order, with looks at what the drop is going to be.

Samples of the bootstrap are whole batches, so that data that is sorted by class does not mislead it. A look lets a
candidate go or go on; it never accepts one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from mixq.batches import concatenated
from mixq.dataset import Split, row_count
from mixq.drop import PrimaryMetric, drop_interval
from mixq.evaluation import DroppedError, Glimpse, Judge
from mixq.task import Array, Inputs, Outputs

LOOKS = (0.125, 0.25, 0.5)  # shares of the batches after which the judge is asked
FEWEST = 8  # batches at a look
CONFIDENCE = 0.99
MOST_SECONDS = 0.05  # for a look


def consult(judge: Judge | None, glimpse: Glimpse) -> None:
    """Raises DroppedError where the judge has a reason to."""
    reason = None if judge is None else judge(glimpse)
    if reason is not None:
        raise DroppedError(reason, glimpse)


def hopeful(before: Glimpse, after: Glimpse) -> Glimpse:
    """What a training may still come to: `after` a part of it, gaining once more what it gained since `before`.

    Learning slows down, so that is more than can be expected, even of the fall of the learning rate that is to come.
    """
    if before.drop_low is None or after.drop_low is None or before.drop is None or after.drop is None:
        return after
    gain = max(0.0, before.drop - after.drop)
    return replace(after, drop_low=min(before.drop_low, after.drop_low) - gain)


def raced_outputs(
    run: Callable[[Inputs], Outputs], split: Split, judge: Callable[[Sequence[int], Outputs], None] | None
) -> Outputs:
    """Outputs for all rows of `split` in their order; at each look, `judge` gets the batches run so far."""
    order = running_order(split)
    looks = set() if judge is None else look_points(len(order))
    found: dict[int, Outputs] = {}
    for done, number in enumerate(order, 1):
        found[number] = run(split.batches[number])
        if judge is not None and done in looks:
            judge(order[:done], concatenated([found[n] for n in order[:done]]))
    return concatenated([found[number] for number in range(len(order))])


def running_order(split: Split) -> list[int]:
    """Numbers of batches, shuffled alike every time; a short one last, for the bootstrap's samples to be equal."""
    order = np.random.default_rng(0).permutation(len(split.batches)).tolist()
    longest = max(map(row_count, split.batches))
    return sorted(order, key=lambda number: row_count(split.batches[number]) < longest)


def look_points(batches: int) -> set[int]:
    """After how many of `batches` batches there is a look."""
    return {count for share in LOOKS if (count := round(share * batches)) >= FEWEST}


def seen_drop(
    glimpse: Glimpse,
    metric: PrimaryMetric,
    split: Split,
    reference: Outputs,
    numbers: Sequence[int],
    outputs: Outputs,
) -> Glimpse:
    """`glimpse` with the drop on the batches `numbers`, whose outputs are given; unchanged where it has none there.

    Its lower bound is the paired bootstrap's, drawn nearer by the square root of the share of rows that is left
    (Cochran 1977, section 2.6): the whole split is what it speaks of, not all the data in the world.
    """
    sizes = [row_count(batch) for batch in split.batches]
    starts = np.cumsum([0, *sizes])
    rows: Array = np.concatenate([np.arange(starts[n], starts[n + 1]) for n in numbers])
    targets, before = split.targets[rows], {name: value[rows] for name, value in reference.items()}
    low, _ = drop_interval(
        metric, before, outputs, targets, sizes[numbers[0]], confidence=2 * CONFIDENCE - 1, most_s=MOST_SECONDS
    )
    drop = metric.drop_on(before, outputs, targets)
    if drop is None or not np.isfinite(low):
        return glimpse
    left = np.sqrt(1 - len(rows) / split.rows)
    return replace(
        glimpse, rows=len(rows), of_rows=split.rows, drop=drop, drop_low=float(drop - left * max(0.0, drop - low))
    )
