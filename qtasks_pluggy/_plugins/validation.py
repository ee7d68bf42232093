"""Validation: plugins to register, and what is wrong with each.

Every fault is found before anything is registered.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pkgutil import resolve_name
from types import ModuleType
from typing import Any, Self, TypeAlias

import attrs

from qtasks_hookspecs._markers import BLOCKING_ATTRIBUTE, PROJECT_NAME, WHEN_ATTRIBUTE
from qtasks_hookspecs._on_error import SHORT_NAMES, on_error_mark
from qtasks_hookspecs.exc import PluginRegistrationError
from qtasks_pluggy._plugins.adapter import (
    QTASKS_TRIGGERS,
    Adapter,
    is_of_qtasks,
    original_plugin,
    wanted_triggers,
)
from qtasks_pluggy._plugins.filters import why_unmatchable
from qtasks_pluggy._plugins.sections import section_problems
from qtasks_pluggy._settings import Loaded
from qtasks_pluggy._text import closest_match, describe_error, describe_plugin, disable_hint
from qtasks_pluggy.base_plugin import BasePlugin

_MARK = f"{PROJECT_NAME}_impl"

Hooks: TypeAlias = Mapping[str, frozenset[str]]
"""The parameters of each hook, by the hook's name."""

ReadMark: TypeAlias = Callable[[Any, str], Mapping[str, Any] | None]
"""Reads the mark of a plugin's attribute, as pluggy does."""


@attrs.define(eq=False)
class Candidate:
    """A plugin to register.

    Attributes:
        name: Its name.
        plugin: What will be registered; an adapter for a ``BasePlugin``.
        distribution: The distribution that installed it, if one did.
        version: That distribution's version.
        problems: What is wrong with it.
        starts: Its hookimpls of ``qtasks_start``.
    """

    name: str
    plugin: Any
    distribution: str | None = None
    version: str | None = None
    problems: list[str] = attrs.field(factory=list)
    starts: list[Callable[..., Any]] = attrs.field(factory=list)

    @classmethod
    def from_plugin(
        cls, plugin: Any, find_name: Callable[[Any], str], name: str | None = None
    ) -> Self:
        """Make a candidate of a plugin, or of where to import it; what fails is its problem."""
        if isinstance(plugin, str):
            try:
                plugin = resolve_name(plugin)
            except Exception as error:  # noqa: BLE001  # whatever an import raises
                missing = cls(name or plugin, None)
                missing.add_problem(
                    f"{plugin!r} cannot be imported: {describe_error(error)};"
                    " name 'module' or 'module:attribute'"
                )
                return missing
        try:
            return cls(name or find_name(plugin), plugin)
        except Exception as error:  # noqa: BLE001  # a property of its own, or its __getattr__
            nameless = cls(type(plugin).__name__, plugin)
            nameless.add_problem(
                f"reading its name failed with {describe_error(error)}; give it a name=, or fix it"
            )
            return nameless

    @property
    def place(self) -> dict[str, Any]:
        """Where it comes from, as fields of an event."""
        return {
            "plugin": self.name,
            "distribution": self.distribution,
            "version": self.version,
        }

    def add_problem(self, text: str) -> None:
        """Record a problem, with the plugin and the setting that disables it."""
        self.problems.append(
            f"{describe_plugin(**self.place)}: {text} (or disable it: {disable_hint(self.name)})"
        )

    def check_section(self, loaded: Loaded) -> None:
        """Record the problems of the plugin's section of the settings."""
        for function in self.starts:
            for problem in section_problems(function, self.name, loaded.settings, loaded.origins):
                self.add_problem(problem)

    def call_factory(self) -> None:
        """Make the plugin, if its entry point is a class or a factory; a failure is its problem."""
        factory = self.plugin
        if not _is_factory(factory):
            return
        shown = getattr(factory, "__qualname__", type(factory).__name__)
        if inspect.iscoroutinefunction(factory):
            self.add_problem(f"{shown}() is async; make the plugin in a plain function")
            return
        try:
            self.plugin = factory()
        except (Exception, SystemExit) as error:  # noqa: BLE001  # whatever a plugin's code raises
            self.add_problem(f"{shown}() failed with {describe_error(error)}")
        else:
            if self.plugin is None:
                self.add_problem(f"{shown}() returned None; return the plugin")


def _is_factory(entry: Any) -> bool:
    """Return whether an entry point names a factory: a class, or a plain function."""
    if isinstance(entry, type):
        return True
    if not inspect.isroutine(entry) or hasattr(entry, _MARK):
        return False
    try:
        inspect.signature(entry).bind()
    except (TypeError, ValueError):
        return False
    return True


def find_name(plugin: Any, candidates: Iterable[Candidate]) -> str | None:
    """Return the name under which this very plugin is registered, not one that equals it."""
    for one in candidates:
        if plugin is one.plugin or plugin is original_plugin(one.plugin):
            return one.name
    return None


