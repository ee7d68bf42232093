"""The links of a hook's chain in call order, and the result of asking each."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from operator import itemgetter
from typing import Any, Final, NamedTuple, Protocol, TypeAlias

import attrs

from qtasks_hookspecs import Cancel, DeadLetter, OutcomeStatus, Raise, Replace, Retry
from qtasks_hookspecs._markers import When
from qtasks_hookspecs._on_error import on_error_mark
from qtasks_hookspecs.exc import own_error
from qtasks_pluggy._plugins.filters import FilterKey, filter_key, matches, possible_statuses
from qtasks_pluggy._plugins.quarantine import NO_BREAKER, Breaker
from qtasks_pluggy._plugins.sections import section_for
from qtasks_pluggy._plugins.trail import Status, TrailRecord
from qtasks_pluggy._plugins.validation import Candidate, conditions, is_blocking, parameters
from qtasks_pluggy._settings import Settings
from qtasks_pluggy._text import describe_plugin

DECISIONS: Final = frozenset({Replace, Retry, Raise, Cancel, DeadLetter})

Values: TypeAlias = dict[str, Any]
"""A hook's parameters by name, as the next hookimpl will see them."""


class Hook(Protocol):
    """The part of a hook's caller that a dispatch uses.

    Attributes:
        names: The hook's parameters.
        lastresult: Whether the last answer that is not None is the result.
        pipeline: The parameters that an answer replaces for the hookimpls that follow.
        anytrue: Whether the result says that some hookimpl answered exactly True.
        subject: The parameter that the hook is about: the run or the app. None for a hook that an
            app added, because its parameter names mean nothing to us.
        has_error: Whether it is one of our hooks and has an error.
        manager: The plugin manager.
    """

    names: frozenset[str]
    lastresult: bool
    pipeline: tuple[str, ...]
    anytrue: bool
    subject: str | None
    has_error: bool
    manager: Any

    @property
    def name(self) -> str:
        """The hook's name."""
        ...


@attrs.frozen(eq=False)
class Link:
    """One hookimpl in a chain, with everything known about it before a call.

    Attributes:
        plugin: The plugin's name.
        distribution: The distribution that installed it, if one did.
        version: That distribution's version.
        hook: The hook's name.
        handler: The function's own name.
        impl: pluggy's own record of the hookimpl.
        invoke: Calls its function with the parameters of the hook that it names.
        is_async: Whether it is an ``async def``.
        blocking: Whether it runs in another thread.
        when: The conditions under which it is asked; empty for always.
        consents: The error classes that it names with ``on_error``, if any.
        limit: Seconds that it may take; None for no limit.
        observed: Whether its answer is only recorded.
        breaker: Its quarantine.
    """

    plugin: str
    distribution: str | None
    version: str | None
    hook: str
    handler: str
    impl: Any
    invoke: Callable[[Values], Any]
    is_async: bool = False
    blocking: bool = False
    when: tuple[When, ...] = ()
    consents: tuple[type[Exception], ...] = ()
    limit: float | None = None
    observed: bool = False
    breaker: Breaker = NO_BREAKER
    overrun: float = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        """Prepare the limit for comparison, so that no call has to check for None."""
        object.__setattr__(self, "overrun", math.inf if self.limit is None else self.limit)

    @property
    def who(self) -> str:
        """The plugin's name for errors and events."""
        return describe_plugin(self.plugin, self.distribution, self.version)

    @classmethod
    def from_hookimpl(
        cls, hook: Hook, impl: Any, origin: Candidate, settings: Settings, breaker: Breaker
    ) -> Link:
        """Make the link of a hookimpl."""
        name, function = origin.name, impl.function
        on_error = on_error_mark(function)
        return cls(
            plugin=name,
            distribution=origin.distribution,
            version=origin.version,
            hook=hook.name,
            handler=getattr(function, "__name__", hook.name),
            impl=impl,
            invoke=_invoker(hook, function, name, settings),
            is_async=inspect.iscoroutinefunction(function),
            blocking=is_blocking(function),
            when=conditions(function),
            consents=on_error.classes if on_error else (),
            limit=_limit(hook, name, settings),
            observed=name in settings.observe,
            breaker=breaker,
        )


