"""``web``: the page that shows failures and replays runs."""

from __future__ import annotations

import os
from contextlib import nullcontext
from importlib.util import find_spec
from typing import Final

import click

from qtasks_pluggy._console.load import Trouble, load_app
from qtasks_pluggy._console.say import say
from qtasks_pluggy.failures.command.options import setting_of, store_url, takes
from qtasks_pluggy.failures.command.replay import started

_NEEDED: Final = ("starlette", "jinja2", "uvicorn")
_WHOSE: Final = "The app that replays: a QueueTasks, or one that install() was called on."


@click.command(name="web")
@takes(
    click.option("--app", "app_spec", metavar="APP", help=_WHOSE),
    click.option("--url", metavar="URL", help="The store; by default that of the settings."),
    click.option("--host", default="127.0.0.1", show_default=True, help="The address to serve on."),
    click.option(
        "--port",
        type=click.IntRange(0, 65_535),
        default=8642,
        show_default=True,
        help="The port; 0 picks a free one.",
    ),
    click.option("--read-only", is_flag=True, help="Allow no changes."),
)
def web(url: str | None, app_spec: str | None, host: str, port: int, *, read_only: bool) -> None:
    """Serve the failures page until Ctrl-C.

    Without --app, the page cannot replay runs. An address that other machines can reach needs a
    password: set QTASKS_PLUGGY_PLUGIN_FAILURES_TOKEN.
    """
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        msg = (
            f"this command needs {missing[0]}, which is not installed; run:"
            " python -m pip install 'qtasks-pluggy[web]'"
        )
        raise Trouble(msg)
    from qtasks_pluggy.failures.web import failures_page, serve  # noqa: PLC0415  # an extra
    from qtasks_pluggy.failures.web.guard import TOKEN, is_loopback  # noqa: PLC0415  # likewise

    app = None if app_spec is None else load_app(app_spec, or_native=True)
    where = store_url(url, app)
    token = os.environ.get(TOKEN, "") or str(setting_of(app, "token") or "")
    if not token and not is_loopback(host):
        msg = (
            f"--host {host}: other machines may reach this address; set {TOKEN} to a password,"
            " or serve on 127.0.0.1"
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
        say("This page cannot replay runs: it was started without --app.", err=True)
    with nullcontext() if app is None else started(app):
        try:
            serve.serve(page, host, port, say)
        except OSError as error:
            msg = f"cannot serve on {host}, port {port}: {error.strerror or error}"
            raise Trouble(msg) from None
