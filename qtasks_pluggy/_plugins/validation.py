"""What can be wrong with a plugin, found before anything of it is registered."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import attrs

from qtasks_hookspecs._markers import BLOCKING_ATTRIBUTE, PROJECT_NAME, WHEN_ATTRIBUTE
from qtasks_hookspecs._on_error import SHORT_NAMES, on_error_mark
from qtasks_pluggy._plugins.adapter import Adapter, triggers
from qtasks_pluggy._plugins.filters import never_matches
from qtasks_pluggy._text import closest_match, describe_plugin, safe_str
from qtasks_pluggy.base_plugin import BasePlugin

_MARK = f"{PROJECT_NAME}_impl"


@attrs.define(eq=False)
class Candidate:
    """A plugin that asks to be registered.

    Attributes:
        name: Its name.
        plugin: What will be registered; an adapter for a ``BasePlugin``.
        distribution: The distribution that installed it, if one did.
        version: That distribution's version.
        problems: What is wrong with it.
    """

    name: str
    plugin: Any
    distribution: str | None = None
    version: str | None = None
    problems: list[str] = attrs.field(factory=list)

    def fault(self, text: str) -> None:
        """Take down what is wrong, who it is, and what switches it off."""
        self.problems.append(
            f"{describe_plugin(self.name, self.distribution, self.version)}: {text}"
            f" (or switch it off: QTASKS_PLUGGY_DISABLE={self.name})"
        )


def check(
    candidate: Candidate,
    hooks: Mapping[str, frozenset[str]],
    options_of: Callable[[Any, str], Mapping[str, Any] | None],
    trigger_names: Iterable[str] | None = None,
) -> None:
    """Find every fault of a plugin, and adapt a ``BasePlugin``.

    Args:
        candidate: The plugin; its ``problems`` and ``plugin`` are written.
        hooks: Each hook's parameters, by the hook's name.
        options_of: Reads the mark of an attribute, as pluggy does.
        trigger_names: The triggers that a ``BasePlugin`` is limited to.
    """
    plugin = candidate.plugin
    if isinstance(plugin, type):
        if not issubclass(plugin, BasePlugin):
            candidate.fault(f"is the class {plugin.__name__}; add an instance, {plugin.__name__}()")
            return
        try:
            plugin = plugin()
        except Exception as error:  # noqa: BLE001  # whatever a plugin's constructor raises
            told = f"{type(error).__name__}: {safe_str(error)}"
            candidate.fault(f"{plugin.__name__}() failed with {told}")
            return
    if isinstance(plugin, BasePlugin):
        _adapt(candidate, plugin, hooks, trigger_names)
        return
    if plugin is None:
        candidate.fault("is None; add a module or an object with hookimpls")
        return
    if trigger_names is not None:
        candidate.fault("trigger_names= limits a BasePlugin; mark only the hookimpls that you want")
    found = 0
    seen: dict[Any, str] = {}
    for attribute, function, options in _marked(candidate, plugin, hooks, options_of):
        found += 1
        key = getattr(function, "__func__", function)
        if key in seen:
            candidate.fault(
                f"one function stands under two names, {seen[key]!r} and {attribute!r};"
                " keep one, or write two functions"
            )
            continue
        seen[key] = attribute
        _check_hookimpl(candidate, attribute, function, options, hooks)
    if not found and not candidate.problems:
        candidate.fault(
            "a str is no plugin; import the module that it names, and give that"
            if isinstance(plugin, str)
            else f"{type(plugin).__name__} {candidate.name!r} has no hookimpl; mark its functions"
            " with @hookimpl from qtasks_hookspecs and name them after hooks"
        )


def _adapt(
    candidate: Candidate,
    plugin: BasePlugin,
    hooks: Mapping[str, frozenset[str]],
    trigger_names: Iterable[str] | None,
) -> None:
    wanted = triggers(plugin, trigger_names, hooks)
    for name in wanted:
        if name not in hooks:
            candidate.fault(
                f"unknown trigger {name!r}; did you mean {closest_match(name, hooks)!r}?"
            )
    known = dict.fromkeys(name for name in wanted if name in hooks)
    candidate.plugin = Adapter(plugin, [*known, "qtasks_start", "qtasks_stop"])


def _marked(
    candidate: Candidate,
    plugin: Any,
    hooks: Mapping[str, frozenset[str]],
    options_of: Callable[[Any, str], Mapping[str, Any] | None],
) -> Iterator[tuple[str, Any, Mapping[str, Any]]]:
    """Yield what is marked, and report what looks as if it should be."""
    for attribute in dir(plugin):
        static = inspect.getattr_static(plugin, attribute, None)
        if isinstance(static, property) or (attribute.startswith("__") and attribute not in hooks):
            continue
        options = options_of(plugin, attribute)
        if options is not None:
            yield attribute, getattr(plugin, attribute), options
            continue
        value = static.__func__ if isinstance(static, (staticmethod, classmethod)) else static
        if isinstance(getattr(value, "__dict__", {}).get(_MARK), dict):
            candidate.fault(
                f"{attribute!r} is marked but is a {type(value).__name__}, which is never called;"
                " mark a function"
            )
        elif attribute in hooks and callable(value):
            candidate.fault(
                f"{attribute!r} bears the name of a hook but is not marked; put @hookimpl on it,"
                " or rename it"
            )


def _check_hookimpl(
    candidate: Candidate,
    attribute: str,
    function: Any,
    options: Mapping[str, Any],
    hooks: Mapping[str, frozenset[str]],
) -> None:
    hook = options.get("specname") or attribute
    if hook not in hooks:
        if not options.get("optionalhook"):
            candidate.fault(
                f"unknown hook {hook!r}; did you mean {closest_match(hook, hooks)!r}?"
                " (optionalhook=True lets a hook be unknown)"
            )
        return
    for fault in _faults_of(function, options, hooks[hook]):
        candidate.fault(f"hook {hook!r}: {fault}")


def _faults_of(function: Any, options: Mapping[str, Any], names: frozenset[str]) -> Iterator[str]:
    """Say what is wrong with a function as a hookimpl of a hook with these parameters."""
    fault = _shape(function, options)
    if fault:
        yield fault
    known = names | SHORT_NAMES if on_error_mark(function) else names
    try:
        faults = parameters(function, known)[2]
    except (TypeError, ValueError) as error:
        yield f"its parameters cannot be read ({error}); use a function"
        return
    for name, problem in faults:
        # Only where one is near: for a short name like e, the least far one would mislead.
        near = difflib.get_close_matches(name, names, n=1)
        hint = f", the nearest is {near[0]!r}" if near else ""
        yield f"{problem} {name!r}; the hook has {', '.join(sorted(names))}{hint}"
    for condition in conditions(function):
        fault = never_matches(condition, names)
        if fault:
            yield fault


def _shape(function: Any, options: Mapping[str, Any]) -> str | None:
    """Say what is wrong with the kind of function, if anything is."""
    is_async = inspect.iscoroutinefunction(function)
    if options.get("hookwrapper"):
        return "hookwrapper=True is pluggy's old kind; use wrapper=True"
    if inspect.isasyncgenfunction(function):
        return "is an async generator; a wrapper is a plain generator, also around async hookimpls"
    if options.get("wrapper"):
        if not inspect.isgeneratorfunction(function):
            return "wrapper=True needs a plain generator with one yield, and this has none"
        if is_blocking(function):
            return "a wrapper cannot be @blocking; do the blocking work in a hookimpl of its own"
    elif inspect.isgeneratorfunction(function):
        return "is a generator; mark it @hookimpl(wrapper=True), or return instead of yielding"
    if is_async and is_blocking(function):
        return "is @blocking and async; an async hookimpl needs no such mark, take it off"
    return None


def parameters(
    function: Any, known: frozenset[str]
) -> tuple[tuple[str, ...], tuple[str, ...], list[tuple[str, str]]]:
    """Say how a hookimpl takes its hook's parameters.

    Args:
        function: The hookimpl.
        known: The hook's parameters.

    Returns:
        The names it takes by position, those by keyword, and pairs of a name and a fault.
    """
    positional: list[str] = []
    keywords: list[str] = []
    faults: list[tuple[str, str]] = []
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            keywords += sorted(known.difference(positional, keywords))
        elif parameter.kind is parameter.VAR_POSITIONAL:
            faults.append((f"*{name}", "parameters must be named, not taken as"))
        elif name not in known:
            faults.append((name, "unknown parameter"))
        elif parameter.kind is parameter.KEYWORD_ONLY:
            keywords.append(name)
        else:
            positional.append(name)
    if not faults and hasattr(function, "__wrapped__"):
        # What functools.wraps shows are the parameters of the function inside; what is called is
        # the one outside.
        outside = inspect.signature(function, follow_wrapped=False)
        if not _takes(outside, positional, keywords):
            by_name = (*positional, *keywords)
            if _takes(outside, (), by_name):
                return (), by_name, faults
            names = ", ".join(by_name) or "nothing"
            faults.append((str(outside), f"it names {names}, but what is wrapped around it takes"))
    return tuple(positional), tuple(keywords), faults


def _takes(
    signature: inspect.Signature, positional: Sequence[str], keywords: Iterable[str]
) -> bool:
    """Say whether a function can be called so, with nothing under another parameter's name."""
    try:
        bound = signature.bind(*positional, **{name: name for name in keywords})
    except TypeError:
        return False
    names = {*positional, *keywords}
    stars = {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}
    return all(
        value == name or name not in names or signature.parameters[name].kind in stars
        for name, value in bound.arguments.items()
    )


def is_blocking(function: Any) -> bool:
    """Say whether ``@blocking`` is on a hookimpl."""
    return bool(getattr(function, BLOCKING_ATTRIBUTE, False))


def conditions(function: Any) -> tuple[Any, ...]:
    """Return the ``@when`` conditions of a hookimpl."""
    return tuple(getattr(function, WHEN_ATTRIBUTE, ()))
