"""The call convention that pluggy lacks: every hookimpl is asked, and the last answer wins.

A hook's chain is an immutable tuple of links, built anew whenever plugins or settings change and
swapped in one assignment; a dispatch ends with the chain with which it began. ``dispatch`` walks
it, once for plain and for async code.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Generator, Mapping
from functools import partial
from time import perf_counter
from typing import Any, Final, TypeAlias

import attrs

from qtasks_hookspecs import Replace
from qtasks_pluggy import _log
from qtasks_pluggy._plugins.answers import accept, left
from qtasks_pluggy._plugins.chain import Chain, Entry, Hook, Link
from qtasks_pluggy._plugins.report import blame, failed, misuse, tell, wait_for
from qtasks_pluggy._waiting import Backend, unwrap

# The most common answers, which need no second look.
_PLAIN: Final = frozenset({Replace, bool, int, float, str, bytes, dict, list, tuple})

# The hookimpls that are at work right now, seen from inside of them. Each is alone in a list that
# is emptied when it has ended: a task that it leaves running has a copy of this variable for ever.
Work: TypeAlias = list[Callable[..., Any]]
_at_work: Final[contextvars.ContextVar[tuple[Work, ...]]] = contextvars.ContextVar(
    "qtasks_pluggy_at_work", default=()
)


async def dispatch(  # noqa: C901, PLR0912, PLR0915  # one walk, in which each branch is a rule
    hook: Hook,
    chain: Chain,
    values: dict[str, Any],
    backend: Backend,
) -> Any:
    """Ask every link of a chain, and return the winning answer.

    Args:
        hook: The hook.
        chain: Its chain when the dispatch began.
        values: The hook's parameters by name.
        backend: How the caller waits.

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
    if run is None or not isinstance(entries, list):
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
    work: Work = []
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
            work = [link.function]
            if outer or breaker.until is not None:
                status = _not_asked(link, work, outer, values)
                if status is not None:
                    entries.append([link, attempt, status, None, 0.0, False])
                    continue
            _at_work.set((*outer, work))
            met: int | None = None
            start = perf_counter()
            try:
                if link.only is not None:
                    reply = link.function(values[link.only])
                elif link.plain:
                    reply = link.function(*link.pick(values))
                elif link.blocking:
                    met = backend.cancellations()
                    reply = unwrap(await backend.thread(partial(link.call, values), link.limit))
                else:
                    reply = link.call(values)
                kind = type(reply)
                if reply is None or (lastresult and kind in _PLAIN):
                    counts = reply is not None
                else:
                    if hasattr(kind, "__await__"):
                        met = backend.cancellations()
                        reply = await backend.awaitable(reply, link.limit)
                        kind = type(reply)
                    counts = accept(hook, dict(values) if link.observed else values, reply)
            except (Exception, asyncio.CancelledError) as failure:
                if met is not None and _asked_for(failure, backend, met):
                    breaker.abandoned(work)
                    raise
                went_wrong = True
                work.clear()
                seconds = perf_counter() - start
                failed(hook, link, failure, values, entries, attempt, seconds, call=work)
                continue
            except BaseException:
                breaker.abandoned(work)
                raise
            work.clear()
            seconds = perf_counter() - start
            if counts and not link.observed:
                answer, winner = reply, len(entries)
            status = "answered" if counts else "no_opinion"
            entries.append([link, attempt, status, kind, seconds, False])
            if seconds > link.overrun or breaker.failures:
                wait_for(link, values, seconds if met is None else 0.0, work)
        _at_work.set(outer)
        if hook.pipeline is not None:
            answer = left(hook.pipeline, values)
        while opened:
            at = (hook, opened.pop(), values, entries, attempt, backend)
            answer, winner = await _close(*at, answer, winner)
    finally:
        work.clear()
        _at_work.set(outer)
        while opened:
            _abandon(opened.pop(), values)
    if winner >= 0 and (lastresult or hook.pipeline):
        entries[winner][-1] = True
    if error is not None and (went_wrong or (lastresult and _log.debug_enabled())):
        tell(hook, values, entries[begin:], answer)
    return answer if lastresult or hook.pipeline else None


def _asked_for(failure: BaseException, backend: Backend, met: int) -> bool:
    """Say whether a failure is the run's own cancellation, asked for since the wait began.

    A cancellation comes where something is waited for and nowhere else, and one that the run has
    met already, because it is being closed, is not met again.
    """
    return isinstance(failure, asyncio.CancelledError) and backend.cancelled(met)


