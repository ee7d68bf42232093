"""A PostgreSQL of the tests' own: on loopback, in a folder of its own, gone with them."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest

from tests.engines.processes import Guard, Process
from tests.engines.servers import HOST, NotInstalledError, Server, find_program

USER = "postgres"


class PostgreSQL(Server):
    """A PostgreSQL that trusts whoever reaches it, and that forgets all when it ends."""

    programs: ClassVar = {"postgres": "postgresql", "initdb": "postgresql"}
    boot_seconds = 60

    def __init__(self, guard: Guard) -> None:
        # Not in a folder of pytest's: where that is root's, the server's user cannot go there.
        self._outer = Path(tempfile.mkdtemp(prefix="postgresql-"))
        super().__init__(self._outer / "data", guard)
        self.url = f"postgresql+psycopg://{USER}@{HOST}:{self.port}/postgres"
        # It refuses to run as root.
        self._as_user = ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups"]
        self._as_user = self._as_user if os.geteuid() == 0 else []
        if self._as_user:
            self._outer.chmod(0o755)
            shutil.chown(self.folder, USER)
        (initdb,) = self._other_programs
        made = [*self._as_user, initdb, "-D", self.folder, "-U", USER, "-A", "trust", "--no-sync"]
        subprocess.run(made, check=True, capture_output=True, cwd="/")

    @classmethod
    def find_programs(cls) -> list[Path]:
        """Find what it runs: where Debian has it, the newest; else on the path."""
        found = []
        for name, package in cls.programs.items():
            known = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
            found.append(known[-1] if known else find_program(name, package))
        return found

    def _run(self) -> Process:
        settings = {"fsync": "off", "listen_addresses": HOST, "unix_socket_directories": ""}
        program, *options = [*self._as_user, str(self._program), "-D", str(self.folder)]
        options += ["-p", str(self.port)]
        options += [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        return Process(
            Path(shutil.which(program) or program),
            *options,
            cwd=Path("/"),
            env={"LC_ALL": "C", "PATH": os.defpath},
            log=self._outer / "log.txt",
            watched_by=self.guard,
        )

    def _answers(self) -> bool:
        import psycopg

        try:
            psycopg.connect(self.url.replace("+psycopg", "")).close()
        except psycopg.OperationalError:
            return False
        return True

    def close(self) -> None:
        """Leave nothing of it, no process and no folder."""
        super().close()
        shutil.rmtree(self._outer, ignore_errors=True)


@contextlib.contextmanager
def running() -> Iterator[str]:
    """Run one, and give its URL; skip without its programs, except where the whole suite runs."""
    with contextlib.ExitStack() as stack:
        try:
            server = PostgreSQL(stack.enter_context(contextlib.closing(Guard())))
        except NotInstalledError as error:
            if os.environ.get("CI") == "true":
                raise
            pytest.skip(str(error))
        stack.enter_context(contextlib.closing(server))
        server.start()
        yield server.url


@contextlib.contextmanager
def running_for_jobs() -> Iterator[str]:
    """Run one with Procrastinate's tables; give its URL as Procrastinate takes it."""
    from procrastinate import App, PsycopgConnector

    with running() as store_url:
        url = store_url.replace("+psycopg", "")
        with App(connector=PsycopgConnector(conninfo=url)).open() as app:
            app.schema_manager.apply_schema()
        yield url
