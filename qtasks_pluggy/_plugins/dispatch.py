"""THE RULE: every hookimpl is asked, in order, and the last answer wins."""

from __future__ import annotations

from typing import Any

from qtasks_pluggy._plugins.ask import ask, setup_wrapper, teardown_wrapper
from qtasks_pluggy._plugins.call import Call
from qtasks_pluggy._plugins.chain import Asked, Chain, Hook, Values
from qtasks_pluggy._plugins.report import report_dispatch
from qtasks_pluggy._waiting import Backend


async def dispatch(hook: Hook, chain: Chain, values: Values, backend: Backend) -> Any:
    """Ask every link of a chain, and return the winning answer (R4, R5, R7).

    Args:
        hook: The hook.
        chain: Its chain when the dispatch began.
        values: The hook's parameters by name.
        backend: How the caller waits.

    Returns:
        The last answer that is not None, or None; of a pipeline its final value; None for a
        hook whose answers are ignored.

    Raises:
        PluginError: A hookimpl failed under ``strict``, or while starting.
        TypeError: A parameter of the hook is missing, or one is not the hook's.
    """
    with Call(hook, values, backend) as call:
        steps, wrappers = chain.plan(values)
        for wrapper, skipped in wrappers:
            call.open(
                Asked(wrapper, call.attempt, skipped) if skipped else setup_wrapper(wrapper, call)
            )
        for link, skipped in steps:
            call.record(Asked(link, call.attempt, skipped) if skipped else await ask(link, call))
        while call.open_wrappers:
            call.record(await teardown_wrapper(call.open_wrappers.pop(), call))
        if hook.has_error:
            report_dispatch(call)
        return call.answer
