"""The call convention that pluggy lacks: every hookimpl is asked, and the last answer wins.

A hook's chain is an immutable tuple of links, built anew whenever plugins or settings change and
swapped in one assignment; a dispatch ends with the chain with which it began. ``dispatch`` walks
it, once for plain and for async code.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Coroutine, Generator, Mapping, Sequence
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final

import attrs
import pluggy

from qtasks_hookspecs import Raise, Replace, Retry
from qtasks_pluggy import _log
from qtasks_pluggy._chain import DECISIONS, NO_LINKS, Chain, Entry, Link
from qtasks_pluggy._report import failed, misuse, settle, tell
from qtasks_pluggy._waiting import IN_THREAD, ON_LOOP, Waiting, finish, unpack

if TYPE_CHECKING:
    from qtasks_pluggy._plugins import PluginManager

TRIGGER: Final = "task_executor_run_task_trigger_error"

# The most common answers, which need no second look.
_PLAIN: Final = frozenset({Replace, bool, int, float, str, bytes, dict, list, tuple})

# The hookimpls that are at work right now, seen from inside of them.
_at_work: Final[contextvars.ContextVar[tuple[Callable[..., Any], ...]]] = contextvars.ContextVar(
    "qtasks_pluggy_at_work", default=()
)


class HookCaller(pluggy.HookCaller):
    """A hook that is called by our convention, plainly or by ``call_async``."""

    __slots__ = ("chain", "lastresult", "manager", "names", "pipeline", "size")

    def __init__(
        self, name: str, manager: PluginManager, namespace: Any, options: Mapping[str, Any]
    ) -> None:
        # The chain is None where nobody implements the hook: then no run calls it.
        super().__init__(name, manager.call_hookimpls, namespace, options)  # type: ignore[arg-type]  # our hookspec's options hold pluggy's
        assert self.spec is not None  # noqa: S101  # pluggy sets it where a namespace is given
        self.manager = manager
        self.chain: Chain | None = None
        self.lastresult: bool = options.get("lastresult", False)
        self.pipeline: str | None = options.get("pipeline")
        self.names = frozenset(self.spec.argnames)
        self.size = len(self.names)

    def __call__(self, **values: Any) -> Any:
        """Call the hook from plain code; its async hookimpls run on the background loop.

        Returns:
            The winning answer or None; of a pipeline what is left at its end.
        """
        return finish(dispatch(self, self.chain or NO_LINKS, values, IN_THREAD))

    def call_async(self, **values: Any) -> Coroutine[Any, Any, Any]:
        """Call the hook from async code.

        Returns:
            The same as a plain call, to be awaited.
        """
        return dispatch(self, self.chain or NO_LINKS, values, ON_LOOP)


class SubsetHookCaller(HookCaller):
    """A hook without the hookimpls of some plugins, as ``subset_hook_caller`` gives it."""

    __slots__ = ("original", "removed")

    def __init__(self, original: HookCaller, removed: Sequence[Any]) -> None:
        assert original.spec is not None  # noqa: S101  # one of our hooks
        options: Any = original.spec.opts
        super().__init__(original.name, original.manager, original.spec.namespace, options)
        self.original = original
        self.removed = removed

    def __call__(self, **values: Any) -> Any:
        """Call what is left of the hook from plain code."""
        return finish(dispatch(self, self._left(), values, IN_THREAD))

    def call_async(self, **values: Any) -> Coroutine[Any, Any, Any]:
        """Call what is left of the hook from async code."""
        return dispatch(self, self._left(), values, ON_LOOP)

    def _left(self) -> Chain:
        """Return the original's chain of this moment, less the removed plugins."""

        def kept(links: tuple[Link, ...]) -> tuple[Link, ...]:
            return tuple(
                link for link in links if not any(link.impl.plugin is one for one in self.removed)
            )

        whole = self.original.chain or NO_LINKS
        return Chain(kept(whole.links), kept(whole.wrappers))

    def get_hookimpls(self) -> list[pluggy.HookImpl]:
        """Return the hookimpls that are left."""
        return [
            impl
            for impl in self.original.get_hookimpls()
            if not any(impl.plugin is one for one in self.removed)
        ]


