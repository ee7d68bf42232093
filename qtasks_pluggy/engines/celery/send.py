"""Sending a message to a Celery task of ours."""

# Celery has no types.
# pyright: reportMissingTypeStubs=false

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kombu import serialization
from kombu.exceptions import EncodeError

from qtasks_pluggy import TaskMessage
from qtasks_pluggy.engines.celery.attempt import HEADER
from qtasks_pluggy.engines.celery.settings import told
from qtasks_pluggy.engines.servers import text_of, unserializable
from qtasks_pluggy.exc import EngineError


def send(
    task: Any,
    message: TaskMessage,
    header: Mapping[str, Any],
    delay: float | None,
    priority: int | None,
) -> Any:
    """Send a native message.

    Args:
        task: The native task.
        message: What is sent.
        header: What is ours, and travels with it.
        delay: Seconds before it may run.
        priority: The broker's own; None for that of the task.

    Raises:
        EngineError: The broker failed, or an argument does not travel.
    """
    serializer = task.serializer or task.app.conf.task_serializer
    try:
        return told(
            message.name,
            task.apply_async,
            message.args,
            message.kwargs,
            task_id=str(message.uuid),
            countdown=delay or None,
            headers={HEADER: dict(header)},
            **({} if priority is None else {"priority": priority}),
        )
    except (EncodeError, TypeError, ValueError, OverflowError, RecursionError) as error:
        what = unserializable(message, lambda value: serialization.dumps(value, serializer))  # type: ignore[no-untyped-call]  # kombu's
        what = "these arguments do not fit" if what is None else f"{what} is no {serializer}"
        msg = (
            f"engine 'celery' cannot take task {message.name!r}: {what} ({text_of(error)}); give"
            " it others, an id or a path for what does not travel"
        )
        raise EngineError(msg) from error
