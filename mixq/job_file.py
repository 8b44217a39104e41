"""A search job as one YAML file: what `mixq search` takes as arguments, with paths relative to the file's folder."""

from __future__ import annotations

from os.path import normpath
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

from mixq.errors import InputError
from mixq.searcher.space import SamplerName
from mixq.yaml_file import read_yaml, validated

SQLITE = "sqlite:///"
_EXAMPLE = "see experiments/jobs/digits.yaml for one"


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class JobBudget(_Part):
    """trials: of the whole study, those of earlier runs included; timeout: seconds of this run."""

    trials: int = Field(default=100, ge=1)
    timeout: float | None = Field(default=None, gt=0, allow_inf_nan=False)


class JobFile(_Part):
    """One job; the fields are the options of `mixq search`."""

    task: str
    space: str
    out: str
    budget: JobBudget = JobBudget()
    max_drop: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    confidence: float | None = Field(default=None, gt=0.5, lt=1)
    runtime: str = "openvino"
    threads: int = Field(default=1, ge=1)
    seed: int = Field(default=0, ge=0)
    study: str | None = None
    storage: str | None = None
    tracking: str | None = None
    sampler: SamplerName | None = None
    workers: int = Field(default=1, ge=1)

    @field_validator("task", "space", "out", "runtime", "study", "storage", "tracking")
    @classmethod
    def _printable(cls, value: str | None) -> str | None:
        if value is not None and not (value.strip() and value.isprintable()):
            raise ValueError("must be printable text, and not empty")
        return value

    def within(self, folder: Path) -> JobFile:
        """The same job, its relative paths taken from `folder`."""
        module, separator, name = self.task.rpartition(":")
        changed = {
            "task": f"{normpath(folder / module)}{separator}{name}" if module.endswith(".py") else self.task,
            "space": normpath(folder / self.space),
            "out": normpath(folder / self.out),
            "storage": _sqlite_within(folder, self.storage),
            "tracking": _sqlite_within(folder, self.tracking),
        }
        return self.model_copy(update=changed)

    def options(self) -> dict[str, Any]:
        """What `mixq.search` is called with."""
        return {**self.model_dump(exclude={"budget"}), **self.budget.model_dump()}


def load_job(path: str | Path) -> JobFile:
    """Read and check a job. Raises InputError with file, line, field, rule and what is known."""
    file = read_yaml(path, "the job", _EXAMPLE)
    if not isinstance(file.content, dict):
        raise InputError(f"{path}: a job is a mapping with `task:`, `space:` and `out:`; {_EXAMPLE}")
    return validated(file, JobFile).within(Path(path).resolve().parent)


def _sqlite_within(folder: Path, url: str | None) -> str | None:
    """A relative path in the URL of a SQLite file is one of `folder`; other URLs stay."""
    if url is None or not url.startswith(SQLITE) or url.startswith(f"{SQLITE}/"):
        return url
    return f"{SQLITE}{folder}/{url.removeprefix(SQLITE)}"
