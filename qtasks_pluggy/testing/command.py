"""``qtasks-pluggy check`` and ``new-plugin``, for authors of plugins."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import inspect
import json
import logging
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import attrs
import click

from qtasks_pluggy._console.load import Trouble, make_importable
from qtasks_pluggy._console.say import json_option, keep_stdout, say, say_json
from qtasks_pluggy._console.table import Column, show_table
from qtasks_pluggy._plugins.manager import BUILTINS
from qtasks_pluggy._plugins.validation import has_hookimpls, plugins_in
from qtasks_pluggy.exc import PluginRegistrationError
from qtasks_pluggy.testing.contract import CHECKS, PluginContract, import_fault, registration
from qtasks_pluggy.testing.given import GROUP, entry_point_named, find_plugin
from qtasks_pluggy.testing.trial import ContractError, Finding, HangError

_RESULTS: Final = [Column("check", style="bold"), Column("")]


@click.command(name="check")
@click.argument("plugin", metavar="NAME|PATH")
@click.option("--settings", metavar="JSON", help="The plugin's own section, as a JSON object.")
@click.option("--args", metavar="JSON", help="Arguments of the failing tasks, as a JSON array.")
@click.option(
    "--seconds",
    metavar="N",
    type=click.FloatRange(0, min_open=True),
    default=PluginContract.seconds,
    show_default=True,
    help="How long one step may take.",
)
@json_option
def check(
    plugin: str, settings: str | None, args: str | None, seconds: float, *, as_json: bool
) -> None:
    """Check a plugin against the contract of all plugins.

    NAME is the name of an installed plugin or a module; PATH is file.py. For a module with several
    plugins, write module:attribute or file.py:attribute.

    The plugin runs for real, with all that it connects to and writes. Settings of this machine and
    other plugins are left out. In the plugin's own tests, PluginContract of qtasks_pluggy.testing
    checks the same.

    \b
    Exit codes:
      0  the plugin keeps the contract
      1  it does not; each finding says what to do
      2  wrong usage, or there is no such plugin
    """  # noqa: D301  # \b is click's own mark, not an escape
    options: dict[str, Any] = {
        "seconds": seconds,
        "settings": _read("--settings", settings, dict),
        "args": _read("--args", args, list),
    }
    with _quiet():
        results = _examine(plugin, {key: one for key, one in options.items() if one is not None})
    if as_json:
        say_json({"plugin": plugin, "checks": results})
    else:
        _show(plugin, results)
    click.get_current_context().exit(1 if any(one["findings"] for one in results) else 0)


def _read(option: str, text: str | None, kind: type) -> Any:
    if text is None:
        return None
    try:
        value = json.loads(text)
    except ValueError as error:
        msg = f"{option}: expected JSON, {error}"
        raise Trouble(msg) from None
    if not isinstance(value, kind):
        wanted = "an object" if kind is dict else "an array"
        msg = f"{option}: expected {wanted} of JSON, got {type(value).__name__}"
        raise Trouble(msg)
    return value


@contextmanager
def _quiet() -> Generator[None]:
    """Keep standard output for the results, and leave out the log of failures made on purpose."""
    logger = logging.getLogger("qtasks_pluggy")
    before = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        with keep_stdout():
            yield
    finally:
        logger.setLevel(before)


def _examine(plugin: str, options: dict[str, Any]) -> list[dict[str, Any]]:
    """Run the checks, up to one that hangs; of what cannot be loaded only the first."""
    try:
        where, module, file = _where(plugin)
        fault = import_fault(module, file)
        if fault is not None:
            return [_result(CHECKS[0], [fault])]
        where = _or_its_class(where)
        find_plugin(where)
    except PluginRegistrationError as error:
        if plugin in importlib.metadata.entry_points(group=GROUP).names:
            return [_result(CHECKS[1], map(registration, error.problems))]
        raise Trouble(str(error)) from None
    contract = type("Checked", (PluginContract,), {"plugin": where, **options})()
    results: list[dict[str, Any]] = []
    for name in CHECKS:
        broken = _broken(getattr(contract, name))
        results.append(_result(name, () if broken is None else broken.findings))
        if isinstance(broken, HangError):
            break
    return results


def _or_its_class(where: str) -> str:
    """Return the class of a module that has its handlers in one; else what was given.

    Of an entry point always what was given, because an app does not look into its module either.

    Raises:
        PluginRegistrationError: It cannot be imported.
        Trouble: The module has several such classes.
    """
    if ":" in where or entry_point_named(where) is not None:
        return where
    module = find_plugin(where).make()
    if not isinstance(module, ModuleType) or has_hookimpls(module):
        return where
    classes = [one for one in plugins_in(module) if isinstance(vars(module)[one], type)]
    if len(classes) > 1:
        msg = f"{where!r} has several plugins; name one: {', '.join(classes)}, as in {where}:Name"
        raise Trouble(msg)
    return f"{where}:{classes[0]}" if classes else where


def _broken(call: Callable[[], None]) -> ContractError | None:
    try:
        call()
    except ContractError as broken:
        return broken
    return None


def _result(name: str, findings: Iterable[Finding]) -> dict[str, Any]:
    claim = inspect.getdoc(getattr(PluginContract, name)) or ""
    return {
        "check": name.removeprefix("test_"),
        "claim": claim,
        "findings": [attrs.asdict(one) for one in findings],
    }


def _where(plugin: str) -> tuple[str, str, str | None]:
    """Return a plugin as tests name it, its module, and that module's file if a file was given.

    Raises:
        PluginRegistrationError: No app can load the installed plugin of that name.
        Trouble: There is no such plugin.
    """
    point = entry_point_named(plugin)
    if point is not None:
        return plugin, point.module, None
    if plugin in BUILTINS:
        where = BUILTINS[plugin]
        return where, where.partition(":")[0], None
    where, colon, attribute = plugin.partition(":")
    path = Path(where).resolve()
    file = str(path) if where.endswith(".py") else None
    folder = Path.cwd() if file is None else path.parent
    make_importable(folder)
    if file is not None:
        if not path.is_file():
            msg = f"the file {where} does not exist; give the plugin's name, or its file"
            raise Trouble(msg)
        other = _origin(path.stem)
        if other is not None and Path(other).resolve() != path:
            msg = f"the file {where} has the name of another module, {other}; rename it"
            raise Trouble(msg)
        where = path.stem
    elif _origin(where) is None:
        known = sorted({*BUILTINS, *importlib.metadata.entry_points(group=GROUP).names})
        msg = (
            f"there is no plugin and no module {where!r}; plugins here are {', '.join(known)}; or"
            " give its file, as in path/to/file.py"
        )
        raise Trouble(msg)
    return f"{where}{colon}{attribute}", where, file


def _origin(module: str) -> str | None:
    """Return where a module comes from; None if there is none of that name."""
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        return None
    return None if spec is None else spec.origin or spec.name


def _show(plugin: str, results: Sequence[dict[str, Any]]) -> None:
    rows = [
        [one["check"].replace("_", " "), "wrong" if one["findings"] else "fine"] for one in results
    ]
    show_table(_RESULTS, rows)
    # One mistake may break several checks.
    found = [finding for one in results for finding in one["findings"]]
    findings = dict.fromkeys((one["text"], one["remedy"]) for one in found)
    for text, remedy in findings:
        say(f"\n{text}\n  -> {remedy}")
    if findings:
        say(f"\n{plugin}: {len(findings)} to fix", bold=True)
    else:
        say(f"\n{plugin}: keeps the contract", bold=True)


@click.command(name="new-plugin")
@click.argument("name")
@click.option(
    "--dir",
    "folder",
    metavar="D",
    default=".",
    help="The existing folder to create it in; by default this one.",
)
def new_plugin(name: str, folder: str) -> None:
    """Create a plugin project with tests, ready to publish.

    NAME is the plugin's name, in lower case with hyphens. The folder has the same name, and the
    distribution is qtasks-NAME. The command writes four files: pyproject.toml, the module, its
    tests, and README.

    \b
    Exit codes:
      0  the project was written
      2  nothing was written; the error says why
    """  # noqa: D301  # \b is click's own mark, not an escape
    try:
        from qtasks_pluggy.testing.project import (  # noqa: PLC0415  # an extra
            NameNotAllowedError,
            new_project,
        )
    except ModuleNotFoundError as error:
        if error.name != "jinja2":
            raise
        msg = (
            "this command needs jinja2, which is not installed; run:"
            " python -m pip install 'qtasks-pluggy[testing]'"
        )
        raise Trouble(msg) from None
    parent = Path(folder)
    try:
        files = new_project(name, parent, frozenset(BUILTINS))
    except NameNotAllowedError as error:
        raise Trouble(str(error)) from None
    except FileExistsError:
        msg = f"{parent / name} already exists; give another name or --dir, or move it away"
        raise Trouble(msg) from None
    except OSError as error:
        msg = f"{parent / name} cannot be written: {error.strerror}; give another --dir"
        raise Trouble(msg) from None
    say(f"{parent / name}: {', '.join(map(str, files))}")
    say(f"Next: cd {parent / name}", bold=True)
    say("      python -m pip install --editable '.[test]'")
    say("      python -m pytest")
    say(f"      qtasks-pluggy check {name}")
