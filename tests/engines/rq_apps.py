"""Jobs on RQ, for the tests of its adapter, and workers in this process."""

from __future__ import annotations

import contextlib
import logging
from contextvars import ContextVar
from uuid import uuid4

from redis import Redis
from rq import Queue, Retry, SimpleWorker, get_current_job
from rq.timeouts import JobTimeoutException

HERE = __name__
bound = ContextVar("bound", default="nothing")
seen = []


def fail(text="broken"):
    """Fail, and take it down."""
    seen.append(text)
    raise OSError(text)


async def fail_async(text="broken"):
    """Fail, and take it down."""
    seen.append(text)
    raise OSError(text)


def again_twice():
    """Ask RQ for another attempt, twice."""
    seen.append("again")
    return Retry(max=2) if len(seen) < 3 else "done"


def late():
    """Fail as RQ's time limit does."""
    raise JobTimeoutException("late")


def reads(first):
    """Read another job's result."""
    job = get_current_job()
    seen.append(type(job).fetch(first, connection=job.connection).return_value())


def fine(*args, **kwargs):
    """Return what is given."""
    return [*args, kwargs]


def binds():
    """Bind a context variable; return what was bound."""
    was = bound.get()
    bound.set("something")
    return was


def calls_itself(*, inner=False):
    """Call the function of the job at work."""
    if inner:
        raise OSError("inner")
    try:
        return get_current_job().func(inner=True)
    except OSError as error:
        return f"caught {error}"


def runs_another():
    """Run a job at once within a job."""
    job = get_current_job()
    inner = Queue(job.origin, is_async=False, connection=job.connection, job_class=type(job))
    return inner.enqueue(fail).latest_result().return_value


class Shop:
    def __init__(self, name):
        self.name = name

    def price(self, article):
        raise LookupError(f"{self.name} has no {article}")


@contextlib.contextmanager
def queue_on(url, **options):
    """Make a queue of the test's own."""
    connection = Redis.from_url(url)
    try:
        yield Queue(f"q-{uuid4()}", connection=connection, **options)
    finally:
        connection.close()


def work(queue, job_class, **options):
    """Do what is queued, in this process, as ``rq worker -w SimpleWorker --burst`` does."""
    logger = logging.getLogger("rq.worker")
    handlers, level = logger.handlers[:], logger.level
    # Its handler would write to what pytest has captured, and closed by then.
    logger.handlers[:] = [logging.NullHandler()]
    try:
        worker = SimpleWorker([queue], connection=queue.connection, job_class=job_class, **options)
        worker.work(burst=True)
    finally:
        logger.handlers[:] = handlers
        logger.setLevel(level)


def run(queue, job_class, function, *args, **options):
    """Enqueue a job, do it, and return it as it is then."""
    job = queue.enqueue(function, args=args, **options)
    work(queue, job_class)
    return queue.fetch_job(job.id)
