"""From APP and TASK on the command line to the objects that they name."""

from __future__ import annotations

import importlib
import importlib.util
import os
import pkgutil
import sys
from collections.abc import Callable
from functools import partial
from importlib.metadata import EntryPoint, entry_points
from inspect import getmro
from pathlib import Path
from types import ModuleType
from typing import Any, Final, TypeAlias

import click

from qtasks_pluggy import AsyncTask, PluginManager, QueueTasks, SyncTask
from qtasks_pluggy._console.say import say
from qtasks_pluggy._console.traceback import own_traceback
from qtasks_pluggy._submit.lookup import GROUP
from qtasks_pluggy._text import closest_match
from qtasks_pluggy.engines import installed_in
from qtasks_pluggy.engines import load_plugins as load_plugins_of
from qtasks_pluggy.exc import EngineError, PluginError, QTasksError, SettingsError

Task: TypeAlias = AsyncTask[..., Any] | SyncTask[..., Any]


class Trouble(click.ClickException):
    """What was asked for cannot begin: one clear error, and exit code 2."""

    exit_code = 2


def load_app(spec: str) -> QueueTasks:
    """Import the app that APP names.

    Args:
        spec: ``module:attr`` or ``file.py:attr``; ``attr`` is ``app`` when it is left out.

    Returns:
        The app.

    Raises:
        Trouble: There is no such thing, or importing it failed.
    """
    hint = "its tasks are run by its own worker; give a QueueTasks"
    return _find(spec, _own_app, "a QueueTasks", hint)


def load_any_app(spec: str) -> QueueTasks:
    """Import the app that APP names, or the one behind an engine's own.

    Args:
        spec: As for ``load_app``, or an engine's own app that ``install()`` was called on.

    Returns:
        The app.

    Raises:
        Trouble: There is no such thing, or importing it failed.
    """
    wanted = "a QueueTasks, or an app that install() was called on"
    hint = "install() was not called on it: call {module}.install() where the app is made"
    return _find(spec, _app_behind, wanted, hint)


def load_plugins(spec: str | None) -> tuple[PluginManager, list[str]]:
    """Load the plugins of the app that APP names, as its start does.

    Args:
        spec: As for ``load_app``, or an engine's own app that ``install()`` was called on; None
            for the installed plugins alone.

    Returns:
        The plugins, and the faults of those that cannot be loaded.

    Raises:
        Trouble: There is no such app, importing it failed, or a setting has a wrong value.
    """
    app = None if spec is None else load_any_app(spec)
    manager = PluginManager() if app is None else app.plugins
    load = manager.discover if app is None else partial(load_plugins_of, app)
    try:
        return manager, load(skip_faulty=True)
    except SettingsError as error:
        raise Trouble(str(error)) from None


def _find(
    spec: str, app_in: Callable[[object], QueueTasks | None], wanted: str, native_hint: str
) -> QueueTasks:
    """Import the app that APP names.

    Args:
        spec: As for ``load_app``.
        app_in: Returns the app that an object is or has behind it; None if there is none.
        wanted: What such objects are.
        native_hint: What to do where it is an engine's own object, and there is none.
    """
    where, colon, attr = spec.rpartition(":")
    if not colon:
        where, attr = spec, "app"
    if not where or not attr:
        msg = f"APP is {spec!r}; write module:attribute or file.py:attribute"
        raise Trouble(msg)
    _make_importable(Path.cwd())
    module = _load_file(where) if _names_a_file(where) else _load_module(where)
    found = getattr(module, attr, None)
    app = app_in(found)
    if app is not None:
        return app
    what = f"APP {spec!r}: {attr!r} in {where!r} is of type {type(found).__name__}"
    hint = f"nothing in {where!r} is {wanted}; make one, as in app = QueueTasks('name')"
    adapter = _adapter_of(found)
    if adapter is not None:
        hint = native_hint.format(module=adapter.module)
    elif hasattr(module, attr):
        what = f"{what}, not QueueTasks"
    else:
        what = f"APP {spec!r}: {where!r} has no {attr!r}"
    apps = [name for name, value in vars(module).items() if app_in(value) is not None]
    if apps and adapter is not None:
        hint = f"{hint}, or name {where}:{closest_match(attr, apps)}"
    elif apps:
        hint = f"did you mean {where}:{closest_match(attr, apps)}?"
    msg = f"{what}; {hint}"
    raise Trouble(msg)


def _own_app(value: object) -> QueueTasks | None:
    return value if isinstance(value, QueueTasks) else None


def _app_behind(value: object) -> QueueTasks | None:
    # Nothing is asked of objects that belong to no engine: a lazy one would do what it puts off.
    app = value if _adapter_of(value) is None else installed_in(value)
    return _own_app(app)


