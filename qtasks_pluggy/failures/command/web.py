"""``web``: the page that shows what failed, and where it is run again."""

from __future__ import annotations

import os
from contextlib import nullcontext
from importlib.util import find_spec
from typing import Final

import click

from qtasks_pluggy._console.load import Trouble, load_any_app
from qtasks_pluggy._console.say import say
from qtasks_pluggy.failures.command.options import setting_of, store_url, takes
from qtasks_pluggy.failures.command.replay import started

_NEEDED: Final = ("starlette", "jinja2", "uvicorn")
_WHOSE: Final = "The app that replays: a QueueTasks, or one that install() was called on."


@click.command(name="web")
@takes(
    click.option("--app", "app_spec", metavar="APP", help=_WHOSE),
    click.option("--url", metavar="URL", help="The store; else that of the settings."),
    click.option("--host", default="127.0.0.1", show_default=True, help="The address to serve on."),
    click.option(
        "--port",
        type=click.IntRange(0, 65_535),
        default=8642,
        show_default=True,
        help="The port; 0 takes a free one.",
    ),
    click.option("--read-only", is_flag=True, help="Let nobody change anything."),
)
def web(url: str | None, app_spec: str | None, host: str, port: int, *, read_only: bool) -> None:
    """Show failures as a page, until Ctrl-C.

    Without --app nothing can be replayed. An address that others reach needs a token, which the
    browser asks for as password: QTASKS_PLUGGY_PLUGIN_FAILURES_TOKEN.
    """
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        msg = (
            f"web needs {missing[0]}, which is not installed; install the extra that brings it:"
            " python -m pip install 'qtasks-pluggy[web]'"
        )
        raise Trouble(msg)
    from qtasks_pluggy.failures.web import failures_page, serve  # noqa: PLC0415  # an extra
    from qtasks_pluggy.failures.web.guard import TOKEN, is_loopback  # noqa: PLC0415  # likewise

    app = None if app_spec is None else load_any_app(app_spec)
    where = store_url(url, app)
    token = os.environ.get(TOKEN, "") or str(setting_of(app, "token") or "")
    if not token and not is_loopback(host):
        msg = (
            f"--host {host}: others may reach this address, so set {TOKEN} to what they have to"
            " give as password; or serve on 127.0.0.1"
        )
        raise Trouble(msg)
    page = failures_page(
        where.render_as_string(hide_password=False),
        app=app,
        read_only=read_only,
        hosts=None if is_loopback(host) else serve.names_of(host),
        token=token,
    )
    if app is None and not read_only:
        say("Nothing can be replayed from this page: it was started without --app.", err=True)
    with nullcontext() if app is None else started(app):
        try:
            serve.serve(page, host, port, say)
        except OSError as error:
            msg = f"cannot serve on {host}, port {port}: {error.strerror or error}"
            raise Trouble(msg) from None
