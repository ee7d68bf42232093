"""Asks today's plugins about recorded errors, without effect: no task runs, nothing is sent.

A recorded error is made again where its class is loaded, is an ``Exception``, and takes the
arguments that it had. Otherwise a stand-in takes its place, of the same class if that is loaded, or
of a class with the same name. Nothing is imported because a record says so.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress

import attrs

from qtasks_hookspecs import TaskMessage
from qtasks_hookspecs.exc import PluginError, TaskNameError, loaded_class
from qtasks_pluggy import QueueTasks
from qtasks_pluggy.engines import executor_for
from qtasks_pluggy.failures.claims import Recorded
from qtasks_pluggy.failures.records import TRIGGER
from qtasks_pluggy.failures.replay import OtherArguments
from qtasks_pluggy.failures.values import UnreadableError, read_args, read_kwargs


@attrs.frozen(kw_only=True)
class Answered:
    """What plugins would decide about one recorded error.

    Attributes:
        uuid: The id of the run.
        status: How the attempt would end; None if nobody could be asked.
        decided_by: The plugin that would decide; None for none.
        decision: The kind of its decision.
        is_stand_in: Whether the error could not be made again as it was.
        why_not: Why nobody could be asked; empty if plugins were asked.
    """

    uuid: str
    status: str | None = None
    decided_by: str | None = None
    decision: str | None = None
    is_stand_in: bool = False
    why_not: str = ""


def ask(app: QueueTasks, runs: Iterable[Recorded], arguments: OtherArguments) -> Iterator[Answered]:
    """Ask an app's plugins about the errors of recorded runs.

    Args:
        app: The app; its plugins are started.
        runs: The runs.
        arguments: Other arguments than the recorded ones.

    Yields:
        What they would decide about each.
    """
    for run in runs:
        try:
            yield _ask(app, run, arguments.message_of(run, app))
        except UnreadableError as error:
            yield Answered(uuid=run.uuid, why_not=run.not_replayable or str(error))
        except TaskNameError as error:
            yield Answered(uuid=run.uuid, why_not=str(error))


def _ask(app: QueueTasks, run: Recorded, message: TaskMessage) -> Answered:
    executor = executor_for(app, message)
    made = rebuilt(run)
    if made is None:
        return Answered(uuid=run.uuid, status="failed")
    error, is_stand_in = made
    with suppress(Exception):  # a class that refuses notes
        error.add_note(f"qtasks_pluggy: made again from what is recorded of run {run.uuid}")
    try:
        outcome = executor.ask_about_sync(error)
    except PluginError:  # as strict wants it; the run would fail with this one
        return Answered(uuid=run.uuid, status="failed", is_stand_in=is_stand_in)
    won = next((one for one in executor.trail if one.won and one.hook == TRIGGER), None)
    return Answered(
        uuid=run.uuid,
        status=str(outcome.status),
        decided_by=outcome.decided_by,
        decision=None if won is None else won.kind,
        is_stand_in=is_stand_in,
    )


def rebuilt(run: Recorded) -> tuple[Exception, bool] | None:
    """Make a recorded error again.

    Args:
        run: The run whose newest error it is.

    Returns:
        The error, and whether it is a stand-in; None if it is not an ``Exception``, because plugins
        are not asked about those.
    """
    kind = loaded_class(run.error if "." in run.error else f"builtins.{run.error}")
    if kind is None or not issubclass(kind, BaseException):
        return _named_alike(run), True
    if not issubclass(kind, Exception):
        return None
    if run.error_arguments is not None:
        with suppress(Exception):  # whatever a class makes of them
            args, kwargs = read_args(run.error_arguments), read_kwargs(run.error_arguments)
            error = kind(*args, **kwargs)
            if type(error) is kind:
                return error, False
    with suppress(Exception):
        # Past its own making: handlers that name the class are asked, as they would be.
        error = kind.__new__(kind, run.message)
        if type(error) is kind:
            vars(BaseException)["args"].__set__(error, (run.message,))
            return error, True
    return _named_alike(run), True


def _named_alike(run: Recorded) -> Exception:
    """Make an error of a class that has only the name, so that filters can match it."""
    module, _, name = run.error.rpartition(".")
    kind = type(name or "Exception", (Exception,), {"__module__": module or "builtins"})
    error: Exception = kind(run.message)
    return error
