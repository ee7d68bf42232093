"""Asking one hookimpl: time limits, quarantine, re-entrancy, and its failures.

The result goes into the trail. Only the run's own cancellation, the ``PluginError`` of
``strict``, and exceptions that are not an ``Exception`` are raised.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Coroutine, Generator
from functools import partial
from time import perf_counter
from typing import Any

from qtasks_hookspecs import Replace
from qtasks_pluggy._plugins.answers import does_count
from qtasks_pluggy._plugins.call import Call, OpenWrapper
from qtasks_pluggy._plugins.chain import Asked, Link, new_asked
from qtasks_pluggy._plugins.report import (
    report_clean_up,
    report_failure,
    report_return,
    report_teardown_failure,
)
from qtasks_pluggy._plugins.trail import Status
from qtasks_pluggy._waiting import unwrap


def ask(link: Link, call: Call) -> Coroutine[Any, Any, None] | None:
    """Ask one hookimpl, and record the result.

    A plain function: most hookimpls answer at once, and a coroutine for each of them is slow.

    Returns:
        What is still to be awaited, if it cannot answer at once; else None.

    Raises:
        PluginError: It failed under ``strict``, or while starting.
    """
    if (call.running.outer or link.breaker.until is not None) and _is_skipped(link, call):
        return None
    call.running.link = link
    start = perf_counter()
    if link.blocking:
        return _wait_for_answer(link, call, None, start)
    try:
        answer = link.invoke(call.values)
        if answer is None or type(answer) in call.plain_kinds:
            counts = answer is not None
        elif hasattr(type(answer), "__await__"):
            return _wait_for_answer(link, call, answer, start)
        else:
            counts = does_count(call.hook, call.values, answer)
    except (Exception, asyncio.CancelledError) as failure:  # noqa: BLE001  # isolated, and loud
        report_failure(link, call, failure, perf_counter() - start)
        return None
    _record_return(link, call, answer, perf_counter() - start, counts=counts)
    return None


async def _wait_for_answer(link: Link, call: Call, awaitable: Any, start: float) -> None:
    """Wait for a hookimpl that cannot answer at once, and record the result."""
    try:
        answer = await _wait(link, call, awaitable)
        counts = does_count(call.hook, call.values, answer)
    except Exception as failure:  # noqa: BLE001  # isolated, and loud
        report_failure(link, call, failure, perf_counter() - start)
        return
    except asyncio.CancelledError as stray:
        if call.is_cancelled():
            report_clean_up(link, call.values, stray)
            raise
        report_failure(link, call, stray, perf_counter() - start)
        return
    _record_return(link, call, answer, perf_counter() - start, counts=counts)


def _record_return(link: Link, call: Call, answer: Any, seconds: float, *, counts: bool) -> None:
    """Record what a hookimpl returned, and check its time."""
    if seconds > link.overrun or link.breaker.failures:
        report_return(link, call.values, seconds)
    if counts:
        call.use(link, answer, seconds)
    else:
        kind = None if answer is None else type(answer)
        call.entries.append(new_asked((link, call.attempt, "no_opinion", kind, seconds, False)))


def _is_skipped(link: Link, call: Call) -> bool:
    """Return whether a hookimpl is not asked, and record why."""
    status: Status
    if call.running.is_inside(link):
        status = "reentered"
    elif link.breaker.until is not None and not link.breaker.allow():
        status = "quarantined"
    else:
        return False
    call.record(Asked(link, call.attempt, status))
    return True


async def _wait(link: Link, call: Call, awaitable: Any) -> Any:
    """Wait for an async hookimpl, or for a blocking one in its thread, within its limit."""
    context = contextvars.copy_context()
    if link.blocking:
        function = partial(link.invoke, call.values)
        return unwrap(await call.wait(call.backend.thread(function, link.limit, context)))
    return await call.wait(call.backend.awaitable(awaitable, link.limit, context))


def open_wrapper(link: Link, call: Call) -> None:
    """Run a wrapper up to its yield; one that fails there is only recorded."""
    if _is_skipped(link, call):
        return
    start = perf_counter()
    try:
        call.running.link = link
        generator = link.invoke(call.values)
        next(generator)
    except StopIteration:
        ended = RuntimeError("the wrapper ended without a yield; it needs exactly one")
        report_failure(link, call, ended, perf_counter() - start)
    except (Exception, asyncio.CancelledError) as failure:  # noqa: BLE001  # isolated, and loud
        report_failure(link, call, failure, perf_counter() - start)
    else:
        abandon = partial(_abandon_wrapper, link, generator, call)
        call.open_wrappers.append(OpenWrapper(link, generator, perf_counter() - start, abandon))


async def close_wrapper(wrapper: OpenWrapper, call: Call) -> None:
    """Send a wrapper the answer so far; what it returns replaces that answer, even None."""
    link, start, answer = wrapper.link, perf_counter() - wrapper.seconds, call.answer
    try:
        call.running.link = link
        reply = _send(wrapper.generator, answer)
        if hasattr(type(reply), "__await__") and reply is not answer:
            reply = await _wait(link, call, reply)
        # A wrapper's None is an answer: that the error goes on, that the result is None.
        checked = Replace(None) if reply is None else reply
        replaces = reply is not answer and does_count(call.hook, call.values, checked)
    except Exception as failure:  # noqa: BLE001  # isolated, and loud
        report_failure(link, call, failure, perf_counter() - start)
        return
    except asyncio.CancelledError as stray:
        if call.is_cancelled():
            report_clean_up(link, call.values, stray)
            raise
        report_failure(link, call, stray, perf_counter() - start)
        return
    seconds = perf_counter() - start
    report_return(link, call.values, seconds)
    if replaces:
        call.use(link, reply, seconds)
    else:
        call.record(Asked(link, call.attempt, "no_opinion", None, seconds))


def _abandon_wrapper(link: Link, generator: Generator[None, Any, Any], call: Call) -> None:
    """Close a wrapper whose dispatch was interrupted; the interruption goes on regardless."""
    try:
        call.running.link = link
        generator.close()
    except Exception as failure:  # noqa: BLE001  # logged, and no more
        report_teardown_failure(link, call.values, failure)


def _send(generator: Generator[None, Any, Any], answer: Any) -> Any:
    """Send the answer to a wrapper, and return what the wrapper returns."""
    try:
        generator.send(answer)
    except StopIteration as end:
        return end.value
    generator.close()
    msg = "the wrapper yielded a second time; it needs exactly one yield"
    raise RuntimeError(msg)
