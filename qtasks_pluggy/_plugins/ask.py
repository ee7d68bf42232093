"""Asking one hookimpl, and all that can go wrong there: limits, quarantine, re-entrancy, contexts.

What comes back is one frozen record. Only the run's own cancellation, the ``PluginError`` of
``strict``, and what is no ``Exception`` are raised.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Generator
from functools import partial
from time import perf_counter
from typing import Any, Final

from qtasks_hookspecs import Replace
from qtasks_pluggy._plugins.answers import counts
from qtasks_pluggy._plugins.call import Call, OpenWrapper
from qtasks_pluggy._plugins.chain import Asked, Link
from qtasks_pluggy._plugins.report import report_failure, report_return, report_teardown_failure
from qtasks_pluggy._plugins.trail import Status
from qtasks_pluggy._waiting import unwrap

# The hookimpls that are being called right now, seen from inside of them.
_calling: Final[contextvars.ContextVar[tuple[Callable[..., Any], ...]]] = contextvars.ContextVar(
    "qtasks_pluggy_calling", default=()
)


async def ask(link: Link, call: Call) -> Asked:
    """Ask one hookimpl.

    Args:
        link: The hookimpl.
        call: The call of its hook.

    Returns:
        What became of it.

    Raises:
        CancelledError: The run's own cancellation.
        PluginError: It failed and may not, because of ``strict`` or while starting.
    """
    skipped = _skip_reason(link, call)
    if skipped is not None:
        return Asked(link, call.attempt, skipped)
    start = perf_counter()
    try:
        if link.blocking:
            answer = await _wait(link, call, None)
        else:
            answer = _step(link, call, link.invoke, call.values)
            if hasattr(type(answer), "__await__"):
                answer = await _wait(link, call, answer)
        used = counts(call.hook, call.values, answer)
    except Exception as failure:  # noqa: BLE001  # isolated, and loud
        return report_failure(link, call, _unwrapped(failure), perf_counter() - start)
    seconds = perf_counter() - start
    if seconds > link.overrun or link.breaker.failures:
        report_return(link, call.values, seconds)
    kind = None if answer is None else type(answer)
    if used:
        return Asked(link, call.attempt, "answered", kind, seconds, answer)
    return Asked(link, call.attempt, "no_opinion", kind, seconds)


def _skip_reason(link: Link, call: Call) -> Status | None:
    """Say why a hookimpl is not asked, if it is not."""
    if call.hook.has_error and link.impl.function in _calling.get():
        return "reentered"
    if link.breaker.until is not None and not link.breaker.allow():
        return "quarantined"
    return None


class _StrayCancellationError(Exception):
    """A hookimpl's ``CancelledError`` that nobody asked for, on its way to the report."""


def _unwrapped(failure: Exception) -> BaseException:
    return failure.__cause__ or failure if type(failure) is _StrayCancellationError else failure


def _marked(link: Link, function: Callable[..., Any], /, *args: Any) -> Any:
    """Call a function as a part of a hookimpl, which is not asked about errors that it causes."""
    outer = _calling.get()
    _calling.set((*outer, link.impl.function))
    try:
        return function(*args)
    except asyncio.CancelledError as stray:
        # Nothing was waited for, so it cannot be the run's own.
        raise _StrayCancellationError from stray
    finally:
        _calling.set(outer)


def _step(link: Link, call: Call, function: Callable[..., Any], /, *args: Any) -> Any:
    """Run a part of a hookimpl, in the context of the run's attempt where it has its own."""
    if call.context is None:
        return _marked(link, function, *args)
    return call.context.run(_marked, link, function, *args)


async def _wait(link: Link, call: Call, awaitable: Any) -> Any:
    """Wait for an async hookimpl, or for a blocking one in its thread, at most for its limit."""
    backend = call.backend
    context = contextvars.copy_context() if call.context is None else call.context.copy()
    context.run(_calling.set, (*_calling.get(), link.impl.function))
    cancel_count = backend.cancellations()
    try:
        if link.blocking:
            function = partial(link.invoke, call.values)
            return unwrap(await backend.thread(function, link.limit, context))
        return await backend.awaitable(awaitable, link.limit, context)
    except asyncio.CancelledError as stray:
        if backend.cancelled(cancel_count):
            raise
        raise _StrayCancellationError from stray


def setup_wrapper(link: Link, call: Call) -> OpenWrapper | Asked:
    """Run a wrapper up to its yield.

    Returns:
        The open wrapper, or what became of one that cannot be opened.
    """
    skipped = _skip_reason(link, call)
    if skipped is not None:
        return Asked(link, call.attempt, skipped)
    start = perf_counter()
    try:
        generator = _step(link, call, link.invoke, call.values)
        _step(link, call, next, generator)
    except StopIteration:
        ended = RuntimeError("the wrapper ended without a yield; it needs exactly one")
        return report_failure(link, call, ended, perf_counter() - start)
    except Exception as failure:  # noqa: BLE001  # isolated, and loud
        return report_failure(link, call, _unwrapped(failure), perf_counter() - start)
    abandon = partial(_abandon_wrapper, link, generator, call)
    return OpenWrapper(link, generator, perf_counter() - start, abandon)


async def teardown_wrapper(wrapper: OpenWrapper, call: Call) -> Asked:
    """Give a wrapper the answer so far.

    Returns:
        What became of it; its answer replaces the one that it was given, and its ``None`` is one.
    """
    link, start, answer = wrapper.link, perf_counter() - wrapper.seconds, call.answer
    try:
        reply = _step(link, call, _send, wrapper.generator, answer)
        if hasattr(type(reply), "__await__") and reply is not answer:
            reply = await _wait(link, call, reply)
        # A wrapper's None is an answer: that the error goes on, that the result is None.
        checked = Replace(None) if reply is None else reply
        replaces = reply is not answer and counts(call.hook, call.values, checked)
    except Exception as failure:  # noqa: BLE001  # isolated, and loud
        return report_failure(link, call, _unwrapped(failure), perf_counter() - start)
    seconds = perf_counter() - start
    report_return(link, call.values, seconds)
    if not replaces:
        return Asked(link, call.attempt, "no_opinion", None, seconds)
    kind = None if reply is None else type(reply)
    return Asked(link, call.attempt, "answered", kind, seconds, reply)


def _abandon_wrapper(link: Link, generator: Generator[None, Any, Any], call: Call) -> None:
    """Close a wrapper whose dispatch is interrupted; the interruption goes on, come what may."""
    try:
        _step(link, call, generator.close)
    except Exception as failure:  # noqa: BLE001  # logged, and no more
        report_teardown_failure(link, call.values, _unwrapped(failure))


def _send(generator: Generator[None, Any, Any], answer: Any) -> Any:
    """Send a wrapper the answer, and return what it returns."""
    try:
        generator.send(answer)
    except StopIteration as end:
        return end.value
    generator.close()
    msg = "the wrapper yielded a second time; it needs exactly one yield"
    raise RuntimeError(msg)
