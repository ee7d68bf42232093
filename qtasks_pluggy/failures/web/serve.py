"""The server of the command: one process, until Ctrl-C."""

from __future__ import annotations

import signal
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Final

import uvicorn
from starlette.types import ASGIApp

STOP_SECONDS: Final = 5
"""How long a stop waits for answers that are under way."""


def serve(page: ASGIApp, host: str, port: int, tell: Callable[[str], None]) -> None:
    """Serve a page until Ctrl-C, or SIGTERM.

    Args:
        page: The page.
        host: The address.
        port: The port; 0 for a free one.
        tell: Called with the page's address, once it answers.

    Raises:
        OSError: The address cannot be had.
    """
    config = uvicorn.Config(
        page,
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        ws="none",
        timeout_graceful_shutdown=STOP_SECONDS,
    )
    with _listen(host, port) as listening:
        shown = f"[{host}]" if ":" in host else host
        tell(f"http://{shown}:{listening.getsockname()[1]}/")
        before = signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            # uvicorn raises the signal again once it has stopped.
            with suppress(KeyboardInterrupt):
                uvicorn.Server(config).run(sockets=[listening])
        finally:
            signal.signal(signal.SIGTERM, before)


def names_of(host: str) -> list[str]:
    """Return the names by which a page on an address may be called, besides this machine's own.

    Args:
        host: The address; one that stands for all has the names of the machine.
    """
    if host not in {"0.0.0.0", "::", ""}:  # noqa: S104  # it is only compared
        return [host]
    name = socket.gethostname()
    found = [name, socket.getfqdn()]
    with suppress(OSError):
        found += [str(one[4][0]) for one in socket.getaddrinfo(name, None)]
    return found


def _listen(host: str, port: int) -> socket.socket:
    family, _, _, _, where = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    # The address "::" stands for those of IPv4 as well.
    both = family == socket.AF_INET6 and socket.has_dualstack_ipv6()
    return socket.create_server(where, family=family, dualstack_ipv6=both)
