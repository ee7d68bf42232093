"""R17: a generator task's result is the list of its items, and a failure keeps those so far."""

from __future__ import annotations

import asyncio
import functools
import threading

import pytest

from qtasks_hookspecs import Replace, Retry, TaskFunc, hookimpl
from qtasks_pluggy import QueueTasks, TaskExecutor
from qtasks_pluggy.exc import TaskPluginTriggerError, TaskTimeoutError
from tests.runs import (
    Listener,
    answering,
    both_ways,
    endless,
    every_kind,
    failing,
    function_of,
    plugin,
    run_sync,
)

both_kinds = pytest.mark.parametrize("kind", ["generator", "async generator"])
TRIGGER = "task_executor_run_task_trigger_error"


def yielded_at(hook, run, func, *plugins):
    """Run; return what ``executor.yielded`` was whenever the hook was called."""
    seen = []
    looker = plugin("looker", **{hook: lambda task_executor: seen.append(task_executor.yielded)})
    executor = TaskExecutor(func, plugins=[*plugins, looker])
    try:
        run(executor)
    except Exception as error:
        assert isinstance(error, (TaskPluginTriggerError, TaskTimeoutError, ValueError))
    return seen


@both_ways
@both_kinds
def test_r17_the_result_is_the_list_of_items(kind, run):
    """In their order, as a list; what a generator returns does not count."""
    executor = TaskExecutor(function_of(kind, lambda: "returned"), plugins=[])

    assert run(executor) == [1, 2]
    assert executor.result == [1, 2]
    assert type(executor.result) is list


@both_ways
def test_r17_no_items_are_an_empty_list(run):
    """Also of a generator that never comes to a ``yield``."""

    def nothing():
        return
        yield

    async def nothing_async():
        return
        yield

    assert run(TaskExecutor(nothing)) == []
    assert run(TaskExecutor(nothing_async)) == []


@both_ways
def test_r17_items_may_be_none(run):
    """Each item is kept, whatever it is."""

    def items():
        yield from (None, 0, None)

    assert run(TaskExecutor(items)) == [None, 0, None]


@both_ways
def test_r17_other_shapes_of_generators(run):
    """A partial, a method and a callable object that yield are generators too."""

    class Shelf:
        def items(self, first):
            yield first

        async def items_async(self, first):
            yield first

        def __call__(self, first):
            yield first

    shelf = Shelf()
    for func in (shelf.items, shelf.items_async, shelf, functools.partial(shelf.items)):
        assert run(TaskExecutor(TaskFunc("t", func), args=(1,))) == [1]


def test_r17_a_function_that_returns_a_generator_is_none():
    """What a plain function returns is its result, even an iterator."""
    result = run_sync(TaskExecutor(lambda: (n for n in range(2))))

    assert list(result) == [0, 1]
    assert type(result) is not list


@both_ways
@both_kinds
def test_r17_the_items_so_far(kind, run):
    """When plugins are asked, ``yielded`` has what came before the error."""
    seen = yielded_at(TRIGGER, run, failing(kind, TaskPluginTriggerError()))

    assert seen == [[1, 2]]


@both_ways
def test_r17_no_items_before_the_first(run):
    """An error before the first item leaves an empty list; so does any task that yields none."""

    def at_once():
        raise TaskPluginTriggerError
        yield

    assert yielded_at(TRIGGER, run, at_once) == [[]]
    assert yielded_at(TRIGGER, run, failing("coroutine", TaskPluginTriggerError())) == [[]]
    assert TaskExecutor(at_once).yielded == []


@both_ways
@both_kinds
def test_r17_the_items_of_an_intercepted_error(kind, run):
    """They are kept for an ordinary error as well."""
    func = TaskFunc("t", failing(kind, ValueError("bad")), intercept=ValueError)

    assert yielded_at(TRIGGER, run, func) == [[1, 2]]


@both_ways
@both_kinds
@pytest.mark.parametrize("hook", ["task_executor_task_failed", "task_executor_task_close"])
def test_r17_the_items_are_there_until_the_end(hook, kind, run):
    """The hooks that follow see them too."""
    assert yielded_at(hook, run, failing(kind, ValueError("bad"))) == [[1, 2]]


@both_ways
@both_kinds
def test_r17_items_at_a_time_limit(kind, run):
    """A generator that is cut at its ``max_time`` leaves the items it had."""
    with endless(kind, max_time=0.1, intercept=TaskTimeoutError) as func:
        assert yielded_at(TRIGGER, run, func) == [[1, 2]]


@both_ways
@both_kinds
@pytest.mark.parametrize("answer", [[0], 0, {}, "abc", Replace(None), Replace([3])], ids=repr)
def test_r17_an_answer_replaces_the_whole_list(answer, kind, run):
    """Nothing is appended and nothing is put in front: the answer is the result."""
    executor = TaskExecutor(failing(kind, TaskPluginTriggerError()), plugins=[answering(answer)])

    assert run(executor) == (answer.value if isinstance(answer, Replace) else answer)


