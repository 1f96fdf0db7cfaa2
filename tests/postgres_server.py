"""A real PostgreSQL server for tests, from the installed binaries: unprivileged, in a folder of its own, on a socket.

`shared_server()` is made once per process and ends with it; every test takes a schema of its own in its one database.
Tests that kill or misconfigure a server start their own with `start_server()`, which copies the first one's fresh
data folder instead of running initdb again. There is no skip: without the binaries the tests fail and name the cure.
"""

from __future__ import annotations

import atexit
import functools
import itertools
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from urllib.parse import quote

import psycopg

CURE = "install the PostgreSQL server, on Debian and Ubuntu 'apt-get install postgresql' (.ci/run does it)"
ADMIN, ROLE, DATABASE = "admin", "larimar", "larimar"
PASSWORD_ROLE, PASSWORD = "larimar_with_password", "correct horse"
START_S = 60.0

_SETTINGS = {
    "listen_addresses": "",  # the socket only: no port to collide on, nobody else can connect
    "unix_socket_permissions": "0700",
    "autovacuum": "off",  # what is vacuumed, the code under test vacuums
    "shared_buffers": "32MB",
    "max_connections": "40",
    "log_min_messages": "fatal",
}
_HBA = f"local all {PASSWORD_ROLE} scram-sha-256\nlocal all all trust\n"
_NAMES = itertools.count(1)


def binary(name: str) -> str:
    """The path of a server program, the newest version there is. Raises RuntimeError with the cure."""
    packaged = Path("/usr/lib/postgresql").glob(f"*/bin/{name}")
    newest = max(packaged, key=lambda path: float(path.parents[1].name), default=None)
    found = str(newest) if newest else shutil.which(name)
    if found is None:
        raise RuntimeError(f"PostgreSQL's {name} is not installed: {CURE}")
    return found


class PostgresServer:
    """One server process over one data folder. `url` is a superuser's way in, `ledger_url` the ledger role's."""

    def __init__(self, folder: Path) -> None:
        """`folder` holds a data folder `data` that initdb made; see `start_server`."""
        self.folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return self._url(ADMIN)

    @property
    def pid(self) -> int:
        """The postmaster's."""
        assert self._process is not None
        return self._process.pid

    def ledger_url(self, role: str = ROLE, database: str = DATABASE) -> str:
        """Where a ledger can be: the role is no superuser and owns the database."""
        return self._url(role, database)

    def fresh_url(self) -> str:
        """A ledger URL with a schema name that no test has used."""
        return f"{self.ledger_url()}&schema=t{next(_NAMES)}"

    def url_of(self, schema: str) -> str:
        """The ledger role's way in for a plain client that should find a schema's tables."""
        return f"{self.ledger_url()}&options=-csearch_path%3D{schema}"

    def sql(self, *statements: str, database: str = DATABASE) -> list[tuple[object, ...]]:
        """Run statements as superuser, each by itself; returns the rows of the last one."""
        with psycopg.connect(self._url(ADMIN, database), autocommit=True) as connection:
            for statement in statements:
                cursor = connection.execute(statement)
            return cursor.fetchall() if cursor.description else []

    def start(self) -> None:
        """Start and wait until it answers, also after a kill: what the old processes still hold is waited for."""
        deadline = time.monotonic() + START_S
        while True:
            self._process = _run(
                [binary("postgres"), "-D", str(self.folder / "data"), "-k", str(self.folder)], self.folder
            )
            if self._answers(deadline):
                return
            if time.monotonic() > deadline:
                self.stop()
                raise RuntimeError(f"PostgreSQL did not start: {(self.folder / 'log').read_text()[-2000:]}")

    def _answers(self, deadline: float) -> bool:
        """Whether it came up; False when it ended by itself or time is up."""
        assert self._process is not None
        while self._process.poll() is None and time.monotonic() < deadline:
            try:
                self.sql("SELECT 1", database="postgres")
            except psycopg.OperationalError:
                time.sleep(0.02)  # between two looks; the deadline bounds the wait
            else:
                return True
        return False

    def kill(self) -> None:
        """SIGKILL the postmaster; its children notice and end by themselves."""
        assert self._process is not None
        self._process.kill()
        self._process.wait(START_S)

    def stop(self) -> None:
        """End it, at once and without ceremony: the folder goes too."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGQUIT)
            self._process.wait(START_S)

    def remove(self) -> None:
        """Stop it and delete its folder."""
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _url(self, role: str, database: str = "postgres") -> str:
        return f"postgresql://{role}@/{database}?host={quote(str(self.folder), safe='')}"


@functools.cache
def shared_server() -> PostgresServer:
    """The one server of this test run, for everything that leaves it whole."""
    server = PostgresServer(_initialised())
    atexit.register(server.remove)
    server.start()
    server.sql(
        f"CREATE ROLE {ROLE} LOGIN",
        f"CREATE ROLE {PASSWORD_ROLE} LOGIN PASSWORD '{PASSWORD}' IN ROLE {ROLE}",
        f"CREATE DATABASE {DATABASE} OWNER {ROLE}",
        database="postgres",
    )
    return server


def start_server() -> PostgresServer:
    """Another server that may be broken. The caller ends it with `remove`."""
    server = PostgresServer(_initialised())
    server.start()
    server.sql(f"CREATE ROLE {ROLE} LOGIN", f"CREATE DATABASE {DATABASE} OWNER {ROLE}", database="postgres")
    return server


def _initialised() -> Path:
    """A new folder with a copy of the one data folder that initdb made."""
    folder = _folder()
    _check(["cp", "-a", "--reflink=auto", str(_template() / "data"), str(folder / "data")], folder)
    return folder


@functools.cache
def _template() -> Path:
    folder = _folder()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    data = folder / "data"
    _check(
        [binary("initdb"), "-D", str(data), "-U", ADMIN, "--encoding=UTF8", "--locale=C.UTF-8", "-A", "trust", "-N"],
        folder,
    )
    with (data / "postgresql.conf").open("a") as conf:
        conf.writelines(f"{name} = '{value}'\n" for name, value in _SETTINGS.items())
    (data / "pg_hba.conf").write_text(_HBA)
    return folder


# -- as somebody who is not root ------------------------------------------------------------------------------------


def _account() -> pwd.struct_passwd | None:
    """Who runs the server: ourselves, or somebody harmless when we are root, whom PostgreSQL refuses."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise RuntimeError(f"PostgreSQL does not run as root and there is no user 'postgres' or 'nobody': {CURE}")


def _folder() -> Path:
    """A folder that only the server's user can enter; its path is short enough for a socket (107 bytes)."""
    folder = Path(tempfile.mkdtemp(prefix="larimar-pg-", dir="/tmp"))  # pytest's own would be too long
    if account := _account():
        os.chown(folder, account.pw_uid, account.pw_gid)
    return folder


def _run(command: list[str], folder: Path) -> subprocess.Popen[bytes]:
    account = _account()
    who = {} if account is None else {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
    if setpriv := shutil.which("setpriv"):
        # A test run that is killed takes its servers along: SIGQUIT, an immediate shutdown.
        command = [setpriv, "--pdeathsig", "QUIT", *command]
    with (folder / "log").open("ab") as log:
        return subprocess.Popen(
            command, cwd=folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, **who
        )


def _check(command: list[str], folder: Path) -> None:
    process = _run(command, folder)
    if process.wait(START_S):
        raise RuntimeError(f"{command[0]} failed: {(folder / 'log').read_text()[-2000:]}")
