"""``qtasks-pluggy doctor``: who is asked, in what order, under what terms, and what is wrong."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

import attrs
import click

from qtasks_pluggy import PluginManager
from qtasks_pluggy._console.load import load_plugins
from qtasks_pluggy._console.say import say, say_json
from qtasks_pluggy._console.table import Column, show_table
from qtasks_pluggy._plugins.chain import Link
from qtasks_pluggy._plugins.discovery import PluginInfo
from qtasks_pluggy.cli.hooks import HOOKS

_CHAIN: Final = [
    Column("", right=True),
    Column("plugin", style="bold"),
    Column("distribution"),
    Column("kind"),
    Column("asked"),
    Column("limit", right=True),
    Column("answers"),
]


@click.command(name="doctor")
@click.argument("app_spec", metavar="[APP]", required=False)
@click.option("--json", "as_json", is_flag=True, help="Write JSON instead of tables.")
def doctor(app_spec: str | None, *, as_json: bool) -> None:
    """Examine the installed plugins, and those that APP adds.

    APP is a QueueTasks, or a Celery app, Dramatiq broker, Taskiq broker or Huey that install()
    was called on: module:attribute or file.py:attribute.

    Shows each hook's chain in the order of the calls, every setting and where it came from, and
    every fault, not only the first: also a setting that names a plugin which is not there. Of the
    plugins' own sections only the keys are shown: their values may be secrets. Quarantine belongs
    to the process that does the runs, and stands in its log: plugin_quarantined.

    \b
    Exit codes:
      0  all is well
      1  a plugin or a setting has a fault
      2  usage, wrong value of a setting, import of APP
    """  # noqa: D301  # \b is click's own mark, not an escape
    manager, faults = load_plugins(app_spec)
    faults += _dead_settings(manager, all_named=app_spec is not None)
    found = _examine(manager, faults)
    if as_json:
        say_json(found)
    else:
        _show(found)
    click.get_current_context().exit(1 if faults else 0)


def _dead_settings(manager: PluginManager, *, all_named: bool) -> list[str]:
    """Tell of each name in the settings that no plugin has."""
    hint = "" if all_named else " If an app adds it, name that APP."
    return [
        f"setting {one['setting']!r} ({one['source']}) names {one['name']!r}, and no plugin has"
        f" that name; did you mean {one['did_you_mean']!r}?{hint}"
        for one in manager.dead_settings()
    ]


def _examine(manager: PluginManager, faults: list[str]) -> dict[str, Any]:
    loaded = manager.loaded
    values = attrs.asdict(loaded.settings, recurse=False)
    values["plugin"] = {name: sorted(section) for name, section in values["plugin"].items()}
    return {
        "settings": {
            key: {"value": value, "source": loaded.sources[key]} for key, value in values.items()
        },
        "hooks": {name: _chain(manager, name) for name in HOOKS},
        "plugins": [_info(one) for one in manager.list_plugin_info()],
        "faults": faults,
    }


def _info(one: PluginInfo) -> dict[str, Any]:
    # Quarantine is not told: it is kept by the processes that do the runs.
    return attrs.asdict(one, filter=lambda field, _: field.name != "quarantined")


def _chain(manager: PluginManager, hook: str) -> list[dict[str, Any]]:
    """Tell a hook's chain in the order of the calls: a wrapper begins before what it surrounds."""
    chain = getattr(manager.hook, hook).chain
    if chain is None:
        return []
    order = manager.settings.order
    builtins = {one.name for one in manager.list_plugin_info() if one.builtin}
    links = (*reversed(chain.wrappers), *chain.links)
    return [_link(link, order) | {"builtin": link.plugin in builtins} for link in links]


def _link(link: Link, order: tuple[str, ...]) -> dict[str, Any]:
    impl = link.impl
    kinds = {"wrapper": impl.wrapper, "async": link.is_async, "blocking": link.blocking}
    marks = {"tryfirst": impl.tryfirst, "trylast": impl.trylast}
    place = next((mark for mark, there in marks.items() if there), None)
    return {
        "plugin": link.plugin,
        "distribution": link.distribution,
        "version": link.version,
        "kind": next((kind for kind, there in kinds.items() if there), "plain"),
        "place": "order" if link.plugin in order else place,
        "when": [_condition(attrs.asdict(one, recurse=False)) for one in link.when],
        "timeout": link.limit,
        "observed": link.observed,
    }


def _condition(one: Mapping[str, Any]) -> str:
    told = []
    for name, value in one.items():
        if name == "error" and value is not None:
            names = [error if isinstance(error, str) else error.__qualname__ for error in value]
            told.append(f"error={' or '.join(names)}")
        elif name == "outcome" and value is not None:
            told.append(f"outcome={' or '.join(sorted(value))}")
        elif value is not None:
            told.append(f"{name}={value}")
    return ", ".join(told)


def _show(found: Mapping[str, Any]) -> None:
    for hook, chain in found["hooks"].items():
        if chain:
            say(f"\n{hook}", bold=True)
            show_table(_CHAIN, [_row(number, link) for number, link in enumerate(chain, start=1)])
    unused = [hook for hook, chain in found["hooks"].items() if not chain]
    if unused:
        say("\nnobody implements", bold=True)
        say("\n".join(unused))
    off = [one for one in found["plugins"] if not one["enabled"]]
    if off:
        say("\nnot asked", bold=True)
        rows = [[one["name"], _from(one), one["reason"] or ""] for one in off]
        show_table([Column("plugin", style="bold"), Column("distribution"), Column("why")], rows)
    declared = [[one["name"], ", ".join(one["keys"])] for one in found["plugins"] if one["keys"]]
    if declared:
        say("\nkeys of the plugins' own sections", bold=True)
        show_table([Column("plugin", style="bold"), Column("keys")], declared)
    say("\nsettings", bold=True)
    rows = [
        [key, json.dumps(one["value"]), one["source"]] for key, one in found["settings"].items()
    ]
    show_table([Column("key", style="bold"), Column("value"), Column("from")], rows)
    if found["faults"]:
        say("\nfaults", bold=True, fg="red")
        for fault in found["faults"]:
            say(f"- {fault}")


def _row(number: int, link: Mapping[str, Any]) -> list[str]:
    asked = " or ".join(link["when"]) or "always"
    kind = link["kind"] if link["place"] is None else f"{link['kind']}, {link['place']}"
    limit = "" if link["timeout"] is None else f"{link['timeout']:g} s"
    answers = "observed only" if link["observed"] else "used"
    return [str(number), link["plugin"], _from(link), kind, asked, limit, answers]


def _from(one: Mapping[str, Any]) -> str:
    if one["distribution"] is None:
        return "built in" if one["builtin"] else "-"
    return f"{one['distribution']} {one['version']}"
