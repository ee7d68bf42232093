"""What the command says, on a terminal and on a pipe: nothing in it can change a terminal."""

from __future__ import annotations

import json
import logging
import sys
from typing import Any, TextIO

import click

from qtasks_pluggy._text import printable


def say(text: str = "", *, err: bool = False, **style: Any) -> None:
    """Print a text, made printable; every word of the command comes through here.

    Args:
        text: The text, of one line or several.
        err: Whether it goes to standard error.
        style: What ``click.style`` takes.
    """
    stream = sys.stderr if err else sys.stdout
    shown = encodable(printable(text), stream)
    click.echo(click.style(shown, **style) if style else shown, err=err)


class SayingHandler(logging.Handler):
    """Prints what is logged while nobody has configured logging, tracebacks included."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print a record on standard error."""
        say(self.format(record), err=True)


def say_json(value: Any, *, indent: int | None = 2, err: bool = False) -> None:
    """Print a value as JSON, all in ASCII.

    Args:
        value: What JSON can hold.
        indent: Blanks for each level; None for one line.
        err: Whether it goes to standard error.
    """
    say(json.dumps(value, indent=indent), err=err)


def readable_json(value: Any) -> str:
    """Write a value as indented JSON, in letters as they are where a terminal shows them.

    Args:
        value: What JSON can hold.
    """
    text = json.dumps(value, indent=2, ensure_ascii=False)
    return printable(text, lambda letter: json.dumps(letter)[1:-1])


def one_line(text: str, stream: TextIO, most: int | None = None) -> str:
    """Make a text fit for a table: one line, printable, nothing unencodable.

    Args:
        text: Any text, an error's for example.
        stream: Where it will go.
        most: How many characters of it to keep; None for all.

    Returns:
        What to print.
    """
    shown = encodable(printable(" ".join(text.split())), stream)
    if most is not None and len(shown) > most:
        return f"{shown[: most - 3]}..."
    return shown


def encodable(text: str, stream: TextIO) -> str:
    """Spell out what a stream's encoding does not have."""
    encoding = stream.encoding or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)
