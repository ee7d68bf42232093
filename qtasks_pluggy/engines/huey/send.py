"""Sending a message to a Huey task of ours."""

# Huey has no types.
# pyright: reportMissingTypeStubs=false

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from huey import Huey
from huey.api import Task
from huey.utils import normalize_time

from qtasks_pluggy import TaskMessage
from qtasks_pluggy.engines.huey.install import HEADER
from qtasks_pluggy.engines.servers import text_of, unserializable
from qtasks_pluggy.exc import EngineError


def new_task(
    huey: Huey,
    kind: type[Task],
    message: TaskMessage,
    header: Mapping[str, Any],
    delay: float | None,
    **options: Any,
) -> Task:
    """Make a native message.

    Args:
        huey: The Huey that is to have it.
        kind: The class of the native task.
        message: What is sent.
        header: What is ours, and travels with it.
        delay: Seconds before it may run.
        options: Huey's own.
    """
    return kind(
        message.args,
        {**message.kwargs, HEADER: dict(header)},
        id=str(message.uuid),
        eta=normalize_time(None, delay, huey.utc) if delay else None,
        priority=message.priority or None,
        **options,
    )


def serialized(
    task: Task, message: TaskMessage, huey: Huey, serialize: Callable[[Task], bytes]
) -> bytes:
    """Serialize a native message.

    Raises:
        EngineError: An argument does not travel.
    """
    try:
        return serialize(task)
    except Exception as error:
        what = unserializable(message, huey.serializer.serialize) or "an argument"
        msg = (
            f"engine 'huey' cannot take task {message.name!r}: {what} does not pickle"
            f" ({text_of(error)}); give it something that does, an id or a path"
        )
        raise EngineError(msg) from error
