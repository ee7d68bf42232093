"""``AsyncTask``, ``SyncTask`` and ``TaskFunc``: what a decorated function becomes."""

from __future__ import annotations

import asyncio
import functools
import inspect

import attrs
import pytest

from qtasks_hookspecs import TaskFunc, TaskMessage
from qtasks_pluggy import AsyncTask, PluginManager, QueueTasks, SyncTask, TaskExecutor
from qtasks_pluggy.exc import TaskPluginTriggerError
from tests.runs import KINDS, answering, both_ways, every_kind, failing, function_of, plugin


@pytest.fixture
def app():
    """An app without plugins."""
    return QueueTasks("shop", discover=False)


@every_kind
def test_the_kind_of_task_is_the_functions(kind, app):
    """``async def`` makes an ``AsyncTask``, ``def`` a ``SyncTask``, generators included."""
    func = function_of(kind, lambda: "result")
    task = app.task(func)

    assert type(task) is (SyncTask if kind in {"function", "generator"} else AsyncTask)
    assert task.func is func
    assert isinstance(task.task_func, TaskFunc)


@every_kind
def test_a_task_is_called_like_its_function(kind, app):
    """Plainly or with ``await``, with the function's arguments; the result is the function's."""
    seen = []

    def body(*args, **kwargs):
        seen.append((args, kwargs))
        return "result"

    task = app.task(function_of(kind, body))
    result = task(1, "a", key=None)
    if kind not in {"function", "generator"}:
        assert inspect.iscoroutine(result)
        result = asyncio.run(result)

    assert result == ([1, 2] if "generator" in kind else "result")
    assert seen == [((1, "a"), {"key": None})]


def test_both_forms_of_the_decorator(app):
    """``@app.task`` and ``@app.task()`` are the same."""

    @app.task
    def one():
        return 1

    @app.task()
    def two():
        return 2

    assert (one(), two()) == (1, 2)
    assert list(app.tasks) == ["one", "two"]


def test_a_tasks_name(app):
    """It is the function's, or the one that is given; a callable without one has its class's."""

    class Callable:
        def __call__(self):
            return 1

    assert app.task(len).name == "len"
    assert app.task(name="length")(len).name == "length"
    assert app.task(Callable()).name == "Callable"
    assert app.tasks["Callable"]() == 1


def test_everything_else_is_in_the_definition(app):
    """What the decorator is given, plugins read from ``task_func``."""

    def func():
        return None

    definition = app.task(
        name="n",
        echo=True,
        priority=3,
        intercept=ValueError,
        max_retries=2,
        max_time=1.5,
        tags=["slow", "net"],
        description="says nothing",
        extra={"color": "red", "size": 4},
    )(func).task_func

    assert attrs.asdict(definition, recurse=False) == {
        "name": "n",
        "func": func,
        "echo": True,
        "priority": 3,
        "intercept": (ValueError,),
        "max_retries": 2,
        "max_time": 1.5,
        "tags": ("slow", "net"),
        "description": "says nothing",
        "extra": {"color": "red", "size": 4},
        "is_async": False,
        "is_generator": False,
    }


def test_defaults():
    """A bare definition asks for nothing special."""
    definition = TaskFunc("n", len)

    assert (definition.echo, definition.priority, definition.max_time) == (False, 0, None)
    assert (definition.intercept, definition.max_retries) == (None, None)
    assert (definition.tags, definition.description, dict(definition.extra)) == ((), "", {})


def test_a_definition_is_frozen(app):
    """All runs share it, so nobody can write it."""
    definition = app.task(len).task_func

    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        definition.name = "other"


@pytest.mark.parametrize(
    "arguments", [("n", 3), (3, len), (None, len)], ids=["no function", "a number", "None"]
)
def test_a_definition_checks_what_it_is_made_of(arguments):
    """A name is a string and a function can be called."""
    with pytest.raises(TypeError):
        TaskFunc(*arguments)


def test_a_wrong_name_or_tag_is_told_in_one_sentence():
    """The error says which option, and what it got."""
    with pytest.raises(TypeError, match=r"^name=: expected a string, got 3$"):
        TaskFunc(3, len)
    with pytest.raises(TypeError, match=r"^tags=: expected strings, got \(3,\)$"):
        TaskFunc("n", len, tags=3)


