"""Replaying a message: its task runs again, under a new id that refers to the first run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from inspect import iscoroutinefunction
from typing import TYPE_CHECKING, Any

from qtasks_hookspecs import TaskMessage
from qtasks_hookspecs._decisions import check_seconds
from qtasks_hookspecs.exc import CapabilityError
from qtasks_pluggy import _log
from qtasks_pluggy._plugins.filters import REPLAY_OF
from qtasks_pluggy._submit.calls import enqueue, is_here
from qtasks_pluggy._submit.protocol import Engine
from qtasks_pluggy._waiting import SYNC, run_to_completion

if TYPE_CHECKING:
    from uuid import UUID


def repetition_of(
    message: TaskMessage,
    *,
    args: Sequence[Any] | None,
    kwargs: Mapping[str, Any] | None,
    metadata: Mapping[str, Any] | None,
) -> TaskMessage:
    """Return the message of a run that repeats another one.

    Raises:
        TypeError: An argument is of the wrong type.
    """
    for name, value, kind, wanted in (
        ("message", message, TaskMessage, "a TaskMessage"),
        ("args", () if args is None else args, (tuple, list), "a tuple or a list"),
        ("kwargs", {} if kwargs is None else kwargs, Mapping, "a mapping"),
        ("metadata", {} if metadata is None else metadata, Mapping, "a mapping"),
    ):
        if not isinstance(value, kind):
            msg = f"replay({name}=...): expected {wanted}, got {type(value).__name__}"
            raise TypeError(msg)
    return TaskMessage(
        message.name,
        message.args if args is None else args,
        message.kwargs if kwargs is None else kwargs,
        priority=message.priority,
        metadata={**message.metadata, **(metadata or {}), REPLAY_OF: str(message.uuid)},
    )


def replay_in_place(executor: Any, app: str, delay: float | timedelta | None) -> UUID | str:
    """Run a replay here and now; its error is for its plugins, not for the caller.

    Raises:
        CapabilityError: It was to be delayed.
    """
    message: TaskMessage = executor.task_broker
    if delay:
        msg = (
            f"app {app!r} has no engine, so a replay of task {message.name!r} runs here and now;"
            " leave delay= out"
        )
        raise CapabilityError(msg)
    try:
        executor.execute_sync()
    except Exception as error:  # noqa: BLE001  # its plugins were called
        known = {"task": message.name, "uuid": str(message.uuid), "error": type(error).__name__}
        _log.event("warning", "replay_failed", **known)
    return message.uuid


def replay_on(
    engine: Engine, message: TaskMessage, delay: float | timedelta | None
) -> UUID | str | None:
    """Send a message to an engine.

    Returns:
        The id of the new run; None if the engine will choose it later.

    Raises:
        CapabilityError: The engine cannot delay it, or needs the event loop that this is called on.
        EngineError: The engine failed, or an argument does not travel.
    """
    pause = None if delay is None else check_seconds(delay, "replay(delay=...)")
    if pause and not engine.capabilities.delay:
        msg = f"engine {engine.name!r} cannot delay a run; leave delay= out of replay(...)"
        raise CapabilityError(msg)
    if iscoroutinefunction(engine.submit) and is_here(engine.loop):
        msg = (
            f"engine {engine.name!r} sends on this thread's event loop, so a replay of task"
            f" {message.name!r} cannot wait for it here; call it in a thread, as by"
            " asyncio.to_thread(app.replay, message)"
        )
        raise CapabilityError(msg)
    sent = run_to_completion(enqueue(engine, SYNC, message, pause))
    if getattr(engine, "gives_ids", False):
        # On the engine's own event loop it is sent later, and the id is not known yet.
        return sent  # type: ignore[no-any-return]  # the engine's own
    return message.uuid
