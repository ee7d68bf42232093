"""``failures_page``: its addresses, and what it answers. START HERE.

====================================  =========================================================
``/``                                 groups
``/groups/ID``                        one group; its forms post to ``/groups/ID/ACT``
``/runs``                             runs, searched
``/runs/UUID``                        one run, attempt by attempt
``/runs/UUID/attempts/N``             all of one attempt, as text
``/runs/UUID/replay``                 its arguments, to be edited; posting shows old and new
``/runs/UUID/replay/send``            sends it (POST)
``/plugins``, ``/acts``               what plugins decided; what people did
``/style.css``, ``/icon.svg``         all else
====================================  =========================================================
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy.exc import SQLAlchemyError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from qtasks_pluggy.failures.connection import StoreError, default_url, read_url, why
from qtasks_pluggy.failures.web import forms, views
from qtasks_pluggy.failures.web.guard import TOKEN, Authorize, Guard, names
from qtasks_pluggy.failures.web.site import Site, render, site_of

if TYPE_CHECKING:
    from qtasks_pluggy import QueueTasks

_FILES: Final = Path(__file__).parent / "templates"


def failures_page(
    url: str | None = None,
    *,
    app: QueueTasks | None = None,
    authorize: Authorize | None = None,
    read_only: bool = False,
    hosts: Iterable[str] | None = None,
    token: str | None = None,
) -> ASGIApp:
    """Make the page, an ASGI app that runs alone or is mounted in another one.

    Without ``authorize`` it answers on this machine's own names alone, such as ``localhost``, and
    asks for the token of ``QTASKS_PLUGGY_PLUGIN_FAILURES_TOKEN``; if there is none, it answers to
    loopback addresses alone.

    Args:
        url: The store, as in the plugin's settings; without it the default one.
        app: The app whose tasks are replayed; started, and not stopped, by whoever has it. Without
            it nothing is replayed.
        authorize: Called with each request, in a thread if it is a plain function; returns a
            ``Visitor``, or None for nobody. What it raises is not caught.
        read_only: Whether nobody may act, whatever ``authorize`` says.
        hosts: Other names by which the page may be called; a request to another one is refused.
            None for those of this machine, or with ``authorize`` for any.
        token: What visitors have to know, where there is no ``authorize``; None for that of the
            environment.

    Returns:
        The ASGI app.

    Raises:
        SettingsError: The URL is wrong, or a package is missing for it.
    """
    site = Site(read_url(url or default_url()), app, is_read_only=read_only)
    page = Starlette(routes=_ROUTES, exception_handlers=_FAULTS)
    page.state.site = site
    if token is None:
        token = os.environ.get(TOKEN, "")
    is_any = hosts is None and authorize is not None
    return Guard(page, authorize, token, None if is_any else names(hosts or ()))


def _file(name: str) -> Route:
    kind = {"css": "text/css", "svg": "image/svg+xml"}[name.rpartition(".")[2]]

    def send(_: Request) -> Response:
        return FileResponse(_FILES / name, media_type=kind)

    return Route(f"/{name}", send)


def _unavailable(request: Request, error: Exception) -> Response:
    """Report that the store cannot be read now; the next request tries again."""
    site_of(request).forget()
    text = str(error) if isinstance(error, StoreError) else why(error)
    return render(request, "fault.html", status=503, title="The store cannot be read", text=text)


def _refused(request: Request, error: Exception) -> Response:
    """Report what is wrong with a request."""
    assert isinstance(error, HTTPException)  # noqa: S101  # it is registered for no other
    titles = {404: "Not found", 405: "That cannot be done here", 403: "Not allowed"}
    title = titles.get(error.status_code, "That did not work")
    # Starlette's own detail for an unknown address only repeats the title.
    is_unknown = error.status_code == HTTPStatus.NOT_FOUND and error.detail == "Not Found"
    text = "There is no such page." if is_unknown else error.detail
    answer = render(request, "fault.html", status=error.status_code, title=title, text=text)
    answer.headers.update(error.headers or {})
    return answer


_FAULTS: Final[Any] = {
    HTTPException: _refused,
    StoreError: _unavailable,
    SQLAlchemyError: _unavailable,
    OSError: _unavailable,
}
_ROUTES: Final = [
    Route("/", views.groups, name="groups"),
    Route("/runs", views.runs, name="runs"),
    Route("/plugins", views.plugins, name="plugins"),
    Route("/acts", views.acts, name="acts"),
    _file("style.css"),
    _file("icon.svg"),
    Route("/groups/{group}", views.group),
    Route("/groups/{group}/replay", forms.choose),
    Route("/groups/{group}/{act}", forms.change_group, methods=["POST"]),
    Route("/runs/{uuid:path}/attempts/{attempt}", views.attempt),
    Route("/runs/{uuid:path}/replay/send", forms.Send),
    Route("/runs/{uuid:path}/replay", forms.edit),
    Route("/runs/{uuid:path}/replay", forms.review, methods=["POST"]),
    Route("/runs/{uuid:path}", views.run),
]
