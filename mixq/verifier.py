"""Verify: whether an exported folder is whole, and still is what its certificate says. Needs no Task and no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

from mixq import atomic, machine
from mixq.certificate import CERTIFICATE, CONFIG, DATA, MODEL, PROBE, Certificate, FileMark, marks
from mixq.config import MixedPrecisionConfig, Precision
from mixq.errors import InputError
from mixq.graph import large
from mixq.graph.capture import relative_error
from mixq.graph.model import deserialize, input_names
from mixq.graph.normalize import check as check_onnx
from mixq.probe import Probe, run_rows
from mixq.runtimes import Executable, Runtime, get_runtime

# On another machine or version, of the largest output: FP32 sums in another order; elsewhere one value near a rounding
# border takes the other code (1/255 of the range) or the other neighbor (1/256 of a BF16 value).
FP32_TOLERANCE, LOW_PRECISION_TOLERANCE = 1e-3, 1e-2


@dataclass(frozen=True)
class Check:
    """One thing that was looked at; `detail` says in a sentence what was found."""

    name: str
    ok: bool
    detail: str


@dataclass(frozen=True)
class Verification:
    """All checks, in order."""

    checks: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        return all(check.ok for check in self.checks)


@dataclass(frozen=True)
class _Exported:
    """A folder as it was at one moment. `contents`: the files' bytes, or why they could not be read."""

    certificate: Certificate
    contents: Mapping[str, bytes | OSError]

    def data(self, name: str) -> bytes:
        found = self.contents[name]
        if isinstance(found, OSError):
            raise InputError(f"{name} cannot be read: {found.strerror}; export again")
        return found

    @cached_property
    def model(self) -> bytes:
        """As it was compiled when it was measured, whether it lies in one file or two."""
        return large.join(self.data(MODEL), self.data(DATA) if DATA in self.contents else None)

    @cached_property
    def runtime(self) -> Runtime:
        return get_runtime(self.certificate.open.runtime)

    @cached_property
    def executable(self) -> Executable:
        how = self.certificate.open
        return self.runtime.compile(self.model, how.threads, how.options)

    @cached_property
    def probe(self) -> Probe:
        return Probe.from_bytes(self.data(PROBE))

    @cached_property
    def differences(self) -> list[str]:
        """What is another here than where the export was made, of what the last bits of outputs depend on."""
        there, here = dict(self.certificate.machine), machine.describe()
        there["runtime version"], here["runtime version"] = self.certificate.open.version, self.runtime.version
        keys = [key for key in dict.fromkeys([*there, *here]) if key != "python"]
        return [f"{key} {there.get(key)} → {here.get(key)}" for key in keys if there.get(key) != here.get(key)]

    @property
    def tolerance(self) -> float:
        exact = all(record.asked == Precision.FP32.value for record in self.certificate.kernels)
        return FP32_TOLERANCE if exact else LOW_PRECISION_TOLERANCE


def verify(folder: str | Path) -> Verification:
    """Look at everything in the exported `folder` that can be looked at; what is broken is a check that is not ok.

    Raises InputError where there is no whole certificate: then there is nothing to compare with.
    """
    exported = _read(Path(folder))
    checks: dict[str, Check] = {}
    for name, needs, rule in _RULES:
        missing = [need for need in needs if not checks[need].ok]
        checks[name] = (
            Check(name, False, f"not checked, because of {', '.join(missing)}")
            if missing
            else _checked(name, partial(rule, exported))
        )
    return Verification(tuple(checks.values()))


def _read(folder: Path) -> _Exported:
    with atomic.locked(folder):  # an export may be under way
        certificate = Certificate.load(folder / CERTIFICATE)
        return _Exported(certificate, {name: _bytes(folder / name) for name in certificate.files})


def _bytes(path: Path) -> bytes | OSError:
    try:
        return path.read_bytes()
    except OSError as error:
        return error


def _checked(name: str, rule: Callable[[], str]) -> Check:
    try:
        return Check(name, True, rule())
    except InputError as error:
        return Check(name, False, str(error))
    except Exception as error:  # a damaged file can break a parser or a runtime in any way; verify reports it
        first = str(error).strip().splitlines() or [""]
        return Check(name, False, f"{type(error).__name__}: {first[0]}")


