"""``qtasks-pluggy plugins``: the plugins, and which of them are enabled."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import attrs
import click

from qtasks_pluggy import PluginManager
from qtasks_pluggy._console.load import load_plugins
from qtasks_pluggy._console.problems import enabling
from qtasks_pluggy._console.say import json_option, say, say_error, say_json
from qtasks_pluggy._console.table import Column, show_table
from qtasks_pluggy._plugins.discovery import PluginInfo
from qtasks_pluggy._plugins.manager import BUILTINS


@click.command(name="plugins")
@click.argument("app_spec", metavar="[APP]", required=False)
@json_option
@click.pass_context
def plugins(ctx: click.Context, app_spec: str | None, *, as_json: bool) -> None:
    """List the plugins: built-in, installed, and added by APP.

    They are listed as a process that starts here, now, would load them, in order of
    registration; doctor shows the call order. APP is a
    QueueTasks, or an engine's app that install() was called on: module:attribute or
    file.py:attribute.

    \b
    Example:
      qtasks-pluggy plugins shop.py:app

    \b
    Exit codes:
      0  no problem was found
      1  a problem was found; doctor shows more
      2  wrong usage, a wrong setting, or APP cannot be imported
    """  # noqa: D301  # \b is click's own mark, not an escape
    manager, problems, notes = load_plugins(app_spec)
    rows = [describe(one) for one in [*manager.list_plugin_info(), *_off(manager)]]
    if as_json:
        say_json(rows)
    else:
        _show(rows)
    for note in notes:
        say(note, err=True)
    if problems and not as_json:
        say()
    for problem in problems:
        say_error(problem)
    ctx.exit(1 if problems else 0)


def _off(manager: PluginManager) -> list[PluginInfo]:
    """List the built-in plugins that no setting enables."""
    known = {one.name for one in manager.list_plugin_info()}
    return [
        PluginInfo(
            name=name,
            distribution=None,
            version=None,
            hooks=(),
            enabled=False,
            reason=f"off; {enabling(name, manager.settings.enable)} enables it",
            builtin=True,
        )
        for name in BUILTINS
        if name not in known
    ]


def describe(plugin: PluginInfo) -> dict[str, Any]:
    """Return what is known about a plugin, for scripts."""
    # Without quarantines, which the processes that run tasks keep.
    return attrs.asdict(plugin, filter=lambda field, _: field.name != "quarantined")


def origin(one: Mapping[str, Any]) -> list[str]:
    """Return the distribution that a plugin comes from, and its version."""
    if one["distribution"] is None:
        return ["built in" if one["builtin"] else "-", ""]
    return [one["distribution"], one["version"]]


def _show(rows: Iterable[Mapping[str, Any]]) -> None:
    columns = [
        Column("plugin", style="bold"),
        Column("distribution"),
        Column("version"),
        Column("enabled"),
        Column("hooks", style="cyan", below=True),
    ]
    words = {True: "yes", False: "no: {reason}"}
    shown = [
        [one["name"], *origin(one), words[one["enabled"]].format(**one), ", ".join(one["hooks"])]
        for one in rows
    ]
    show_table(columns, shown)
