"""What all pages have in common: the store, the app, and how a template becomes an answer."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote, urlencode

import attrs
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from sqlalchemy import URL
from starlette.requests import Request
from starlette.responses import HTMLResponse

from qtasks_pluggy.failures.connection import must_be_there, shown
from qtasks_pluggy.failures.web import show
from qtasks_pluggy.failures.web.browse import Browser
from qtasks_pluggy.failures.web.guard import VISITOR, Visitor
from qtasks_pluggy.failures.web.jobs import Jobs

if TYPE_CHECKING:
    from qtasks_pluggy import QueueTasks


@attrs.frozen
class Site:
    """One page of failures, with all of its addresses.

    Attributes:
        url: The store.
        app: The app that replays; None where nothing is replayed.
        is_read_only: Whether nobody may act.
        jobs: The replays that were begun here.
    """

    url: URL
    app: QueueTasks | None
    is_read_only: bool
    jobs: Jobs = attrs.field(factory=Jobs)
    _known: dict[object, Browser] = attrs.field(factory=dict, init=False)

    def browser(self) -> Browser:
        """Open the store, unless it is the same as for the last request.

        Raises:
            StoreError: There is none, or it is not of this version.
            sqlalchemy.exc.SQLAlchemyError: It cannot be read.
        """
        must_be_there(self.url)
        which = _identity(self.url)
        known = self._known.get(which)
        if known is None:
            self.forget()
            known = self._known[which] = Browser(self.url)
        return known

    def forget(self) -> None:
        """Reopen the store for the next request."""
        self._known.clear()


def _identity(url: URL) -> object:
    """Tell a store from one that takes its place."""
    if url.drivername != "sqlite":
        return url
    path = Path(url.database or "")
    found = path.stat()
    # Where nobody writes it is read as it was when it was opened.
    is_still = not Path(f"{path}-wal").exists()
    return found.st_dev, found.st_ino, found.st_mtime_ns if is_still else None


def site_of(request: Request) -> Site:
    """Find the site that a request is for."""
    site: Site = request.app.state.site
    return site


def may_act(request: Request) -> bool:
    """Return whether a visitor may change anything."""
    visitor: Visitor = request.scope[VISITOR]
    return visitor.may_act and not site_of(request).is_read_only


def address(request: Request, *parts: str, **query: object) -> str:
    """Write an address of the site, wherever it is mounted; what is empty is left out."""
    path = "/".join(quote(part, safe="") for part in parts)
    given = {name: value for name, value in query.items() if value not in ("", None)}
    text = f"{request.scope.get('root_path', '')}/{path}"
    return f"{text}?{urlencode(given)}" if given else text


def render(request: Request, template: str, *, status: int = 200, **values: Any) -> HTMLResponse:
    """Answer with a page."""
    site = site_of(request)
    text = _TEMPLATES.get_template(template).render(
        request=request,
        address=lambda *parts, **query: address(request, *parts, **query),
        store=shown(site.url),
        site=site,
        may_act=may_act(request),
        can_replay=site.app is not None and may_act(request),
        now=time.time(),
        **values,
    )
    return HTMLResponse(text, status)


_FILTERS: Final[dict[str, Any]] = {
    "ago": show.ago,
    "iso": show.iso,
    "exact": show.exact,
    "short": show.short_class,
    "lasted": show.lasted,
    "did": show.did,
    "words": show.words,
}
_TEMPLATES: Final = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    finalize=show.visible,
    trim_blocks=True,
    lstrip_blocks=True,
    auto_reload=False,
)
_TEMPLATES.filters.update(_FILTERS)
