"""RQ: plugins for jobs, through the worker's job class.

``rq worker --job-class qtasks_pluggy.engines.rq.PluggyJob`` asks the installed plugins;
``--job-class shop.ShopJob`` also asks those of ``ShopJob = install([...])``. RQ has no app object
and no list of tasks: every importable function can be a job.

This module uses only public parts of RQ. It tells a worker's own process from a work horse by who
handles SIGTERM; ``test_each_worker_class_asks_plugins`` checks that.
"""

from __future__ import annotations

import atexit
import signal
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from functools import wraps
from inspect import iscoroutinefunction
from math import ceil
from typing import Any, Final

from qtasks_pluggy.engines._versions import require

require("rq", "1.16")

from rq import Queue, Retry
from rq.command import send_shutdown_command
from rq.job import Job, get_current_job
from rq.results import Result
from rq.timeouts import BaseTimeoutException
from rq.worker import BaseWorker

from qtasks_pluggy import TaskMessage
from qtasks_pluggy.engines import Attempt, Capabilities, load_plugins
from qtasks_pluggy.engines.native import Importable, Native, attempt_of, log_as
from qtasks_pluggy.exc import EngineError

__all__ = ["PluggyJob", "install"]

# The key in a job's ``meta`` that counts its attempts, from the second on.
_ATTEMPT: Final = "qtasks_pluggy_attempt"
# An older RQ stores a returned Retry like any other result.
_OBEYS_RETURNED_RETRY: Final = hasattr(Result.Type, "RETRIED")


def install(
    plugins: Iterable[Any] = (),
    *,
    job_class: type[Job] = Job,
    discover: bool = True,
    intercept: type[BaseException] | Iterable[type[BaseException]] = Exception,
) -> type[Job]:
    """Make a job class that asks plugins about the errors of its jobs.

    Args:
        plugins: As for ``QueueTasks``, or names, ``"module"`` or ``"module:attribute"``.
        job_class: The project's own job class, if it has one.
        discover: As for ``QueueTasks``.
        intercept: The exception classes that plugins are asked about, at every attempt.

    Returns:
        The class, for ``rq worker --job-class``, or the ``job_class`` of a worker. RQ's
        ``SpawnWorker`` pickles it, so write ``class ShopJob(install(...)): ...`` there.

    Raises:
        PluginRegistrationError: ``plugins`` have faults.
        TypeError: ``job_class`` is not a job class.
    """
    if not (isinstance(job_class, type) and issubclass(job_class, Job)):
        who = "engine 'rq': install(job_class=)"
        msg = f"{who} expected a subclass of rq.job.Job, got {job_class!r}"
        raise TypeError(msg)
    made = type("PluggyJob", (_PluggedJob, job_class), {"__module__": __name__})
    JobPlugins.install(made, plugins, discover=discover, intercept=intercept)
    return made


class _ReturnedRetry(Exception):  # noqa: N818  # a control exception
    """The job returned RQ's ``Retry``, so RQ runs it again."""

    def __init__(self, retry: Retry) -> None:
        super().__init__(f"the job returned Retry(max={retry.max})")
        self.retry = retry


