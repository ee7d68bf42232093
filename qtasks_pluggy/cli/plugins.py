"""``qtasks-pluggy plugins``: what is installed, and what of it is asked."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Iterable
from typing import Any

import click

from qtasks_pluggy import PluginManager
from qtasks_pluggy.cli._load import Trouble, load_app
from qtasks_pluggy.cli._screen import Column, show_table
from qtasks_pluggy.exc import PluginRegistrationError, SettingsError

GROUP = "qtasks_pluggy"


@click.command(name="plugins")
@click.argument("app_spec", metavar="[APP]", required=False)
@click.option("--json", "as_json", is_flag=True, help="Write a JSON array instead of a table.")
def plugins(app_spec: str | None, *, as_json: bool) -> None:
    """List the installed plugins, and those that APP adds.

    They are listed in the order in which they are asked; the last answer wins.

    \b
    Exit codes:
      0  every plugin could be loaded
      1  one could not
      2  usage, settings, import of APP
    """  # noqa: D301  # \b is click's own mark, not an escape
    manager = PluginManager() if app_spec is None else load_app(app_spec).plugins
    problems: tuple[str, ...] = ()
    try:
        manager.discover()
    except SettingsError as error:
        raise Trouble(str(error)) from None
    except PluginRegistrationError as error:
        problems = error.problems
    rows = [
        {
            "name": one.name,
            "distribution": one.distribution,
            "version": one.version,
            "hooks": list(one.hooks),
            "enabled": one.enabled,
            "reason": one.reason,
        }
        for one in manager.list_plugin_info()
    ]
    if problems:
        rows += _not_loaded({row["name"] for row in rows}, problems)
    if as_json:
        click.echo(json.dumps(rows, indent=2))
    elif rows:
        _show(rows)
    else:
        click.echo(
            "There are no plugins. A plugin is what an installed distribution names in the entry"
            f" point group {GROUP}."
        )
    for problem in problems:
        click.echo(f"Error: {problem}", err=True)
    click.get_current_context().exit(1 if problems else 0)


def _not_loaded(known: Iterable[Any], problems: Iterable[str]) -> list[dict[str, Any]]:
    """List the installed plugins that a fault, their own or another's, kept from loading."""
    found: dict[str, dict[str, Any]] = {}
    for entry_point in importlib.metadata.entry_points(group=GROUP):
        name = entry_point.name
        if name in known:
            continue
        own = next((text for text in problems if text.startswith(f"plugin {name!r}")), None)
        found[name] = {
            "name": name,
            "distribution": entry_point.dist.name if entry_point.dist else None,
            "version": entry_point.dist.version if entry_point.dist else None,
            "hooks": [],
            "enabled": False,
            "reason": own or "not loaded, because another plugin has a fault",
        }
    return [found[name] for name in sorted(found)]


def _show(rows: Iterable[dict[str, Any]]) -> None:
    columns = [
        Column("plugin", style="bold"),
        Column("distribution"),
        Column("version"),
        Column("enabled"),
        Column("hooks", style="cyan"),
    ]
    show_table(
        columns,
        [
            [
                row["name"],
                row["distribution"] or "added by the app",
                row["version"] or "",
                "yes" if row["enabled"] else f"no: {_short(row['reason'])}",
                ", ".join(row["hooks"]),
            ]
            for row in rows
        ],
    )


def _short(reason: str | None) -> str:
    """Leave the whole of a fault to the error that tells it."""
    return "it has a fault" if reason and reason.startswith("plugin ") else reason or ""
