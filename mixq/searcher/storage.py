"""Where studies are stored: SQLite for the processes of one host, PostgreSQL for those of many."""

from __future__ import annotations

import fcntl
import hashlib
import logging
import sqlite3
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from functools import partial, wraps
from pathlib import Path
from typing import Any, TypeVar

import optuna
import sqlalchemy
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage
from optuna.storages._cached_storage import _CachedStorage
from optuna.trial import FrozenTrial
from sqlalchemy import event
from sqlalchemy.exc import InterfaceError, OperationalError, PendingRollbackError, SQLAlchemyError

from mixq.errors import InputError, MixqError, first_line
from mixq.urls import redacted, without_secrets

LOCK_SECONDS = 60
PRIMARY_CODE = 0xFF  # of an SQLite error; the higher bits tell its kind
# Optuna knows what to do about a lock that is held or a query that is too long, but not about these.
UNUSABLE = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN)
SQLITE, POSTGRESQL = "sqlite", "postgresql"
KEY_BYTES = 8  # of an advisory lock of PostgreSQL's

OUTAGE_SECONDS = 300.0
RETRY_SECONDS = 0.5
CALLS = tuple(name for name in vars(BaseStorage) if not name.startswith("_"))  # that a study makes of its storage
AWAY = (OperationalError, InterfaceError, PendingRollbackError)  # the last: Optuna asks on, after one of the others

logger = logging.getLogger(__name__)
# It shows a traceback of what is then done in another way, or over again.
logging.getLogger("optuna.storages._rdb.storage").setLevel(logging.ERROR)

Result = TypeVar("Result")
Turn = Callable[[], AbstractContextManager[None]]


class StorageAwayError(InputError):
    """The storage's database does not answer; it may be on its way up."""


def open_storage(url: str) -> BaseStorage:
    """Raises InputError, the URL in it without its password, where there is no such storage: StorageAwayError where its
    database does not answer."""
    try:
        with _alone(url):
            return _opened(url)
    except (SQLAlchemyError, ImportError, LookupError, ValueError, RuntimeError) as error:
        raise refused(url, error) from (None if "@" in url else error)  # a traceback may show the password


def refused(url: str, error: Exception) -> InputError:
    """What to say where a storage cannot be opened."""
    kind = StorageAwayError if isinstance(error, OperationalError | InterfaceError) else InputError
    return kind(
        f"the study storage {redacted(url)} cannot be opened: {without_secrets(first_line(error), url)}; "
        f"give a URL of Optuna's, e.g. sqlite:////folder/that/exists/study.db{_driver_hint(url, error)}"
    )


def check_shared(url: str) -> None:
    """Raises InputError for storages that several processes cannot share; looks at nothing but the URL."""
    if _kind(url) != POSTGRESQL and sqlite_file(url) is None:
        raise InputError(
            f"several workers need a storage in a file, sqlite:///study.db, or a database, postgresql://host/name, got "
            f"{redacted(url)}"
        )


def sqlite_file(url: str) -> Path | None:
    """The file of a storage in SQLite; None for others, and where it is in memory. Raises InputError for no URL."""
    if _kind(url) != SQLITE:
        return None
    try:
        path = sqlalchemy.make_url(_as_opened(url)).database
    except (SQLAlchemyError, LookupError, ValueError) as error:
        raise refused(url, error) from None
    return None if not path or path == ":memory:" or path.startswith("file:") else Path(path)


def turn_at(url: str, name: str) -> Turn:
    """A lock that the processes that work on study `name` take in turn; it dies with its holder.

    Raises InputError where the storage has none, or its folder knows no locks. The lock's own context raises an error
    of sqlalchemy's where the database goes away under it: `patiently`.
    """
    check_shared(url)
    path = sqlite_file(url)
    return _advisory_turn_at(url, name) if path is None else _file_turn_at(_lock_of(path))


def patiently(action: Callable[[], Result], longest_s: float = OUTAGE_SECONDS) -> Result:
    """What `action` returns, tried again as long as the storage is away; then raises MixqError.

    It may be carried out twice: a connection that breaks does not say whether what was sent has arrived.
    """
    end, is_new = time.monotonic() + longest_s, True
    while True:
        try:
            return action()
        except (StorageInternalError, *AWAY) as error:
            reason = _outage(error)
            if reason is None:
                raise
            if time.monotonic() >= end:
                raise MixqError(
                    f"the study storage was away for {longest_s:.0f} s ({first_line(reason)}); nothing that is "
                    "finished is lost: give the same command again when it is back"
                ) from None
            if is_new:
                logger.warning(
                    "the study storage is away (%s); waiting for it up to %.0f s", first_line(reason), longest_s
                )
            is_new = False
            time.sleep(RETRY_SECONDS)


def turn_if_any(url: str, name: str) -> Turn:
    """`turn_at`; nothing where there is none, so that only one process can work there."""
    try:
        return turn_at(url, name)
    except InputError:
        return nullcontext


