"""Access to the page, and the headers of every answer.

A page of failures shows what an app does and can run it again. So it answers to this machine
alone, by its own names, or asks for a token; a form of another site does nothing; nobody frames it.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import inspect
import ipaddress
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, Final, TypeAlias
from urllib.parse import urlsplit

import attrs
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

TOKEN: Final = "QTASKS_PLUGGY_PLUGIN_FAILURES_TOKEN"  # noqa: S105  # the variable's name
"""The environment variable that holds the token."""
VISITOR: Final = "qtasks_pluggy.failures.visitor"
"""Where a request's scope has its visitor."""

HEADERS: Final[Mapping[str, str]] = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'none'; style-src 'self'; img-src 'self';"
        " form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    # With "no-referrer" browsers send forms with the Origin "null".
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_HOST: Final = re.compile(r"(?:\[(?P<six>[0-9a-fA-F:.]+)\]|(?P<name>[^\s/@:\[\]?#]+))(?::\d*)?")
_READS: Final = frozenset({"GET", "HEAD", "OPTIONS"})
_BY_PROXIES: Final = frozenset({"forwarded", "via", "x-forwarded-for", "x-real-ip"})
# What test clients of ASGI apps give as theirs. A server gives the address of a socket's peer, so
# no request from a network has it.
_IN_PROCESS: Final = "testclient"


@attrs.frozen
class Visitor:
    """Somebody who looks at the page.

    Attributes:
        name: Who it is, for the list of acts.
        may_act: Whether they may replay runs, and resolve, ignore and reopen groups.
    """

    name: str = attrs.field(validator=attrs.validators.instance_of(str))
    may_act: bool = attrs.field(
        default=False, kw_only=True, validator=attrs.validators.instance_of(bool)
    )


Authorize: TypeAlias = Callable[[Request], "Awaitable[Visitor | None] | Visitor | None"]

_FOR_OTHERS: Final = (
    "Without a token, this page answers to its own machine alone, and to no proxy:"
    f" set {TOKEN} to a password.\n"
)
HERE: Final = Visitor("local", may_act=True)
"""Anyone who reaches the page from this machine, if there is no token."""


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach an address."""
    if host.lower() == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return False
    # A socket of both families gives a peer of IPv4 in the form of IPv6.
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback


@attrs.frozen
class Guard:
    """Checks access, and gives every answer its headers.

    Args:
        app: The page.
        authorize: Says who a visitor is; None for the token, or this machine.
        token: What a visitor has to know; empty for none.
        hosts: Other names by which the page may be called; None for any.
    """

    app: ASGIApp
    authorize: Authorize | None
    token: str = attrs.field(repr=False)
    hosts: frozenset[str] | None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            # A websocket that is not accepted is closed with 403.
            await send({"type": "websocket.close", "code": 1008})
            return

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        request = Request(scope, receive)
        refusal = self._strange(request) or await self._unknown(request)
        await (refusal or self.app)(scope, receive, guarded)

    def _strange(self, request: Request) -> Response | None:
        """Refuse what another site sends, or what was sent to somebody else."""
        host = request.headers.get("host", "")
        if not self._is_ours(host):
            return PlainTextResponse("This page is not on that host.\n", 421)
        if request.method not in _READS and not is_same_site(request.headers, host):
            return PlainTextResponse("A form of another site does nothing here.\n", 403)
        return None

    def _is_ours(self, host: str) -> bool:
        name = _name_of(host)
        if not name:
            return False
        return self.hosts is None or is_loopback(name) or name in self.hosts

    async def _unknown(self, request: Request) -> Response | None:
        """Refuse an unknown visitor."""
        visitor = await self._visitor(request)
        if visitor is not None:
            request.scope[VISITOR] = visitor
            return None
        if self.authorize is not None:
            return PlainTextResponse("You may not see this page.\n", 403)
        if not self.token:
            return PlainTextResponse(_FOR_OTHERS, 403)
        asks = {"WWW-Authenticate": 'Basic realm="failures", charset="UTF-8"'}
        return PlainTextResponse("The password is the token; any user name.\n", 401, asks)

    async def _visitor(self, request: Request) -> Visitor | None:
        if self.authorize is None and self.token:
            return by_token(request.headers, self.token)
        if self.authorize is None:
            return HERE if is_from_here(request) else None
        if inspect.iscoroutinefunction(self.authorize):
            found: Any = await self.authorize(request)
        else:
            found = await run_in_threadpool(self.authorize, request)
            found = await found if inspect.isawaitable(found) else found
        if not (found is None or isinstance(found, Visitor)):
            msg = (
                f"authorize= of failures_page returned {type(found).__name__}; return a Visitor,"
                " or None for nobody"
            )
            raise TypeError(msg)
        return found


def is_from_here(request: Request) -> bool:
    """Return whether this machine has sent a request; its Host says nothing, as its sender sets it.

    A proxy on this machine sends what anybody has sent to it. Some say that they are one, and what
    has no address came through a Unix socket, where proxies are.
    """
    client = request.client
    if client is None or not _BY_PROXIES.isdisjoint(request.headers):
        return False
    return is_loopback(client.host) or client.host == _IN_PROCESS


def is_same_site(headers: Headers, host: str) -> bool:
    """Return whether a form may come in: from this page, or from a client that is not a browser.

    Browsers say where a form is from: by ``Sec-Fetch-Site``, or by ``Origin`` if the page is
    neither on HTTPS nor on this machine.
    """
    site = headers.get("sec-fetch-site")
    if site is not None:
        return site == "same-origin"
    origin = headers.get("origin")
    return origin is None or urlsplit(origin).netloc.lower() == host.lower()


def by_token(headers: Headers, token: str) -> Visitor | None:
    """Find who knows the token; the time it takes says nothing of it."""
    scheme, _, given = headers.get("authorization", "").partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        name, colon, password = base64.b64decode(given, validate=True).decode().partition(":")
    except (binascii.Error, ValueError):
        return None
    if not colon or not hmac.compare_digest(password.encode(), token.encode()):
        return None
    return Visitor(name[:100] or "token", may_act=True)


def _name_of(host: str) -> str:
    """Return a Host's name without its port; empty for what is none."""
    found = _HOST.fullmatch(host)
    return "" if found is None else (found["six"] or found["name"]).lower()


def names(hosts: Iterable[str]) -> frozenset[str]:
    """Write names as a Host's are compared."""
    return frozenset(one.strip("[]").lower() for one in hosts)
