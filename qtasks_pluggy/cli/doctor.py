"""``qtasks-pluggy doctor``: each hook's plugins in call order, the settings, and problems."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

import attrs
import click

from qtasks_pluggy import PluginManager
from qtasks_pluggy._console.load import load_plugins
from qtasks_pluggy._console.say import json_option, say, say_json
from qtasks_pluggy._console.table import Column, show_table
from qtasks_pluggy._plugins.chain import Link
from qtasks_pluggy.cli.hooks import HOOKS
from qtasks_pluggy.cli.plugins import describe, origin

_CHAIN: Final = [
    Column("", right=True),
    Column("plugin", style="bold"),
    Column("handler"),
    Column("distribution"),
    Column("kind"),
    Column("asked"),
    Column("limit", right=True),
    Column("answers"),
]


@click.command(name="doctor")
@click.argument("app_spec", metavar="[APP]", required=False)
@json_option
@click.pass_context
def doctor(ctx: click.Context, app_spec: str | None, *, as_json: bool) -> None:
    """Show each hook's plugins in call order, and report problems.

    APP is a QueueTasks, or an engine's app that install() was called on: module:attribute or
    file.py:attribute. Without APP, doctor examines the installed plugins.

    It shows what a process that starts here, now, would do, with its own settings and environment:
    each hook's handlers in call order, every setting with its source, and every problem:
    plugins that cannot be loaded, built-in plugins that cannot start, settings that name no plugin,
    filters for errors that no task of APP shows to plugins, retry or fallback for such errors
    alone. A filter by task or tag that no task of APP matches is only noted, because other apps may
    have such tasks. Of a plugin's own section it shows only the keys, because the values may be
    secrets. It does not show quarantines: each worker has its own, and logs plugin_quarantined.

    \b
    Example:
      qtasks-pluggy doctor shop.py:app

    \b
    Exit codes:
      0  no problem was found
      1  a problem was found
      2  wrong usage, a wrong setting, or APP cannot be imported
    """  # noqa: D301  # \b is click's own mark, not an escape
    manager, problems, notes = load_plugins(app_spec)
    found = _examine(manager, problems)
    if as_json:
        say_json(found)
    else:
        _show(found)
    for note in notes:
        say(note, err=True)
    ctx.exit(1 if problems else 0)


def _examine(manager: PluginManager, problems: list[str]) -> dict[str, Any]:
    loaded = manager.loaded
    values = attrs.asdict(loaded.settings, recurse=False)
    values["plugin"] = {name: sorted(section) for name, section in values["plugin"].items()}
    return {
        "settings": {
            key: {"value": value, "source": loaded.sources[key]} for key, value in values.items()
        },
        "hooks": {name: _chain(manager, name) for name in HOOKS},
        "plugins": [describe(one) for one in manager.list_plugin_info()],
        "faults": problems,
    }


def _chain(manager: PluginManager, hook: str) -> list[dict[str, Any]]:
    """Describe a hook's chain in call order; a wrapper comes before what it surrounds."""
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
        "handler": link.handler,
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
        if value is not None:
            many = [value] if isinstance(value, (str, bool)) else value
            names = [getattr(part, "__qualname__", str(part)) for part in many]
            told.append(f"{name}={' or '.join(sorted(names) if name == 'outcome' else names)}")
    return ", ".join(told)


def _show(found: Mapping[str, Any]) -> None:
    for hook, chain in found["hooks"].items():
        if chain:
            say(f"\n{hook}", bold=True)
            _show_chain(hook, chain)
    unused = [hook for hook, chain in found["hooks"].items() if not chain]
    if unused:
        say("\nnobody implements", bold=True)
        say("\n".join(unused))
    plugins, settings = found["plugins"], found["settings"].items()
    off = [one for one in plugins if not one["enabled"]]
    rows = [[one["name"], _source(one), one["reason"] or ""] for one in off]
    _show_section("not asked", ["plugin", "distribution", "why"], rows)
    rows = [[one["name"], ", ".join(one["keys"])] for one in plugins if one["keys"]]
    _show_section("keys of the plugins' own sections", ["plugin", "keys"], rows)
    rows = [[key, json.dumps(one["value"]), one["source"]] for key, one in settings]
    _show_section("settings", ["key", "value", "from"], rows)
    if found["faults"]:
        say("\nfaults", bold=True, fg="red")
    for problem in found["faults"]:
        say(f"- {problem}")
    if not found["faults"]:
        say("\nno faults", bold=True)


def _show_section(title: str, titles: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    if rows:
        say(f"\n{title}", bold=True)
        first, *rest = titles
        show_table([Column(first, style="bold"), *map(Column, rest)], rows)


def _show_chain(hook: str, chain: Sequence[Mapping[str, Any]]) -> None:
    """Show a hook's handlers, without the columns that say nothing here."""
    rows = [_row(number, link, hook) for number, link in enumerate(chain, start=1)]
    usual = {"asked": "always", "answers": "used", "kind": "plain"}
    columns = [
        column
        for column in zip(_CHAIN, *rows, strict=True)
        if any(cell != usual.get(column[0].title, "") for cell in column[1:])
    ]
    titles, *shown = zip(*columns, strict=True)
    show_table(titles, shown)


def _row(number: int, link: Mapping[str, Any], hook: str) -> list[str]:
    asked = " or ".join(link["when"]) or "always"
    kind = link["kind"] if link["place"] is None else f"{link['kind']}, {link['place']}"
    limit = "" if link["timeout"] is None else f"{link['timeout']:g} s"
    answers = "observed only" if link["observed"] else "used"
    # The heading has the hook's name, which most handlers have too.
    handler = "" if link["handler"] == hook else link["handler"]
    return [str(number), link["plugin"], handler, _source(link), kind, asked, limit, answers]


def _source(one: Mapping[str, Any]) -> str:
    return " ".join(origin(one)).strip()