class PatientStorage(_CachedStorage):
    """Optuna's storage in a database, whose calls wait, `patiently`, while that is away.

    All of them, so that nobody who reads or writes a study need think of it. What trials have in common is kept once:
    Optuna reads the choices of every parameter anew with each, most of what a trial takes in memory.
    """

    def __init__(self, backend: optuna.storages.RDBStorage) -> None:
        super().__init__(backend)
        self._distributions: dict[BaseDistribution, BaseDistribution] = {}

    def _add_trials_to_cache(self, study_id: int, trials: list[FrozenTrial]) -> None:
        for trial in trials:
            known = {sys.intern(name): self._distributions.setdefault(d, d) for name, d in trial.distributions.items()}
            trial.params = {name: _chosen(known[name], trial.params[name]) for name in known}
            trial.distributions = known
        super()._add_trials_to_cache(study_id, trials)


def _chosen(distribution: BaseDistribution, value: Any) -> Any:
    """`value`, the very object that the choices have."""
    if not isinstance(distribution, CategoricalDistribution):
        return value
    return distribution.choices[distribution.choices.index(value)]


def _patient(name: str) -> Callable[..., Any]:
    call: Callable[..., Any] = getattr(_CachedStorage, name)

    @wraps(call)
    def waiting(*positional: Any, **named: Any) -> Any:
        return patiently(partial(call, *positional, **named))

    return waiting


for _name in CALLS:
    setattr(PatientStorage, _name, _patient(_name))


def _outage(error: Exception) -> Exception | None:
    """Why the database is away; None where something else is the matter."""
    reason = error.__cause__ if isinstance(error, StorageInternalError) else error
    if not isinstance(reason, AWAY):
        return None
    # SQLite's errors alone have a code.
    code: int = getattr(getattr(reason, "orig", None), "sqlite_errorcode", sqlite3.SQLITE_BUSY)
    return reason if code & PRIMARY_CODE in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED} else None


def _kind(url: str) -> str:
    """sqlite of sqlite+pysqlite:///study.db."""
    return url.partition(":")[0].partition("+")[0]


def _as_opened(url: str) -> str:
    """Optuna formats URLs."""
    return url.format(SCHEMA_VERSION="")


def _opened(url: str) -> BaseStorage:
    kind = _kind(url)
    if kind not in {SQLITE, POSTGRESQL}:
        return optuna.storages.get_storage(url)
    waiting = {"connect_args": {"timeout": LOCK_SECONDS}} if kind == SQLITE else {"pool_pre_ping": True}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        storage = optuna.storages.RDBStorage(url, engine_kwargs=waiting)
    if kind == SQLITE:
        _set_up_sqlite(storage.engine, url)
    return PatientStorage(storage)


def _set_up_sqlite(engine: sqlalchemy.Engine, url: str) -> None:
    @event.listens_for(engine, "connect")
    def set_pragmas(connection: Any, _record: Any) -> None:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")

    @event.listens_for(engine, "handle_error")
    def explain(context: Any) -> None:
        if getattr(context.original_exception, "sqlite_errorcode", 0) & PRIMARY_CODE in UNUSABLE:
            raise InputError(
                f"the study storage {url} cannot be used: {first_line(context.original_exception)}; is its disk full? "
                "The same command, given again, goes on from the last trial"
            )

    engine.dispose()  # the connection that made the tables has not got them


def _driver_hint(url: str, error: Exception) -> str:
    missing = isinstance(error, ImportError) and url.startswith(POSTGRESQL)
    return "; for PostgreSQL, pip install 'mixq[postgres]'" if missing else ""


@contextmanager
def _alone(url: str) -> Iterator[None]:
    """Of several processes that open a new storage at once, all would make its tables, and all but one would fail."""
    with ExitStack() as held:
        path = sqlite_file(url)
        if path is not None:
            with suppress(InputError):  # then the database cannot be written either, and says why
                held.enter_context(_file_turn(_lock_of(path)))
        elif _kind(url) == POSTGRESQL:
            engine = _kept_connection(url)
            held.callback(engine.dispose)
            held.enter_context(_advisory_turn(engine, ""))
        yield


def _lock_of(path: Path) -> Path:
    """Not the database's own file: closing a descriptor of it would undo SQLite's locks in this process."""
    return path.with_name(f"{path.name}.turn")


def _file_turn_at(path: Path) -> Turn:
    with _file_turn(path):
        return lambda: _file_turn(path)


@contextmanager
def _file_turn(path: Path) -> Iterator[None]:
    with ExitStack() as held:
        try:
            fcntl.flock(held.enter_context(path.open("ab")), fcntl.LOCK_EX)
        except OSError as error:
            raise InputError(
                f"cannot lock {path}: {error.strerror or error}; the study needs a folder that you may write to and "
                "whose files can be locked"
            ) from None
        yield


def _advisory_turn_at(url: str, name: str) -> Turn:
    engine = _kept_connection(url)
    return lambda: _advisory_turn(engine, name)


def _kept_connection(url: str) -> sqlalchemy.Engine:
    """One, which is kept: to make one for every turn takes a server a process and a password check."""
    return sqlalchemy.create_engine(_as_opened(url), pool_size=1, max_overflow=0, pool_pre_ping=True)


@contextmanager
def _advisory_turn(engine: sqlalchemy.Engine, name: str) -> Iterator[None]:
    key = int.from_bytes(hashlib.sha256(f"mixq {name}".encode()).digest()[:KEY_BYTES], signed=True)
    with engine.connect() as connection:  # the lock ends with the transaction, and that with the process
        connection.execute(sqlalchemy.text("SELECT pg_advisory_xact_lock(:key)"), {"key": key})
        yield
        connection.commit()  # raises where the lock was lost meanwhile, and another may have had it
