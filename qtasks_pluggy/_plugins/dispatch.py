"""THE RULE: every hookimpl is asked, in order, and the last answer wins."""

from __future__ import annotations

from typing import Any

from qtasks_pluggy import _log
from qtasks_pluggy._plugins.ask import ask, close_wrapper, open_wrapper
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
    """
    with Call(hook, values, backend) as call:
        steps, wrappers = chain.plan(values, call.attempt)
        for wrapper in wrappers:
            if isinstance(wrapper, Asked):
                call.record(wrapper)
            else:
                open_wrapper(wrapper, call)
        for link in steps:
            if isinstance(link, Asked):
                call.record(link)
            elif (rest := ask(link, call)) is not None:
                await rest
        while call.open_wrappers:
            await close_wrapper(call.open_wrappers.pop(), call)
        if hook.has_error and (call.has_failures or (hook.lastresult and _log.info_enabled())):
            report_dispatch(call)
        return call.answer
