"""A task passes for its function: documentation, names, hints, signature, pickling."""

from __future__ import annotations

import copy
import inspect
import os
import pickle
import typing

import pytest

from qtasks_pluggy import AsyncTask, QueueTasks, SyncTask, TaskExecutor
from tests.runs import both_ways

APP = QueueTasks("shop", discover=False)


def price(sku: str, currency: str = "EUR") -> float:
    """Tell the price of a thing."""
    return 1.0


@APP.task
def double(number: int) -> int:
    """Double a number."""
    return 2 * number


@APP.task
async def fetch(url: str, *, retries: int = 3) -> bytes:
    """Fetch a page."""
    return b""


@APP.task(echo=True)
def seen(self: SyncTask, count: int) -> int:
    """Count."""
    return count


@pytest.mark.parametrize("attribute", ["__doc__", "__module__", "__name__", "__qualname__"])
def test_a_task_has_its_functions_names_and_documentation(attribute):
    """What tools read of a function, they read of its task."""
    task = QueueTasks("other", discover=False).task(name="another name")(price)

    assert getattr(task, attribute) == getattr(price, attribute)
    assert task.__wrapped__ is price


@pytest.mark.parametrize("task", [double, fetch, seen], ids=lambda task: task.name)
def test_a_task_has_its_functions_hints(task):
    """``typing.get_type_hints`` finds those of the function, in the function's own module."""
    assert typing.get_type_hints(task) == typing.get_type_hints(task.func)


def test_a_task_has_its_functions_signature():
    """Without the view of the run, which whoever calls the task does not give."""
    assert inspect.signature(fetch) == inspect.signature(fetch.func)
    assert list(inspect.signature(seen).parameters) == ["count"]


def test_a_task_of_a_function_that_has_no_signature():
    """A built-in may have none; its task has none either."""
    task = QueueTasks("other", discover=False).task(echo=True, name="t")(type)

    with pytest.raises(ValueError, match="signature"):
        inspect.signature(task)


def test_a_task_of_a_callable_without_a_name():
    """It goes by the task's name."""

    class Callable:
        def __call__(self) -> int:
            return 1

    task = QueueTasks("other", discover=False).task(name="t")(Callable())

    assert (task.__name__, task.__qualname__, task()) == ("t", "t", 1)


def test_a_functions_own_attributes_do_not_hide_the_tasks():
    """A function with an attribute ``submit`` is submitted as any other."""

    def function() -> None: ...

    function.submit = "mine"  # type: ignore[attr-defined]  # functions take any
    task = QueueTasks("other", discover=False).task(function)

    assert callable(task.submit)


@pytest.mark.parametrize("task", [double, fetch], ids=["def", "async"])
@pytest.mark.parametrize("again", [lambda t: pickle.loads(pickle.dumps(t)), copy.deepcopy])
def test_a_task_of_a_module_is_pickled_by_reference(again, task):
    """As functions are, so that ``Pool.map(task, rows)`` works: the same task comes out."""
    assert again(task) is task


def test_a_task_that_is_not_found_by_its_name_does_not_pickle():
    """A task of a function whose name stands for the function itself is refused by pickle."""
    task = QueueTasks("other", discover=False).task(name="base")(os.path.basename)

    with pytest.raises(pickle.PicklingError, match="not the same object"):
        pickle.dumps(task)


@both_ways
def test_the_view_of_a_run_does_not_pickle(run):
    """It is of this run in this process; the error names the task."""
    app = QueueTasks("other", discover=False)

    @app.task(echo=True)
    def pickles(self: SyncTask) -> None:
        pickle.dumps(self)

    with pytest.raises(pickle.PicklingError, match="'pickles' cannot be pickled"):
        run(TaskExecutor(pickles))


def test_a_tasks_class_documents_itself():
    """``help(AsyncTask)`` is about tasks."""
    assert "async def" in (AsyncTask.__doc__ or "")
    assert not hasattr(AsyncTask, "__wrapped__")
