"""``qtasks-pluggy doctor`` on an engine's own app that has tasks."""

from __future__ import annotations

from importlib import import_module
from types import SimpleNamespace

import pytest

from qtasks_hookspecs import hookimpl, on_error, when
from qtasks_pluggy._console.load import load_plugins
from qtasks_pluggy._console.problems import dead_filters
from qtasks_pluggy.engines import installed_in

pytestmark = pytest.mark.engines


def parse(text):
    """Be a task."""
    return int(text)


def on_celery(function):
    """Declare a task on Celery."""
    native = pytest.importorskip("celery").Celery("own", set_as_current=False)
    native.task(name="parse", shared=False)(function)
    return native


def on_huey(function):
    """Declare a task on Huey."""
    native = pytest.importorskip("huey").MemoryHuey("own")
    native.task(name="parse")(function)
    return native


def on_procrastinate(function):
    """Declare a task on Procrastinate."""
    package = pytest.importorskip("procrastinate")
    native = package.App(connector=import_module("procrastinate.testing").InMemoryConnector())
    native.task(name="parse")(function)
    return native


def on_taskiq(function):
    """Declare a task on Taskiq."""
    native = pytest.importorskip("taskiq").InMemoryBroker()
    native.register_task(function, task_name="parse")
    return native


ENGINES = {
    "celery": on_celery,
    "huey": on_huey,
    "procrastinate": on_procrastinate,
    "taskiq": on_taskiq,
}


@pytest.mark.parametrize("engine", ENGINES)
def test_a_filter_is_dead_where_install_shows_no_such_error(engine):
    """What ``install(intercept=...)`` leaves out only a handler that names it is asked about."""
    native = ENGINES[engine](parse)
    install = import_module(f"qtasks_pluggy.engines.{engine}").install
    named = SimpleNamespace(name="named", decide=on_error(ValueError)(lambda: 0))
    filtered = when(error=ValueError)(hookimpl(lambda e: 0))
    filtered = SimpleNamespace(name="filtered", task_executor_run_task_trigger_error=filtered)
    install(native, [named, filtered], discover=False)
    assert [] == list(dead_filters(installed_in(native)))
    install(native, [named, filtered], discover=False, intercept=KeyError)
    (fault,) = dead_filters(installed_in(native))
    assert "filtered" in fault
    assert "it only handles ValueError" in fault


def test_a_task_module_that_does_not_import_is_a_problem(tmp_path):
    """Celery imports it to list the tasks, so its workers would fail as well."""
    pytest.importorskip("celery")
    shop = tmp_path / "shop_of_doctor.py"
    shop.write_text(
        """
from types import SimpleNamespace
from celery import Celery
from qtasks_hookspecs import on_error
from qtasks_pluggy.engines.celery import install

app = Celery("shop", set_as_current=False, include=["no_such_module"])
prices = SimpleNamespace(name="prices", decide=on_error(KeyError, task="price*")(lambda: 0))
install(app, [prices], discover=False)
""",
        "utf-8",
    )
    _, problems, _ = load_plugins(str(shop))
    assert [
        "its tasks cannot be listed: ModuleNotFoundError: No module named 'no_such_module'"
    ] == (problems)
