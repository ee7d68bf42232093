"""``web``: the page that shows what failed, and where it is run again."""

from __future__ import annotations

import os
from contextlib import ExitStack
from importlib.util import find_spec
from typing import Any

import click

from qtasks_pluggy._console.load import Faults, Trouble, cannot_start, load_replaying
from qtasks_pluggy._console.say import say
from qtasks_pluggy.failures.command.options import store_settings, takes

_NEEDED = ("starlette", "jinja2", "uvicorn")


@click.command(name="web")
@takes(
    click.option("--app", "app_spec", metavar="APP", help="The app that replays runs."),
    click.option("--url", metavar="URL", help="The store; else that of the settings."),
    click.option("--host", default="127.0.0.1", show_default=True, help="The address."),
    click.option("--port", type=click.IntRange(0, 65_535), default=8642, show_default=True),
    click.option("--read-only", is_flag=True, help="Let nobody change anything."),
)
def web(url: str | None, app_spec: str | None, host: str, port: int, *, read_only: bool) -> None:
    """Show failures as a page, until Ctrl-C; --port 0 takes a free port.

    Without --app nothing can be replayed. An address that others reach needs a token, which they
    give as password: QTASKS_PLUGGY_PLUGIN_FAILURES_TOKEN.
    """