def _limit(hook: Hook, plugin: str, settings: Settings) -> float | None:
    """Return the seconds that a plugin has for a hook; None for a hook that an app added."""
    if hook.subject == "app":
        return settings.start_timeout
    return settings.timeouts.get(plugin, settings.timeout) if hook.subject else None


# What ``on_error`` handlers may name in addition to the hook's own parameters.
_SHORT: Final[Mapping[str, Callable[[Values], Any]]] = {
    "error": lambda values: own_error(values["e"]),
    "run": itemgetter("task_executor"),
}


def _invoker(hook: Hook, function: Any, plugin: str, settings: Settings) -> Callable[[Values], Any]:
    """Return a function that calls a hookimpl with the parameters of the hook that it names."""
    on_error = on_error_mark(function)
    known = hook.names | _SHORT.keys() if on_error else hook.names
    positional, keywords, _ = parameters(function, known)
    if hook.name == "qtasks_start" and "settings" in (*positional, *keywords):
        # Each plugin gets its own section only.
        function = partial(function, settings=section_for(function, plugin, settings))
        keywords = tuple(one for one in (*positional, *keywords) if one != "settings")
        positional = ()
    if "kwargs" in hook.pipeline:
        # A copy for each hookimpl: changes in place are not an answer, so no other sees them.
        call = _invoker_of(function, positional, keywords)
        return lambda values: call({**values, "kwargs": dict(values["kwargs"])})
    return _invoker_of(function, positional, keywords)


def _invoker_of(
    function: Any, positional: Sequence[str], keywords: Sequence[str]
) -> Callable[[Values], Any]:
    """Return a function that passes named values, as fast as the signature allows."""
    named = (*positional, *keywords)
    if keywords or _SHORT.keys() & {*named}:
        get = {name: _SHORT.get(name, itemgetter(name)) for name in named}
        return lambda values: function(
            *[get[name](values) for name in positional],
            **{name: get[name](values) for name in keywords},
        )
    if not positional:
        return lambda values: function()  # noqa: ARG005  # it names no parameter
    if len(positional) == 1:
        (only,) = positional
        return lambda values: function(values[only])
    several = itemgetter(*positional)
    return lambda values: function(*several(values))


class Asked(NamedTuple):
    """The result of asking one link, which is also its entry in the trail.

    A named tuple, because every dispatch makes some. It does not store the answer, which may hold
    the error and, through it, the whole run.
    """

    link: Link
    attempt: int
    status: Status
    kind: type | None = None
    seconds: float = 0.0
    won: bool = False

    def to_record(self) -> TrailRecord:
        """Build the public record."""
        link, attempt, status, kind, seconds, won = self
        word = None
        if kind is not None:
            word = kind.__name__ if status == "raised" or kind in DECISIONS else "value"
        return TrailRecord(
            plugin=link.plugin,
            distribution=link.distribution,
            version=link.version,
            hook=link.hook,
            attempt=attempt,
            status=status,
            kind=word,
            seconds=seconds,
            observed=link.observed,
            won=won,
            handler=link.handler,
        )


# Bypasses the named tuple's slow ``__new__``: most entries are "no opinion".
new_asked: Final[Callable[[tuple[Any, ...]], Asked]] = partial(tuple.__new__, Asked)


def decided_by(entries: Sequence[Asked]) -> str | None:
    """Return the name of the plugin whose answer won, or None."""
    return next((entry.link.plugin for entry in entries if entry.won), None)


Step: TypeAlias = Link | Asked
"""A link to ask, or the record of a link that its filters skip."""


Plan: TypeAlias = tuple[tuple[Step, ...], tuple[Step, ...]]
"""The links from first to last, and the wrappers from the outermost to the innermost."""


