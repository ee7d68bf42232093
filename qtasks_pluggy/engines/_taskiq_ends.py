"""How ends of runs travel through Taskiq's results: what those cannot say is in a label."""

from __future__ import annotations

import base64
import json
import pickle
from collections.abc import Iterator
from typing import Any, Final

import attrs
from pydantic import TypeAdapter
from taskiq import AsyncBroker, AsyncResultBackend, TaskiqMessage, TaskiqResult
from taskiq.serializers import PickleSerializer

from qtasks_pluggy import TaskMessage, TaskStatus, Trail, TrailRecord
from qtasks_pluggy.engines import RunResult, servers, status_from
from qtasks_pluggy.exc import EngineError

# The label of a message, and that of a result, which have what is ours.
HEADER: Final = "qtasks_pluggy"
END: Final = "qtasks_pluggy_end"

_ANY: Final[TypeAdapter[Any]] = TypeAdapter(Any)


def unserializable(broker: AsyncBroker, message: TaskMessage) -> str | None:
    """Name the first argument that does not travel; None where each does."""

    def serialize(value: Any) -> None:
        message = TaskiqMessage(task_id="", task_name="", labels={}, args=[value], kwargs={})
        broker.formatter.dumps(message)

    return servers.unserializable(message, serialize)


def check_storable(what: str, value: Any) -> None:
    """Refuse what Taskiq would drop, which leaves whoever waits for it waiting.

    Args:
        what: Whose value it is, for people.
        value: A result, or an answer.

    Raises:
        EngineError: It has no form in JSON, the one that results have.
    """
    if type(value) in servers.PLAIN:
        return
    try:
        if isinstance(value, Iterator):
            msg = "it can be read once only"
            raise TypeError(msg)  # noqa: TRY301  # the same end as that of whatever has no form
        _ANY.dump_python(value, mode="json")
    except Exception as error:
        raise servers.unstorable(what, value, error, engine="taskiq") from error


def packed(ended: RunResult, backend: AsyncResultBackend[Any]) -> str:
    """Make a label of what Taskiq's result does not say of an end."""
    end: dict[str, Any] = {"status": ended.status.value, "trail": records_of(ended.trail or ())}
    if ended.error is not None:
        # Taskiq drops an error that is false.
        end["text"] = servers.text_of(ended.error)
    # Read as pickle only where all of a result is pickle.
    if ended.error is not None and isinstance(
        getattr(backend, "serializer", None), PickleSerializer
    ):
        try:
            data = pickle.dumps(ended.error)
            pickle.loads(data)  # noqa: S301  # our own bytes, made one line up
        except Exception:  # noqa: BLE001  # whatever a foreign error's pickling raises
            data = b""
        end["error"] = base64.b64encode(data).decode()
    return json.dumps(end)


def ended_of(result: TaskiqResult[Any], backend: AsyncResultBackend[Any]) -> RunResult:
    """Make an end of what Taskiq has stored."""
    label = result.labels.get(END)
    error = result.error
    if label is None:
        if not result.is_err:
            return RunResult(TaskStatus.succeeded, result.return_value, trail=Trail())
        return RunResult(status_from(error), error=_lost({}) if error is None else error)
    end = json.loads(label)
    if end.get("error") and isinstance(getattr(backend, "serializer", None), PickleSerializer):
        try:
            error = pickle.loads(base64.b64decode(end["error"]))  # noqa: S301  # as the whole of it
        except Exception as unread:  # noqa: BLE001  # whatever reading what others wrote raises
            said = EngineError(
                f"engine 'taskiq': the run's error cannot be read here: {type(unread).__name__}:"
                f" {unread}; import what it is made of. Taskiq says: {error!r}"
            )
            error = said
    if error is None and "text" in end:
        error = _lost(end)
    trail = Trail(TrailRecord(**record) for record in end["trail"])
    return RunResult(TaskStatus(end["status"]), result.return_value, error, trail)


def _lost(end: dict[str, Any]) -> EngineError:
    """Say what is known of an error that Taskiq has not kept."""
    return EngineError(f"engine 'taskiq': the task raised {end.get('text', 'an error')}")


def records_of(trail: Any) -> list[dict[str, Any]]:
    """Make JSON of a trail's records."""
    return [attrs.asdict(record) for record in trail]