def test_one_tag_is_one_tag():
    """A string is not taken apart."""
    assert TaskFunc("n", len, tags="slow").tags == ("slow",)


def test_kinds_of_callables():
    """Partials, methods and objects with ``__call__`` are of their function's kind."""

    class Shelf:
        async def method(self):
            """Be async."""

        async def __call__(self):
            yield 1

    shelf = Shelf()

    assert TaskFunc("n", functools.partial(shelf.method)).is_async
    assert TaskFunc("n", shelf.method).is_async
    assert not TaskFunc("n", shelf.method).is_generator
    assert TaskFunc("n", shelf).is_async
    assert TaskFunc("n", shelf).is_generator
    assert not TaskFunc("n", Shelf).is_async


@both_ways
def test_a_plain_function_around_an_async_one(run):
    """What a decorator that knows nothing of async makes of it is waited for all the same."""

    async def inner(x):
        await asyncio.sleep(0)
        return x + 1

    def decorated(*args):
        return inner(*args)

    assert run(TaskExecutor(decorated, args=(1,))) == 2


def test_a_task_shows_its_functions_signature(app):
    """Tools that look at a task see the function."""

    def price(sku: str, *, currency: str = "EUR") -> float:
        return 1.0

    task = app.task(name="n")(price)

    assert inspect.signature(task) == inspect.signature(price)
    assert inspect.unwrap(task) is price
    assert task.__name__ == "price"
    assert repr(task) == "<SyncTask 'n'>"


def test_a_task_without_an_app_says_what_to_do():
    """Calling one that no app runs is an error, not a call of the bare function."""
    task = SyncTask(TaskFunc("lonely", len))

    with pytest.raises(RuntimeError, match="task 'lonely' has no app to run it; use TaskExecutor"):
        task("")


# --- self and ctx ------------------------------------------------------------------------------


@both_ways
@every_kind
def test_echo_gives_a_view_of_the_run(kind, run, app):
    """``self`` is a task of the function's kind, but not the task; and it is no argument."""
    views = []

    def body(self, *args, **kwargs):
        views.append((self, args, kwargs))

    task = app.task(echo=True)(function_of(kind, body))
    executor = TaskExecutor(task, args=(1,), kwargs={"key": 2})
    run(executor)

    ((view, args, kwargs),) = views
    assert type(view) is type(task)
    assert view is not task
    assert view.task_func is task.task_func
    assert (args, kwargs) == ((1,), {"key": 2})
    assert executor.args == executor.task_broker.args == (1,)


@both_ways
def test_each_run_has_its_own_view(run, app):
    """Runs side by side do not see each other."""
    ids = []
    task = app.task(echo=True)(lambda self: ids.append(self.ctx.uuid))

    executors = [TaskExecutor(task) for _ in range(3)]
    for executor in executors:
        run(executor)

    assert ids == [executor.task_broker.uuid for executor in executors]
    assert len(set(ids)) == 3


def test_without_echo_there_is_no_view(app):
    """The function gets its arguments, and nothing in front of them."""
    assert app.task(lambda *args: args)(1) == (1,)


@both_ways
@every_kind
def test_ctx_tells_of_the_run(kind, run, app):
    """``ctx`` has the task's name, the run's id and the attempt, which is the retry's too."""
    told = []

    def body(self):
        told.append((self.ctx.task_name, self.ctx.uuid, self.ctx.attempt))
        raise TaskPluginTriggerError

    def decide(task_executor):
        from qtasks_hookspecs import Retry

        ctx = task_executor.ctx
        told.append((ctx.task_name, ctx.uuid, ctx.attempt))
        return Retry(limit=1) if ctx.attempt == 1 else "done"

    app.add_plugin(plugin("p", task_executor_run_task_trigger_error=decide))
    executor = TaskExecutor(app.task(name="task", echo=True)(function_of(kind, body)))

    assert run(executor) == "done"
    uuid = executor.task_broker.uuid
    assert told == [("task", uuid, 1)] * 2 + [("task", uuid, 2)] * 2


@both_ways
def test_ctx_log_names_the_run(run, app, caplog):
    """Events of ``ctx.log`` carry the task, the run's id and the attempt."""
    task = app.task(name="task", echo=True)(lambda self: self.ctx.log.warning("low", shelf="A"))
    executor = TaskExecutor(task)

    run(executor)

    text = caplog.text
    for part in ("low", "shelf='A'", "task='task'", str(executor.task_broker.uuid), "attempt=1"):
        assert part in text


