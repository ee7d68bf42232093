"""``qtasks-pluggy hooks``: the reference of the hooks, from their docstrings."""

from __future__ import annotations

import inspect
from types import FunctionType
from typing import Any, Final

import click

from qtasks_hookspecs import _hooks
from qtasks_pluggy._console.load import Trouble
from qtasks_pluggy._console.say import json_option, say, say_json
from qtasks_pluggy._console.table import Column, show_table
from qtasks_pluggy._text import closest_match

HOOKS: Final = {
    name: value
    for name, value in vars(_hooks).items()
    if isinstance(value, FunctionType) and value.__module__ == _hooks.__name__
}
"""Each hook's specification by its name, in the order in which a run meets them."""


@click.command(name="hooks")
@click.argument("name", required=False)
@json_option
def hooks(name: str | None, *, as_json: bool) -> None:
    """List the hooks, or show one in full.

    With NAME, show that hook: its parameters, its purpose, and an example.

    \b
    Example:
      qtasks-pluggy hooks task_executor_task_failed

    \b
    Exit codes:
      0  success
      2  no hook has that name
    """  # noqa: D301  # \b is click's own mark, not an escape
    if name is not None and name not in HOOKS:
        msg = f"no hook is named {name!r}; did you mean {closest_match(name, HOOKS)!r}?"
        raise Trouble(msg)
    chosen = [_told(one) for one in HOOKS if name in {None, one}]
    if as_json:
        say_json(chosen)
    elif name is None:
        columns = [Column("hook", style="bold"), Column("purpose")]
        show_table(columns, [[one["name"], one["summary"]] for one in chosen])
    else:
        (hook,) = chosen
        say(f"{hook['name']}({', '.join(hook['parameters'])})", bold=True)
        say(f"\n{hook['text']}")


def _told(name: str) -> dict[str, Any]:
    text = inspect.getdoc(HOOKS[name]) or ""
    return {
        "name": name,
        "parameters": list(inspect.signature(HOOKS[name]).parameters),
        "summary": text.partition("\n")[0],
        "text": text,
    }
