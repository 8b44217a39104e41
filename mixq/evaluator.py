"""Configuration → Evaluation: every number comes from the lowered graph, run by the runtime that will serve it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING

from mixq import machine, measures
from mixq.array_store import ArrayStore
from mixq.batches import concatenated, filled, run_batch, run_batches
from mixq.config import LayerScheme, MixedPrecisionConfig, Precision, Stage, uniform
from mixq.dataset import Split, TaskData
from mixq.drop import drop_interval, primary_metric
from mixq.errors import InputError
from mixq.evaluation import Candidate, DroppedError, Evaluation, Glimpse, Judge
from mixq.graph import Graph, capture, serialize
from mixq.graph.lower import lower
from mixq.graph.plan import make_plan
from mixq.latency import PairedLatency, measure_pair
from mixq.ptq import Material, Prepared, Quantizer, parameters
from mixq.race import consult, hopeful, look_points, raced_outputs, running_order, seen_drop
from mixq.runtimes import Executable, Kernel, Runtime
from mixq.stopwatch import Stopwatch
from mixq.task import Inputs, Outputs, Task
from mixq.turns import Turns

if TYPE_CHECKING:
    from mixq.qat import Lessons, Standing, Trained, Trainer


class Evaluator:
    """A task on a runtime: the captured graph, its statistics, the FP32 reference, and what measures against it.

    `threads` is for latency; accuracy is evaluated with all cores. `confidence`: of `Evaluation.drop_bound`. Raises
    InputError for what the task gets wrong. `turns`: with whatever else computes on this host; `watch`: where the time
    to set it up went.
    """

    turns = Turns()

    def __init__(
        self,
        task: Task,
        runtime: Runtime,
        threads: int = 1,
        latency_budget_s: float = 0.1,
        confidence: float | None = None,
    ) -> None:
        machine.check_threads(threads)
        self.task, self.runtime, self.threads = task, runtime, threads
        self.latency_budget_s, self.confidence = latency_budget_s, confidence
        self.watch = Stopwatch()
        self.data = TaskData(task)
        self.primary = primary_metric(task)

    @cached_property
    def graph(self) -> Graph:
        example = {name: value[:3] for name, value in self.data.calibration[0].items()}
        return capture(self.data.model(), example, self._run_fp32, self.data.dynamic_axes)

    @cached_property
    def quantizer(self) -> Quantizer:
        return Quantizer(self.graph, Material(self.data.calibration, self._view_fp32, self.runtime.placement))

    @cached_property
    def trainer(self) -> Trainer:
        from mixq.qat import Trainer  # torch is heavy, and only training needs it

        trained = LayerScheme(precision=Precision.INT8, stage=Stage.QAT)
        able = [layer.name for layer in self.graph.layers if self.runtime.refusal(trained, layer) is None]
        return Trainer(self.quantizer, self.runtime.placement, self.lessons, able, self.runtime.typed)

    @cached_property
    def lessons(self) -> Lessons:
        """What training learns from."""
        from mixq.qat import Lessons, loss_of, loss_source

        data, task = self.data.training, self.task
        return Lessons(
            data.batches,
            self._run_fp32,
            lambda: self.reference.model,
            data.targets,
            loss_of(task),
            lambda: data.fingerprint() + loss_source(task),
        )

    def keep_in(self, store: ArrayStore) -> None:
        """Let long recipe steps and trainings be kept in a store, and taken from it."""
        self.quantizer.store = store

    @cached_property
    def fingerprint(self) -> str:
        """Of weights, topology, calibration data and metric: what a configuration is for."""
        return fingerprint(self.graph, self.data)

    @cached_property
    def reference(self) -> Candidate:
        config = uniform(self.fingerprint, self.graph.layer_names, LayerScheme(precision=Precision.FP32))
        return Candidate(config, serialize(self.graph.model), self.runtime.options(config))

    @cached_property
    def _reference_outputs(self) -> dict[str, Outputs]:
        return {}

    def reference_outputs(self, split: str) -> Outputs:
        if split not in self._reference_outputs:
            self._reference_outputs[split] = self.outputs(self.reference, self.data.split(split))
        return self._reference_outputs[split]

    @cached_property
    def reference_metrics(self) -> Mapping[str, float]:
        return self.data.metrics(self.reference_outputs("search"), self.data.split("search"))

    def primary_value(self, outputs: Outputs, split: Split) -> float:
        """The primary metric of the outputs for all rows of `split`."""
        return self.data.metrics(outputs, split)[self.primary.name]

    def prepare(
        self,
        config: MixedPrecisionConfig,
        progress: Callable[[str], None] | None = None,
        judge: Judge | None = None,
    ) -> Candidate:
        """Quantize (and train, where a layer has stage qat) and lower. Raises InputError for what does not fit.

        `judge` is asked before a training, whose result will be as fast as what it starts from, and on the way. Raises
        DroppedError where it gives a reason to train no further, MixqError where training diverges or does harm.
        """
        config.check_for(self.fingerprint, self.graph.layer_names)
        self.check_runnable(config)
        if not config.layers_with(Precision.INT8) and config.rest is Precision.FP32 and _all_fp32(config):
            return replace(self.reference, config=config)
        watch = Stopwatch()
        with watch.measuring("recipe"):
            prepared = self.quantizer.prepared(config.recipe, progress)
        if not config.qat_layers:
            return replace(self.lowered(config, prepared), seconds=watch.seconds)
        trained = self._trained(config, progress, judge, watch)
        candidate = self.lowered(config, trained.prepared)
        return replace(candidate, seconds=watch.seconds, train_s=trained.seconds, losses=trained.losses)

    def _trained(
        self,
        config: MixedPrecisionConfig,
        progress: Callable[[str], None] | None,
        judge: Judge | None,
        watch: Stopwatch,
    ) -> Trained:
        with watch.measuring("shared start"):
            start = self.trainer.start(config, progress)
        screening = None
        try:
            if judge is not None:
                screening = self._screening(self.lowered(config, start), judge, watch)
            with watch.measuring("train"):
                return self.trainer.trained(config, progress, screening)
        except DroppedError as dropped:
            raise DroppedError(dropped.reason, replace(dropped.glimpse, seconds=watch.seconds)) from None

    def _screening(self, draft: Candidate, judge: Judge, watch: Stopwatch) -> Callable[[Standing], None]:
        """What ends a training that cannot pay, once it can be told; raises DroppedError where that is now."""
        with watch.measuring("screening"):
            latency, _ = self._timed(draft, judge)
            glimpse = self._glimpse(draft, latency)
            consult(judge, glimpse)
            before = self._seen(draft, glimpse)

        def look(standing: Standing) -> None:
            seen = replace(before, drop=None, drop_low=None, rows=0, train_s=standing.seconds)
            consult(judge, seen)
            if standing.falling:
                after = self._seen(self.lowered(draft.config, standing.prepared()), seen)
                consult(judge, hopeful(before, after))

        return look

    def lowered(self, config: MixedPrecisionConfig, prepared: Prepared) -> Candidate:
        """`config` with the parameters that a recipe or a training left."""
        plan = make_plan(prepared.graph, config.static_layers, self.runtime.placement)
        chosen = parameters(prepared, plan, config.layers_with(Precision.INT8))
        model = lower(prepared.graph, config, plan, chosen, typed=self.runtime.typed(config))
        return Candidate(config, serialize(model), self.runtime.options(config))

    def check_runnable(self, config: MixedPrecisionConfig) -> None:
        """Raises InputError, naming the layer and the reason, where the runtime cannot run a scheme."""
        for name, scheme in config.schemes.items():
            reason = self.runtime.refusal(scheme, self.graph.layer(name))
            if reason:
                raise InputError(f"{self.runtime.name} cannot run layer {name!r} as {scheme}: {reason}")
        reason = self.runtime.float_refusal(config.rest)
        if reason:
            raise InputError(f"{self.runtime.name} cannot run rest: {config.rest}: {reason}")

    def evaluate(self, candidate: Candidate, judge: Judge | None = None) -> Evaluation:
        """Latency beside FP32, kernel audit, metric on the search split: all of the candidate's own bytes.

        The audit comes from the model that was timed, without the kernels' own times: `profile` has those. `judge`
        is asked on the way, while the speed becomes known and at a few points of the search split. Raises DroppedError
        where it gives a reason to go no further.
        """
        watch = Stopwatch(dict(candidate.seconds))
        try:
            return self._evaluate(candidate, judge, watch)
        except DroppedError as dropped:
            raise DroppedError(dropped.reason, replace(dropped.glimpse, seconds=watch.seconds)) from None

    def _evaluate(self, candidate: Candidate, judge: Judge | None, watch: Stopwatch) -> Evaluation:
        split, primary = self.data.split("search"), self.primary.name
        latency, executable = self._timed(candidate, judge, watch)
        with watch.measuring("latency"):
            audit = executable.audit(self.graph.layers, self.data.example, timed=False)
        glimpse = self._glimpse(candidate, latency)
        consult(judge, glimpse)
        outputs = self._search_outputs(candidate, judge, glimpse, watch)
        with watch.measuring("metric"):
            reference = self.reference_outputs("search")
            scores = measures.class_measures(reference, outputs, split.targets)
            metrics = self.data.metrics(outputs, split)
        return Evaluation(
            config_id=candidate.config.id,
            runtime=self.runtime.name,
            threads=self.threads,
            metric=metrics[primary],
            drop=self.primary.drop(self.reference_metrics[primary], metrics[primary]),
            metrics=metrics,
            latency_ms=latency.candidate,
            reference_ms=latency.reference.median,
            speedup=latency.speedup,
            size_bytes=glimpse.size_bytes,
            compression=glimpse.compression,
            output_mse=measures.relative_mse(reference, outputs),
            kl=scores.kl if scores else None,
            agreement=scores.agreement if scores else None,
            ece=scores.ece if scores else None,
            drop_bound=self._drop_bound(reference, outputs, split),
            train_s=candidate.train_s,
            conversions=audit.conversions,
            noisy=latency.noisy,
            kernels=audit.kernels,
            silent=tuple(self.silent_layers(candidate.config, audit.kernels)),
            seconds=watch.seconds,
        )

    def _timed(
        self, candidate: Candidate, judge: Judge | None, watch: Stopwatch | None = None
    ) -> tuple[PairedLatency, Executable]:
        """Beside FP32, the judge looking on; and what was timed."""
        watch = watch or Stopwatch()
        with watch.measuring("compile"):
            executable, call = self._ready_for_latency(candidate)
            reference = self._reference_call
        with ExitStack() as turn:
            with watch.measuring("wait for a turn"):
                alone = turn.enter_context(self.turns.timing())
            with watch.measuring("latency"):
                latency = measure_pair(
                    reference,
                    call,
                    self.latency_budget_s,
                    lambda found: consult(judge, self._glimpse(candidate, found)),
                )
        return replace(latency, noisy=latency.noisy or not alone), executable

    def _glimpse(self, candidate: Candidate, latency: PairedLatency) -> Glimpse:
        size = len(candidate.model)
        training = candidate.train_s if candidate.losses else None
        return Glimpse(latency.candidate, latency.speedup, size, len(self.reference.model) / size, train_s=training)

    def _seen(self, candidate: Candidate, glimpse: Glimpse) -> Glimpse:
        """`glimpse` with the drop on the first part of the search split that is enough for a look."""
        split, reference = self.data.split("search"), self.reference_outputs("search")
        points = look_points(len(split.batches))
        if not points or self.data.batch_rows % self.task.rows_per_sample:
            return glimpse
        numbers = running_order(split)[: min(points)]
        run = self._ready_for_rows(candidate, split)
        outputs = concatenated([run(split.batches[number]) for number in numbers])
        return seen_drop(glimpse, self.primary, split, reference, numbers, outputs)

    def _search_outputs(self, candidate: Candidate, judge: Judge | None, glimpse: Glimpse, watch: Stopwatch) -> Outputs:
        """On the search split, the judge looking on at a few points; FP32's are known, or will be wanted anyway."""
        split = self.data.split("search")
        with watch.measuring("metric"):
            reference = self.reference_outputs("search")
        if (candidate.model, candidate.options) == (self.reference.model, self.reference.options):
            return reference
        with watch.measuring("compile"):
            run = self._ready_for_rows(candidate, split)

        def look(numbers: Sequence[int], outputs: Outputs) -> None:
            consult(judge, seen_drop(glimpse, self.primary, split, reference, numbers, outputs))

        samples_whole = self.data.batch_rows % self.task.rows_per_sample == 0
        with watch.measuring("metric"):
            return raced_outputs(run, split, look if judge is not None and samples_whole else None)

    def outputs(self, candidate: Candidate, split: Split) -> Outputs:
        """All rows of `split` in order. The last batch is filled up, so that one set of shapes is compiled."""
        return run_batches(self._for_rows(candidate), split.batches, self.data.batch_rows)

    def _ready_for_latency(self, candidate: Candidate) -> tuple[Executable, Callable[[], None]]:
        """Compiled for batch 1 and `threads` threads, and the call to be timed."""
        executable = self.runtime.compile(candidate.model, self.threads, candidate.options)
        return executable, executable.bind(self.data.example)

    def _ready_for_rows(self, candidate: Candidate, split: Split) -> Callable[[Inputs], Outputs]:
        """Compiled for batches and all cores, and tried with the first batch of `split`."""
        executable = self._for_rows(candidate)
        executable.bind(filled(split.batches[0], self.data.batch_rows))
        return lambda batch: run_batch(executable, batch, self.data.batch_rows)

    def _for_rows(self, candidate: Candidate) -> Executable:
        return self.runtime.compile(candidate.model, machine.cores(), candidate.options)

    def _drop_bound(self, reference: Outputs, outputs: Outputs, split: Split) -> float | None:
        """The upper end of the drop's interval, one-sided."""
        if self.confidence is None:
            return None
        rows, both = self.task.rows_per_sample, 2 * self.confidence - 1
        return drop_interval(self.primary, reference, outputs, split.targets, rows, confidence=both)[1]

    def profile(self, candidate: Candidate) -> tuple[Kernel, ...]:
        """The kernel audit with each kernel's time, at batch 1 and `threads` threads."""
        executable = self.runtime.compile(candidate.model, self.threads, candidate.options)
        with self.turns.timing():
            return executable.audit(self.graph.layers, self.data.example).kernels

    def silent_layers(self, config: MixedPrecisionConfig, kernels: Sequence[Kernel]) -> list[str]:
        """Layers that did not execute in what was asked (or what this CPU is known to make of it)."""
        schemes, layers = config.schemes, self.graph.by_name
        expected = {name: self.runtime.expected(schemes[name], layers[name], config) for name in layers}
        return [kernel.layer for kernel in kernels if kernel.executed != expected[kernel.layer]]

    def holdout(self, candidate: Candidate) -> dict[str, object]:
        """Metric and drop on the holdout split, with the paired bootstrap's 95 % interval of the drop."""
        split = self.data.split("holdout")
        reference, outputs = self.reference_outputs("holdout"), self.outputs(candidate, split)
        before, after = self.primary_value(reference, split), self.primary_value(outputs, split)
        interval = drop_interval(self.primary, reference, outputs, split.targets, self.task.rows_per_sample)
        drop = self.primary.drop(before, after)
        return {"metric": after, "drop": drop, "drop_interval": list(interval), "rows": split.rows}

    def robustness(self, candidate: Candidate) -> dict[str, float]:
        """The primary metric on the search split under each corruption: the Task's own, or those for images."""
        split, corruptions = self.data.split("search"), self.data.corruptions()
        if not corruptions:
            return {}
        executable, rows = self._for_rows(candidate), self.data.batch_rows
        return {
            name: self.primary_value(run_batches(executable, map(corrupt, split.batches), rows), split)
            for name, corrupt in corruptions.items()
        }

    @cached_property
    def _reference_call(self) -> Callable[[], None]:
        return self._ready_for_latency(self.reference)[1]

    def _view_fp32(self, model: bytes) -> Callable[[Inputs], Outputs]:
        return self.runtime.compile(model, machine.cores()).view

    def _run_fp32(self, model: bytes) -> Callable[[Inputs], Outputs]:
        return self.runtime.compile(model, machine.cores()).run


def _all_fp32(config: MixedPrecisionConfig) -> bool:
    return all(scheme.precision is Precision.FP32 for scheme in config.schemes.values())


def fingerprint(graph: Graph, data: TaskData) -> str:
    """16 digits for weights, topology, calibration data and metric: its name and its direction."""
    parts = (graph.fingerprint, data.calibration_fingerprint(), str(primary_metric(data.task)))
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()[:16]