@both_ways
def test_ctx_sleep(run, app):
    """It is awaited in an async task, and called in a plain one."""

    async def naps_async(self):
        waiting = self.ctx.sleep(0.001)
        assert inspect.isawaitable(waiting)
        return await waiting

    assert run(TaskExecutor(app.task(echo=True)(naps_async))) is None
    assert run(TaskExecutor(app.task(echo=True)(lambda self: self.ctx.sleep(0.001)))) is None


def test_there_is_no_ctx_outside_of_a_run(app):
    """The task itself has none, and says how to come by one."""
    task = app.task(name="task")(len)

    with pytest.raises(RuntimeError, match=r"task 'task' has no ctx outside of a run.*echo=True"):
        task.ctx.cancel()


def test_a_view_can_run_its_task_again(app):
    """Calling ``self`` is another run of the task, with a view of its own."""
    ids = []

    @app.task(echo=True)
    def down(self, n):
        ids.append(self.ctx.uuid)
        return [n, *(self(n - 1) if n else [])]

    assert down(2) == [2, 1, 0]
    assert len(set(ids)) == 3


# --- the executor ------------------------------------------------------------------------------


@both_ways
@pytest.mark.parametrize("form", ["definition", "task", "function"])
def test_an_executor_takes_any_form_of_task(form, run, app):
    """A definition, a task of an app, or a plain function."""
    task = app.task(name="task")(lambda *args, **kwargs: (args, kwargs))
    given = {"definition": task.task_func, "task": task, "function": task.func}[form]

    assert run(TaskExecutor(given, args=[1], kwargs={"a": 2})) == ((1,), {"a": 2})


def test_an_executor_asks_whom_it_is_told_to():
    """A manager, a list of plugins, the app's of a task; else nobody."""
    func = failing("function", TaskPluginTriggerError())
    task = QueueTasks("shop", discover=False, plugins=[answering("app's")]).task(func)
    manager = PluginManager([answering("manager's")])

    assert TaskExecutor(task).execute_sync() == "app's"
    assert TaskExecutor(task, plugins=manager).execute_sync() == "manager's"
    assert TaskExecutor(task, plugins=[answering("own")]).execute_sync() == "own"
    for nobody in (TaskExecutor(task, plugins=[]), TaskExecutor(func)):
        with pytest.raises(TaskPluginTriggerError):
            nobody.execute_sync()


@both_ways
def test_a_message_has_the_arguments(run):
    """With a message the run has its arguments, its id and its attempt."""
    message = TaskMessage("task", (1,), {"a": 2}, uuid="id-7", attempt=4)
    executor = TaskExecutor(lambda *args, **kwargs: (args, kwargs), message)

    assert run(executor) == ((1,), {"a": 2})
    assert executor.task_broker is message
    assert (executor.attempt, executor.ctx.uuid) == (4, "id-7")


@pytest.mark.parametrize("more", [{"args": (1,)}, {"kwargs": {"a": 1}}])
def test_a_message_and_arguments_exclude_each_other(more):
    """Giving both is an error that names the task."""
    with pytest.raises(TypeError, match="task 'len' got a message and args= or kwargs="):
        TaskExecutor(len, TaskMessage("task"), **more)


@both_ways
def test_a_run_is_not_written_by_accident(run):
    """What a hookimpl reads of a run it cannot assign, nor change through a mapping."""
    executor = TaskExecutor(lambda **kwargs: 1, kwargs={"a": 1})
    run(executor)

    for name in ("args", "kwargs", "result", "yielded", "attempt", "max_attempts", "trail", "ctx"):
        with pytest.raises(AttributeError):
            setattr(executor, name, None)
    with pytest.raises(TypeError):
        executor.kwargs["a"] = 2
    with pytest.raises(AttributeError):
        executor.results = None


@pytest.mark.parametrize("kind", KINDS)
def test_run_task_is_the_step_that_calls_the_function(kind):
    """``run_task`` is one of the executor's own methods, to be awaited."""
    executor = TaskExecutor(function_of(kind, lambda: "result"))

    async def main():
        return await executor.run_task()

    assert asyncio.run(main()) in ("result", [1, 2])
