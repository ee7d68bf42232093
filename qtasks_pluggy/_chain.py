"""The links of a hook's chain, and the trail entries that a walk along it writes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter
from typing import Any, Final

import attrs

from qtasks_hookspecs import Cancel, DeadLetter, Raise, Replace, Retry
from qtasks_pluggy._trail import TrailRecord, who

DECISIONS: Final = (Replace, Retry, Raise, Cancel, DeadLetter)


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
    alone: tuple[Callable[..., Any], ...] = attrs.field(init=False)
    pick: Callable[[Mapping[str, Any]], Sequence[Any]] = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        """Prepare what each call would otherwise do again."""
        names = self.positional
        if len(names) > 1:
            pick: Any = itemgetter(*names)
        elif names:
            only = names[0]
            pick = lambda values: (values[only],)  # noqa: E731  # a field, not a function to call by name
        else:
            pick = lambda _: ()  # noqa: E731  # as above
        object.__setattr__(self, "pick", pick)
        object.__setattr__(self, "alone", (self.function,))
        object.__setattr__(self, "plain", not (self.keywords or self.is_async or self.blocking))

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

    def __bool__(self) -> bool:
        """Whether there is anything to call."""
        return bool(self.links or self.wrappers)


class Entry:
    """A trail record in the making, cheap to write; ``record`` builds the one that is read."""

    __slots__ = ("attempt", "kind", "link", "seconds", "status", "won")

    def __init__(
        self, link: Link, attempt: int, status: Any, kind: type | None, seconds: float
    ) -> None:
        self.link = link
        self.attempt = attempt
        self.status = status
        self.kind = kind
        self.seconds = seconds
        self.won = False

    def record(self) -> TrailRecord:
        """Build the record."""
        link, kind = self.link, self.kind
        named = kind is None or issubclass(kind, (*DECISIONS, BaseException))
        return TrailRecord(
            plugin=link.plugin,
            distribution=link.distribution,
            version=link.version,
            hook=link.hook,
            attempt=self.attempt,
            status=self.status,
            kind=None if kind is None else kind.__name__ if named else "value",
            seconds=self.seconds,
            won=self.won,
        )