def _intact(name: str, exported: _Exported) -> str:
    want, have = exported.certificate.files[name], FileMark.of(exported.data(name))
    if want != have:
        size = f"{have.size} bytes instead of {want.size}" if have.size != want.size else "other bytes"
        raise InputError(f"{name} is not the file that the certificate describes ({size}); export again")
    return f"{have.size} bytes, SHA-256 {have.sha256[:16]}…"


def _whole_model(exported: _Exported) -> str:
    return "; ".join(_intact(name, exported) for name in (MODEL, DATA) if name in exported.contents)


def _config(exported: _Exported) -> str:
    certificate = exported.certificate
    config = MixedPrecisionConfig.from_json(exported.data(CONFIG).decode(errors="replace"), CONFIG)
    if config.id != certificate.config_id:
        raise InputError(f"{CONFIG} is configuration {config.id}, the certificate is for {certificate.config_id}")
    asked = {record.layer.name: record.asked for record in certificate.kernels}
    schemes = {name: str(scheme) for name, scheme in config.schemes.items()}
    wrong = sorted(name for name in asked.keys() | schemes.keys() if asked.get(name) != schemes.get(name))
    if wrong:
        raise InputError(f"{CONFIG} and the certificate ask different schemes for {', '.join(wrong)}")
    return f"configuration {config.id} of model {config.model}"


def _onnx(exported: _Exported) -> str:
    model = deserialize(exported.model)
    check_onnx(model)
    want = sorted(mark.name for mark in exported.certificate.inputs)
    have = sorted(input_names(model))
    if want != have:
        raise InputError(f"{MODEL} has the inputs {have}, the certificate says {want}")
    return "passes the ONNX checker"


def _runtime(exported: _Exported) -> str:
    how, runtime = exported.certificate.open, exported.runtime
    same = runtime.version == how.version
    return f"{how.runtime} {runtime.version}" + ("" if same else f"; exported with {how.version}")


def _machine(exported: _Exported) -> str:
    differences = exported.differences
    if differences:
        return f"not where it was exported ({'; '.join(differences)}): outputs are compared with a tolerance"
    return "where it was exported: outputs must be equal bit by bit"


def _outputs(exported: _Exported) -> str:
    probe = exported.probe
    if set(marks(probe.inputs)) != set(exported.certificate.inputs):
        raise InputError(f"the inputs in {PROBE} have not the names, types and shapes that the certificate says")
    found = run_rows(exported.executable.run, probe.inputs)
    want = {name: (str(value.dtype), value.shape) for name, value in probe.outputs.items()}
    have = {name: (str(value.dtype), value.shape) for name, value in found.items()}
    if want != have:
        raise InputError(f"the model's outputs are {have}, {PROBE} holds {want}")
    if all(value.tobytes() == found[name].tobytes() for name, value in probe.outputs.items()):
        return f"bit-equal on {probe.rows} probe rows"
    error = max(relative_error(value, found[name]) for name, value in probe.outputs.items())
    said = f"outputs differ from those in {PROBE} by {error:.1e} of the largest value"
    if not exported.differences:
        raise InputError(f"{said}; where it was exported, none may differ")
    if not error <= exported.tolerance:
        raise InputError(f"{said}; elsewhere than where it was exported, at most {exported.tolerance:.0e} is accepted")
    return f"{said}; up to {exported.tolerance:.0e} is accepted elsewhere than where it was exported"


def _kernels(exported: _Exported) -> str:
    records = exported.certificate.kernels
    found = exported.executable.audit([record.layer for record in records], exported.probe.example).kernels
    executed = {kernel.layer: kernel.executed for kernel in found}
    wrong = [
        f"{record.layer.name} executes in {executed.get(record.layer.name)}, the certificate says {record.executed}"
        for record in records
        if executed.get(record.layer.name) != record.executed
    ]
    if wrong:
        raise InputError("; ".join(wrong))
    return f"{len(records)} layers execute in the precision that the certificate says"


_RULES: tuple[tuple[str, tuple[str, ...], Callable[[_Exported], str]], ...] = (
    (MODEL, (), _whole_model),
    (CONFIG, (), partial(_intact, CONFIG)),
    (PROBE, (), partial(_intact, PROBE)),
    ("config", (CONFIG,), _config),
    ("onnx", (MODEL,), _onnx),
    ("runtime", (), _runtime),
    ("machine", ("runtime",), _machine),
    ("outputs", ("onnx", "runtime", PROBE), _outputs),
    ("kernels", ("onnx", "runtime", PROBE), _kernels),
)
"""Name, the checks that it stands on, and the rule: what it returns is the detail, what it raises is what is wrong."""
