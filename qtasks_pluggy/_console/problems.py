"""Settings and filters that have no effect, and what enables a plugin."""

from __future__ import annotations

import builtins
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import attrs

from qtasks_hookspecs._markers import When
from qtasks_hookspecs.exc import (
    PluginError,
    SettingsError,
    TaskPluginTriggerError,
    loaded_class,
)
from qtasks_pluggy import PluginManager, QueueTasks
from qtasks_pluggy._plugins.chain import Link
from qtasks_pluggy._plugins.filters import FilterKey, matches
from qtasks_pluggy._plugins.sections import section_problems
from qtasks_pluggy._settings import ENVIRONMENT_PREFIX, KINDS, NAMES, Loaded
from qtasks_pluggy._settings_file import find
from qtasks_pluggy._text import closest_match
from qtasks_pluggy.builtin._errors import read_error_names
from qtasks_pluggy.engines import SYNC, run_to_completion


def replaced_lists(loaded: Loaded) -> Iterator[str]:
    """Describe each list of the settings file from which an environment variable drops names."""
    found = None if loaded.file is None else find({})
    path, table = found or ("", {})
    for key in [key for key, kind in KINDS.items() if kind is NAMES]:
        variable, names = loaded.sources[key], getattr(loaded.settings, key)
        dropped = [name for name in table.get(key, ()) if name not in (names or ())]
        if variable.startswith(ENVIRONMENT_PREFIX) and dropped:
            yield f"{variable} replaces the list of {path}, which also names {', '.join(dropped)}"


def enabling(name: str, enabled: Iterable[str]) -> str:
    """Return the variable that enables a built-in plugin besides those that are enabled."""
    return f"{ENVIRONMENT_PREFIX}ENABLE={','.join(dict.fromkeys([*enabled, name]))}"


def dead_settings(manager: PluginManager, *, has_app: bool) -> Iterator[str]:
    """Describe each name in the settings that no plugin has."""
    hint = "" if has_app else " If an app adds it, give that APP."
    for one in manager.dead_settings():
        near = one["did_you_mean"]
        meant = f"; did you mean {near!r}?" if near else "."
        yield (
            f"setting {one['setting']!r} ({one['source']}) names {one['name']!r}, but no plugin"
            f" has that name{meant}{hint}"
        )


def failing_builtins(manager: PluginManager, app: QueueTasks | None) -> Iterator[str]:
    """Start each built-in plugin, which only reads its section, and describe why one cannot.

    An installed plugin is not started: it may connect and write.
    """
    hooks: Any = manager.hook
    builtin = {one.name for one in manager.list_plugin_info() if one.builtin and one.enabled}
    values = {"app": app or QueueTasks("doctor", discover=False)}
    for impl in hooks.qtasks_start.get_hookimpls():
        name = impl.plugin_name
        if name not in builtin or section_problems(impl.function, name, manager.settings):
            continue
        try:
            start = hooks.qtasks_start.call_only(SYNC, [name], {**values, "settings": {}})
            run_to_completion(start)
        except PluginError as error:
            yield str(error)
        else:
            run_to_completion(hooks.qtasks_stop.call_only(SYNC, [name], values))


def dead_filters(app: QueueTasks) -> Iterator[str]:
    """Describe each handler whose filter names errors that no task of an app shows to plugins."""
    hook: Any = app.plugins.hook.task_executor_run_task_trigger_error
    chain = hook.chain
    yield from _dead_builtins(app)
    for link in () if chain is None else (*chain.links, *chain.wrappers):
        if link.when and not any(_may_hold(condition, link, app) for condition in link.when):
            errors = [error for condition in link.when for error in condition.error or ()]
            names = {one if isinstance(one, str) else one.__qualname__: None for one in errors}
            yield (
                f"{link.who}, handler {link.handler!r}: it only handles {' and '.join(names)},"
                f" which no task of app {app.name!r} shows to plugins; give the tasks or the app"
                " intercept=..., or write the handler with on_error"
            )