async def dispatch(  # noqa: C901, PLR0912, PLR0915  # one walk, in which each branch is a rule
    hook: HookCaller,
    chain: Chain,
    values: dict[str, Any],
    waiting: Waiting,
) -> Any:
    """Ask every link of a chain, and return the winning answer.

    Args:
        hook: The hook.
        chain: Its chain when the dispatch began.
        values: The hook's parameters by name.
        waiting: How the caller waits.

    Returns:
        The last answer that is not None, or None; for a pipeline what its last link left; for a
        hook whose answers are ignored None.

    Raises:
        PluginError: A hookimpl failed and may not, because of ``strict`` or while starting.
        TypeError: The caller left out a parameter of the hook, or gave one that it lacks.
    """
    if len(values) != hook.size:
        raise misuse(hook, values)
    run = values.get("task_executor")
    if run is None:
        run = values.get("app")
    entries: list[Entry] | None = getattr(run, "_entries", None)
    attempt: int
    if run is None or entries is None:
        entries, attempt = [], getattr(run, "attempt", 1)
    else:
        attempt = run._attempt  # noqa: SLF001  # ours: a private name for both, read in one step
    begin = len(entries)
    error = values.get("e")
    lastresult = hook.lastresult
    answer: Any = None
    winner = -1
    # Where filters apply, a trail entry stands for each link that is not asked.
    links: tuple[Any, ...]
    links, wrappers = chain.narrowed(values) if chain.filtered else (chain.links, chain.wrappers)
    went_wrong = bool(wrappers)
    outer = _at_work.get()
    opened: list[_Opened] = []
    try:
        if wrappers:
            for wrapper in reversed(wrappers):
                _open(hook, wrapper, values, entries, attempt, opened)
        for link in links:
            if isinstance(link, list):
                entries.append(link if attempt == 1 else [link[0], attempt, *link[2:]])
                continue
            breaker = link.breaker
            if outer or breaker.until is not None:
                status = _not_asked(link, outer, values)
                if status is not None:
                    entries.append([link, attempt, status, None, 0.0, False])
                    continue
            _at_work.set((*outer, link.function) if outer else link.alone)
            start = perf_counter()
            try:
                if link.only is not None:
                    reply = link.function(values[link.only])
                elif link.plain:
                    reply = link.function(*link.pick(values))
                elif link.blocking:
                    reply = unpack(await waiting.thread(partial(link.call, values), link.limit))
                else:
                    reply = link.call(values)
                kind = type(reply)
                if reply is None or (lastresult and kind in _PLAIN):
                    counts = reply is not None
                else:
                    if hasattr(kind, "__await__"):
                        reply = await waiting.awaitable(reply, link.limit)
                        kind = type(reply)
                    counts = _accept(hook, dict(values) if link.observed else values, reply)
            except (Exception, asyncio.CancelledError) as failure:
                if isinstance(failure, asyncio.CancelledError) and waiting.cancelled():
                    breaker.abandoned()
                    raise
                went_wrong = True
                failed(hook, link, failure, values, entries, attempt, perf_counter() - start)
                continue
            except BaseException:
                breaker.abandoned()
                raise
            seconds = perf_counter() - start
            if counts and not link.observed:
                answer, winner = reply, len(entries)
            status = "answered" if counts else "no_opinion"
            entries.append([link, attempt, status, kind, seconds, False])
            if seconds > link.overrun or breaker.failures:
                settle(link, values, seconds)
        _at_work.set(outer)
        if hook.pipeline is not None:
            answer = _left(hook, values)
        while opened:
            answer, winner = _close(hook, opened.pop(), values, entries, attempt, answer, winner)
    finally:
        _at_work.set(outer)
        for left in opened:
            left.generator.close()
    if winner >= 0:
        entries[winner][-1] = True
    if error is not None and (went_wrong or (lastresult and _log.debug_enabled())):
        tell(hook, values, entries[begin:], answer)
    return answer if lastresult or hook.pipeline else None


def _not_asked(
    link: Link, outer: tuple[Callable[..., Any], ...], values: Mapping[str, Any]
) -> str | None:
    """Say why a link is skipped; None where it is asked."""
    if "e" in values and link.function in outer:
        return "reentered"
    if link.breaker.until is not None and not link.breaker.admits():
        return "quarantined"
    return None