def _adapter_of(value: object) -> EntryPoint | None:
    """Find the adapter of the engine whose object it is, or whose class."""
    kind = value if isinstance(value, type) else type(value)
    packages = {base.__module__.partition(".")[0] for base in getmro(kind)}
    return next((one for one in entry_points(group=GROUP) if one.name in packages), None)


def load_task(app: QueueTasks, name: str) -> Task:
    """Find the task that TASK names.

    Args:
        app: The app.
        name: The task's name.

    Returns:
        The task.

    Raises:
        Trouble: The app has no task of that name; the nearest is named.
    """
    task: Task | None = app.tasks.get(name)
    if task is not None:
        return task
    if not app.tasks:
        hint = "it has no tasks at all; declare one with @app.task"
    else:
        hint = f"did you mean {closest_match(name, app.tasks)!r}?"
        if len(app.tasks) > 1:
            hint += f" Its tasks are {', '.join(sorted(app.tasks))}."
    msg = f"app {app.name!r} has no task {name!r}; {hint}"
    raise Trouble(msg)


def give_engine(app: QueueTasks, url: str, workers: int) -> None:
    """Give an app the engine that ``--engine`` names.

    Args:
        app: The app.
        url: The engine's URL.
        workers: How many runs at a time this process does itself.

    Raises:
        Trouble: There is no such engine, or it cannot do what a task asks for.
    """
    try:
        app.set_engine(url, workers)
    except EngineError as error:
        msg = f"--engine: {error}"
        raise Trouble(msg) from None


# What can be wrong with an app that does not start.
Faults: Final = (EngineError, PluginError, SettingsError)


def cannot_start(app: QueueTasks, error: QTasksError) -> Trouble:
    """Say that an app does not start, because of its plugins or its settings.

    Args:
        app: The app.
        error: What it raised.

    Returns:
        The error to raise.
    """
    return Trouble(f"app {app.name!r} cannot start: {error}")


def _names_a_file(where: str) -> bool:
    return where.endswith(".py") or os.sep in where


def _load_module(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or name
        if name != missing and not name.startswith(f"{missing}."):
            raise _raised_on_import(name, error) from None
        parent, _, last = missing.rpartition(".")
        folders = (
            getattr(sys.modules.get(parent), "__path__", None) if parent else [str(Path.cwd())]
        )
        beside = [f"{parent}.{one.name}".lstrip(".") for one in pkgutil.iter_modules(folders)]
        hint = f"did you mean {closest_match(missing, beside)!r}? " if beside and last else ""
        msg = (
            f"there is no module {missing!r}; {hint}It is looked for in the current folder,"
            f" {Path.cwd()}, and among what is installed."
        )
        raise Trouble(msg) from None
    except (Exception, SystemExit) as error:  # noqa: BLE001  # whatever a module raises
        raise _raised_on_import(name, error) from None


def _load_file(where: str) -> ModuleType:
    """Import a file by the name that its own imports would have, if it has one.

    So pickles of what it defines can be read again, and a module that another one imports too
    is the same module.
    """
    path = Path(where).resolve()
    if not path.is_file():
        folder = Path(where).parent
        beside = [str(folder / one.name) for one in path.parent.glob("*.py")]
        hint = f"did you mean {closest_match(where, beside)}?" if beside else "look at its folder"
        what = "is not a file" if path.exists() else "does not exist"
        msg = f"the file {where} {what}; {hint}"
        raise Trouble(msg)
    parts, folder = [path.stem], path.parent
    while (folder / "__init__.py").is_file():
        parts.insert(0, folder.name)
        folder = folder.parent
    _make_importable(folder)
    name = ".".join(parts)
    try:
        spec = importlib.util.find_spec(name) if all(map(str.isidentifier, parts)) else None
        if spec is not None and spec.origin and path.samefile(spec.origin):
            return importlib.import_module(name)
        return _load_as(f"qtasks_pluggy_app_{path.stem}", path)
    except (Exception, SystemExit) as error:  # noqa: BLE001  # whatever a module raises
        raise _raised_on_import(where, error) from None


def _load_as(name: str, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        msg = f"the file {path} is no Python file; APP is file.py:attribute"
        raise Trouble(msg)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _make_importable(folder: Path) -> None:
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))


def _raised_on_import(where: str, error: BaseException) -> Trouble:
    if isinstance(error, Trouble):
        return error
    say(own_traceback(error).rstrip("\n"), err=True)
    return Trouble(
        f"importing {where!r} raised {type(error).__name__}; the traceback above shows where"
    )
