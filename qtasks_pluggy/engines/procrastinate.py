"""Procrastinate: plugins for the tasks of an app, with one line.

``install(app)`` covers the tasks when a worker starts. It sets these attributes of the app and its
tasks; their names are public, and the same since 3.0.2:

============================  ===============================================================
``app.run_worker_async``      starts and stops the plugins; ``procrastinate worker`` calls it
``task.func``                 makes an attempt if it gets a job's context, else a plain call
``task.pass_context``         is true, so that ``task.func`` gets each job's context
``task.get_retry_exception``  tells what plugins decided, else what the task's own does
============================  ===============================================================

``test_the_worker_command_asks_plugins`` tests the first, ``test_a_context_is_the_task_s_alone`` the
next two, and ``test_a_project_s_own_strategy_decides_where_no_plugin_does`` the last.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from functools import partial, wraps
from inspect import iscoroutinefunction
from typing import Any, Final

from qtasks_pluggy.engines._versions import require

require("procrastinate", "3.0.2")

from procrastinate import App, JobContext, RetryDecision
from procrastinate.exceptions import AppNotOpen, JobAborted, JobRetry
from procrastinate.job_context import AbortReason
from procrastinate.jobs import Job
from procrastinate.tasks import Task

from qtasks_pluggy import TaskMessage
from qtasks_pluggy.engines import Attempt, Capabilities
from qtasks_pluggy.engines._native_tasks import passes_first, passing
from qtasks_pluggy.engines.native import Native
from qtasks_pluggy.exc import EngineError

__all__ = ["install"]


class _Cancelled(JobAborted):
    """A plugin cancelled the job, so no strategy runs it again."""


class ProcrastinateNative(Native[App]):
    """The plugins of a Procrastinate app; a run is a job's context."""

    name = "procrastinate"
    kind = App
    control = (JobAborted,)
    ends_worker = ()
    gives_ids = True
    in_future = True

    def cover(self) -> None:
        """Start and stop the plugins with each worker of the app."""
        # What plugins decided about failed jobs, by job id; None if the job must not run again.
        self._decisions: dict[int | None, JobRetry | None] = {}
        run_worker_async = self.native.run_worker_async

        async def run_worker(**options: Any) -> None:
            """Run a worker, with the plugins started."""
            self.native.perform_import_paths()  # type: ignore[no-untyped-call]  # its cache
            for task in self.tasks.values():
                if "get_retry_exception" not in vars(task):
                    self._cover(task)
            self.loop = asyncio.get_running_loop()
            await self.begin_async()
            try:
                await run_worker_async(**options)
            finally:
                await self.end_async()
                self.loop = None

        self.native.run_worker_async = run_worker  # type: ignore[method-assign]  # of this one app

    def _cover(self, task: Task[Any, Any, Any]) -> None:
        """Put plugins around a task's function, for calls by a worker."""
        own = task.func
        # Plugins see neither the context nor its parameter.
        func = passes_first(own) if task.pass_context else own

        def attempt(work: Callable[..., Any], args: tuple[Any, ...], kwargs: Any) -> Any:
            context = args[0] if args else None
            if not isinstance(context, JobContext) or self.is_at_work(context.job.id):
                # The caller is not a worker.
                return own(*args, **kwargs)
            return work(context, func, args[1:], kwargs, key=context.job.id)

        @wraps(own)
        def call(*args: Any, **kwargs: Any) -> Any:
            with passing(args[0] if args else None):
                return attempt(self.work, args, kwargs)

        @wraps(own)
        async def call_async(*args: Any, **kwargs: Any) -> Any:
            with passing(args[0] if args else None):
                return await attempt(self.work_async, args, kwargs)

        task.func = call_async if iscoroutinefunction(own) else call
        task.pass_context = True
        ask_task = task.get_retry_exception
        task.get_retry_exception = partial(self._decided, ask_task)  # type: ignore[method-assign]  # of this one task

    def _decided(self, ask_task: Any, exception: BaseException, job: Job) -> JobRetry | None:
        """Return whether, and when, a failed job runs again."""
        if job.id in self._decisions:
            return self._decisions.pop(job.id)
        # A worker that shuts down asks about aborted jobs, too.
        return None if isinstance(exception, _Cancelled) else ask_task(exception, job)

    @property
    def tasks(self) -> Mapping[str, Any]:
        """The app's own tasks by name and by alias."""
        tasks = self.native.tasks.items()
        return {name: task for name, task in tasks if not task.name.startswith("builtin:")}

    def count(self) -> int:
        """Count each task once."""
        return len({id(task) for task in self.tasks.values()})

    def message(self, run: JobContext, args: Any, kwargs: Any) -> TaskMessage:
        """Make a message from a job."""
        job = run.job
        return TaskMessage(
            job.task_name,
            args,
            kwargs,
            uuid=str(job.id),
            priority=job.priority,
            attempt=job.attempts + 1,
            queue=job.queue,
            engine=self.name,
        )

    def can(self, run: JobContext | None) -> Capabilities:  # noqa: ARG002  # the same for all
        """Return what Procrastinate can do: it keeps failed jobs but no results."""
        return Capabilities(delay=True, dead_letter=True)

    def will_retry(self, run: JobContext, error: BaseException) -> bool:
        """Return whether the task's own strategy will run the job again."""
        if isinstance(error, JobAborted) and run.abort_reason() is not AbortReason.SHUTDOWN:
            return False
        return run.task.get_retry_exception(error, run.job) is not None

    def retry(self, run: JobContext, attempt: Attempt, number: int) -> Any:  # noqa: ARG002  # counts
        """Request another attempt, and raise the task's own error."""
        wait: Any = {"seconds": attempt.delay or 0}
        self._decisions[run.job.id] = JobRetry(RetryDecision(retry_in=wait))
        return attempt.error

    def cancel(self, run: JobContext, attempt: Attempt) -> Any:  # noqa: ARG002  # the same for all
        """Abort the job, so that no strategy runs it again."""
        aborted = _Cancelled(attempt.reason)
        aborted.__cause__ = attempt.error
        return aborted

    def dead_letter(self, run: JobContext, attempt: Attempt) -> Any:
        """Fail the job for good; the jobs table keeps it."""
        self._decisions[run.job.id] = None
        return attempt.error

    def encode(self, run: JobContext | None, value: Any) -> object:
        """Encode an argument as JSON; Procrastinate does not store results."""
        return json.dumps(value) if run is None else None

    def send(self, message: TaskMessage, delay: float | None) -> Any:
        """Defer a job and return the id that the database chose; awaited on a worker's loop.

        Raises:
            EngineError: The message has positional arguments.
        """
        if message.args:
            msg = f"engine {self.name!r}, task {message.name!r}: a job takes keyword arguments only"
            raise EngineError(msg)
        wait: Any = {"seconds": delay} if delay else None
        task = self.tasks[message.name]
        job = task.configure(task_kwargs=dict(message.kwargs), schedule_in=wait)
        if self.loop is not None:
            return _text(job.defer_async())
        try:
            return str(job.defer())
        except AppNotOpen:
            with self.native.open():
                return str(job.defer())


async def _text(sent: Any) -> str:
    return str(await sent)


install: Final = ProcrastinateNative.install
