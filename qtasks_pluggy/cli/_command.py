"""The command group ``qtasks-pluggy``."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import click

from qtasks_pluggy._console.say import say
from qtasks_pluggy._text import printable
from qtasks_pluggy.cli.doctor import doctor
from qtasks_pluggy.cli.hooks import hooks
from qtasks_pluggy.cli.plugins import plugins
from qtasks_pluggy.cli.run import run
from qtasks_pluggy.failures.command import failures
from qtasks_pluggy.testing.command import check, new_plugin


class _Group(click.Group):
    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        """Read the options that stand before the command's name."""
        with _printable_errors():
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: click.Context) -> object:
        """Run a command; Ctrl-C ends it with the code that shells expect."""
        try:
            with _printable_errors():
                return super().invoke(ctx)
        except KeyboardInterrupt:
            say("Interrupted.", err=True)
            ctx.exit(130)


@contextmanager
def _printable_errors() -> Generator[None]:
    """Make click's own errors printable; they quote the arguments."""
    try:
        yield
    except click.ClickException as error:
        told = printable(error.format_message())
        vars(error)["format_message"] = lambda: told
        raise


@click.group(
    cls=_Group,
    commands=[run, plugins, doctor, hooks, failures, check, new_plugin],
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(package_name="qtasks-pluggy", message="%(package)s %(version)s")
def command() -> None:
    """Run tasks, inspect their plugins, and act on failures.

    \b
    Example:
      qtasks-pluggy run shop.py price tea

    \b
    Exit codes:
      0    success
      1    a run failed, or a problem was found
      2    nothing was done: wrong usage, settings or import
      130  interrupted (Ctrl-C)
      143  terminated (SIGTERM)
    """  # noqa: D301  # \b is click's own mark, not an escape
