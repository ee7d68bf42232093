"""Sending a run of an engine's own task again, for ``app.replay``."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from contextvars import ContextVar
from typing import Any, Final

from qtasks_pluggy import TaskMessage
from qtasks_pluggy.engines import SYNC, is_here, is_pending, log_event, run_to_completion, wait_for
from qtasks_pluggy.engines._errors import text_of
from qtasks_pluggy.exc import CapabilityError, EngineError, QTasksError

# The replays that are being sent on the current attempt's own event loop; it waits for them.
SENDING: Final[ContextVar[list[asyncio.Task[None]]]] = ContextVar("qtasks_pluggy_sending")


def send_again(adapter: Any, message: TaskMessage, delay: float | None) -> Any:
    """Send a message; on the engine's own event loop, it is sent before the attempt ends.

    Args:
        adapter: The engine's ``Native`` object.
        message: The message; it names one of the engine's ``tasks``.
        delay: Seconds before it may run; None and 0 for at once.

    Raises:
        CapabilityError: This is the engine's own event loop, and no attempt is running.
        EngineError: The engine failed, or an argument cannot be serialized.
    """
    try:
        sent = adapter.send(message, delay)
        if not is_pending(sent):
            return sent
        if not is_here(adapter.loop):
            return run_to_completion(wait_for(sent, adapter, SYNC, "send"))
    except QTasksError:
        raise
    except Exception as error:
        raise refused(adapter, message, error) from error
    sending = SENDING.get(None)
    if sending is None:
        sent.close()
        msg = (
            f"engine {adapter.name!r} sends on this thread's event loop, so a replay of task"
            f" {message.name!r} cannot wait for it here; call it in a thread, with"
            " asyncio.to_thread(app.replay, message)"
        )
        raise CapabilityError(msg)
    # Sent at once: the attempt of a task that outlives it no longer looks at the list.
    sending.append(asyncio.create_task(_sent(message, sent)))
    return None


async def _sent(message: TaskMessage, sent: Awaitable[Any]) -> None:
    try:
        await sent
    except Exception as error:  # noqa: BLE001  # nobody waits for it
        known = {"task": message.name, "uuid": str(message.uuid)}
        log_event("error", "replay_not_sent", **known, error=text_of(error))


def refused(adapter: Any, message: TaskMessage, error: Exception) -> EngineError:
    """Return the error for an unsent message; it shows an argument's type, never its value."""
    what = "the call"
    for place, value in (*enumerate(message.args, 1), *message.kwargs.items()):
        try:
            adapter.encode(None, value)
        except Exception:  # noqa: BLE001  # whatever a value's own methods raise
            what = f"argument {place!r}, a {type(value).__name__},"
            break
    return EngineError(
        f"engine {adapter.name!r} cannot send task {message.name!r}: {what} was refused"
        f" ({text_of(error)}); pass arguments that fit and can be serialized, and"
        " check that its broker runs"
    )
