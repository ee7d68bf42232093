"""Dramatiq as the engine of a ``QueueTasks`` app."""

from __future__ import annotations

from typing import Any, Final

import dramatiq
from dramatiq import Broker, Worker
from dramatiq.results import ResultFailure, ResultMissing, Results

from qtasks_pluggy import QueueTasks, TaskFunc, TaskStatus
from qtasks_pluggy.engines import Attempt, RunResult
from qtasks_pluggy.engines.dramatiq.install import OURS, DramatiqNative, WorkerLife
from qtasks_pluggy.engines.forward import Forward, pack_error, unpack_error
from qtasks_pluggy.exc import EngineError

# The key of an end among results.
_END: Final = "__qtasks_pluggy__"
# A result with one of these keys would pass for an end, ours or Dramatiq's own, so it is stored
# inside of one.
_RESERVED: Final = {_END, "__t"}
# How long results are kept, in milliseconds: a day, instead of Dramatiq's ten minutes.
_KEPT: Final = 86_400_000
# Seconds beyond a task's own ``max_time``, for the plugins that are asked about its end.
_MARGIN: Final = 60


class DramatiqEngine(Forward[Broker], DramatiqNative):
    """A Dramatiq broker as an app's engine.

    Args:
        given: The broker.
        queue_name: The queue of tasks that name none.
    """

    worker = "dramatiq MODULE:BROKER"

    def __init__(self, given: Any, queue_name: str = "default") -> None:
        super().__init__(given)
        self._queue = queue_name
        self._worker: Worker | None = None

    def cover(self) -> None:
        """Follow the workers and their messages."""
        self.native.add_middleware(_Forwarded(self))

    def declare(self, task_func: TaskFunc) -> Any:
        """Make an actor that only plugins retry."""
        if task_func.name in self.native.actors:
            # Dramatiq before 1.17.1 would replace it.
            msg = "the broker has an actor with this name; give this one another name="
            raise ValueError(msg)
        queue = task_func.extra.get("queue_name", self._queue)
        declare = dramatiq.actor(actor_name=task_func.name, broker=self.native, queue_name=queue)
        actor = declare(self.around(task_func.name, task_func.func))
        actor.options.update(max_retries=0, retry_when=None, store_results=True, result_ttl=_KEPT)
        if task_func.max_time is not None:
            # No plugin is asked about Dramatiq's limit, so the task's own comes first.
            actor.options["time_limit"] = round((task_func.max_time + _MARGIN) * 1000)
        return actor

    def start(self, app: QueueTasks, workers: int | None) -> None:
        """Check that the servers answer; start workers in this process, if asked to."""
        super().start(app, None)
        if workers:
            self._worker = Worker(self.native, worker_threads=workers, worker_timeout=100)
            self._worker.start()

    def stop(self) -> None:
        """Finish the runs of this process; those that wait stay with the broker."""
        if self._worker is not None:
            self._worker.stop()
            self._worker = None

    def reach(self) -> None:
        """Connect to the servers of the broker and the result backend."""
        one: Any
        for one in (self.native, getattr(self.find(Results), "backend", None)):
            where = getattr(one, "parameters", "")
            try:
                if (redis := getattr(one, "client", None)) is not None:
                    redis.ping()
                elif where and one.connection.is_open:
                    del one.connection
            except Exception as error:
                # Some errors of RabbitMQ's client have no text, and none says where it is.
                msg = f"{type(one).__name__}({where}): {str(error) or repr(error)}"
                raise ConnectionError(msg) from error

    # --- its end

    def work(self, run: Any, *args: Any, **kwargs: Any) -> Any:
        """Make one attempt, and wrap a result that would pass for an end."""
        result = super().work(run, *args, **kwargs)
        if isinstance(result, dict) and not _RESERVED.isdisjoint(result):
            return {_END: {"status": str(TaskStatus.succeeded), "result": result}}
        return result

    def store(self, run: Any, attempt: Attempt) -> None:
        """Store an end with its error's class and arguments; Dramatiq keeps only a name."""
        error: Any = attempt.error
        end = {"status": str(attempt.status), "error": pack_error(error)}
        if (results := self.find(Results)) is not None:
            results.backend.store_result(run, {_END: end}, _KEPT)
        run.options["store_results"] = False

    def fail(self, run: Any, attempt: Attempt) -> Any:
        """Store the end; Dramatiq moves the failed message to its dead letters."""
        self.store(run, attempt)
        return attempt.error

    def read(self, ticket: Any) -> RunResult | None:
        """Read the stored end."""
        who = f"engine 'dramatiq', task {ticket.actor_name!r}"
        try:
            result = self.find(Results).backend.get_result(ticket)
        except ResultMissing:
            return None
        except ResultFailure as error:
            return RunResult(TaskStatus.failed, error=EngineError(f"{who}: {error}"))
        if not isinstance(result, dict) or _END not in result:
            return RunResult(TaskStatus.succeeded, result)
        end = result[_END]
        status = TaskStatus(end["status"])
        if status is TaskStatus.succeeded:
            return RunResult(status, end["result"])
        return RunResult(status, error=unpack_error(end["error"], who))


class _Forwarded(WorkerLife):
    """The plugins' life in workers, and an end for runs of tasks that a worker does not have."""

    def before_nack(self, broker: Broker, message: Any) -> None:
        """Store an error for those who wait for a run of an unknown task."""
        if message.actor_name in broker.actors or OURS not in message.options:
            return
        msg = (
            f"engine 'dramatiq', task {message.actor_name!r}: the worker has no such task; start it"
            " with the same code as those who submit, and every module that declares tasks"
        )
        self.plugged.store(message, Attempt("fail", EngineError(msg)))