class JobPlugins(Native[type[Job]]):
    """The plugins of a job class; a run is a job."""

    name = "rq"
    kind = type
    control = (BaseTimeoutException, _ReturnedRetry)
    ends_worker = ()

    # The queue that was passed to ``installed_in``; a running job has its own.
    queue: Queue | None = None
    is_preloaded = False

    def cover(self) -> None:
        """Do nothing: the worker gets the class from its command line."""

    @property
    def tasks(self) -> Mapping[str, Any]:
        """Every importable function, by its dotted name."""
        return Importable(callable)

    def count(self) -> int:
        """Return 1: RQ has no list of jobs to count."""
        return 1

    def around(self, job: _PluggedJob) -> Callable[..., Any]:
        """Return the callable that RQ runs for a job: its function, with plugins around it."""
        own = job.own_func

        @wraps(own)
        def function(*args: Any, **kwargs: Any) -> Any:
            return _checked(job, own(*args, **kwargs))

        @wraps(own)
        async def function_async(*args: Any, **kwargs: Any) -> Any:
            """Await the job's function."""
            return _checked(job, await own(*args, **kwargs))

        def call(*args: Any, **kwargs: Any) -> Any:
            try:
                with self._alive(job):
                    return self.work(job, function, args, kwargs, key=job.id)
            except _ReturnedRetry as returned:
                return returned.retry

        async def call_async(*args: Any, **kwargs: Any) -> Any:
            """Make the attempt; RQ awaits this in the main thread, where its time limit works."""
            try:
                with self._alive(job):
                    return await self.work_async(job, function_async, args, kwargs, key=job.id)
            except _ReturnedRetry as returned:
                return returned.retry

        return call_async if iscoroutinefunction(own) else call

    @contextmanager
    def _alive(self, job: Job) -> Generator[None]:
        """Start the plugins before a job, count its attempt, and stop them with the process."""
        log_as("rq.worker")
        stays = _is_worker()
        if not self.is_begun:
            try:
                self.begin_for_run()
            except Exception as error:
                if not _is_sync(job):
                    # Leave the job to another worker: this one would take and fail every job.
                    _add_retry(job, 0)
                    send_shutdown_command(job.connection, job.worker_name or "")
                raise self.refusal(error) from error
            if stays:
                atexit.register(self.end)
        is_retried = False
        try:
            yield
        except BaseException as error:
            is_retried = self.will_retry(job, error)
            raise
        finally:
            if is_retried:
                # RQ stores the job's ``meta`` when it runs it again.
                job.meta[_ATTEMPT] = attempt_of({"attempt": job.meta.get(_ATTEMPT)}) + 1
            elif job.meta.pop(_ATTEMPT, None):
                # A failed job that is requeued starts at its first attempt.
                job.save_meta()  # type: ignore[no-untyped-call]  # RQ's
            if not stays:
                self.end()

    def message(self, run: Job, args: Any, kwargs: Any) -> TaskMessage:
        """Make a message from a job."""
        made = run.created_at
        return TaskMessage(
            str(run.func_name),
            args,
            kwargs,
            uuid=run.id,
            priority=None,
            # Before RQ 2, it has no time zone.
            created_at=made.replace(tzinfo=made.tzinfo or UTC).timestamp(),
            attempt=attempt_of({"attempt": run.meta.get(_ATTEMPT)}),
            queue=run.origin,
            engine=self.name,
            metadata={name: value for name, value in run.meta.items() if name != _ATTEMPT},
        )

    def can(self, run: Job | None) -> Capabilities:
        """Return what RQ can do; its ``FailedJobRegistry`` keeps failed jobs."""
        is_delayed = run is None or not _is_sync(run)
        return Capabilities(delay=is_delayed, dead_letter=True, results=True, metadata=True)

    def will_retry(self, run: Job, error: BaseException) -> bool:
        """Return whether RQ itself will run the job again."""
        is_left = isinstance(error, _ReturnedRetry) or (run.retries_left or 0) > 0
        return is_left and not _is_sync(run)

    def retry(self, run: Job, attempt: Attempt, number: int) -> Any:  # noqa: ARG002  # ``_counted``
        """Add one retry to a job; its worker schedules it when the job fails."""
        if _is_sync(run):
            msg = f"engine 'rq', {run.func_name}: a queue with is_async=False runs each job once"
            raise EngineError(msg)
        _add_retry(run, ceil(attempt.delay or 0))
        return attempt.error

    def cancel(self, run: Job, attempt: Attempt) -> Any:
        """Fail a job and drop its remaining retries."""
        run.retries_left = 0
        return attempt.error

    dead_letter = cancel

    def encode(self, run: Job | None, value: Any) -> object:
        """Serialize a value as RQ does, and read it back."""
        serializer = (self._queue_for() if run is None else run).serializer
        return serializer.loads(serializer.dumps(value))

    def send(self, message: TaskMessage, delay: float | None) -> None:
        """Enqueue a job on the queue that the message names."""
        queue = self._queue_for(message.queue)
        job = queue.create_job(
            message.name,
            args=message.args,
            kwargs=message.kwargs,
            job_id=str(message.uuid),
            meta=message.metadata,
        )
        if delay:
            queue.schedule_job(job, datetime.now(UTC) + timedelta(seconds=delay))
        else:
            queue.enqueue_job(job)

    def _queue_for(self, name: str | None = None) -> Queue:
        """Return a queue by name, on the connection of the running job or of the client.

        Raises:
            EngineError: No connection is known.
        """
        known: Any = get_current_job() or self.queue
        if known is None:
            msg = "engine 'rq': no connection to send the job on; pass a Queue, not a job class"
            raise EngineError(msg)
        chosen: str = name or getattr(known, "origin", "") or known.name
        return Queue(chosen, connection=known.connection, serializer=known.serializer)


class _PluggedJob(Job):
    """A job whose worker asks plugins about its errors."""

    qtasks_pluggy_app: JobPlugins

    @classmethod
    def fetch(cls, *args: Any, **kwargs: Any) -> Any:
        """Fetch a job; a worker first imports the plugins, so that work horses inherit them."""
        plugged = cls.qtasks_pluggy_app
        if not plugged.is_preloaded and _is_worker():
            plugged.is_preloaded = True
            log_as("rq.worker")
            with suppress(Exception):  # the work horse reports it
                load_plugins(plugged.app)
        return super().fetch(*args, **kwargs)

    @property
    def func(self) -> Any:
        """The job's function; in the worker that performs the job, with plugins around it."""
        plugged, own = self.qtasks_pluggy_app, self.own_func
        if own is None or get_current_job() is not self or plugged.is_at_work(self.id):
            return own
        return plugged.around(self)

    @property
    def own_func(self) -> Any:
        """The job's function, as RQ finds it."""
        return super().func


def _checked(job: Job, result: Any) -> Any:
    is_obeyed = isinstance(result, Retry) and _OBEYS_RETURNED_RETRY and not _is_sync(job)
    if is_obeyed and (job.number_of_retries or 0) < result.max:
        raise _ReturnedRetry(result)
    return result


def _is_worker() -> bool:
    """Return whether this is a worker's own process, which handles signals, not a work horse."""
    handler = signal.getsignal(signal.SIGTERM)
    return isinstance(getattr(handler, "__self__", None), BaseWorker)


def _is_sync(job: Job) -> bool:
    """Return whether ``is_async=False`` makes a job run where it was enqueued."""
    return job.worker_name in {None, "", "sync"}


def _add_retry(job: Job, delay: int) -> None:
    """Add a retry after ``delay`` seconds, before a job's remaining retries and their intervals."""
    left, own = job.retries_left or 0, job.retry_intervals or [0]
    intervals = [own[max(len(own) - number, 0)] for number in range(left, 0, -1)]
    job.retries_left, job.retry_intervals = left + 1, [delay, *intervals]


class PluggyJob(install()):  # type: ignore[misc]  # a class made at run time
    """The job class whose errors the installed plugins decide about."""