def _not_asked(
    link: Link, work: Work, outer: tuple[Work, ...], values: Mapping[str, Any]
) -> str | None:
    """Say why a link is skipped; None where it is asked."""
    if "e" in values and any(link.function in one for one in outer):
        return "reentered"
    if link.breaker.until is not None and not link.breaker.admits(work):
        return "quarantined"
    return None


@attrs.frozen(eq=False)
class _Opened:
    """A wrapper that has come to its yield."""

    link: Link
    generator: Generator[None, Any, Any]
    seconds: float
    call: Work


def _open(
    hook: Hook,
    link: Link,
    values: Mapping[str, Any],
    entries: list[Entry],
    attempt: int,
    opened: list[_Opened],
) -> None:
    start = perf_counter()
    outer = _at_work.get()
    work: Work = [link.function]
    status = _not_asked(link, work, outer, values)
    if status is not None:
        entries.append([link, attempt, status, None, 0.0, False])
        return
    _at_work.set((*outer, work))
    try:
        generator = link.call(values)
        next(generator)
    except StopIteration:
        ended = RuntimeError("the wrapper ended without a yield; it needs exactly one")
        failed(hook, link, ended, values, entries, attempt, perf_counter() - start, call=work)
    except (Exception, asyncio.CancelledError) as failure:  # noqa: BLE001  # isolated, and loud
        failed(hook, link, failure, values, entries, attempt, perf_counter() - start, call=work)
    except BaseException:
        link.breaker.abandoned(work)
        raise
    else:
        opened.append(_Opened(link, generator, perf_counter() - start, work))
    finally:
        work.clear()
        _at_work.set(outer)


async def _close(  # noqa: PLR0917  # the dispatch, as it stands at that wrapper
    hook: Hook,
    wrapper: _Opened,
    values: dict[str, Any],
    entries: list[Entry],
    attempt: int,
    backend: Backend,
    answer: Any,
    winner: int,
) -> tuple[Any, int]:
    """Give a wrapper the answer, and return what it makes of it."""
    link = wrapper.link
    start = perf_counter() - wrapper.seconds
    outer = _at_work.get()
    work: Work = [link.function]
    _at_work.set((*outer, work))
    met: int | None = None
    try:
        reply = _sent(wrapper.generator, answer)
        if hasattr(type(reply), "__await__") and reply is not answer:
            met = backend.cancellations()
            reply = await backend.awaitable(reply, link.limit)
        # A wrapper's None is an answer: that the error goes on, that the result is None.
        seen = dict(values) if link.observed else values
        replaces = reply is not answer and accept(
            hook, seen, Replace(None) if reply is None else reply
        )
    except (Exception, asyncio.CancelledError) as failure:
        if met is not None and _asked_for(failure, backend, met):
            link.breaker.abandoned(wrapper.call)
            raise
        seconds = perf_counter() - start
        failed(hook, link, failure, values, entries, attempt, seconds, call=wrapper.call)
        return answer, winner
    except BaseException:
        link.breaker.abandoned(wrapper.call)
        raise
    finally:
        work.clear()
        _at_work.set(outer)
    wait_for(link, values, perf_counter() - start, wrapper.call)
    status = "answered" if replaces else "no_opinion"
    kind = None if reply is answer else type(reply)
    entries.append([link, attempt, status, kind, perf_counter() - start, False])
    if not replaces or link.observed:
        return answer, winner
    return (left(hook.pipeline, values) if hook.pipeline else reply), len(entries) - 1


def _sent(generator: Generator[None, Any, Any], answer: Any) -> Any:
    """Send a wrapper the answer, and return what it returns."""
    try:
        generator.send(answer)
    except StopIteration as end:
        return end.value
    generator.close()
    msg = "the wrapper yielded a second time; it needs exactly one yield"
    raise RuntimeError(msg)


def _abandon(wrapper: _Opened, values: Mapping[str, Any]) -> None:
    """Close a wrapper whose chain ended in an error, which must not be replaced by its own."""
    wrapper.link.breaker.abandoned(wrapper.call)
    try:
        wrapper.generator.close()
    except Exception as failure:  # noqa: BLE001  # told, and no more: the other error goes on
        blame(wrapper.link, failure, values)