def unregister_error(
    plugin: Any, name: str | None, registered: Mapping[str, Candidate]
) -> PluginRegistrationError:
    """Return the error for a plugin that is not registered, or not under this name."""
    known = find_name(plugin, registered.values())
    if known is not None:
        msg = f"plugin {known!r} cannot be unregistered as {name!r}; leave out the name"
        return PluginRegistrationError(msg)
    shown = plugin if isinstance(plugin, str) else name or type(plugin).__name__
    hint = "there are no plugins"
    if registered:
        hint = f"did you mean name={closest_match(shown, registered)!r}?"
    return PluginRegistrationError(f"plugin {shown!r} is not registered; {hint}")


def validate_all(
    candidates: Iterable[Candidate],
    registered: Mapping[str, Candidate],
    hooks: Hooks,
    read_mark: ReadMark,
    trigger_names: Iterable[str] | None = None,
) -> None:
    """Find the problems of several plugins, which may claim each other's names."""
    taken = dict(registered)
    for candidate in candidates:
        if candidate.problems:
            continue
        other = taken.get(candidate.name)
        if other is not None:
            candidate.add_problem(
                f"its name is taken by {describe_plugin(**other.place)}; give it another name= in"
                " add_plugin(), or, in a list of plugins, a .name of its own"
            )
        already = find_name(candidate.plugin, taken.values())
        taken[candidate.name] = candidate
        try:
            validate(candidate, hooks, read_mark, trigger_names)
        except Exception as error:  # noqa: BLE001  # its own __dir__, __getattribute__, handlers
            candidate.add_problem(f"inspecting it failed with {describe_error(error)}; fix it")
        if already is not None and other is None:
            candidate.add_problem(f"is registered already, as {already!r}; add it once")


def validate(
    candidate: Candidate,
    hooks: Hooks,
    read_mark: ReadMark,
    trigger_names: Iterable[str] | None = None,
) -> None:
    """Find the problems of one plugin, and adapt a ``BasePlugin``."""
    plugin = candidate.plugin
    if isinstance(plugin, type):
        if not issubclass(plugin, BasePlugin):
            name = plugin.__name__
            candidate.add_problem(f"is the class {name}; add an instance, {name}()")
            return
        candidate.call_factory()
        plugin = candidate.plugin
    if candidate.problems:
        return
    if isinstance(plugin, BasePlugin):
        _adapt(candidate, plugin, hooks, trigger_names)
        return
    if plugin is None:
        candidate.add_problem("is None; add a module or an object with hookimpls")
        return
    if trigger_names is not None:
        candidate.add_problem(
            "trigger_names= limits a BasePlugin; mark only the hookimpls that you want"
        )
    _validate_hookimpls(candidate, hooks, read_mark)


def _validate_hookimpls(candidate: Candidate, hooks: Hooks, read_mark: ReadMark) -> None:
    """Find the faults of a plugin's hookimpls; a plugin without any has one."""
    seen: dict[Any, str] = {}
    for attribute, function, options in _iter_marked(candidate, hooks, read_mark):
        first = seen.setdefault(getattr(function, "__func__", function), attribute)
        if first != attribute:
            candidate.add_problem(
                f"one function has two names, {first!r} and {attribute!r};"
                " keep one, or write two functions"
            )
            continue
        _validate_hookimpl(candidate, attribute, function, options, hooks)
    if seen or candidate.problems:
        return
    if is_of_qtasks(candidate.plugin):
        candidate.add_problem(
            "is a QTasks plugin; import BasePlugin from qtasks_pluggy, not from qtasks.plugins.base"
        )
        return
    if inspect.isroutine(candidate.plugin):
        candidate.add_problem(
            "is a function; a plugin is the module or the object that holds hookimpls, and only an"
            " entry point may name a function, one without required parameters that returns a"
            " plugin"
        )
        return
    inside = plugins_in(candidate.plugin) if isinstance(candidate.plugin, ModuleType) else []
    meant = " or ".join(f"'{candidate.plugin.__name__}:{name}'" for name in inside)
    candidate.add_problem(
        f"{type(candidate.plugin).__name__} {candidate.name!r} has no hookimpl; "
        + (
            f"did you mean {meant}, which has some?"
            if inside
            else "mark its functions with @hookimpl from qtasks_hookspecs and name them after hooks"
        )
    )


def plugins_in(module: ModuleType) -> list[str]:
    """Return the names of a module's own classes and objects that are plugins themselves."""
    return [
        name
        for name, value in vars(module).items()
        if not isinstance(value, ModuleType)
        and (kind := value if isinstance(value, type) else type(value)).__module__
        == module.__name__
        and (issubclass(kind, BasePlugin) or any(map(has_hookimpls, kind.__mro__)))
    ]


def has_hookimpls(owner: Any) -> bool:
    """Return whether a module or a class itself defines functions that are marked."""
    return any(hasattr(getattr(one, "__func__", one), _MARK) for one in vars(owner).values())


