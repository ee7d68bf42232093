"""Finds the objects that APP and TASK name on the command line."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
import pkgutil
import sys
import sysconfig
from importlib.metadata import EntryPoint, entry_points
from inspect import getmro
from pathlib import Path
from types import ModuleType
from typing import Any, Final, NoReturn, TypeAlias

import click

from qtasks_pluggy import AsyncTask, PluginManager, QueueTasks, SyncTask
from qtasks_pluggy._console.problems import (
    dead_filters,
    dead_settings,
    failing_builtins,
    replaced_lists,
    unmatched_filters,
)
from qtasks_pluggy._console.say import own_traceback, say
from qtasks_pluggy._submit.lookup import GROUP
from qtasks_pluggy._text import closest_match, describe_error
from qtasks_pluggy.engines import installed_in
from qtasks_pluggy.engines import load_plugins as load_plugins_of
from qtasks_pluggy.exc import EngineError, PluginError, QTasksError, SettingsError

Task: TypeAlias = AsyncTask[..., Any] | SyncTask[..., Any]


Faults: Final = (EngineError, PluginError, SettingsError)
"""The errors of an app that does not start."""


class Trouble(click.ClickException):
    """The command cannot begin: one clear error, and exit code 2."""

    exit_code = 2


def load_app(spec: str, *, or_native: bool = False) -> QueueTasks:
    """Import the app that APP names, or with ``or_native`` the one that ``install()`` made.

    Raises:
        Trouble: It does not exist, or importing it failed.
    """
    where, colon, attr = spec.rpartition(":")
    if not colon:
        where, attr = spec, "app"
    if not where or not attr:
        msg = f"APP is {spec!r}; write module:attribute or file.py:attribute"
        raise Trouble(msg)
    is_file = where.endswith(".py") or os.sep in where
    module = _load_file(where) if is_file else _load_module(where)
    # As ``celery -A`` finds it.
    if not colon and not hasattr(module, attr) and _has_celery(module):
        where = f"{where}.celery"
        module = _load_module(where)
    found = getattr(module, attr, None)
    app_in = _installed_app if or_native else _own_app
    app = app_in(found)
    if app is not None:
        return app
    apps = [name for name, value in vars(module).items() if app_in(value) is not None]
    meant = f"{where}:{closest_match(attr, apps)}" if apps else ""
    adapter = _adapter_of(found)
    if adapter is not None:
        hint = "its own worker runs its tasks; give a QueueTasks"
        if or_native:
            install = f"{adapter.module}.install()"
            hint = f"install() was not called on it: call {install} where you create the app"
        hint += f", or name {meant}" if meant else ""
    elif meant:
        hint = f"did you mean {meant}?"
    else:
        wanted = "a QueueTasks" + (", or an app that install() was called on" if or_native else "")
        hint = f"nothing in {where!r} is {wanted}; make one, as in app = QueueTasks('name')"
    what = f"{where!r} has no {attr!r}"
    if hasattr(module, attr):
        other = ", not QueueTasks" if adapter is None else ""
        what = f"{attr!r} in {where!r} is of type {type(found).__name__}{other}"
    msg = f"APP {spec!r}: {what}; {hint}"
    raise Trouble(msg)


def load_plugins(spec: str | None) -> tuple[PluginManager, list[str], list[str]]:
    """Load the plugins of the app that APP names, and list all their problems, and notes.

    Without APP, load only the installed ones. A problem is a plugin that cannot be loaded, a
    built-in one that cannot start, a setting that names no plugin, or a filter for errors
    that no task shows. A note is of what may be meant: a list that a variable replaces, a filter
    for tasks of which there is none.

    Raises:
        Trouble: There is no such app, importing it failed, or a setting has a wrong value.
    """
    app = None if spec is None else load_app(spec, or_native=True)
    manager = PluginManager() if app is None else app.plugins
    # What is logged about the settings is among the problems too.
    log = logging.getLogger("qtasks_pluggy")
    quiet, log.disabled = log.disabled, True
    try:
        problems = (
            manager.discover(skip_faulty=True)
            if app is None
            else load_plugins_of(app, skip_faulty=True)
        )
        problems += failing_builtins(manager, app)
    except SettingsError as error:
        raise Trouble(str(error)) from None
    finally:
        log.disabled = quiet
    problems += dead_settings(manager, has_app=app is not None)
    notes = [*replaced_lists(manager.loaded)]
    try:
        if app is not None:
            problems += dead_filters(app)
            notes += unmatched_filters(app)
    except (Exception, SystemExit) as error:  # noqa: BLE001  # of whatever modules Celery imports
        problems.append(f"its tasks cannot be listed: {describe_error(error)}")
    return manager, problems, notes


def cannot_start(app: QueueTasks, error: QTasksError) -> Trouble:
    """Return the error for an app that does not start: its engine, plugins or settings."""
    return Trouble(f"app {app.name!r} cannot start: {error}")


def load_task(app: QueueTasks, name: str) -> Task:
    """Find the task that TASK names.

    Raises:
        Trouble: The app has no task of that name; the nearest is named.
    """
    task: Task | None = app.tasks.get(name)
    if task is not None:
        return task
    hint = "it has no tasks; declare one with @app.task"
    if app.tasks:
        hint = f"did you mean {closest_match(name, app.tasks)!r}?"
        if len(app.tasks) > 1:
            hint += f" Its tasks are {', '.join(sorted(app.tasks))}."
    msg = f"app {app.name!r} has no task {name!r}; {hint}"
    raise Trouble(msg)


def _has_celery(module: ModuleType) -> bool:
    is_package = hasattr(module, "__path__")
    return is_package and importlib.util.find_spec(f"{module.__name__}.celery") is not None


def _own_app(value: object) -> QueueTasks | None:
    return value if isinstance(value, QueueTasks) else None


def _installed_app(value: object) -> QueueTasks | None:
    # Nothing is asked of objects that belong to no engine: a lazy one would do what it puts off.
    return _own_app(value if _adapter_of(value) is None else installed_in(value))


def _adapter_of(value: object) -> EntryPoint | None:
    """Find the adapter of the engine whose object it is, or whose class."""
    kind = value if isinstance(value, type) else type(value)
    packages = {base.__module__.partition(".")[0] for base in getmro(kind)}
    return next((one for one in entry_points(group=GROUP) if one.name in packages), None)


def _load_module(name: str) -> ModuleType:
    make_importable(Path.cwd())
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:  # noqa: BLE001  # whatever a module raises
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing is None or not f"{name}.".startswith(f"{missing}."):
            _raise_imported(name, error)
        parent, _, _ = missing.rpartition(".")
        folders = getattr(sys.modules[parent], "__path__", ()) if parent else [str(Path.cwd())]
        beside = [f"{parent}.{one.name}".lstrip(".") for one in pkgutil.iter_modules(folders)]
        hint = f"did you mean {closest_match(missing, beside)!r}? " if beside else ""
        msg = (
            f"there is no module {missing!r}; {hint}qtasks-pluggy looks in the current folder,"
            f" {Path.cwd()}, and among the installed modules."
        )
        raise Trouble(msg) from None


def _load_file(where: str) -> ModuleType:
    """Import a file by the name that its own imports would have, if it has one.

    So pickles of what it defines can be read again, and a module that another one imports too
    is the same module.
    """
    path = Path(where).resolve()
    if not path.is_file() or path.suffix != ".py":
        beside = [str(Path(where).parent / one.name) for one in path.parent.glob("*.py")]
        hint = f"did you mean {closest_match(where, beside)}?" if beside else "look at its folder"
        what = "is not a Python file" if path.exists() else "does not exist"
        msg = f"the file {where} {what}; {hint}"
        raise Trouble(msg)
    parts, folder = [path.stem], path.parent
    while (folder / "__init__.py").is_file():
        parts.insert(0, folder.name)
        folder = folder.parent
    make_importable(folder)
    name = ".".join(parts)
    try:
        spec = importlib.util.find_spec(name) if all(map(str.isidentifier, parts)) else None
        if spec is not None and spec.origin and path.samefile(spec.origin):
            return importlib.import_module(name)
        # Another module has its name, or no module can have it.
        spec = importlib.util.spec_from_file_location(f"qtasks_pluggy_app_{path.stem}", path)
        module = importlib.util.module_from_spec(spec)  # type: ignore[arg-type]  # it is a .py
        sys.modules[module.__name__] = module
        spec.loader.exec_module(module)  # type: ignore[union-attr]  # likewise
    except (Exception, SystemExit) as error:  # noqa: BLE001  # whatever a module raises
        _raise_imported(where, error)
    return module


def make_importable(folder: Path) -> None:
    """Make what lies in a folder importable, where Python's own modules do not have its name."""
    if str(folder) in sys.path:
        return
    standard = {sysconfig.get_path(one) for one in ("stdlib", "platstdlib")}
    standard |= {str(Path(one, "lib-dynload")) for one in standard}
    places = [place for place, one in enumerate(sys.path) if one in standard]
    sys.path.insert(max(places, default=-1) + 1, str(folder))


def _raise_imported(where: str, error: BaseException) -> NoReturn:
    say(own_traceback(error).rstrip("\n"), err=True)
    msg = f"importing {where!r} raised {type(error).__name__}; the traceback above shows where"
    raise Trouble(msg) from None
