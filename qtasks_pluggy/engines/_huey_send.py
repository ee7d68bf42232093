"""Sending a message to a Huey task, one of our own or an app's own."""

# Huey has no types.
# pyright: reportMissingTypeStubs=false

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from huey import Huey
from huey.api import Task
from huey.utils import normalize_time

from qtasks_pluggy import TaskMessage
from qtasks_pluggy.engines import Capabilities
from qtasks_pluggy.engines._huey_ledger import HEADER
from qtasks_pluggy.engines._huey_storage import told
from qtasks_pluggy.engines.servers import text_of, unserializable
from qtasks_pluggy.exc import EngineError, TaskNameError

# The module of our own native tasks, under which Huey knows them.
MODULE: Final = "qtasks_pluggy"


class HueySender:
    """Sends runs of a Huey app's own tasks again.

    Args:
        huey: The app's Huey.
    """

    name = "huey"
    blocking = True
    loop = None

    def __init__(self, huey: Huey) -> None:
        self.native: Any = huey

    @property
    def capabilities(self) -> Capabilities:
        """What Huey can do for such a run."""
        immediate = bool(self.native.immediate)
        return Capabilities(delay=not immediate, results=bool(self.native.results), metadata=True)

    @property
    def tasks(self) -> Mapping[str, type[Task]]:
        """The classes of the app's own tasks by name."""
        return {kind.__name__: kind for kind in own_tasks(self.native)}

    def function_of(self, name: str) -> Callable[..., Any]:
        """Return the function of one of them, for plugins to read."""
        kind = self.tasks[name]
        return lambda *args, **kwargs: kind(args, kwargs).execute()

    def submit(self, message: TaskMessage, delay: float | None) -> None:
        """Enqueue a run of the task that has this name.

        Raises:
            EngineError: The storage cannot be used, or an argument does not travel.
            TaskNameError: Two modules have a task of this name.
        """
        huey, name = self.native, message.name
        kinds = [kind for kind in own_tasks(huey) if kind.__name__ == name]
        if len(kinds) > 1:
            modules = " and ".join(kind.__module__ for kind in kinds)
            msg = (
                f"engine 'huey', {huey.name}: {modules} both have a task {name!r}, and a run is"
                " known by that name alone; give one of them another name="
            )
            raise TaskNameError(msg)
        task = new_task(huey, kinds[0], message, {"metadata": message.metadata}, delay)
        serialized(task, message, huey, huey.serialize_task)
        told(huey, name, huey.enqueue, task)


def own_tasks(huey: Huey) -> Iterator[type[Task]]:
    """Find the classes of the tasks that are not those of an app of ours."""
    registry: Any = vars(huey)["_registry"]  # its tasks are listed nowhere else
    for kind in list(vars(registry)["_registry"].values()):
        if kind.__module__ != MODULE:
            yield kind


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
