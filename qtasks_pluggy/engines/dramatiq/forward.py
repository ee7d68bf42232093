"""Dramatiq as the engine of a ``QueueTasks`` app."""

from __future__ import annotations

from typing import Any, Final

import dramatiq
from dramatiq import Broker, Worker
from dramatiq.brokers.stub import StubBroker
from dramatiq.middleware import TimeLimit
from dramatiq.results import ResultFailure, ResultMissing

from qtasks_pluggy import QueueTasks, TaskFunc, TaskStatus
from qtasks_pluggy.engines import Attempt, Capabilities, RunResult
from qtasks_pluggy.engines.dramatiq.install import OURS, DramatiqNative, WorkerLife
from qtasks_pluggy.engines.dramatiq.settings import reach
from qtasks_pluggy.engines.forward import Forward, pack_error, unpack_error
from qtasks_pluggy.engines.native import text_of
from qtasks_pluggy.exc import CapabilityError, EngineError

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
        name, queue = task_func.name, task_func.extra.get("queue_name", self._queue)
        if name in self.native.actors:
            # Dramatiq 1.17 would replace it.
            msg = f"the broker has an actor {name!r} already; give the task another name="
            raise ValueError(msg)
        call = self.around(name, task_func.func)
        actor = dramatiq.actor(actor_name=name, broker=self.native, queue_name=queue)(call)
        actor.options |= {"max_retries": 0, "retry_when": None}
        actor.options |= {"store_results": True, "result_ttl": _KEPT}
        limit = next((one for one in self.native.middleware if isinstance(one, TimeLimit)), None)
        if limit is not None and task_func.max_time is not None:
            # No plugin is asked about Dramatiq's limit, so the task's own comes first.
            most = max(limit.time_limit, round((task_func.max_time + _MARGIN) * 1000))
            actor.options["time_limit"] = most
        return actor

    def can(self, run: Any) -> Capabilities:  # noqa: ARG002  # of all the same
        """Say what Dramatiq can do with this broker."""
        return Capabilities(
            delay=True,
            dead_letter=True,
            results=bool(self._results()),
            at_least_once=not isinstance(self.native, StubBroker),
            metadata=True,
        )

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
        """Connect to the broker and the result backend."""
        reach("broker", self.native)
        for one in self._results():
            reach("result backend", one.backend)

    # --- its end

    def work(self, run: Any, *args: Any, **kwargs: Any) -> Any:
        """Make one attempt, and wrap a result that would pass for an end."""
        result = super().work(run, *args, **kwargs)
        if isinstance(result, dict) and not _RESERVED.isdisjoint(result):
            return {_END: {"status": str(TaskStatus.succeeded), "result": result}}
        return result

    def store(self, run: Any, attempt: Attempt) -> None:
        """Store an end with its error's class and arguments; Dramatiq keeps only a name."""
        error = EngineError(attempt.reason) if attempt.error is None else attempt.error
        end = {"status": str(attempt.status), "error": pack_error(error)}
        for one in self._results():
            one.backend.store_result(run, {_END: end}, _KEPT)
        run.options["store_results"] = False

    def fail(self, run: Any, attempt: Attempt) -> BaseException | None:
        """Store the end; Dramatiq moves the failed message to its dead letters."""
        self.store(run, attempt)
        return attempt.error

    def dead_letter(self, run: Any, attempt: Attempt) -> BaseException | None:
        """Store the end, and move the message there too, unless a plugin keeps it."""
        if not attempt.kept:
            self.store(run, attempt)
        return super().dead_letter(run, attempt)

    def read(self, ticket: Any) -> RunResult | None:
        """Read the stored end."""
        who = f"engine 'dramatiq', task {ticket.actor_name!r}"
        try:
            result = self._results()[0].backend.get_result(ticket, block=False)
        except ResultMissing:
            return None
        except ResultFailure as error:
            return RunResult(TaskStatus.failed, error=EngineError(f"{who}: {error}"))
        except Exception as error:
            # The clients have error classes of their own, which are no OSError.
            msg = f"{who}: its results failed: {text_of(error)}; check that their server runs"
            raise EngineError(msg) from error
        if not isinstance(result, dict) or _END not in result:
            return RunResult(TaskStatus.succeeded, result)
        end = result[_END]
        status = TaskStatus(end["status"])
        if status is TaskStatus.succeeded:
            return RunResult(status, end["result"])
        return RunResult(status, error=unpack_error(end["error"], who))

    def no_results(self) -> str:
        """Say what to do without results."""
        return "it keeps no results; add them by broker.add_middleware(Results(backend=...))"

    def revoke(self, ticket: Any, reason: str) -> bool:  # noqa: ARG002  # the seam's
        """Refuse: Dramatiq cannot take a message back."""
        msg = f"engine 'dramatiq' cannot cancel a run, so {ticket.message_id} goes on"
        raise CapabilityError(msg)


class _Forwarded(WorkerLife):
    """The plugins' life in workers, and an end for runs of tasks that a worker does not have."""

    def before_nack(self, broker: Broker, message: Any) -> None:
        """Store an error for those who wait for a run of an unknown task."""
        if message.actor_name in broker.actors or OURS not in message.options:
            return
        msg = (
            f"engine 'dramatiq', task {message.actor_name!r}: the worker has no such task. It must"
            " import every module that declares tasks, and run the same code as those who submit"
        )
        self.plugged.store(message, Attempt("fail", EngineError(msg)))
