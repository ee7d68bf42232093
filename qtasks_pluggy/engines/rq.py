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
from collections.abc import Iterable, Mapping
from contextlib import suppress
from datetime import UTC, timedelta
from functools import partial
from inspect import iscoroutinefunction
from math import ceil
from typing import Any, Final

from qtasks_pluggy.engines._versions import require

require("rq", "1.16")

from rq import Queue, Retry
from rq.command import send_shutdown_command
from rq.job import Job, get_current_job
from rq.timeouts import BaseTimeoutException
from rq.worker import BaseWorker

from qtasks_pluggy import TaskMessage
from qtasks_pluggy.engines import Attempt, Capabilities, load_plugins
from qtasks_pluggy.engines.native import Importable, Native, attempt_of, log_as
from qtasks_pluggy.exc import EngineError

__all__ = ["PluggyJob", "install"]

# The key in a job's ``meta`` that counts its attempts, from the second on.
_ATTEMPT: Final = "qtasks_pluggy_attempt"


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
    RQNative.install(made, plugins, discover=discover, intercept=intercept)
    return made


class _ReturnedRetry(Exception):  # noqa: N818  # a control exception
    """The job returned RQ's ``Retry``, so RQ runs it again."""

    def __init__(self, retry: Retry) -> None:
        # Not the retry's own text, which differs between runs where it is an address.
        super().__init__("the job returned a Retry")
        self.retry = retry


class RQNative(Native[type[Job]]):
    """The plugins of a job class; a run is a job."""

    name = "rq"
    kind = type
    control = (BaseTimeoutException,)
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

    def begin_for(self, job: Job) -> None:
        """Start the plugins before a job.

        Raises:
            SystemExit: They cannot start. RQ gives the job to another worker; this one stops,
                because it would take and fail every job.
        """
        try:
            self.begin_for_run()
        except Exception as error:
            if not _is_sync(job):
                _add_retry(job, 0)
                send_shutdown_command(job.connection, job.worker_name or "")
            raise self.refusal(error) from error
        if _is_worker():
            # In a work horse, which ends without ``atexit``, ``perform`` stops them.
            atexit.register(self.end)

    def message(self, run: Job, args: Any, kwargs: Any) -> TaskMessage:
        """Make a message from a job."""
        return TaskMessage(
            str(run.func_name),
            args,
            kwargs,
            uuid=run.id,
            priority=None,
            # Before RQ 2, it has no time zone.
            created_at=run.created_at.replace(tzinfo=UTC).timestamp(),
            attempt=_attempt(run),
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
        is_left = (run.retries_left or 0) > 0 and not _is_sync(run)
        return is_left or isinstance(error, _ReturnedRetry)

    def retry(self, run: Job, attempt: Attempt, number: int) -> Any:  # noqa: ARG002  # ``perform`` counts
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

    def check_result(self, task: str, value: Any) -> None:  # noqa: ARG002  # an engine's
        """Tell a ``Retry`` that RQ will obey from a result.

        Raises:
            _ReturnedRetry: RQ will run the job again.
        """
        if isinstance(value, Retry):
            job: Any = get_current_job()
            # RQ before 2.1 counts none, and stores a Retry like any other result.
            used = getattr(job, "number_of_retries", value.max) or 0
            if used < value.max and not _is_sync(job):
                raise _ReturnedRetry(value)

    def encode(self, run: Job | None, value: Any) -> object:
        """Serialize a value as RQ does, and read it back."""
        serializer = (run or self._queue()).serializer
        return serializer.loads(serializer.dumps(value))

    def send(self, message: TaskMessage, delay: float | None) -> None:
        """Enqueue a job on the queue of the running job, or on the client's."""
        queue = self._queue()
        enqueue = partial(queue.enqueue_in, timedelta(seconds=delay)) if delay else queue.enqueue
        enqueue(
            message.name,
            args=message.args,
            kwargs=message.kwargs,
            job_id=str(message.uuid),
            meta=message.metadata,
        )

    def _queue(self) -> Queue:
        """Return the queue of the running job, or the client's.

        Raises:
            EngineError: There is neither.
        """
        job = get_current_job()
        if job is not None:
            return Queue(job.origin, connection=job.connection, serializer=job.serializer)
        if self.queue is None:
            msg = (
                "engine 'rq': no connection to send the job on; instead of the job class pass a"
                " queue that has it: Queue('default', connection=..., job_class=...)"
            )
            raise EngineError(msg)
        return self.queue


class _PluggedJob(Job):
    """A job whose worker asks plugins about its errors."""

    qtasks_pluggy_app: RQNative

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
        """The job's function; while RQ performs the job, with plugins around it."""
        own: Any = super().func
        plugged = self.qtasks_pluggy_app
        if get_current_job() is not self or plugged.is_at_work(self.id):
            return own
        # RQ awaits async functions in the main thread, where its time limit works.
        work = plugged.work_async if iscoroutinefunction(own) else plugged.work
        return lambda *args, **kwargs: work(self, own, args, kwargs, key=self.id)

    def perform(self) -> Any:
        """Perform the job with the plugins started, and count its attempt."""
        plugged, is_retried = self.qtasks_pluggy_app, False
        begins = not plugged.is_begun
        if begins:
            plugged.begin_for(self)
        try:
            return super().perform()
        except BaseException as error:
            is_retried = plugged.will_retry(self, error)
            if isinstance(error, _ReturnedRetry):
                return error.retry
            raise
        finally:
            try:
                # Before the plugins stop, which may raise: an uncounted retry has no limit.
                _count(self, is_retried=is_retried)
            finally:
                if begins and not _is_worker():
                    plugged.end()


def _attempt(job: Job) -> int:
    return attempt_of({"attempt": job.meta.get(_ATTEMPT)})


def _count(job: Job, *, is_retried: bool) -> None:
    """Count a job's attempt after it."""
    if is_retried:
        # RQ stores the job's ``meta`` when it runs it again.
        job.meta[_ATTEMPT] = _attempt(job) + 1
    elif job.meta.pop(_ATTEMPT, None):
        # A failed job that is requeued starts at its first attempt.
        job.save_meta()  # type: ignore[no-untyped-call]  # RQ's


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