@attrs.frozen(eq=False)
class Chain:
    """A hook's hookimpls in call order.

    Attributes:
        links: Called from first to last; the last answer wins.
        wrappers: The wrappers around them, from the innermost to the outermost.
        statuses: The statuses of an attempt that some link may want.
        statuses_of_repeats: The statuses that links want only for replays and retries.
    """

    links: tuple[Link, ...] = ()
    wrappers: tuple[Link, ...] = ()
    statuses: frozenset[OutcomeStatus] = attrs.field(init=False)
    statuses_of_repeats: frozenset[OutcomeStatus] = attrs.field(init=False)
    # The plan of a chain without filters; None if filters must be checked.
    _everybody: Plan | None = attrs.field(init=False)
    # Whether some handler names error classes with ``on_error``.
    _has_consent: bool = attrs.field(init=False)
    _planned: Callable[[FilterKey, bool, int], Plan] = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        """Prepare the plan of a chain without filters, or a cache of plans for one with filters."""
        links = (*self.links, *self.wrappers)
        whens = [link.when for link in links]
        # Conditions that are only for replays or retries want nothing of a run's first attempt.
        others = [tuple(one for one in when if not (one.replay or one.retry)) for when in whens]
        others = [other for other, when in zip(others, whens, strict=True) if other or not when]
        statuses, of_others = _wanted(whens), _wanted(others)
        object.__setattr__(self, "statuses", statuses)
        object.__setattr__(self, "statuses_of_repeats", statuses - of_others)
        everybody = None if any(link.when for link in links) else (self.links, self.wrappers[::-1])
        object.__setattr__(self, "_everybody", everybody)
        object.__setattr__(self, "_has_consent", any(link.consents for link in links))
        # There is no limit to error classes, so the cache needs one.
        object.__setattr__(self, "_planned", lru_cache(1024)(self._plan))

    def without_quarantine(self) -> Chain:
        """Return the same chain without quarantines."""
        return Chain(
            *(
                tuple(attrs.evolve(link, breaker=NO_BREAKER) for link in links)
                for links in (self.links, self.wrappers)
            )
        )

    def plan(self, values: Values, attempt: int) -> Plan:
        """Return the links and wrappers, with records in place of those that filters skip."""
        if self._everybody is not None:
            return self._everybody
        consented_only = self._has_consent and getattr(
            values["task_executor"], "_consented_only", False
        )
        return self._planned(filter_key(values), consented_only, attempt)

    def _plan(
        self,
        key: FilterKey,
        consented_only: bool,  # noqa: FBT001  # for lru_cache
        attempt: int,
    ) -> Plan:
        def step(link: Link) -> Step:
            asked = not link.when or matches(link.when, key)
            if consented_only:
                # Only a handler that names a class of this error is asked.
                asked = asked and any(issubclass(one, link.consents) for one in key.errors)
            # One record for all runs: in a long chain, filters skip most links.
            return link if asked else Asked(link, attempt, "filtered")

        return tuple(map(step, self.links)), tuple(map(step, reversed(self.wrappers)))

    def consents(self, error: BaseException) -> bool:
        """Return whether a handler names a class of this error, and so is asked about it."""
        return any(link.consents and isinstance(error, link.consents) for link in self.links)


def _wanted(whens: Sequence[tuple[When, ...]]) -> frozenset[OutcomeStatus]:
    """Return the statuses of an attempt that links with these conditions may want."""
    wanted = [possible_statuses(when) for when in whens]
    known = [statuses for statuses in wanted if statuses is not None]
    every = frozenset(OutcomeStatus) if len(known) < len(wanted) else frozenset()
    return every.union(*known)


NO_LINKS: Final = Chain()


def in_call_order(
    hookimpls: Sequence[Any], order: Sequence[str], rank: Callable[[Any], Any]
) -> tuple[list[Any], list[Any]]:
    """Return pluggy's hookimpls, then its wrappers from the innermost out, in call order.

    ``tryfirst`` goes to the front and ``trylast`` to the back; within each group, ``rank`` decides
    by order of registration. The plugins of the operator's ``order`` come last, whatever their
    marks. A wrapper that comes later in this order is further out, but ``tryfirst`` makes it the
    outermost.
    """
    places = {name: place for place, name in enumerate(order)}

    def place(impl: Any, direction: int) -> tuple[int, Any, int]:
        # A plugin's handlers keep the order in which they were decorated.
        mark = on_error_mark(impl.function)
        within = mark.number if mark else 0
        if impl.plugin_name in places:
            return 2, places[impl.plugin_name], within
        group = 1 if impl.trylast else -1 if impl.tryfirst else 0
        return group * direction, rank(impl), within

    return (
        sorted((one for one in hookimpls if not one.wrapper), key=lambda one: place(one, 1)),
        sorted((one for one in hookimpls if one.wrapper), key=lambda one: place(one, -1)),
    )
