"""Sending a message to a Celery task, one of our own or an app's own."""

# Celery has no types.
# pyright: reportMissingTypeStubs=false

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from celery import Celery
from kombu import serialization
from kombu.exceptions import EncodeError

from qtasks_pluggy import TaskMessage
from qtasks_pluggy.engines import Capabilities
from qtasks_pluggy.engines._celery_attempt import HEADER, OURS
from qtasks_pluggy.engines._celery_settings import broker_of, has_results, told
from qtasks_pluggy.engines.servers import text_of, unserializable
from qtasks_pluggy.exc import EngineError


class CelerySender:
    """Sends runs of a Celery app's own tasks again.

    Args:
        native: The Celery app.
    """

    name = "celery"
    blocking = True
    loop = None

    def __init__(self, native: Celery) -> None:
        self.native: Any = native
        self._is_imported = False

    @property
    def capabilities(self) -> Capabilities:
        """What Celery can do for such a run."""
        is_eager = bool(self.native.conf.task_always_eager)
        return Capabilities(delay=not is_eager, results=has_results(self.native), metadata=True)

    @property
    def tasks(self) -> Mapping[str, Any]:
        """The app's own tasks by name, also those of modules that a worker imports by itself."""
        if not self._is_imported:
            self.native.loader.import_default_modules()
            self._is_imported = True
        self.native.finalize(auto=True)
        return {task.name: task for task in own_tasks(self.native)}

    def function_of(self, name: str) -> Callable[..., Any]:
        """Return the function of one of them, for plugins to read."""
        function: Callable[..., Any] = self.tasks[name].run
        return function

    def submit(self, message: TaskMessage, delay: float | None) -> Any:
        """Send a run to the queue to which the app itself sends this task.

        Raises:
            EngineError: The broker failed, or an argument does not travel.
        """
        priority = message.priority or None
        if priority is not None and broker_of(self.native) == "redis":
            # There lower ones run first, and plugins see it the other way round.
            priority = -priority
        task = self.tasks[message.name]
        return send(task, message, {"metadata": message.metadata}, delay, priority)


def own_tasks(native: Celery) -> Iterator[Any]:
    """Find the tasks that are neither Celery's nor those of an app of ours."""
    for name, task in list(vars(native)["_tasks"].items()):
        if not name.startswith("celery.") and not getattr(task, OURS, False):
            yield task


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