@both_ways
@both_kinds
def test_r17_a_plugin_can_keep_the_items(kind, run):
    """Answering with ``yielded`` gives the items so far."""
    keeps = plugin("keeps", **{TRIGGER: lambda task_executor: [*task_executor.yielded, "cut"]})

    executor = TaskExecutor(failing(kind, TaskPluginTriggerError()), plugins=[keeps])

    assert run(executor) == [1, 2, "cut"]


@both_ways
@both_kinds
def test_r17_each_attempt_begins_anew(kind, run):
    """A retry clears the items, for the plugins and for the result."""
    attempts = []

    def body():
        attempts.append(1)
        if len(attempts) < 3:
            raise TaskPluginTriggerError

    func = function_of(kind, body)
    before = yielded_at("task_executor_args_replace", run, func, answering(Retry()))
    attempts.clear()
    asked = yielded_at(TRIGGER, run, func, answering(Retry()))
    attempts.clear()

    assert before == [[], [], []]
    assert asked == [[1, 2], [1, 2]]
    assert run(TaskExecutor(func, plugins=[answering(Retry())])) == [1, 2]


@both_ways
@both_kinds
def test_r17_yielded_is_the_readers_own(kind, run):
    """A hookimpl that changes the list it reads changes nothing of the run."""

    class Greedy:
        name = "greedy"

        @hookimpl
        def task_executor_run_task(self, task_executor):
            task_executor.yielded.clear()

        @hookimpl
        def task_executor_run_task_trigger_error(self, task_executor):
            task_executor.yielded.append("mine")
            return task_executor.yielded

    assert run(TaskExecutor(function_of(kind, lambda: None), plugins=[Greedy()])) == [1, 2]
    failed = TaskExecutor(failing(kind, TaskPluginTriggerError()), plugins=[Greedy()])
    assert run(failed) == [1, 2]


@both_ways
@both_kinds
def test_r17_the_list_goes_through_the_result_hook(kind, run):
    """``task_executor_run_task`` gets the whole list, once."""
    seen = []

    def run_task(result):
        seen.append(list(result))
        return [*result, 3]

    executor = TaskExecutor(
        function_of(kind, lambda: None), plugins=[plugin("p", task_executor_run_task=run_task)]
    )

    assert run(executor) == [1, 2, 3]
    assert seen == [[1, 2]]


@both_ways
@both_kinds
def test_r17_the_body_cleans_up_before_plugins_are_asked(kind, run):
    """The generator's ``finally`` has run when its error reaches the plugins."""
    order = []

    def items():
        try:
            yield 1
            raise TaskPluginTriggerError
        finally:
            order.append("cleaned up")

    async def items_async():
        try:
            yield 1
            raise TaskPluginTriggerError
        finally:
            await asyncio.sleep(0)
            order.append("cleaned up")

    asks = plugin("asks", **{TRIGGER: lambda: order.append("asked") or "saved"})
    func = items if kind == "generator" else items_async

    assert run(TaskExecutor(func, plugins=[asks])) == "saved"
    assert order == ["cleaned up", "asked"]


@both_kinds
def test_r17_echo_and_arguments(kind):
    """A generator task of an app takes its view of the run and its arguments."""
    app = QueueTasks("shop", discover=False)

    @app.task(echo=True, name="generator")
    def shelves(self, *names, last):
        for name in (*names, last):
            yield (self.ctx.task_name, name)

    @app.task(echo=True, name="async generator")
    async def shelves_async(self, *names, last):
        for name in (*names, last):
            await self.ctx.sleep(0)
            yield (self.ctx.task_name, name)

    if kind == "generator":
        result = shelves("a", "b", last="c")
    else:
        result = asyncio.run(shelves_async("a", "b", last="c"))

    assert result == [(kind, "a"), (kind, "b"), (kind, "c")]


def test_r17_a_plain_generator_runs_in_one_worker_thread():
    """``execute()`` steps a plain generator away from the loop's thread, all of it in one."""
    threads = []

    def items():
        for n in range(3):
            threads.append(threading.current_thread())
            yield n

    async def main():
        return await TaskExecutor(items).execute()

    assert asyncio.run(main()) == [0, 1, 2]
    assert len(set(threads)) == 1
    assert threads[0] is not threading.main_thread()


@every_kind
@pytest.mark.parametrize("max_time", [None, 60])
def test_r17_an_abandoned_run_is_no_error_of_its_task(kind, max_time):
    """Closing a run half-way asks nobody: no error is made up of a generator that cannot close."""
    listener = Listener()

    async def main():
        with endless(kind, intercept=Exception, max_time=max_time) as func:
            running = TaskExecutor(func, plugins=[listener]).execute()
            running.send(None)
            running.close()

    asyncio.run(main())

    assert ["closed"] == [when for when, _ in listener.heard]