def unmatched_filters(app: QueueTasks) -> Iterator[str]:
    """Describe each filter by task or tag that no task of an app matches.

    No problem by itself: other apps may have such tasks, or this one later.
    """
    filters = [*_filters_by_task(app.plugins)]
    # Only where there are some: Celery imports all modules to list its tasks.
    tasks = {name: getattr(one, "task_func", None) for name, one in app.tasks.items() if filters}
    # Of an engine's own tasks only the names are known before they run.
    has_tags = all(tasks.values())
    keys = [FilterKey(task=name, tags=one.tags if one else ()) for name, one in tasks.items()]
    for link, condition in filters if tasks else ():
        wanted = condition if has_tags else attrs.evolve(condition, tag=None)
        if any(matches([wanted], key) for key in keys):
            continue
        asked = {"task": wanted.task, "tag": wanted.tag}
        shown = ", ".join(f"{key}={one!r}" for key, one in asked.items() if one)
        near = closest_match(wanted.task or "", tasks)
        yield (
            f"{link.who}, handler {link.handler!r}: no task of app {app.name!r} matches {shown}; it"
            f" has {len(tasks)}, such as {near!r}"
        )


def _filters_by_task(manager: PluginManager) -> Iterator[tuple[Link, When]]:
    """Yield each handler's conditions for tasks and tags, without all others."""
    for hook in vars(manager.hook).values():
        chain = getattr(hook, "chain", None)
        for link in () if chain is None else (*chain.links, *chain.wrappers):
            for one in link.when or ():
                if one.task is not None or one.tag is not None:
                    yield link, When(task=one.task, tag=one.tag)


def _dead_builtins(app: QueueTasks) -> Iterator[str]:
    """Describe each built-in plugin whose section names only errors that no task shows."""
    hook: Any = app.plugins.hook.task_executor_run_task_trigger_error
    builtin = {one.name for one in app.plugins.list_plugin_info() if one.builtin}
    for link in () if hook.chain is None else hook.chain.links:
        section = app.plugins.settings.plugin.get(link.plugin, {})
        wanted = _wanted(section) if link.plugin in builtin else []
        if wanted and not any(_may_hold(condition, link, app) for condition in wanted):
            names = {str(name): None for condition in wanted for name in condition.error or ()}
            yield (
                f"{link.who} is never asked about {' and '.join(names)}: no intercept= of app"
                f" {app.name!r} or of its tasks lists such an error; pass intercept=Exception to"
                " the app"
            )


def _wanted(section: Mapping[str, Any]) -> list[When]:
    """Read what the section of ``retry`` or ``fallback`` asks for; nothing if it is malformed."""
    rules = section.get("rules", [{"error": section["errors"]}] if "errors" in section else [])
    try:
        return [
            When(
                read_error_names(one["error"], "error") if "error" in one else None,
                one.get("task"),
                one.get("tag"),
            )
            for one in rules
        ]
    except (AttributeError, TypeError, SettingsError):
        return []  # the app's start says what is wrong


def _may_hold(condition: When, link: Link, app: Any) -> bool:
    """Return whether some task may show plugins an error that a condition names."""
    if condition.error is None:
        return True
    by_task = [attrs.evolve(condition, error=None)]
    # The tasks of an engine's own app have no setting of their own, so the app's applies.
    tasks = [one.task_func for one in app.tasks.values() if hasattr(one, "task_func")]
    meant = [one for one in tasks if matches(by_task, FilterKey(task=one.name, tags=one.tags))]
    # An engine's own app may get tasks later, and an installed plugin serves other apps too.
    shown: list[Any] = [one.intercept for one in meant] or [None]
    return any(
        _is_shown(error, app._intercept if classes is None else classes, link)  # noqa: SLF001  # ours
        for classes in shown
        for error in condition.error
    )


def _is_shown(named: type[BaseException] | str, shown: Any, link: Link) -> bool:
    error = _class_of(named)
    if error is None:
        # Its module may be loaded later.
        return bool(shown)
    always = (TaskPluginTriggerError, *(shown or ()), *(() if shown == () else link.consents))
    return any(issubclass(error, one) or issubclass(one, error) for one in always)


def _class_of(named: type[BaseException] | str) -> type[BaseException] | None:
    if not isinstance(named, str):
        return named
    found = loaded_class(named) if "." in named else getattr(builtins, named, None)
    return found if isinstance(found, type) and issubclass(found, BaseException) else None