def _adapt(
    candidate: Candidate, plugin: BasePlugin, hooks: Hooks, trigger_names: Iterable[str] | None
) -> None:
    """Adapt a ``BasePlugin``, and report the triggers that it misspells."""
    wanted = wanted_triggers(plugin, trigger_names, hooks)
    for name in wanted:
        if name in hooks:
            continue
        candidate.add_problem(
            f"QTasks calls the trigger {name!r} itself; leave the plugin in QTasks' add_plugin(),"
            " or remove this trigger from it"
            if name in QTASKS_TRIGGERS
            else f"unknown trigger {name!r}; did you mean {closest_match(name, hooks)!r}?"
        )
    known = dict.fromkeys(name for name in wanted if name in hooks)
    candidate.plugin = Adapter(plugin, [*known, "qtasks_start", "qtasks_stop"])


def _iter_marked(
    candidate: Candidate, hooks: Hooks, read_mark: ReadMark
) -> Iterator[tuple[str, Any, Mapping[str, Any]]]:
    """Yield the marked attributes, and report those that look as if they should be marked."""
    plugin = candidate.plugin
    for attribute in dir(plugin):
        static = inspect.getattr_static(plugin, attribute, None)
        if isinstance(static, property) or (attribute.startswith("__") and attribute not in hooks):
            continue
        options = read_mark(plugin, attribute)
        if options is not None:
            yield attribute, getattr(plugin, attribute), options
            continue
        value = static.__func__ if isinstance(static, (staticmethod, classmethod)) else static
        if isinstance(getattr(value, "__dict__", {}).get(_MARK), dict):
            candidate.add_problem(
                f"{attribute!r} is marked but is a {type(value).__name__}, which is never called;"
                " mark a function"
            )
        elif attribute in hooks and callable(value):
            candidate.add_problem(
                f"{attribute!r} is named after a hook but not marked; put @hookimpl on it,"
                " or rename it"
            )


def _validate_hookimpl(
    candidate: Candidate,
    attribute: str,
    function: Any,
    options: Mapping[str, Any],
    hooks: Hooks,
) -> None:
    """Find the faults of one hookimpl."""
    hook = options.get("specname") or attribute
    if hook in hooks:
        for fault in hookimpl_faults(function, options, hook, hooks[hook]):
            handler = "" if attribute == hook else f"handler {attribute!r} of "
            candidate.add_problem(f"{handler}hook {hook!r}: {fault}")
        if hook == "qtasks_start":
            candidate.starts.append(function)
    elif not options.get("optionalhook"):
        candidate.add_problem(
            f"unknown hook {hook!r}; did you mean {closest_match(hook, hooks)!r}?"
            " (optionalhook=True lets a hook be unknown)"
        )


def hookimpl_faults(
    function: Any, options: Mapping[str, Any], hook: str, names: frozenset[str]
) -> Iterator[str]:
    """Yield a text for each fault of a function as a hookimpl of a hook."""
    fault = _kind_fault(function, options)
    if fault:
        yield fault
    is_short = on_error_mark(function) is not None
    known = names | SHORT_NAMES if is_short else names
    try:
        if _lacks_self(function, known):
            yield "is a method without self; write self first, or mark it @staticmethod"
            return
        faults = parameters(function, known)[2]
    except (TypeError, ValueError) as error:
        yield f"its parameters cannot be read ({error}); use a function"
        return
    for name, problem in faults:
        # Only a near one: for a short name like e, the nearest would mislead.
        near = difflib.get_close_matches(name, known, n=1)
        hint = f", the nearest is {near[0]!r}" if near else ""
        has = "an on_error handler may have" if is_short else "the hook has"
        yield f"{problem} {name!r}; {has} {', '.join(sorted(known))}{hint}"
    for condition in conditions(function):
        fault = why_unmatchable(condition, hook, names)
        if fault:
            yield fault


def _lacks_self(function: Any, known: frozenset[str]) -> bool:
    """Return whether a method takes no object, so that its first parameter would get it."""
    if not inspect.ismethod(function):
        return False
    own = inspect.signature(function.__func__, follow_wrapped=False).parameters.values()
    first = next(iter(own), None)
    return first is None or (
        first.kind is not first.VAR_POSITIONAL and first.name in known - {"self", "cls"}
    )


def _kind_fault(function: Any, options: Mapping[str, Any]) -> str | None:
    """Return why this kind of function cannot be a hookimpl, or None if it can."""
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
    """Return what a hookimpl takes by position and by keyword, and pairs of a name and a fault."""
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
        # functools.wraps shows the parameters of the wrapped function, but the wrapper is called.
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
    """Return whether a function can be called so, each value under its own name."""
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
    """Return whether a hookimpl is marked ``@blocking``."""
    return bool(getattr(function, BLOCKING_ATTRIBUTE, False))


def conditions(function: Any) -> tuple[Any, ...]:
    """Return the ``@when`` conditions of a hookimpl."""
    return tuple(getattr(function, WHEN_ATTRIBUTE, ()))
