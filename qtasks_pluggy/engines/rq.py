"""RQ: plugins for jobs, by the class of jobs that a worker is given.

``rq worker --job-class qtasks_pluggy.engines.rq.PluggyJob`` asks the installed plugins;
``--job-class shop.ShopJob`` also those of ``ShopJob = install([...])``. RQ has no app object and no
list of tasks: every function that can be imported is a job.
"""

from __future__ import annotations

import atexit
import logging
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
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
from rq.utils import import_attribute

from qtasks_pluggy import TaskMessage
from qtasks_pluggy.engines import Attempt, Capabilities, log_event
from qtasks_pluggy.engines.native import Native
from qtasks_pluggy.engines.servers import text_of, unserializable
from qtasks_pluggy.exc import EngineError

__all__ = ["PluggyJob", "install"]

# The key of a job's ``meta`` that counts its attempts, from the second on.
_ATTEMPT: Final = "qtasks_pluggy_attempt"
# An older RQ stores a returned Retry as any other result.
_OBEYS_RETURNED_RETRY: Final = hasattr(Result.Type, "RETRIED")


class _ReturnedRetry(Exception):  # noqa: N818  # a control exception
    """The job returned RQ's ``Retry``, so RQ runs it again."""

    def __init__(self, retry: Retry) -> None:
        super().__init__(f"the job returned Retry(max={retry.max})")
        self.retry = retry


class RQNative(Native):
    """RQ as the plugins of its jobs see it; a run is a job."""

    name = "rq"
    control = (BaseTimeoutException, _ReturnedRetry)

    def __init__(self, native: type[Job]) -> None:
        super().__init__(native)
        self._sender = RQSender()
        self._functions: dict[tuple[str | None, bool], Callable[..., Any]] = {}

    def around(self, job: _PluggedJob) -> Callable[..., Any]:
        """Return what RQ calls for a job: its function, with plugins around it."""
        key = job.func_name, iscoroutinefunction(job.own_func)
        # One for each name: of an object's method each job has another.
        function = self._functions.setdefault(key, _reporting(job.own_func))

        # RQ runs a coroutine itself, in the main thread, where its time limit can end it.
        async def call_async(*args: Any, **kwargs: Any) -> Any:
            with self._alive(job):
                try:
                    return await self.work_async(job, function, args, kwargs)
                except _ReturnedRetry as returned:
                    return returned.retry

        def call(*args: Any, **kwargs: Any) -> Any:
            with self._alive(job):
                try:
                    return self.work(job, function, args, kwargs)
                except _ReturnedRetry as returned:
                    return returned.retry

        return call_async if iscoroutinefunction(function) else call

    @contextmanager
    def _alive(self, job: Job) -> Iterator[None]:
        """Keep the plugins started around a job; a forked work horse ends with its only one."""
        _log_as_rq_does()
        try:
            self.begin()
        except Exception as error:
            log_event("error", "worker_cannot_start", app=self.name, exc_info=error)
            if not _is_sync(job):
                # The next worker is to do it, and this one would fail them all.
                _add_retry(job, 0)
                send_shutdown_command(job.connection, job.worker_name or "")
            raise
        if signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
            atexit.register(self.end)
            yield
            return
        try:
            yield
        finally:
            self.end()

    def message(self, run: Job, args: Any, kwargs: Any) -> TaskMessage:
        """Make a message of a job."""
        made = run.created_at
        return TaskMessage(
            str(run.func_name),
            args,
            kwargs,
            uuid=run.id,
            priority=None,
            created_at=made and made.replace(tzinfo=made.tzinfo or UTC).timestamp(),
            attempt=run.meta.get(_ATTEMPT, 1),
            queue=run.origin,
            engine=self.name,
            metadata={name: value for name, value in run.meta.items() if name != _ATTEMPT},
        )

    def can(self, run: Job) -> Capabilities:
        """Say what RQ can do for a job; what has failed is in its ``FailedJobRegistry``."""
        return Capabilities(delay=not _is_sync(run), dead_letter=True, results=True, metadata=True)

    def will_retry(self, run: Job, error: BaseException) -> bool:
        """Say whether RQ runs a job again by itself."""
        if _is_sync(run):
            return False
        return isinstance(error, _ReturnedRetry) or bool(run.retries_left and run.retries_left > 0)

    def retry(self, run: Job, attempt: Attempt, number: int) -> Exception:
        """Give a job one more retry, which its worker arranges when it fails."""
        if _is_sync(run):
            msg = f"engine 'rq', {run.func_name}: a queue with is_async=False runs a job once"
            raise EngineError(msg)
        run.meta[_ATTEMPT] = number
        _add_retry(run, ceil(attempt.delay or 0))
        return attempt.error

    def cancel(self, run: Job, attempt: Attempt) -> BaseException:
        """Let a job fail without the retries that it has left."""
        run.retries_left = 0
        return attempt.error

    dead_letter = cancel

    def settle(self, run: Job, attempt: Attempt) -> Any:
        """Count the attempts of a job: RQ itself does not."""
        if attempt.will_retry:
            run.meta[_ATTEMPT] = run.meta.get(_ATTEMPT, 1) + 1
        elif run.meta.pop(_ATTEMPT, None):
            # Whoever requeues a failed job begins anew.
            run.save_meta()
        return super().settle(run, attempt)

    def encode(self, value: Any) -> object:
        """Serialize an answer as RQ will, and read it as its caller will."""
        job: Any = get_current_job()
        return job.serializer.loads(job.serializer.dumps(value))

    def sender(self) -> RQSender:
        """Give what sends jobs again."""
        return self._sender

    def send_by(self, queue: Queue) -> None:
        """Send jobs again by this queue, where no job is at work."""
        self._sender.native = queue


