"""Processes of other programs, each in a session of its own, of which nothing is left behind.

Run as a program this is the guard: it ends the sessions that it was told of as soon as whoever
told it is gone, however that went.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).parents[2]
TAIL = 4_000
PAUSE = 0.01


class ProcessError(Exception):
    """A process does not what it was started for."""


def module_command(name: str, *args: str) -> list[str]:
    """Give the command for one of our modules, which has the standard library alone.

    To be run in `ROOT`. Without ``site``, so that it starts at once and no coverage is measured;
    without ``PYTHON*`` variables, so that a safe path does not hide the checkout from it.
    """
    return [sys.executable, "-E", "-S", "-m", name, *args]


def told_by_a_fork(call: Callable[[], object]) -> str:
    """Call something in a fork of this process; give the text of its error."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        signal.alarm(30)  # ends it, should it wait forever
        try:
            call()
            os.write(writing, b"no error")
        except BaseException as error:
            os.write(writing, f"{type(error).__name__}: {error}".encode())
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        return pipe.read().decode()


def wait_until(condition: Callable[[], object], seconds: float) -> bool:
    """Wait for a condition of which no event tells; return whether it came."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(PAUSE)
    return True


def _processes() -> Iterator[tuple[int, int, int]]:
    """Find the pid, parent and session of every process that is more than an exit code."""
    for folder in Path("/proc").iterdir():
        if not folder.name.isdecimal():
            continue
        # It can end while it is looked at.
        with contextlib.suppress(OSError):
            # The second field is a name in brackets, which may have brackets and spaces itself.
            fields = (folder / "stat").read_text("utf-8", "replace").rpartition(")")[2].split()
            if fields[0] not in {"Z", "X"}:
                yield int(folder.name), int(fields[1]), int(fields[3])


def members(session: int) -> list[int]:
    """Find the living processes of a session: a group's, and of groups that it made."""
    return sorted(pid for pid, _, its in _processes() if its == session)


def children(parent: int) -> list[int]:
    """Find the living processes that a process started itself."""
    return sorted(pid for pid, its, _ in _processes() if its == parent)


def kill_session(session: int, seconds: float = 10) -> list[int]:
    """Kill a session, and whom its members start meanwhile; return who is alive even so."""

    def gone() -> bool:
        left = members(session)
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return not left

    with contextlib.suppress(ProcessLookupError):
        os.killpg(session, signal.SIGKILL)
    wait_until(gone, seconds)
    return members(session)


class Guard:
    """A process that outlives this one by a moment, to end the sessions that it left running."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            module_command("tests.engines.processes"),
            cwd=ROOT,
            stdin=subprocess.PIPE,
            start_new_session=True,
        )

    def watch(self, session: int) -> None:
        """End this session if we do not get to it."""
        self._tell(f"+{session}")

    def forget(self, session: int) -> None:
        """Leave it alone: it is over, and its number may become another's."""
        self._tell(f"-{session}")

    def close(self) -> None:
        """End the guard, and what it still has to end."""
        self._process.stdin.close()
        self._process.wait(60)

    def _tell(self, line: str) -> None:
        self._process.stdin.write(f"{line}\n".encode())
        self._process.stdin.flush()


def guard(lines: IO[str]) -> None:
    """Read which sessions there are until nobody is left to tell; then end them."""
    sessions = set()
    for line in lines:
        session = int(line[1:])
        if line.startswith("+"):
            sessions.add(session)
        else:
            sessions.discard(session)
    for session in sessions:
        kill_session(session)


class Process:
    """A program that runs in a session of its own, and writes its output to a file.

    Args:
        command: The program and its arguments.
        cwd: The folder to run in.
        env: All of its environment.
        log: The file for its output and errors, which are added to what the file has.
        watched_by: Who ends it if this process does not get to it.
    """

    def __init__(
        self,
        *command: str | Path,
        cwd: Path,
        env: Mapping[str, str],
        log: Path,
        watched_by: Guard,
    ) -> None:
        self.name = shlex.join(map(str, command))
        self.log_file = log
        self._guard = watched_by
        with log.open("ab") as output:
            self._process: subprocess.Popen[Any] = subprocess.Popen(
                command,
                cwd=cwd,
                env=env,
                start_new_session=True,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                stdout=output,
            )
        self.pid = self._process.pid
        self._over = False
        watched_by.watch(self.pid)

    def listens(self, port: int) -> bool:
        """Tell whether it, and nobody else's process, accepts connections at a port."""
        sockets = set()
        for line in Path("/proc/net/tcp").read_text("ascii").splitlines()[1:]:
            fields = line.split()
            if fields[1].endswith(f":{port:04X}") and fields[3] == "0A":
                sockets.add(f"socket:[{fields[9]}]")
        for pid in self.members():
            # It can end, or close a file, while it is looked at.
            with contextlib.suppress(OSError):
                for file in Path(f"/proc/{pid}/fd").iterdir():
                    if str(file.readlink()) in sockets:
                        return True
        return False

    @property
    def exit_code(self) -> int | None:
        """What it ended with, negative for a signal; ``None`` while it runs."""
        return self._process.poll()

    def log(self) -> str:
        """Read what it has written so far."""
        return self.log_file.read_text("utf-8", errors="replace")

    def children(self) -> list[int]:
        """Find the living processes that it started itself."""
        return children(self.pid)

    def members(self) -> list[int]:
        """Find the living processes of its session: it, its children, and theirs."""
        return members(self.pid)

    def wait_ready(self, ready: Callable[[], object] | str, seconds: float) -> None:
        """Wait until a condition holds, or until the log has a text.

        Raises:
            ProcessError: It ended before that, or the seconds are over.
        """
        condition = (lambda: ready in self.log()) if isinstance(ready, str) else ready
        met = over = False

        def known() -> bool:
            nonlocal met, over
            # In this order: what was waited for may be the last that it did before it ended.
            over = self.exit_code is not None
            met = bool(condition())
            return met or over

        if not wait_until(known, seconds):
            raise self._error(f"is not ready after {seconds} s")
        if not met:
            raise self._error(f"ended with {self.exit_code} before it was ready")

    def wait(self, seconds: float) -> int:
        """Wait for its end; return its exit code, negative for a signal.

        Raises:
            ProcessError: It still runs after so many seconds.
        """
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise self._error(f"still runs after {seconds} s") from None

    def terminate(self, timeout: float = 30) -> int:
        """Ask it alone to end, as an operator does (SIGTERM); return its exit code.

        Raises:
            ProcessError: It still runs after so many seconds.
        """
        self._process.terminate()
        return self.wait(timeout)

    def kill(self) -> None:
        """Kill it and all of its session (SIGKILL); return when nothing of them is left.

        Raises:
            ProcessError: Something is.
        """
        # After that its number may become another's.
        if self._over:
            return
        left = kill_session(self.pid)
        if left:
            raise self._error(f"is killed, and {left} of its session are alive")
        self._process.wait(10)
        self._guard.forget(self.pid)
        self._over = True

    def _error(self, what: str) -> ProcessError:
        return ProcessError(
            f"{self.name} (pid {self.pid}) {what}. Its log, {self.log_file}, ends with:\n"
            f"{self.log()[-TAIL:] or '(nothing)'}"
        )


if __name__ == "__main__":
    guard(sys.stdin)
