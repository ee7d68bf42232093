"""The links of a hook's chain, and the trail entries that a walk along it writes."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from operator import itemgetter
from typing import Any, Final, Protocol, TypeAlias

import attrs

from qtasks_hookspecs import Cancel, DeadLetter, Raise, Replace, Retry
from qtasks_hookspecs._markers import When
from qtasks_pluggy._plugins.filters import filter_key, matches
from qtasks_pluggy._plugins.quarantine import NO_BREAKER, Breaker
from qtasks_pluggy._plugins.sections import section_for
from qtasks_pluggy._plugins.trail import TrailRecord
from qtasks_pluggy._plugins.validation import Candidate, conditions, is_blocking, parameters
from qtasks_pluggy._settings import Settings
from qtasks_pluggy._text import describe_plugin

DECISIONS: Final = frozenset({Replace, Retry, Raise, Cancel, DeadLetter})


class Hook(Protocol):
    """As much of a hook's caller as a walk along its chain looks at."""

    names: frozenset[str]
    size: int
    lastresult: bool
    pipeline: str | None
    manager: Any

    @property
    def name(self) -> str:
        """The hook's name."""
        ...


@attrs.frozen(eq=False)
class Link:
    """One hookimpl in a chain, with all that is known about it before it is called.

    Attributes:
        plugin: The plugin's name.
        distribution: The distribution that installed it, if one did.
        version: That distribution's version.
        hook: The hook's name.
        impl: pluggy's own record of the hookimpl.
        function: What is called.
        positional: The names of the parameters that it takes by position.
        keywords: Those that it takes by keyword alone.
        is_async: Whether it is an ``async def``.
        blocking: Whether it leaves the caller's thread.
        when: The conditions under which it is asked; empty for always.
        limit: Seconds that it may take; None for no limit.
        observed: Whether its answer is only recorded.
        breaker: Its quarantine.
    """

    plugin: str
    distribution: str | None
    version: str | None
    hook: str
    impl: Any
    function: Callable[..., Any]
    positional: tuple[str, ...]
    keywords: tuple[str, ...] = ()
    is_async: bool = False
    blocking: bool = False
    when: tuple[When, ...] = ()
    limit: float | None = None
    observed: bool = False
    breaker: Breaker = NO_BREAKER
    plain: bool = attrs.field(init=False)
    only: str | None = attrs.field(init=False, default=None)
    overrun: float = attrs.field(init=False)
    pick: Callable[[Mapping[str, Any]], Sequence[Any]] = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        """Prepare what each call would otherwise do again."""
        names = self.positional
        # With two names, for the sake of itemgetter, which gives no tuple for one.
        pick = itemgetter(*names) if len(names) > 1 else lambda values: [values[n] for n in names]
        special = self.keywords or self.blocking or self.observed
        if len(names) == 1 and not special:
            object.__setattr__(self, "only", names[0])
        object.__setattr__(self, "pick", pick)
        object.__setattr__(self, "overrun", math.inf if self.limit is None else self.limit)
        object.__setattr__(self, "plain", not special)

    @property
    def who(self) -> str:
        """The plugin as errors and events name it."""
        return describe_plugin(self.plugin, self.distribution, self.version)

    def call(self, values: Mapping[str, Any]) -> Any:
        """Call the function with the parameters that it names."""
        if self.observed and "kwargs" in values:
            # What it changes in place must not be seen by anybody else.
            values = {**values, "kwargs": dict(values["kwargs"])}
        if self.keywords:
            by_keyword = {name: values[name] for name in self.keywords}
            return self.function(*self.pick(values), **by_keyword)
        return self.function(*self.pick(values))


Entry: TypeAlias = list[Any]
"""A trail record in the making, a bare list because every dispatch writes some: the link, the
attempt, the status, the type of the answer or of the failure, the seconds, whether it won."""


Plan: TypeAlias = tuple[tuple["Link | Entry", ...], tuple["Link", ...]]


