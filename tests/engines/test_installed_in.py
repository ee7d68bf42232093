"""``installed_in``: the app behind an engine's own app."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from celery import Celery
from dramatiq.brokers.stub import StubBroker
from huey import MemoryHuey
from taskiq import InMemoryBroker

from qtasks_hookspecs import hookimpl
from qtasks_pluggy import QueueTasks
from qtasks_pluggy.engines import celery, dramatiq, huey, installed_in, taskiq

pytestmark = pytest.mark.engines

ENGINES = {
    "celery": (lambda: Celery("own", set_as_current=False), celery.install),
    "dramatiq": (StubBroker, dramatiq.install),
    "huey": (lambda: MemoryHuey("own"), huey.install),
    "taskiq": (InMemoryBroker, taskiq.install),
}


def named(name):
    """Make a plugin."""
    return SimpleNamespace(name=name, task_executor_run_task_trigger_error=hookimpl(lambda: 1))


@pytest.mark.parametrize("engine", ENGINES)
def test_a_client_finds_the_app_that_install_made(engine):
    """Before ``install()`` there is none; afterwards it has the plugins of the latest call."""
    make, install = ENGINES[engine]
    native = make()

    assert installed_in(native) is None
    for name in ("first", "second"):
        install(native, [named(name)], discover=False)
        assert [name] == [one.name for one in installed_in(native).plugins.list_plugin_info()]


@pytest.mark.parametrize("other", [None, 1, object(), QueueTasks("shop", discover=False), Celery])
def test_what_is_no_native_app_has_none_behind_it(other):
    """Any other object is no error."""
    assert installed_in(other) is None
