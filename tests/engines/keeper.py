"""One server for all processes of a test run: the first boots it, with the last it goes.

The keeper is a process between them and the server, as none of the tests' processes lives for
sure as long as the others. Each holds a connection to it, which ends with the process however
that ends. It greets with one line: the server's URL.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import selectors
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.engines.processes import ROOT, TAIL, Guard, ProcessError, module_command
from tests.engines.servers import SERVERS

# Longer than any server takes to boot.
BOOT_SECONDS = 150


def _address(folder: Path) -> str:
    """Name the keeper's socket; the name belongs to no file, and goes with the keeper."""
    return f"\0engines-{hashlib.sha256(bytes(folder)).hexdigest()}"


@contextlib.contextmanager
def shared(kind: str, folder: Path) -> Iterator[str]:
    """Use the run's server of this kind; boot it if it is not there.

    Args:
        kind: A key of `SERVERS`.
        folder: One for the kind and the run, the same in all of its processes.

    Yields:
        The server's URL. Whoever leaves last returns when the server is gone.

    Raises:
        ProcessError: The server did not boot.
        NotInstalledError: Its program is not on this machine.
    """
    SERVERS[kind].find_programs()
    folder.mkdir(exist_ok=True, parents=True)
    with (folder / "lock").open("wb") as lock:
        # One at a time, so that one alone boots it.
        fcntl.flock(lock, fcntl.LOCK_EX)
        connection, url = _join(folder) or _boot(kind, folder)
    with connection:
        try:
            yield url
        finally:
            # The keeper closes at once if there are others, and else with its last act.
            with contextlib.suppress(ConnectionError):
                connection.shutdown(socket.SHUT_WR)
                connection.recv(1)


def _join(folder: Path) -> tuple[socket.socket, str] | None:
    """Connect to the run's keeper, if it is there and stays."""
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(BOOT_SECONDS)
    try:
        connection.connect(_address(folder))
        url = _greeting(connection)
    except ConnectionError:
        url = ""
    if url:
        return connection, url
    connection.close()
    return None


def _boot(kind: str, folder: Path) -> tuple[socket.socket, str]:
    """Start a keeper, whose first connection is its standard input."""
    connection, its = socket.socketpair()
    connection.settimeout(BOOT_SECONDS)
    log = folder / "keeper.txt"
    with its, log.open("ab") as output:
        keeper = subprocess.Popen(
            module_command("tests.engines.keeper", kind, str(folder)),
            cwd=ROOT,
            start_new_session=True,
            stderr=subprocess.STDOUT,
            stdin=its,
            stdout=output,
        )
    try:
        url = _greeting(connection)
    except BaseException:
        # An interrupt, say: its guard ends what it was about to boot.
        keeper.kill()
        keeper.wait()
        connection.close()
        raise
    if url:
        # So that nobody is warned of a child that was not waited for: others may use it longer.
        keeper.returncode = 0
        return connection, url
    connection.close()
    keeper.wait(BOOT_SECONDS)
    raise ProcessError(f"no {kind}: {log} ends with:\n{log.read_text('utf-8')[-TAIL:]}")


def _greeting(connection: socket.socket) -> str:
    """Read the keeper's line; it is empty if the keeper went instead."""
    with connection.makefile("r", encoding="utf-8") as lines:
        return lines.readline().rstrip("\n")


def keep(kind: str, folder: Path, first: socket.socket) -> None:
    """Boot a server, and keep it as long as anybody is connected."""
    with contextlib.closing(Guard()) as guard:
        number = len(list(folder.glob("server-*")))
        with contextlib.closing(SERVERS[kind](folder / f"server-{number}", guard)) as server:
            server.start()
            last = _serve(f"{server.url}\n".encode(), _address(folder), first)
    # Only now, as whoever left last waits for it.
    last.close()


def _serve(greeting: bytes, address: str, first: socket.socket) -> socket.socket:
    """Greet everybody who comes; return the connection of who left last."""
    with socket.socket(socket.AF_UNIX) as door, selectors.DefaultSelector() as selector:
        door.bind(address)
        door.listen()
        selector.register(door, selectors.EVENT_READ)
        selector.register(first, selectors.EVENT_READ)
        first.sendall(greeting)
        while True:
            for key, _ in selector.select():
                if key.fileobj is door:
                    new, _ = door.accept()
                    selector.register(new, selectors.EVENT_READ)
                    # It can be gone already, which the next round tells.
                    with contextlib.suppress(ConnectionError):
                        new.sendall(greeting)
                    continue
                gone = key.fileobj
                selector.unregister(gone)
                if len(selector.get_map()) == 1:
                    return gone
                gone.close()


if __name__ == "__main__":
    keep(sys.argv[1], Path(sys.argv[2]), socket.socket(fileno=0))
