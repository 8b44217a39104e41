"""Export: the very bytes that were measured, their configuration, a probe, and the certificate that ties them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from types import MappingProxyType

from mixq import atomic, machine
from mixq.certificate import CERTIFICATE, CONFIG, DATA, PROBE, Certificate, FileMark, LayerRecord, Opening, model_files
from mixq.certificate import fields as json_fields
from mixq.certificate import marks as input_marks
from mixq.errors import InputError
from mixq.evaluation import Candidate, Evaluation
from mixq.evaluator import Evaluator
from mixq.probe import Probe, record
from mixq.runtimes import Kernel

PROBE_ROWS = 4
_NOTHING: Mapping[str, object] = MappingProxyType({})


def export(
    evaluator: Evaluator,
    candidate: Candidate,
    evaluation: Evaluation,
    folder: str | Path,
    extra: Mapping[str, object] = _NOTHING,
) -> Path:
    """Write best.onnx, best.json, probe.npz and certificate.json into `folder`, all new or all as they were.

    The model is `candidate.model` as it was measured, byte by byte; above protobuf's limit its weights lie beside it in
    best.onnx.data. A process killed in the middle can leave files of two exports, which `verify` tells from a whole
    one; exporting again repairs that. `extra` (JSON values) goes into the certificate, as do the evaluation's kernels,
    with their times where those were taken. Raises InputError where the folder cannot be written or the evaluation is
    of something else.
    """
    _check_belongs(evaluator, candidate, evaluation)
    probe = _probe(evaluator, candidate)
    files = {
        **model_files(candidate.model),
        CONFIG: candidate.config.to_json().encode(),
        PROBE: probe.to_bytes(),
    }
    certificate = Certificate(
        config_id=candidate.config.id,
        files={name: FileMark.of(data) for name, data in files.items()},
        open=_opening(evaluator, candidate),
        inputs=input_marks(probe.inputs),
        machine=json_fields(machine.describe()),
        versions={name: _version(name) for name in ("mixq", "onnx", "numpy", evaluator.runtime.name)},
        measured={name: value for name, value in json_fields(evaluation).items() if name != "kernels"},
        kernels=_records(evaluator, candidate, evaluation.kernels),
        extra=json_fields(extra),
    )
    # The certificate comes last: until it is there, the old one does not fit the new files.
    atomic.write_together(folder, {**files, CERTIFICATE: certificate.to_json().encode()})
    if DATA not in files:
        (Path(folder) / DATA).unlink(missing_ok=True)  # an earlier export's, and large
    return Path(folder)


def _check_belongs(evaluator: Evaluator, candidate: Candidate, evaluation: Evaluation) -> None:
    measured = (evaluation.config_id, evaluation.size_bytes, evaluation.runtime, evaluation.threads)
    given = (candidate.config.id, len(candidate.model), evaluator.runtime.name, evaluator.threads)
    if measured != given:
        raise InputError(
            f"the evaluation is of (configuration, bytes, runtime, threads) {measured}, the candidate is {given}; "
            "export a candidate with the evaluation that this evaluator made of it"
        )


def _probe(evaluator: Evaluator, candidate: Candidate) -> Probe:
    executable = evaluator.runtime.compile(candidate.model, evaluator.threads, candidate.options)
    rows = {name: value[:PROBE_ROWS] for name, value in evaluator.data.calibration[0].items()}
    return record(executable.run, rows)


def _opening(evaluator: Evaluator, candidate: Candidate) -> Opening:
    return Opening(
        runtime=evaluator.runtime.name,
        version=evaluator.runtime.version,
        options=candidate.options,
        threads=evaluator.threads,
    )


def _records(evaluator: Evaluator, candidate: Candidate, kernels: Sequence[Kernel]) -> tuple[LayerRecord, ...]:
    return tuple(
        LayerRecord(
            layer=evaluator.graph.layer(kernel.layer),
            asked=str(candidate.config.schemes[kernel.layer]),
            executed=kernel.executed,
            kernel=kernel.kernel,
            time_us=kernel.time_us,
        )
        for kernel in kernels
    )


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed as a package"
