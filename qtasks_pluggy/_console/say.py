"""How commands print, on a terminal and on a pipe; nothing printed can change a terminal."""

from __future__ import annotations

import asyncio
import concurrent.futures
import importlib
import json
import logging
import os
import sys
import threading
import traceback
from collections import OrderedDict
from collections.abc import Generator
from contextlib import ExitStack, contextmanager, redirect_stdout
from io import TextIOWrapper
from pathlib import Path
from typing import Any, Final, TextIO

import click

from qtasks_pluggy._text import printable

_MACHINERY: Final = (
    *(f"{Path(str(one.__file__)).parent}/" for one in (asyncio, concurrent.futures, importlib)),
    f"{Path(__file__).parent.parent}/",
    str(threading.__file__),
    "<frozen importlib",
)
_kept: Final[list[TextIO]] = []
# How many events are remembered, so that equal ones are printed once.
_MOST_SAID: Final = 1000


def own_stdout() -> TextIO:
    """Return standard output as the command itself uses it."""
    return _kept[-1] if _kept else sys.stdout


@contextmanager
def keep_stdout() -> Generator[None]:
    """Keep standard output for the command's own output.

    Whatever tasks, plugins and their processes print goes to standard error meanwhile, so that
    scripts can read the output.
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
    "--json", "as_json", is_flag=True, callback=_keep_if, help="Write JSON instead of text."
)
"""The option ``--json``: standard output then holds nothing but the command's output."""


def say(text: str = "", *, err: bool = False, **style: Any) -> None:
    """Print a text, made printable; all output of the commands goes through here."""
    stream = sys.stderr if err else own_stdout()
    shown = encodable(printable(text), stream)
    click.echo(click.style(shown, **style) if style else shown, file=stream)


def say_error(text: str) -> None:
    """Print an error on standard error, as click prints its own."""
    say(f"Error: {text}", err=True)


class SayingHandler(logging.Handler):
    """Prints what is logged while nobody has configured logging, tracebacks included.

    It prints equal events of our own only once; the summary counts them. Of events that keep
    differing, by a run's id for example, it remembers the latest.
    """

    def __init__(self, level: int) -> None:
        super().__init__(level)
        self._said: OrderedDict[str, None] = OrderedDict()

    def emit(self, record: logging.LogRecord) -> None:
        """Print a record on standard error."""
        text = record.getMessage()
        if record.name == "qtasks_pluggy":
            is_new = text not in self._said
            self._said[text] = None
            self._said.move_to_end(text)
            if not is_new:
                return
            if len(self._said) > _MOST_SAID:
                self._said.popitem(last=False)
        error = record.exc_info[1] if record.exc_info else None
        say(text if error is None else f"{text}\n{own_traceback(error).rstrip()}", err=True)


def say_json(value: Any, *, indent: int | None = 2, err: bool = False) -> None:
    """Print a value as JSON, all in ASCII."""
    say(json.dumps(value, indent=indent), err=err)


def readable_json(value: Any) -> str:
    """Write a value as indented JSON, with printable characters as they are."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    return printable(text, lambda letter: json.dumps(letter)[1:-1])


def one_line(text: str, stream: TextIO | None, most: int | None = None) -> str:
    """Make a text fit a table: one line, printable and encodable."""
    shown = encodable(printable(" ".join(text.split())), stream)
    if most is not None and len(shown) > most:
        return f"{shown[: most - 3]}..."
    return shown


def encodable(text: str, stream: TextIO | None) -> str:
    """Escape characters that a stream's encoding lacks."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def own_traceback(error: BaseException) -> str:
    """Format an error's traceback without the frames that led from the command to it."""
    told = traceback.TracebackException.from_exception(error)
    one: traceback.TracebackException | None = told
    while one is not None:
        while one.stack and one.stack[0].filename.startswith(_MACHINERY):
            del one.stack[0]
        one = one.__cause__ or one.__context__
    return "".join(told.format())