class _PluggedJob(Job):
    """A job about whose errors plugins decide."""

    qtasks_pluggy_app: RQNative

    @property
    def func(self) -> Any:
        """The job's function; for the worker that performs the job, with plugins around it."""
        plugged, own = self.qtasks_pluggy_app, self.own_func
        if own is None or get_current_job() is not self or not plugged.is_attempt(self):
            return own
        return plugged.around(self)

    @property
    def own_func(self) -> Any:
        """The job's function, as RQ finds it."""
        return super().func


def install(
    plugins: Iterable[Any] = (),
    *,
    job_class: type[Job] = Job,
    discover: bool = True,
    intercept: type[BaseException] | Iterable[type[BaseException]] = Exception,
) -> type[Job]:
    """Make a class of jobs about whose errors plugins decide.

    Args:
        plugins: As for ``QueueTasks``.
        job_class: The class of jobs that the project has, if it is not RQ's own.
        discover: As for ``QueueTasks``.
        intercept: The exception classes that plugins are asked about, at every attempt.

    Returns:
        The class, for ``rq worker --job-class``, or the ``job_class`` of a worker.

    Raises:
        PluginRegistrationError: Faults of ``plugins``.
        TypeError: ``job_class`` is no class of jobs.
    """
    if not (isinstance(job_class, type) and issubclass(job_class, Job)):
        msg = (
            f"engine 'rq': install(job_class=...) expected a class of rq.job.Job, got {job_class!r}"
        )
        raise TypeError(msg)
    made = type("PluggyJob", (_PluggedJob, job_class), {"__module__": __name__})
    RQNative.install(made, plugins, discover=discover, intercept=intercept)
    return made


class RQSender:
    """Sends jobs again: by the connection of the job at work, or of a queue that is given.

    Attributes:
        native: The queue, outside of workers.
    """

    name = "rq"
    blocking = True
    loop = None
    capabilities = Capabilities(delay=True, results=True, metadata=True)

    def __init__(self) -> None:
        self.native: Queue | None = None

    @property
    def tasks(self) -> Mapping[str, Any]:
        """Every function that can be imported, by its dotted name."""
        return _Functions()

    def submit(self, message: TaskMessage, delay: float | None) -> None:
        """Enqueue a job.

        Raises:
            EngineError: There is no connection, it fails, or an argument does not travel.
        """
        queue = self._queue(message)
        try:
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
        except Exception as error:
            what = unserializable(message, queue.serializer.dumps)
            trouble = f"{what} does not travel" if what else "the job was not sent"
            msg = f"engine 'rq', {message.name}: {trouble} ({text_of(error)})"
            raise EngineError(msg) from error

    def _queue(self, message: TaskMessage) -> Queue:
        job = get_current_job()
        if job is not None:
            name = message.queue or job.origin
            return Queue(name, connection=job.connection, serializer=job.serializer)
        if self.native is None:
            msg = (
                f"engine 'rq', {message.name}: no connection to send the job by; name a Queue"
                " instead of its class of jobs"
            )
            raise EngineError(msg)
        return self.native


class _Functions(Mapping[str, Any]):
    """What RQ can import, by name."""

    def __getitem__(self, name: str) -> Any:
        try:
            return import_attribute(name)
        except (AttributeError, ImportError, ValueError) as error:
            raise KeyError(name) from error

    def __iter__(self) -> Iterator[str]:
        """List nothing: nobody has declared them."""
        return iter(())

    def __len__(self) -> int:
        return 0


def _reporting(function: Callable[..., Any]) -> Callable[..., Any]:
    """Make what calls the function of the job at work, and raises a ``Retry`` that it returns."""

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        job: Any = get_current_job()
        return _checked(job, job.own_func(*args, **kwargs))

    @wraps(function)
    async def call_async(*args: Any, **kwargs: Any) -> Any:
        job: Any = get_current_job()
        return _checked(job, await job.own_func(*args, **kwargs))

    return call_async if iscoroutinefunction(function) else call


def _checked(job: Job, result: Any) -> Any:
    is_obeyed = isinstance(result, Retry) and _OBEYS_RETURNED_RETRY and not _is_sync(job)
    if is_obeyed and (job.number_of_retries or 0) < result.max:
        raise _ReturnedRetry(result)
    return result


def _is_sync(job: Job) -> bool:
    """Say whether a job is done where it was enqueued, by ``is_async=False``."""
    return job.worker_name in {None, "", "sync"}


def _add_retry(job: Job, delay: int) -> None:
    """Add a retry in so many seconds, before those that a job has left, with their intervals."""
    left, own = job.retries_left or 0, job.retry_intervals or [0]
    intervals = [own[max(len(own) - number, 0)] for number in range(left, 0, -1)]
    job.retries_left, job.retry_intervals = left + 1, [delay, *intervals]


def _log_as_rq_does() -> None:
    """Let the worker's log have our events, too: its command sets up RQ's logger alone."""
    ours, theirs = logging.getLogger("qtasks_pluggy"), logging.getLogger("rq.worker")
    if not ours.hasHandlers():
        for handler in theirs.handlers:
            ours.addHandler(handler)
        ours.setLevel(theirs.level)


PluggyJob: Final = install()
"""The class of jobs about whose errors the installed plugins decide."""
