"""A search whose truth is known: layers whose work and errors add up, in closed form. 200 trials take seconds."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np
import onnx_ir as ir
import optuna

from mixq.config import Activation, LayerScheme, MixedPrecisionConfig, Precision, Stage
from mixq.evaluation import Candidate, Evaluation, Glimpse, Judge
from mixq.evaluator import Evaluator
from mixq.graph import Graph, Layer
from mixq.graph.placement import Placement
from mixq.latency import Interval
from mixq.race import consult
from mixq.runtimes import Executable, Runtime
from mixq.searcher.choices import Choices, make_choices
from mixq.searcher.guided import Guide
from mixq.searcher.run import Budget, run
from mixq.searcher.samplers import get_sampler
from mixq.searcher.space import SearchSpace
from mixq.searcher.stop import Stop
from mixq.searcher.storage import Turn
from mixq.searcher.study import trials_of
from mixq.searcher.trial import Trial
from mixq.sensitivity import Sensitivity, SensitivityRow

MODEL = "0123456789abcdef"
SPEED = {Precision.FP32: 1.0, Precision.FP16: 1.0, Precision.BF16: 0.5, Precision.INT8: 0.25}
SIZE = {Precision.FP32: 1.0, Precision.FP16: 0.5, Precision.BF16: 0.5, Precision.INT8: 0.25}
ERROR = {Precision.FP32: 0.0, Precision.FP16: 0.001, Precision.BF16: 0.05, Precision.INT8: 1.0}


class AnyRuntime(Runtime):
    """Runs every scheme but those refused; compiles nothing."""

    name: ClassVar[str] = "toy"
    layout: ClassVar[Placement] = Placement()
    placement = layout

    def __init__(self, refused: Mapping[str, str] | None = None) -> None:
        """`refused`: reasons by scheme."""
        self._refused = refused or {}

    @property
    def version(self) -> str:
        return "1"

    def refusal(self, scheme: LayerScheme, layer: Layer) -> str | None:
        return super().refusal(scheme, layer) or self._refused.get(str(scheme))

    def float_refusal(self, precision: Precision) -> str | None:
        return self._refused.get(precision.value)

    def int8_refusal(self, activation: Activation, layer: Layer) -> str | None:
        return None

    def expected(self, scheme: LayerScheme, layer: Layer, config: MixedPrecisionConfig) -> str:
        return scheme.precision.value

    def options(self, config: MixedPrecisionConfig) -> Mapping[str, str]:
        return {}

    def typed(self, config: MixedPrecisionConfig) -> bool:
        return True

    def compile(self, model: bytes, threads: int, options: Mapping[str, str] | None = None) -> Executable:
        raise AssertionError("the toy's numbers are in closed form: nothing is to be compiled")


@dataclass(frozen=True)
class Toy:
    """Work (MACs; as many bytes) and INT8 error of each layer. The sum of errors is the drop, and the KL."""

    work: tuple[float, ...]
    errors: tuple[float, ...]

    @classmethod
    def random(cls, layers: int, seed: int = 0) -> Toy:
        """Both spread over two orders of magnitude, independently."""
        rng = np.random.default_rng(seed)
        work, errors = 10 ** rng.uniform(4, 6, layers), 10 ** rng.uniform(-4, -2, layers)
        return cls(tuple(np.round(work).tolist()), tuple(errors.tolist()))

    @property
    def names(self) -> list[str]:
        return [f"layer{index}" for index in range(len(self.work))]

    @property
    def graph(self) -> Graph:
        layers = tuple(_layer(name, int(work)) for name, work in zip(self.names, self.work, strict=True))
        return Graph(ir.Model(ir.Graph([], [], nodes=[]), ir_version=10), layers)

    @property
    def sensitivity(self) -> Sensitivity:
        """What an analysis of INT8 would find."""
        ranks = np.argsort(np.argsort(-np.array(self.errors))) + 1
        rows = zip(self.names, self.errors, ranks.tolist(), strict=True)
        return Sensitivity(
            tuple(SensitivityRow(n, "Conv", "int8", 1, 1, 30.0, error, error, error, rank) for n, error, rank in rows),
            evaluated_rows=100,
        )

    def drop(self, config: MixedPrecisionConfig) -> float:
        """The sum over layers; training halves an error."""
        return sum(
            error * ERROR[config.schemes[name].precision] * (0.5 if config.schemes[name].stage is Stage.QAT else 1)
            for name, error in zip(self.names, self.errors, strict=True)
        )

    def share(self, config: MixedPrecisionConfig, relative: Mapping[Precision, float] = SPEED) -> float:
        """Time (or size) ÷ that of FP32."""
        parts = [w * relative[config.schemes[n].precision] for n, w in zip(self.names, self.work, strict=True)]
        return sum(parts) / sum(self.work)

    def evaluation(self, config: MixedPrecisionConfig) -> Evaluation:
        drop, time_share = self.drop(config), self.share(config)
        return Evaluation(
            config_id=config.id,
            runtime="toy",
            threads=1,
            metric=0.9 - drop,
            drop=drop,
            metrics={"top1": 0.9 - drop},
            latency_ms=_exactly(10 * time_share),
            reference_ms=10.0,
            speedup=_exactly(1 / time_share),
            size_bytes=round(1e6 * self.share(config, SIZE)),
            compression=1 / self.share(config, SIZE),
            output_mse=drop,
            kl=drop,
            agreement=1 - drop,
            ece=None,
        )


def _exactly(value: float) -> Interval:
    return Interval(value, value, value)


def _layer(name: str, macs: int) -> Layer:
    return Layer(name, "Conv", f"{name}.weight", None, 0, f"{name}.in", f"{name}.out", (), (), (), macs, macs)


class ToyEvaluator(Evaluator):
    """Notes what it evaluates; `failing` may raise for a configuration; `judged`: the judge is asked."""

    def __init__(self, toy: Toy, failing: Callable[[MixedPrecisionConfig], None] = lambda _config: None) -> None:
        self.toy, self.failing, self.judged = toy, failing, False
        self.seen: list[MixedPrecisionConfig] = []

    def prepare(
        self,
        config: MixedPrecisionConfig,
        progress: Callable[[str], None] | None = None,
        judge: Judge | None = None,
    ) -> Candidate:
        self.seen.append(config)
        self.failing(config)
        return Candidate(config, config.id.encode(), {})

    def evaluate(self, candidate: Candidate, judge: Judge | None = None) -> Evaluation:
        found = self.toy.evaluation(candidate.config)
        if self.judged:
            seen = Glimpse(found.latency_ms, found.speedup, found.size_bytes, found.compression)
            consult(judge, seen)
            consult(judge, replace(seen, rows=50, of_rows=100, drop=found.drop, drop_low=found.drop - 0.001))
        return found


def space(**changes: object) -> SearchSpace:
    """FP32, BF16 and INT8 for speed within a drop of 0.02."""
    content = {"precisions": ["fp32", "bf16", "int8"], "constraints": {"max_drop": 0.02}}
    return SearchSpace.model_validate({**content, **changes})


def choices_of(toy: Toy, wanted: SearchSpace, runtime: Runtime | None = None) -> Choices:
    return make_choices(wanted, toy.graph, runtime or AnyRuntime(), MODEL)


@dataclass
class Search:
    """A study in memory (or the one given) over the toy's choices."""

    toy: Toy
    wanted: SearchSpace
    seed: int = 0
    study: optuna.Study | None = None
    evaluator: ToyEvaluator = field(init=False)
    finished: list[Trial] = field(default_factory=list)
    turn: Turn = nullcontext

    def __post_init__(self) -> None:
        self.evaluator = ToyEvaluator(self.toy)
        self.choices = choices_of(self.toy, self.wanted)
        guide = Guide(self.choices, self.toy.graph, self.toy.sensitivity, self.wanted.objectives[0])
        sampler = get_sampler(self.wanted.sampler, self.choices, guide, self.seed)
        if self.study is None:
            self.study = new_study(len(self.wanted.objectives))
        self.study.sampler = sampler

    def run(self, trials: int, stop: Stop | None = None, deadline: float | None = None) -> Sequence[Trial]:
        """All trials of the study, after its budget is spent."""
        assert self.study is not None
        budget = Budget(trials, time.monotonic(), deadline).after(trials_of(self.study))
        run(
            self.study,
            self.evaluator,
            self.choices,
            self.wanted,
            budget,
            stop or Stop(),
            self.finished.append,
            turn=self.turn,
        )
        return trials_of(self.study)


def new_study(objectives: int = 1) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna.create_study(directions=["minimize"] * objectives)


def config_ids(trials: Sequence[Trial]) -> list[str]:
    return [trial.config.id for trial in trials]
