"""``qtasks-pluggy plugins``: what is installed, and what of it is asked."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import click

from qtasks_pluggy import PluginManager
from qtasks_pluggy.cli._load import Trouble, load_app
from qtasks_pluggy.cli._screen import Column, show_table
from qtasks_pluggy.exc import SettingsError


@click.command(name="plugins")
@click.argument("app_spec", metavar="[APP]", required=False)
@click.option("--json", "as_json", is_flag=True, help="Write a JSON array instead of a table.")
def plugins(app_spec: str | None, *, as_json: bool) -> None:
    """List the installed plugins, and those that APP adds.

    They are listed in the order of registration; doctor shows the order of the calls.

    \b
    Exit codes:
      0  every plugin could be loaded
      1  one could not
      2  usage, settings, import of APP
    """  # noqa: D301  # \b is click's own mark, not an escape
    app = None if app_spec is None else load_app(app_spec)
    manager = PluginManager() if app is None else app.plugins
    problems: list[str] = []
    try:
        (manager.discover if app is None else app.load_plugins)(problems)
    except SettingsError as error:
        raise Trouble(str(error)) from None
    rows = [
        {
            "name": one.name,
            "distribution": one.distribution,
            "version": one.version,
            "builtin": one.builtin,
            "hooks": list(one.hooks),
            "enabled": one.enabled,
            "reason": one.reason,
        }
        for one in manager.list_plugin_info()
    ]
    if as_json:
        click.echo(json.dumps(rows, indent=2))
    elif rows:
        _show(rows)
    else:
        click.echo(
            "There are no plugins. A plugin is what an installed distribution names in the entry"
            " point group qtasks_pluggy."
        )
    for problem in problems:
        click.echo(f"Error: {problem}", err=True)
    click.get_current_context().exit(1 if problems else 0)


def _show(rows: Iterable[dict[str, Any]]) -> None:
    columns = [
        Column("plugin", style="bold"),
        Column("distribution"),
        Column("version"),
        Column("enabled"),
        Column("hooks", style="cyan", below=True),
    ]
    show_table(
        columns,
        [
            [
                row["name"],
                row["distribution"] or ("built in" if row["builtin"] else "-"),
                row["version"] or "",
                "yes" if row["enabled"] else f"no: {row['reason']}",
                ", ".join(row["hooks"]),
            ]
            for row in rows
        ],
    )