def _accept(hook: HookCaller, values: dict[str, Any], reply: Any) -> bool:
    """Say whether an answer counts; in a pipeline, hand it on to the links that follow."""
    if reply is None:
        return False
    kind = type(reply)
    if kind not in DECISIONS:
        if kind is type and reply in DECISIONS:
            msg = f"answered the class {reply.__name__}; answer an instance, {reply.__name__}(...)"
            raise TypeError(msg)
    elif hook.lastresult:
        if kind is Retry:
            return _may_retry(values.get("task_executor"), reply)
        error = values.get("e")
        return not (
            kind is Raise
            and (reply.error is error or reply.error is getattr(error, "__cause__", None))
        )
    elif kind is not Replace:
        msg = (
            f"answered {kind.__name__}, which is a decision of {TRIGGER} only;"
            f" {hook.name} takes a plain value or Replace(value)"
        )
        raise TypeError(msg)
    else:
        reply = reply.value
    if hook.pipeline == "result":
        values["result"] = reply
    elif hook.pipeline is not None:
        values["args"], values["kwargs"] = _arguments(reply)
    return True


def _may_retry(run: Any, retry: Retry) -> bool:
    attempt: int = getattr(run, "attempt", 1)
    most: int | None = getattr(run, "max_attempts", None)
    return attempt <= retry.limit and (most is None or attempt < most)


def _arguments(reply: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    # The arguments themselves are not shown: they may hold secrets.
    if not (isinstance(reply, (tuple, list)) and len(reply) == 2):  # noqa: PLR2004  # a pair
        msg = f"answered {type(reply).__name__}; answer a pair (args, kwargs), or None"
        raise TypeError(msg)
    args, kwargs = reply
    if not (isinstance(args, (tuple, list)) and isinstance(kwargs, Mapping)):
        msg = (
            f"answered ({type(args).__name__}, {type(kwargs).__name__});"
            " answer a pair of a tuple and a dict, (args, kwargs)"
        )
        raise TypeError(msg)
    return tuple(args), dict(kwargs)


def _left(hook: HookCaller, values: dict[str, Any]) -> Any:
    return values["result"] if hook.pipeline == "result" else (values["args"], values["kwargs"])


@attrs.frozen(eq=False)
class _Opened:
    """A wrapper that has come to its yield."""

    link: Link
    generator: Generator[None, Any, Any]
    seconds: float


def _open(
    hook: HookCaller,
    link: Link,
    values: Mapping[str, Any],
    entries: list[Entry],
    attempt: int,
    opened: list[_Opened],
) -> None:
    start = perf_counter()
    outer = _at_work.get()
    status = _not_asked(link, outer, values)
    if status is not None:
        entries.append([link, attempt, status, None, 0.0, False])
        return
    _at_work.set((*outer, link.function))
    try:
        generator = link.call(values)
        next(generator)
    except StopIteration:
        ended = RuntimeError("the wrapper ended without a yield; it needs exactly one")
        failed(hook, link, ended, values, entries, attempt, perf_counter() - start)
    except (Exception, asyncio.CancelledError) as failure:  # noqa: BLE001  # isolated, and loud
        failed(hook, link, failure, values, entries, attempt, perf_counter() - start)
    else:
        opened.append(_Opened(link, generator, perf_counter() - start))
    finally:
        _at_work.set(outer)


def _close(
    hook: HookCaller,
    wrapper: _Opened,
    values: dict[str, Any],
    entries: list[Entry],
    attempt: int,
    answer: Any,
    winner: int,
) -> tuple[Any, int]:
    """Give a wrapper the answer, and return what it makes of it."""
    link = wrapper.link
    start = perf_counter() - wrapper.seconds
    outer = _at_work.get()
    _at_work.set((*outer, link.function))
    try:
        wrapper.generator.send(answer)
        wrapper.generator.close()
        msg = "the wrapper yielded a second time; it needs exactly one yield"
        raise RuntimeError(msg)  # noqa: TRY301  # fails like any other
    except StopIteration as end:
        reply = end.value
    except (Exception, asyncio.CancelledError) as failure:  # noqa: BLE001  # the inner answer stands
        failed(hook, link, failure, values, entries, attempt, perf_counter() - start)
        return answer, winner
    finally:
        _at_work.set(outer)
    settle(link, values, perf_counter() - start)
    if reply is answer:
        entries.append([link, attempt, "no_opinion", None, perf_counter() - start, False])
        return answer, winner
    try:
        # A wrapper's None is an answer: that the error goes on, that the result is None.
        seen = dict(values) if link.observed else values
        replaces = _accept(hook, seen, Replace(None) if reply is None else reply)
    except TypeError as failure:
        failed(hook, link, failure, values, entries, attempt, perf_counter() - start)
        return answer, winner
    status = "answered" if replaces else "no_opinion"
    entries.append([link, attempt, status, type(reply), perf_counter() - start, False])
    if not replaces or link.observed:
        return answer, winner
    return (_left(hook, values) if hook.pipeline else reply), len(entries) - 1
