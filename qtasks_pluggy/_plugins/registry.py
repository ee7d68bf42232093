"""Which plugin is which: each is itself, and no other that equals it or has its name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from qtasks_hookspecs.exc import PluginRegistrationError
from qtasks_pluggy._plugins.adapter import given
from qtasks_pluggy._plugins.validation import Candidate, check
from qtasks_pluggy._text import closest_match, describe_plugin, safe_str


class _Plugins(list[Any]):
    """Plugins of which ``in`` finds the very one."""

    def __contains__(self, plugin: object) -> bool:
        return any(one is plugin for one in self)


class Table(dict[str, Any]):
    """Plugins by name, None for a blocked name: the table in which pluggy looks what is there."""

    def values(self) -> Any:
        """Return the plugins; ``in`` them finds the very one, where pluggy would ask ``==``."""
        return _Plugins(super().values())


def candidate_of(plugin: Any, name_it: Callable[[Any], str], name: str | None = None) -> Candidate:
    """Make a candidate of a plugin that the app gives; that it cannot be named is its problem.

    Args:
        plugin: The plugin.
        name_it: Reads its name, where none is given.
        name: Its name, if the app gives it one.
    """
    try:
        return Candidate(name or name_it(plugin), plugin)
    except Exception as error:  # noqa: BLE001  # a property of its own, or its __getattr__
        nameless = Candidate(type(plugin).__name__, plugin)
        told = f"{type(error).__name__}: {safe_str(error)}"
        nameless.fault(f"reading its name failed with {told}; give it a name=, or mend it")
        return nameless


def name_of(plugin: Any, candidates: Iterable[Candidate]) -> str | None:
    """Say under what name a plugin is there: it itself, not one that equals it.

    Args:
        plugin: The plugin, as the app gave it or as it was registered.
        candidates: Those that are there.
    """
    for one in candidates:
        if plugin is one.plugin or plugin is given(one.plugin):
            return one.name
    return None


def check_all(
    candidates: Iterable[Candidate],
    registered: Mapping[str, Candidate],
    hooks: Mapping[str, frozenset[str]],
    options_of: Callable[[Any, str], Mapping[str, Any] | None],
    trigger_names: Iterable[str] | None = None,
) -> None:
    """Find every fault of some plugins, their names among others.

    Args:
        candidates: The plugins; those that have problems already are left alone.
        registered: What is there before them, by name.
        hooks: Each hook's parameters, by the hook's name.
        options_of: Reads the mark of an attribute, as pluggy does.
        trigger_names: The triggers that a ``BasePlugin`` is limited to.
    """
    taken = dict(registered)
    for candidate in candidates:
        if candidate.problems:
            continue
        other = taken.get(candidate.name)
        if other is not None:
            claimed_by = describe_plugin(other.name, other.distribution, other.version)
            candidate.fault(f"its name is taken by {claimed_by}; give it another name=")
        already = name_of(candidate.plugin, taken.values())
        taken[candidate.name] = candidate
        try:
            check(candidate, hooks, options_of, trigger_names)
        except Exception as error:  # noqa: BLE001  # its own __dir__, __getattribute__, handlers
            told = f"{type(error).__name__}: {safe_str(error)}"
            candidate.fault(f"looking at it failed with {told}; mend it")
        if already is not None and other is None:
            candidate.fault(f"is registered already, as {already!r}; add it once")


def not_registered(
    plugin: Any, name: str | None, registered: Mapping[str, Candidate]
) -> PluginRegistrationError:
    """Say that a plugin is not there to be unregistered, or not under the name that was given.

    Args:
        plugin: What was given for the plugin; many a caller gives its name.
        name: What was given for its name.
        registered: What is there, by name.
    """
    known = name_of(plugin, registered.values())
    if known is not None:
        told = f"plugin {known!r} cannot be unregistered as {name!r}; leave out the name"
        return PluginRegistrationError(told)
    shown = plugin if isinstance(plugin, str) else name or type(plugin).__name__
    hint = "there are no plugins"
    if registered:
        hint = f"did you mean name={closest_match(shown, registered)!r}?"
    return PluginRegistrationError(f"plugin {shown!r} is not registered; {hint}")
