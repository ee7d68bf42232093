"""What the command says, on a terminal and on a pipe: nothing in it can change a terminal."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Generator
from contextlib import ExitStack, contextmanager, redirect_stdout
from io import TextIOWrapper
from typing import Any, Final, TextIO

import click

from qtasks_pluggy._console.traceback import own_traceback
from qtasks_pluggy._text import printable

_kept: Final[list[TextIO]] = []


def own_stdout() -> TextIO:
    """Return standard output as the command itself uses it."""
    return _kept[-1] if _kept else sys.stdout


@contextmanager
def keep_stdout() -> Generator[None]:
    """Keep standard output for what the command itself says.

    What tasks, plugins and their processes print goes to standard error meanwhile, so that a
    script can read the output whatever they print.
    """
    with ExitStack() as undo:
        own = sys.stdout
        # In a test, something else may stand in for it.
        if isinstance(own, TextIOWrapper) and own is sys.__stdout__:
            own = os.fdopen(os.dup(1), "w", encoding=own.encoding, errors=own.errors)
            undo.callback(own.close)
            undo.callback(os.dup2, own.fileno(), 1)
            os.dup2(2, 1)
        _kept.append(own)
        undo.callback(_kept.pop)
        undo.enter_context(redirect_stdout(sys.stderr))
        yield


def _keep_if(ctx: click.Context, _: click.Parameter, as_json: bool) -> bool:  # noqa: FBT001  # click's signature
    if as_json:
        ctx.with_resource(keep_stdout())
    return as_json


json_option: Final = click.option(
    "--json", "as_json", is_flag=True, callback=_keep_if, help="Write JSON, for scripts."
)
"""The option ``--json``: from here on, standard output has what the command says, and no more."""


def say(text: str = "", *, err: bool = False, **style: Any) -> None:
    """Print a text, made printable; every word of the command comes through here."""
    stream = sys.stderr if err else own_stdout()
    shown = encodable(printable(text), stream)
    click.echo(click.style(shown, **style) if style else shown, file=stream)


def say_error(text: str) -> None:
    """Print an error on standard error, as click prints its own."""
    say(f"Error: {text}", err=True)


class SayingHandler(logging.Handler):
    """Prints what is logged while nobody has configured logging, tracebacks included.

    Of our own events it prints those that say the same only once: the summary counts them.
    """

    def __init__(self, level: int) -> None:
        super().__init__(level)
        self._said: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        """Print a record on standard error."""
        text = record.getMessage()
        if record.name == "qtasks_pluggy":
            if text in self._said:
                return
            self._said.add(text)
        error = record.exc_info[1] if record.exc_info else None
        say(text if error is None else f"{text}\n{own_traceback(error).rstrip()}", err=True)


def say_json(value: Any, *, indent: int | None = 2, err: bool = False) -> None:
    """Print a value as JSON, all in ASCII."""
    say(json.dumps(value, indent=indent), err=err)


def readable_json(value: Any) -> str:
    """Write a value as indented JSON, in letters as they are where a terminal shows them."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    return printable(text, lambda letter: json.dumps(letter)[1:-1])


def one_line(text: str, stream: TextIO | None, most: int | None = None) -> str:
    """Make a text fit for a table: one line, printable, nothing unencodable."""
    shown = encodable(printable(" ".join(text.split())), stream)
    if most is not None and len(shown) > most:
        return f"{shown[: most - 3]}..."
    return shown


def encodable(text: str, stream: TextIO | None) -> str:
    """Spell out what a stream's encoding does not have."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)
