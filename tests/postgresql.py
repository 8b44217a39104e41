"""A PostgreSQL server of our own, on loopback, in a folder that goes away with it."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import pytest

USER = "mixq"
PASSWORD = "s3cret-pass"  # noqa: S105 - that no output may show
LOOPBACK = "127.0.0.1"
SERVERS = sorted(Path("/usr/lib/postgresql").glob("*/bin"))  # where Debian puts them; else on the PATH


class Server:
    """One that is up; `stop` and `start` are what a restart of a database is to its clients."""

    def __init__(
        self, binaries: Path, folder: Path, port: int, address: str = LOOPBACK, within: Sequence[str] = ()
    ) -> None:
        """within: a command that runs commands, on the host that has the address."""
        self._binaries, self._data, self._port = binaries, folder / "data", port
        self._folder, self._address, self._within = folder, address, within

    @property
    def url(self) -> str:
        return f"postgresql://{USER}:{PASSWORD}@{self._address}:{self._port}/postgres"

    @property
    def local_url(self) -> str:
        """Through a file: for this host, wherever the server's address is."""
        return f"postgresql://{USER}:{PASSWORD}@/postgres?host={self._folder}&port={self._port}"

    def create(self) -> None:
        password = self._folder / "password"
        password.write_text(PASSWORD, encoding="ascii")
        password.chmod(0o644)
        self._run("initdb", "-D", self._data, "-U", USER, f"--pwfile={password}", "-A", "scram-sha-256", "--no-sync")
        with (self._data / "pg_hba.conf").open("a") as allowed:
            allowed.write(f"host all {USER} {self._address}/24 scram-sha-256\n")

    def start(self) -> None:
        options = f"-p {self._port} -c listen_addresses={self._address} -c unix_socket_directories={self._folder}"
        log = self._folder / "log"
        self._run("pg_ctl", "-D", self._data, "-w", "-t", "60", "-l", log, "-o", f"{options} -c fsync=off", "start")

    def stop(self) -> None:
        """At once: connections break."""
        self._run("pg_ctl", "-D", self._data, "-w", "-m", "immediate", "stop")

    def _run(self, name: str, *arguments: str | Path) -> None:
        """As another user where this one is root, whom the server refuses."""
        other = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"] if os.geteuid() == 0 else []
        command = [*self._within, *other, str(self._binaries / name), *map(str, arguments)]
        # The server would hold on to pipes.
        with (self._folder / f"{name}.out").open("w") as output:
            done = subprocess.run(command, cwd=self._folder, stdout=output, stderr=output, check=False)
        assert done.returncode == 0, (self._folder / f"{name}.out").read_text(encoding="utf-8")


def missing() -> str | None:
    """Why there can be no server here."""
    if find_spec("psycopg") is None:
        return "PostgreSQL's driver is not installed: pip install 'mixq[postgres]'"
    if _binaries() is None:
        return "PostgreSQL's server is not installed: apt-get install postgresql"
    if os.geteuid() == 0:
        try:
            pwd.getpwnam("postgres")
        except KeyError:
            return "PostgreSQL does not run as root, and there is no user postgres"
    return None


@contextmanager
def running(address: str = LOOPBACK, within: Sequence[str] = ()) -> Iterator[Server]:
    """A server; the test is skipped, with the reason, where there can be none. within: as Server's."""
    reason, binaries = missing(), _binaries()
    if reason is not None or binaries is None:
        pytest.skip(str(reason))
    folder = Path(tempfile.mkdtemp(prefix="mixq-postgresql-"))
    try:
        if os.geteuid() == 0:
            shutil.chown(folder, "postgres", "postgres")
        server = Server(binaries, folder, _free_port(), address, within)
        server.create()
        server.start()
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder)


def _binaries() -> Path | None:
    found = shutil.which("pg_ctl")
    return SERVERS[-1] if SERVERS else Path(found).resolve().parent if found else None


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
