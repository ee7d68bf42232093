"""``qtasks-pluggy plugins``: what is installed, and what of it is asked."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import attrs
import click

from qtasks_pluggy._console.load import load_plugins
from qtasks_pluggy._console.say import json_option, say, say_error, say_json
from qtasks_pluggy._console.table import Column, show_table
from qtasks_pluggy._plugins.discovery import PluginInfo


@click.command(name="plugins")
@click.argument("app_spec", metavar="[APP]", required=False)
@json_option
@click.pass_context
def plugins(ctx: click.Context, app_spec: str | None, *, as_json: bool) -> None:
    """List the installed plugins, and those that APP adds.

    They are in the order of registration; doctor shows the order of the calls. APP is a QueueTasks,
    or a Celery app, Dramatiq broker, Taskiq broker or Huey that install() was called on:
    module:attribute or file.py:attribute.

    \b
    Example:
      qtasks-pluggy plugins shop.py:app

    \b
    Exit codes:
      0  all is well
      1  there is a problem: doctor has the same, and more
      2  usage, wrong value of a setting, import of APP
    """  # noqa: D301  # \b is click's own mark, not an escape
    manager, problems = load_plugins(app_spec)
    rows = [describe(one) for one in manager.list_plugin_info()]
    if as_json:
        say_json(rows)
    elif rows:
        _show(rows)
    else:
        say(
            "There are no plugins. A plugin is what an installed distribution names in the entry"
            " point group qtasks_pluggy."
        )
    if problems and not as_json:
        say()
    for problem in problems:
        say_error(problem)
    ctx.exit(1 if problems else 0)


def describe(plugin: PluginInfo) -> dict[str, Any]:
    """Return what is known of a plugin, for scripts."""
    # Quarantine is not told: it is kept by the processes that do the runs.
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
