"""Asking one hookimpl: time limits, quarantine, re-entrancy, and its failures.

The result is one frozen record. Only the run's own cancellation, the ``PluginError`` of
``strict``, and exceptions that are no ``Exception`` are raised.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Generator
from functools import partial
from time import perf_counter
from typing import Any

from qtasks_hookspecs import Replace
from qtasks_pluggy._plugins.answers import counts
from qtasks_pluggy._plugins.call import Call, OpenWrapper
from qtasks_pluggy._plugins.chain import Asked, Link, new_asked
from qtasks_pluggy._plugins.report import report_failure, report_return, report_teardown_failure
from qtasks_pluggy._plugins.trail import Status
from qtasks_pluggy._waiting import unwrap


async def ask(link: Link, call: Call) -> Asked:
    """Ask one hookimpl.

    Raises:
        CancelledError: The run itself was cancelled.
        PluginError: It failed under ``strict``, or while starting.
    """
    if call.outer or link.breaker.until is not None:
        skipped = _skip_reason(link, call)
        if skipped is not None:
            return Asked(link, call.attempt, skipped)
    used, kind, answer = False, None, None
    call.running.link = link
    start = perf_counter()
    try:
        if link.blocking:
            answer = await _wait(link, call, None)
        elif call.context is None:
            answer = link.invoke(call.values)
        else:
            answer = call.context.run(link.invoke, call.values)
        if answer is not None:
            if hasattr(type(answer), "__await__"):
                answer = await _wait(link, call, answer)
            used = counts(call.hook, call.values, answer)
            kind = None if answer is None else type(answer)
    except Exception as failure:  # noqa: BLE001  # isolated, and loud
        return report_failure(link, call, failure, perf_counter() - start)
    except asyncio.CancelledError as stray:
        if call.is_cancelled():
            raise
        return report_failure(link, call, stray, perf_counter() - start)
    seconds = perf_counter() - start
    if seconds > link.overrun or link.breaker.failures:
        report_return(link, call.values, seconds)
    if not used:
        return new_asked((link, call.attempt, "no_opinion", kind, seconds, None, False))
    return new_asked((link, call.attempt, "answered", kind, seconds, answer, False))


def _skip_reason(link: Link, call: Call) -> Status | None:
    """Return the status that skips a hookimpl, or None."""
    if any(running.link and link.impl is running.link.impl for running in call.outer):
        return "reentered"
    if link.breaker.until is not None and not link.breaker.allow():
        return "quarantined"
    return None


async def _wait(link: Link, call: Call, awaitable: Any) -> Any:
    """Wait for an async hookimpl, or for a blocking one in its thread, within its limit."""
    context = contextvars.copy_context() if call.context is None else call.context.copy()
    if link.blocking:
        function = partial(link.invoke, call.values)
        return unwrap(await call.wait(call.backend.thread(function, link.limit, context)))
    return await call.wait(call.backend.awaitable(awaitable, link.limit, context))


def setup_wrapper(link: Link, call: Call) -> OpenWrapper | Asked:
    """Run a wrapper up to its yield; one that fails there is only recorded."""
    skipped = _skip_reason(link, call)
    if skipped is not None:
        return Asked(link, call.attempt, skipped)
    start = perf_counter()
    try:
        call.running.link = link
        generator = call.run(link.invoke, call.values)
        call.run(next, generator)
    except StopIteration:
        ended = RuntimeError("the wrapper ended without a yield; it needs exactly one")
        return report_failure(link, call, ended, perf_counter() - start)
    except (Exception, asyncio.CancelledError) as failure:  # noqa: BLE001  # isolated, and loud
        return report_failure(link, call, failure, perf_counter() - start)
    abandon = partial(_abandon_wrapper, link, generator, call)
    return OpenWrapper(link, generator, perf_counter() - start, abandon)


async def teardown_wrapper(wrapper: OpenWrapper, call: Call) -> Asked:
    """Send a wrapper the answer so far; what it returns replaces that answer, even None."""
    link, start, answer = wrapper.link, perf_counter() - wrapper.seconds, call.answer
    try:
        call.running.link = link
        reply = call.run(_send, wrapper.generator, answer)
        if hasattr(type(reply), "__await__") and reply is not answer:
            reply = await _wait(link, call, reply)
        # A wrapper's None is an answer: that the error goes on, that the result is None.
        checked = Replace(None) if reply is None else reply
        replaces = reply is not answer and counts(call.hook, call.values, checked)
    except Exception as failure:  # noqa: BLE001  # isolated, and loud
        return report_failure(link, call, failure, perf_counter() - start)
    except asyncio.CancelledError as stray:
        if call.is_cancelled():
            raise
        return report_failure(link, call, stray, perf_counter() - start)
    seconds = perf_counter() - start
    report_return(link, call.values, seconds)
    if not replaces:
        return Asked(link, call.attempt, "no_opinion", None, seconds)
    kind = None if reply is None else type(reply)
    return Asked(link, call.attempt, "answered", kind, seconds, reply)


def _abandon_wrapper(link: Link, generator: Generator[None, Any, Any], call: Call) -> None:
    """Close a wrapper whose dispatch was interrupted; the interruption goes on regardless."""
    try:
        call.running.link = link
        call.run(generator.close)
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
