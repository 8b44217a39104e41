"""What is handed to the evaluator and what it gives back, as plain values."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from mixq.config import MixedPrecisionConfig
from mixq.latency import Interval
from mixq.runtimes import Kernel

Row = dict[str, float | int | str | None]


@dataclass(frozen=True)
class Candidate:
    """A lowered configuration: the very bytes that are measured and exported, and how the runtime opens them.

    seconds: what its recipe and its training took now, nothing where they had been done before; train_s: what its
    training takes when nothing is known of it but the shared start.
    """

    config: MixedPrecisionConfig
    model: bytes
    options: Mapping[str, str]
    seconds: Mapping[str, float] = field(default_factory=dict)
    train_s: float = 0.0
    losses: tuple[float, ...] = ()


@dataclass(frozen=True)
class Evaluation:
    """Every number measured for one configuration on one runtime and machine.

    `drop` says how much worse the primary metric is than FP32's, in its units. Latencies in milliseconds (batch
    1), `speedup` the median of paired ratios FP32 ÷ this; `size_bytes` that of the ONNX file. kl, agreement and ece
    are None where the outputs are not class scores. drop_bound: what the drop on data like the search split's stays
    below, with the confidence that was asked; None where none was. train_s: seconds that its training takes.
    conversions: executed nodes that turn floats into codes or back, beside the layers' own kernels. noisy: the latency
    was measured in a noise that repeating did not get below, or beside other work.
    """

    config_id: str
    runtime: str
    threads: int
    metric: float
    drop: float
    metrics: Mapping[str, float]
    latency_ms: Interval
    reference_ms: float
    speedup: Interval
    size_bytes: int
    compression: float
    output_mse: float
    kl: float | None
    agreement: float | None
    ece: float | None
    drop_bound: float | None = None
    train_s: float = 0.0
    conversions: int | None = None
    noisy: bool = False
    kernels: tuple[Kernel, ...] = ()
    silent: tuple[str, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)

    def row(self) -> Row:
        """Flat, for tables and logs: nested values as name_part."""
        values = asdict(self)
        values["silent_layers"] = len(values.pop("silent"))
        return _flat({name: value for name, value in values.items() if name not in ("kernels", "metrics")})


@dataclass(frozen=True)
class Glimpse:
    """What is known of a candidate half-way: its speed and size, later its drop on some rows of the search split.

    drop: on the `rows` rows looked at; drop_low: what the drop on the whole split, of `of_rows` rows, surely exceeds.
    train_s: what its training takes, as far as that is known; None: it is not trained, or is already.
    """

    latency_ms: Interval
    speedup: Interval
    size_bytes: int
    compression: float
    rows: int = 0
    of_rows: int = 0
    drop: float | None = None
    drop_low: float | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)
    train_s: float | None = None

    def row(self) -> Row:
        """Flat, as that of an Evaluation; without what is not known yet."""
        return {name: value for name, value in _flat(asdict(self)).items() if value is not None}


Judge = Callable[[Glimpse], str | None]  # why a candidate need not be looked at any further; None: go on


class DroppedError(Exception):
    """A judge let a candidate go before its whole evaluation."""

    def __init__(self, reason: str, glimpse: Glimpse) -> None:
        super().__init__(reason)
        self.reason, self.glimpse = reason, glimpse


def _flat(values: Mapping[str, Any]) -> Row:
    """Nested values as name_part."""
    flat: Row = {}
    for name, value in values.items():
        flat |= (
            {f"{name}_{part}": number for part, number in value.items()}
            if isinstance(value, Mapping)
            else {name: value}
        )
    return flat
