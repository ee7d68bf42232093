"""The links of a hook's chain, and the trail entries that a walk along it writes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter
from typing import Any, Final, TypeAlias

import attrs

from qtasks_hookspecs import Cancel, DeadLetter, Raise, Replace, Retry
from qtasks_pluggy._trail import Status, TrailRecord, who

DECISIONS: Final = frozenset({Replace, Retry, Raise, Cancel, DeadLetter})


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
    plain: bool = attrs.field(init=False)
    only: str | None = attrs.field(init=False, default=None)
    alone: tuple[Callable[..., Any], ...] = attrs.field(init=False)
    pick: Callable[[Mapping[str, Any]], Sequence[Any]] = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        """Prepare what each call would otherwise do again."""
        names = self.positional
        # With two names, for the sake of itemgetter, which gives no tuple for one.
        pick = itemgetter(*names) if len(names) > 1 else lambda values: [values[n] for n in names]
        if len(names) == 1 and not (self.keywords or self.blocking):
            object.__setattr__(self, "only", names[0])
        object.__setattr__(self, "pick", pick)
        object.__setattr__(self, "alone", (self.function,))
        object.__setattr__(self, "plain", not (self.keywords or self.blocking))

    @property
    def who(self) -> str:
        """The plugin as errors and events name it."""
        return who(self.plugin, self.distribution, self.version)

    def call(self, values: Mapping[str, Any]) -> Any:
        """Call the function with the parameters that it names."""
        if self.keywords:
            by_keyword = {name: values[name] for name in self.keywords}
            return self.function(*self.pick(values), **by_keyword)
        return self.function(*self.pick(values))


@attrs.frozen(eq=False)
class Chain:
    """A hook's hookimpls in call order.

    Attributes:
        links: Called from first to last; the last answer wins.
        wrappers: Around them, from the innermost to the outermost.
    """

    links: tuple[Link, ...] = ()
    wrappers: tuple[Link, ...] = ()


NO_LINKS: Final = Chain()


Entry: TypeAlias = list[Any]
"""A trail record in the making, a bare list because every dispatch writes some: the link, the
attempt, the status, the type of the answer or of the failure, the seconds, whether it won."""


def record_of(entry: Entry) -> TrailRecord:
    """Build the record that is read."""
    link, attempt, status, kind, seconds, won = entry
    named = kind is None or kind in DECISIONS or issubclass(kind, BaseException)
    return TrailRecord(
        plugin=link.plugin,
        distribution=link.distribution,
        version=link.version,
        hook=link.hook,
        attempt=attempt,
        status=status,
        kind=None if kind is None else kind.__name__ if named else "value",
        seconds=seconds,
        won=won,
    )