@attrs.frozen(eq=False)
class Chain:
    """A hook's hookimpls in call order.

    Attributes:
        links: Called from first to last; the last answer wins.
        wrappers: Around them, from the innermost to the outermost.
    """

    links: tuple[Link, ...] = ()
    wrappers: tuple[Link, ...] = ()
    filtered: bool = attrs.field(init=False)
    _plans: dict[Any, Plan] = attrs.field(init=False, factory=dict)

    def __attrs_post_init__(self) -> None:
        """See once whether there is anything to filter."""
        filtered = any(link.when for link in (*self.links, *self.wrappers))
        object.__setattr__(self, "filtered", filtered)

    def narrowed(self, values: dict[str, Any]) -> Plan:
        """Return links and wrappers as the filters leave them for this error and this task.

        A link that is not asked is replaced by its trail entry. The answer depends on few facts,
        so it is remembered: with many filtered plugins, a dispatch costs hardly more than with
        one.
        """
        known = filter_key(values)
        plan = self._plans.get(known)
        if plan is None:
            if len(self._plans) >= _MOST_PLANS:
                self._plans.clear()
            links = tuple(
                link
                if not link.when or matches(link.when, known)
                else [link, 1, "filtered", None, 0.0, False]
                for link in self.links
            )
            wrappers = tuple(
                link for link in self.wrappers if not link.when or matches(link.when, known)
            )
            left_out = [link for link in self.wrappers if link not in wrappers]
            filtered = [[link, 1, "filtered", None, 0.0, False] for link in left_out]
            plan = self._plans[known] = (*filtered, *links), wrappers
        return plan


# Facts can be endless where tasks are made on the fly; what is remembered must not be.
_MOST_PLANS: Final = 1024
NO_LINKS: Final = Chain()


def record_of(entry: Entry) -> TrailRecord:
    """Build the record that is read."""
    link, attempt, status, kind, seconds, won = entry
    if kind is None or kind is type(None):
        told = None
    else:
        told = kind.__name__ if status == "raised" or kind in DECISIONS else "value"
    return TrailRecord(
        plugin=link.plugin,
        distribution=link.distribution,
        version=link.version,
        hook=link.hook,
        attempt=attempt,
        status=status,
        kind=told,
        seconds=seconds,
        observed=link.observed,
        won=won,
    )


def in_call_order(
    hookimpls: Sequence[Any], order: Sequence[str], rank: Callable[[Any], Any]
) -> tuple[list[Any], list[Any]]:
    """Put pluggy's hookimpls in call order.

    ``tryfirst`` comes to the front and ``trylast`` to the back, each group in order of
    registration; the plugins of the operator's ``order`` come last, their marks ignored. A wrapper
    that comes later in this order is further out, but one that is tried first is outermost.

    Args:
        hookimpls: The hookimpls of one hook.
        order: The operator's order.
        rank: The order of registration, as something to sort by.

    Returns:
        The hookimpls from the first to the last, and the wrappers from the inside to the outside.
    """
    places = {name: place for place, name in enumerate(order)}

    def place(impl: Any, direction: int) -> tuple[int, Any]:
        if impl.plugin_name in places:
            return 2, places[impl.plugin_name]
        group = 1 if impl.trylast else -1 if impl.tryfirst else 0
        return group * direction, rank(impl)

    return (
        sorted((one for one in hookimpls if not one.wrapper), key=lambda one: place(one, 1)),
        sorted((one for one in hookimpls if one.wrapper), key=lambda one: place(one, -1)),
    )


def make_link(
    hook: str,
    names: frozenset[str],
    impl: Any,
    origin: Candidate,
    settings: Settings,
    breaker: Breaker,
) -> Link:
    """Gather all that is known about a hookimpl before it is called.

    Args:
        hook: The hook's name.
        names: The hook's parameters.
        impl: pluggy's record of the hookimpl.
        origin: Where its plugin comes from.
        settings: The settings of this moment.
        breaker: Its quarantine.
    """
    name = origin.name
    function = impl.function
    positional, keywords, _ = parameters(function, names)
    if hook == "qtasks_start" and "settings" in (*positional, *keywords):
        # Each plugin gets its own section, and none of the others'.
        function = partial(function, settings=section_for(function, name, settings))
        keywords = tuple(one for one in (*positional, *keywords) if one != "settings")
        positional = ()
    return Link(
        plugin=name,
        distribution=origin.distribution,
        version=origin.version,
        hook=hook,
        impl=impl,
        function=function,
        positional=positional,
        keywords=keywords,
        is_async=inspect.iscoroutinefunction(impl.function),
        blocking=is_blocking(impl.function),
        when=conditions(impl.function),
        limit=settings.timeouts.get(name, settings.timeout) if "e" in names else None,
        observed=name in settings.observe,
        breaker=breaker,
    )
