"""A Django project with task backends of each kind, for the tests of their adapter.

Django is set up once in a process: what a test's plugins are to be is given by ``plugged``.
"""

from __future__ import annotations

import asyncio
from contextvars import ContextVar
from importlib.util import find_spec

import django
from django.conf import settings

from qtasks_pluggy.engines.django import install

HAS_OWN = bool(find_spec("django.tasks"))
PACKAGE = "django.tasks" if HAS_OWN else "django_tasks"
IMMEDIATE = f"{PACKAGE}.backends.immediate.ImmediateBackend"

Immediate = install(IMMEDIATE, discover=False)

settings.configure(
    INSTALLED_APPS=[] if HAS_OWN else ["django_tasks"],
    TASKS={
        "default": {"BACKEND": f"{__name__}.Immediate", "QUEUES": ["default", "low"]},
        "bare": {"BACKEND": IMMEDIATE},
    },
    USE_TZ=True,
)
django.setup()

if HAS_OWN:
    from django.tasks import task, task_backends
else:
    from django_tasks import task, task_backends

backends = task_backends
bound = ContextVar("bound", default="nothing")
seen = []


@task
def fail(text="broken", **more):
    """Fail, and take it down."""
    seen.append(text)
    raise OSError(text)


@task
async def fail_async(text="broken", **more):
    """Fail, and take it down."""
    seen.append(text)
    raise OSError(text)


@task
async def gives_its_loop():
    """Return the identity of the event loop."""
    return id(asyncio.get_running_loop())


@task
async def stops_badly():
    """Wait to be cancelled, and fail then."""
    seen.append("began")
    try:
        await asyncio.sleep(0.5)
    except asyncio.CancelledError:
        raise OSError("clean-up") from None


@task(takes_context=True)
async def meets(context, barrier):
    """Wait for another run, and fail."""
    await barrier.wait()
    raise OSError("met")


@task(takes_context=True, queue_name="low", priority=7)
def fail_with_context(context, text):
    """Fail, with what the context says."""
    raise OSError(f"{text} {context.task_result.id}")


@task(takes_context=True)
def yields_with_context(context, *items):
    """Yield what is given."""
    yield from items


@task
def waits(event):
    """Wait for an event."""
    seen.append("waiting")
    event.wait()


@task
def binds():
    """Bind a context variable; return what was bound."""
    was = bound.get()
    bound.set("something")
    return was


@task
async def binds_async():
    """Bind a context variable; return what was bound."""
    was = bound.get()
    bound.set("something")
    return was


@task
def calls_others():
    """Call tasks as functions, and enqueue one that is a run of its own."""
    caught = []
    for call in (fail.call, fail.func):
        try:
            call("inner")
        except OSError as error:
            caught.append(str(error))
    result = fail.enqueue("own run")
    return [*caught, str(result.status)]


@task
def fine(*args, **kwargs):
    """Return what is given."""
    return [*args, kwargs]
