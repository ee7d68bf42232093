"""``on_error``: what it takes, what its handlers are asked about, and in which order."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial, wraps
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import structlog

from qtasks_hookspecs import TaskFunc, blocking, hookimpl, on_error, when
from qtasks_pluggy import PluginManager, QueueTasks, TaskExecutor
from qtasks_pluggy.exc import TaskCancelError, TaskPluginTriggerError
from tests.runs import KINDS, Listener, both_ways, failing, registration_error, run_sync


class ShopError(TaskPluginTriggerError):
    """An error by which tasks ask on purpose."""


def module(*handlers: Any, name: str = "shop_policy") -> ModuleType:
    """Make a module of handlers, each under the name of its function."""
    made = ModuleType(name)
    for handler in handlers:
        setattr(made, handler.__name__, handler)
    return made


def a_run(error: BaseException, *plugins: Any, **options: Any) -> TaskExecutor:
    """Make a run that fails with this very error; nothing is intercepted unless it is said."""
    settings = options.pop("settings", None)
    task = TaskFunc(options.pop("name", "price_tea"), failing("function", error), **options)
    return TaskExecutor(task, args=("tea",), plugins=PluginManager(plugins, settings=settings))


def statuses(run: TaskExecutor) -> dict[str, str]:
    """Return what became of each handler, by its own name."""
    return {record.handler: record.status for record in run.trail}


def nothing() -> None:
    """Have no opinion."""


# What is no class to ask about.


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (
            "x.Y",
            r"got 'x.Y': name the exception class itself; for a dotted name write"
            r" @hookimpl\(specname='task_executor_run_task_trigger_error'\) with @when\(error=",
        ),
        (ValueError("text"), "name the exception class itself"),
        ((KeyError, ValueError), "name the classes one by one, @on_error"),
        ([KeyError], "name the classes one by one, @on_error"),
        (nothing, r"got nothing: write the decorator with parentheses, @on_error\(\)"),
        (staticmethod(nothing), "with parentheses"),
        (int, "got int: name the exception class itself"),
        (SystemExit, "got SystemExit: plugins are never asked about it; name classes of Exception"),
        (KeyboardInterrupt, "never asked about it"),
        (GeneratorExit, "never asked about it"),
        (asyncio.CancelledError, "never asked about it"),
        (BaseException, "never asked about it"),
        (TaskCancelError, "a task that cancels itself is not asked about"),
        (type("Closed", (TaskCancelError,), {}), "a task that cancels itself is not asked about"),
        (None, "name the exception class itself"),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)[:12]),
)
@pytest.mark.parametrize("front", ["hookspecs", "app"])
def test_r2_what_is_no_class_to_ask_about_is_refused_in_its_own_line(front, wrong, says):
    """R2: one clear error that says what to write instead; the app has no new plugin."""
    app = QueueTasks("shop", discover=False)
    decorator = on_error if front == "hookspecs" else app.on_error

    with pytest.raises(TypeError, match=says):
        decorator(KeyError, wrong)

    assert not app.plugins.list_name_plugin()


def test_r2_a_decorator_without_parentheses_is_refused():
    """R2: ``@on_error`` alone would take the function for a class."""
    with pytest.raises(TypeError, match="with parentheses"):

        @on_error
        def handler() -> None: ...


@pytest.mark.parametrize(
    ("mark", "meant"),
    [
        ("error", r"name the classes first, @on_error\(KeyError\)"),
        ("tryfrist", "did you mean tryfirst=?"),
        ("tags", "did you mean tag=?"),
        ("outcome", r"with @when\(outcome=...\) instead"),
        ("retry", r"with @when\(retry=...\) instead"),
    ],
)
@pytest.mark.parametrize("front", ["hookspecs", "app"])
def test_r12_an_option_that_there_is_not_is_refused(front, mark, meant):
    """R12: it is named, with what was meant."""
    decorator = on_error if front == "hookspecs" else QueueTasks("shop", discover=False).on_error

    with pytest.raises(TypeError, match=f"^@on_error.*argument {mark}=: .*{meant}"):
        decorator(KeyError, **{mark: True})


# Consent.


@both_ways
@pytest.mark.parametrize("kind", KINDS)
def test_r2_a_handler_is_asked_about_what_it_names_and_others_are_not(kind, run):
    """R2: naming a class is consent for this handler alone; nobody else is shown the error."""
    seen: list[Any] = []
    listener = Listener()

    @on_error(LookupError)
    def named(run: Any, error: Any) -> str:
        seen.append((run.args, error))
        return "named"

    @on_error(ValueError)
    def another() -> str:
        return "another"

    @on_error()
    def whatever() -> str:
        return "whatever"

    error = KeyError("tea")
    task = TaskFunc("price_tea", failing(kind, error))
    taken = TaskExecutor(task, args=("tea",), plugins=[listener, module(named, another, whatever)])

    assert "named" == run(taken)
    assert [(("tea",), error)] == seen
    assert not listener.asked
    told = {"named": "answered", "another": "filtered", "whatever": "filtered"}
    assert told == {name: what for name, what in statuses(taken).items() if name in told}


def test_r2_consent_is_for_a_class_and_not_for_a_handler():
    """R2: what another handler names is not shown to one whose other filters let it pass."""

    @on_error(ValueError)
    @when(task="price_*")
    def values() -> str:
        return "values"

    @on_error(KeyError)
    def keys() -> None:
        return None

    taken = a_run(KeyError("tea"), module(values, keys))

    with pytest.raises(KeyError):
        run_sync(taken)
    assert {"values": "filtered", "keys": "no_opinion"} == statuses(taken)


def test_r2_where_an_app_shows_the_class_everybody_sees_it():
    """R2: consent adds to ``intercept`` and takes nothing away."""
    listener = Listener()
    names = on_error(KeyError)(lambda: None)
    error = KeyError("tea")
    taken = a_run(
        error, listener, SimpleNamespace(name="names", names=names), intercept=LookupError
    )

    with pytest.raises(KeyError):
        run_sync(taken)

    assert [error] == [e.cause for e in listener.asked]


@pytest.mark.parametrize(("app_says", "task_says"), [((), None), (None, ()), (Exception, ())])
def test_r2_an_explicit_intercept_of_nothing_refuses_consent(app_says, task_says):
    """R2: ``()``, of the app or of the task, shows ordinary errors to nobody."""
    app = QueueTasks("shop", discover=False, intercept=app_says)
    task = app.task(intercept=task_says)(failing("function", KeyError()))
    asked: list[Any] = []
    app.on_error(KeyError)(lambda error: asked.append(error))

    with pytest.raises(KeyError):
        task()
    assert not asked


def test_r2_a_task_may_show_what_its_app_does_not():
    """R2: a task's own classes come before the app's ``()``."""
    app = QueueTasks("shop", discover=False, intercept=())
    task = app.task(intercept=ValueError)(failing("function", ValueError()))
    app.on_error()(lambda: "whatever")

    assert "whatever" == task()


def test_r2_a_handler_without_classes_sees_what_plugins_may_see():
    """R2: trigger errors, and what is intercepted; not what others have named."""
    handler = module(on_error(task="price_*")(_answers("seen")))

    assert "seen" == run_sync(a_run(ShopError(), handler))
    assert "seen" == run_sync(a_run(OSError(), handler, intercept=OSError))
    with pytest.raises(OSError, match="^$"):
        run_sync(a_run(OSError(), handler))
    with pytest.raises(ShopError):
        run_sync(a_run(ShopError(), handler, name="stock_tea"))


@pytest.mark.parametrize("error", [SystemExit(3), asyncio.CancelledError(), TaskCancelError("no")])
def test_r2_a_handler_of_every_exception_is_not_asked_about_control_flow(error):
    """R2: ``on_error(Exception)`` is asked about errors, never about an end that was asked for."""
    with pytest.raises(type(error)):
        run_sync(a_run(error, module(on_error(Exception)(_answers("taken")))))


def _taking(parameter: str) -> Callable[..., Any]:
    return {
        "err": lambda err: err,
        "exc": lambda exc: exc,
        "executor": lambda executor: executor,
        "self": lambda self: self,
    }[parameter]


def _answers(value: Any, name: str = "handler") -> Callable[..., Any]:
    def handler() -> Any:
        return value

    handler.__name__ = name
    return handler


# What a handler is given.


@pytest.mark.parametrize("way", ["intercepted", "trigger", "trigger with a cause"])
def test_r3_error_is_the_tasks_own(way):
    """R3: the original of an intercepted error; of a trigger error it is ``e`` itself."""
    if way == "intercepted":
        raised: Exception = KeyError("tea")
    else:
        raised = ShopError("tea")
        raised.__cause__ = KeyError("behind it") if way.endswith("cause") else None
    seen: list[Any] = []

    @on_error(KeyError, ShopError)
    def handler(
        error: Any, e: Any, run: Any, *, task_executor: Any, task_func: Any, task_broker: Any
    ) -> str:
        seen.extend([error, e, run, task_executor, task_func, task_broker])
        return "seen"

    taken = a_run(raised, module(handler))
    assert "seen" == run_sync(taken)

    error, e, run, task_executor, task_func, task_broker = seen
    assert error is raised
    assert e is raised if way != "intercepted" else e.cause is raised
    assert run is task_executor is taken
    assert (task_func, task_broker) == (taken.task_func, taken.task_broker)


def test_r1_a_handler_may_take_all_by_two_stars():
    """R1: ``**kwargs`` has the short names beside the hook's own."""
    seen: dict[str, Any] = {}

    @on_error(KeyError)
    def handler(**kwargs: Any) -> int:
        seen.update(kwargs)
        return 1

    assert 1 == run_sync(a_run(KeyError(), module(handler)))
    assert {"e", "error", "run", "task_broker", "task_executor", "task_func"} == set(seen)


def test_r1_a_hookimpl_that_takes_all_has_the_hooks_own_parameters_alone():
    """R1: ``error`` and ``run`` are of ``on_error``."""
    seen: dict[str, Any] = {}

    @hookimpl
    def task_executor_run_task_trigger_error(**kwargs: Any) -> int:
        seen.update(kwargs)
        return 1

    assert 1 == run_sync(a_run(ShopError(), module(task_executor_run_task_trigger_error)))
    assert {"e", "task_broker", "task_executor", "task_func"} == set(seen)


@pytest.mark.parametrize("name", ["err", "exc", "executor", "self"])
def test_r18_a_parameter_that_there_is_not(name):
    """R18: the fault names handler's plugin, hook and parameter."""
    wrong = on_error(KeyError)(_taking(name))
    app = QueueTasks("shop", discover=False)
    for call in (
        lambda: PluginManager([SimpleNamespace(name="policy", handler=wrong)]),
        lambda: app.on_error(KeyError)(wrong),
    ):
        (problem,) = registration_error(call).problems
        assert f"unknown parameter {name!r}" in problem
        assert "task_executor_run_task_trigger_error" in problem
    assert not app.plugins.list_name_plugin()


def test_r18_the_short_names_are_of_on_error_alone():
    """R18: a hookimpl of another hook, or without ``on_error``, has no ``error`` and no ``run``."""

    @hookimpl
    def task_executor_run_task_trigger_error(error: Any) -> None: ...

    @hookimpl
    def task_executor_task_close(run: Any) -> None: ...

    plugin = module(task_executor_run_task_trigger_error, task_executor_task_close)

    assert 2 == len(registration_error(PluginManager, [plugin]).problems)


# The kinds of handlers.


@both_ways
@pytest.mark.parametrize("mark", [staticmethod, classmethod, None])
@pytest.mark.parametrize("outside", [True, False], ids=["above", "below"])
def test_r12_methods_of_every_kind_can_be_handlers(outside, mark, run):
    """R12: on either side of ``@staticmethod`` and ``@classmethod``, and on plain methods."""

    class Policy:
        def own(self, run: Any, error: Any) -> Any:
            return run.args, type(error)

        def of_class(cls, run: Any, error: Any) -> Any:  # noqa: N805  # a class method below
            return run.args, type(error)

    def static(run: Any, error: Any) -> Any:
        return run.args, type(error)

    function = {None: Policy.own, staticmethod: static, classmethod: Policy.of_class}[mark]
    mark = mark or (lambda one: one)
    decorate = on_error(KeyError)
    handler = decorate(mark(function)) if outside else mark(decorate(function))
    plugin = type("Plugin", (), {"name": "policy", "handler": handler})()

    assert (("tea",), KeyError) == run(a_run(KeyError("tea"), plugin))
    with pytest.raises(ValueError, match="other"):
        run(a_run(ValueError("other"), plugin))


@both_ways
def test_r8_handlers_may_be_async_or_blocking(run):
    """R8: an async handler is awaited, and a ``@blocking`` one leaves the caller's thread."""
    threads: list[Any] = []

    @on_error(KeyError)
    async def waits() -> str:
        await asyncio.sleep(0)
        return "waited"

    @on_error(ValueError)
    @blocking
    def blocks() -> str:
        threads.append(threading.current_thread())
        return "blocked"

    policy = module(waits, blocks)
    assert "waited" == run(a_run(KeyError(), policy))
    assert "blocked" == run(a_run(ValueError(), policy))
    assert threads
    assert threading.current_thread() not in threads


@pytest.mark.parametrize(
    ("filters", "name", "tags", "is_asked"),
    [
        ({"task": "price_*"}, "price_tea", (), True),
        ({"task": "price_*"}, "stock_tea", (), False),
        ({"tag": "slow"}, "price_tea", ("slow",), True),
        ({"tag": "slow"}, "price_tea", ("quick",), False),
        ({"tag": "slow", "task": "stock_*"}, "price_tea", ("slow",), False),
    ],
)
@pytest.mark.parametrize("front", ["hookspecs", "app"])
def test_r12_filters_by_task_and_tag(front, filters, name, tags, is_asked):
    """R12: all that one ``on_error`` says must hold; the app's form takes the same."""
    app = QueueTasks("shop", discover=False)
    task = app.task(name=name, tags=tags)(failing("function", KeyError()))
    if front == "app":
        app.on_error(KeyError, **filters)(lambda: "asked")
    else:
        app.add_plugin(module(on_error(KeyError, **filters)(_answers("asked"))))

    if is_asked:
        assert "asked" == task()
    else:
        with pytest.raises(KeyError):
            task()


@pytest.mark.parametrize("filters", [{"task": ""}, {"tag": ""}])
def test_r18_a_filter_that_matches_nothing(filters):
    """R18: an empty filter is a fault, in an app at once."""
    app = QueueTasks("shop", discover=False)

    assert "matches nothing" in str(registration_error(app.on_error(KeyError, **filters), nothing))


def test_r12_two_on_one_function():
    """R12: one is enough, each with its own filter; the handler is asked once."""
    asked: list[Any] = []

    @on_error(KeyError, task="price_*")
    @on_error(ValueError, tag="slow")
    def handler(error: Any) -> str:
        asked.append(type(error))
        return "asked"

    policy = module(handler)
    assert "asked" == run_sync(a_run(KeyError(), policy))
    assert "asked" == run_sync(a_run(ValueError(), policy, tags="slow"))
    with pytest.raises(ValueError, match="^$"):
        run_sync(a_run(ValueError(), policy))
    with pytest.raises(KeyError):
        run_sync(a_run(KeyError(), policy, name="stock_tea"))
    assert [KeyError, ValueError] == asked


# Order.


def test_r4_handlers_are_asked_in_the_order_of_decoration():
    """R4: not of the alphabet; so the last one that is written has the last word."""
    policy = module(
        *(on_error(KeyError)(_answers(name, name)) for name in ("zebra", "monkey", "ant"))
    )
    taken = a_run(KeyError(), policy)

    assert "ant" == run_sync(taken)
    assert ["zebra", "monkey", "ant"] == [*statuses(taken)]


@pytest.mark.parametrize("order", [["policy", "other"], ["other", "policy"]])
def test_r4_an_operators_order_moves_a_plugin_with_all_its_handlers(order):
    """R4: among plugins as the operator says, within one as it is written; marks are ignored."""
    policy = module(
        on_error(KeyError)(_answers("z", "zebra")),
        on_error(KeyError, tryfirst=True)(_answers("a", "ant")),
        name="policy",
    )
    other = module(on_error(KeyError, trylast=True)(_answers("o", "other")), name="other")
    taken = a_run(KeyError(), policy, other, settings={"order": order})
    run_sync(taken)

    inside = {"policy": ["zebra", "ant"], "other": ["other"]}
    assert [name for plugin in order for name in inside[plugin]] == [*statuses(taken)]


def test_r4_marks_move_a_handler():
    """R4: ``trylast`` has the last word and ``tryfirst`` yields, as for any hookimpl."""
    policy = module(
        on_error(KeyError, trylast=True)(_answers(1, "last")),
        on_error(KeyError)(_answers(2, "plain")),
        on_error(KeyError, tryfirst=True)(_answers(3, "first")),
    )
    taken = a_run(KeyError(), policy)

    assert 1 == run_sync(taken)
    assert ["first", "plain", "last"] == [*statuses(taken)]


# Handlers of an app.


def shop(**settings: Any) -> tuple[QueueTasks, Callable[[], Any]]:
    """Make an app whose task fails, with three handlers of one name."""
    app = QueueTasks("shop", discover=False, settings=settings)
    task = app.task(name="price_tea")(failing("function", KeyError("tea")))
    for number in (1, 2, 3):
        app.on_error(KeyError)(_answers(number))
    return app, task


def outcome_of(app: QueueTasks, task: Any) -> Any:
    """Run a task that succeeds or not, and return how its attempt ended."""
    ended: list[Any] = []

    @hookimpl
    def task_executor_attempt_ended(outcome: Any) -> None:
        ended.append(outcome)

    app.add_plugin(
        SimpleNamespace(name="hears", task_executor_attempt_ended=task_executor_attempt_ended)
    )
    with suppress(KeyError):
        task()
    return ended[0]


@pytest.mark.parametrize(
    ("settings", "decider"),
    [
        ({}, "handler-3"),
        ({"disable": ["handler-3"]}, "handler-2"),
        ({"disable": ["handler"]}, "handler-3"),
        ({"disable": ["handler-3", "handler-2"]}, "handler"),
        ({"observe": ["handler-3"]}, "handler-2"),
        ({"order": ["handler-2", "handler"]}, "handler"),
        ({"disable": ["handler", "handler-2", "handler-3"]}, None),
    ],
)
def test_r4_r13_an_operator_knows_each_handler_by_its_own_name(settings, decider):
    """R4, R13: by it a handler is ordered, observed and disabled, and it is in ``decided_by``."""
    app, task = shop(**settings)

    assert decider == outcome_of(app, task).decided_by
    assert ["handler", "handler-2", "handler-3"] == [
        name for name, _ in app.plugins.list_name_plugin() if name != "hears"
    ]


def test_r14_events_name_plugin_and_handler():
    """R14: who decided is told by the plugin's name, which has the number, and the function's."""
    _, task = shop()
    with structlog.testing.capture_logs() as events:
        task()

    (told,) = [event for event in events if event["event"] == "task_error_decided"]
    assert ("handler-3", "handler", "KeyError") == (told["plugin"], told["handler"], told["error"])


def test_r12_each_decoration_of_an_app_is_a_handler_of_its_own():
    """R12: two on one function are two plugins, and two apps share nothing but the function."""
    shops = [QueueTasks(name, discover=False) for name in ("first", "second")]
    asked: list[Any] = []

    def handler(error: Any) -> str:
        asked.append(type(error))
        return "asked"

    first, second = shops
    assert handler is first.on_error(KeyError)(first.on_error(ValueError)(handler))
    second.on_error(OSError)(handler)
    assert not vars(handler)

    for error in (KeyError(), ValueError()):
        assert "asked" == first.task(name=repr(error))(failing("function", error))()
        with pytest.raises(type(error)):
            second.task(name=repr(error))(failing("function", error))()
    assert [KeyError, ValueError] == asked
    assert ["handler", "handler-2"] == [name for name, _ in first.plugins.list_name_plugin()]


@both_ways
def test_r12_other_marks_hold_for_an_apps_handler_too(run):
    """R8, R12: ``@blocking``, ``@when``, what ``functools.wraps`` left, and ``async def``."""
    threads: list[Any] = []
    app = QueueTasks("shop", discover=False)
    tasks = {
        name: app.task(name=name)(failing("function", error))
        for name, error in (("tea", KeyError()), ("cup", OSError()), ("pot", LookupError()))
    }

    @app.on_error(KeyError)
    @blocking
    @when(error=OSError, task="c*")
    def blocks(*, error: Any = None) -> Any:
        threads.append(threading.current_thread())
        return type(error).__name__

    def counted(function: Any) -> Any:
        @wraps(function)
        async def outside(*args: Any, **kwargs: Any) -> Any:
            return "counted", await function(*args, **kwargs)

        return outside

    @app.on_error(LookupError, task="pot")
    @counted
    async def waits(error: Any) -> Any:
        await asyncio.sleep(0)
        return type(error).__name__

    assert "KeyError" == run(TaskExecutor(tasks["tea"]))
    assert ("counted", "LookupError") == run(TaskExecutor(tasks["pot"]))
    assert threading.current_thread() not in threads
    # ``@when`` gives no consent.
    with pytest.raises(OSError, match="^$"):
        run(TaskExecutor(tasks["cup"]))


def test_r12_a_method_of_an_object_can_be_an_apps_handler():
    """R12: the method stays bound, and its class has no mark of it."""

    class Prices:
        last = 3

        def use_last(self, error: Any, *, run: Any) -> Any:
            return self.last, type(error), run.args

    app = QueueTasks("shop", discover=False)
    task = app.task(name="price_tea")(failing("function", KeyError()))
    app.on_error(KeyError)(Prices().use_last)

    assert (3, KeyError, ("tea",)) == task("tea")
    assert not vars(Prices.use_last)


def test_r18_a_wrong_parameter_is_told_with_the_handler_and_all_that_it_may_have():
    """R18: ``run`` and ``error`` too; so is a forgotten ``self``, which would be the error."""

    class Slips:
        @on_error(KeyError)
        def wrong_name(self, err): ...

        @on_error(KeyError)
        def no_self(error): ...  # noqa: N805  # the slip

        @on_error(KeyError)
        def nothing_at_all(): ...

    error = registration_error(PluginManager, [Slips()])

    no_self, nothing_at_all, wrong_name = error.problems
    hook = "task_executor_run_task_trigger_error"
    assert f"handler 'wrong_name' of hook {hook!r}: unknown parameter 'err'" in wrong_name
    assert "may have e, error, run, task_broker, task_executor, task_func" in wrong_name
    assert "the nearest is 'error'" in wrong_name
    assert f"handler 'no_self' of hook {hook!r}: is a method without self" in no_self
    assert f"handler 'nothing_at_all' of hook {hook!r}: is a method without" in nothing_at_all


def test_r18_what_is_no_function_cannot_be_a_handler():
    """R18: the fault says so, and nothing is added."""
    app = QueueTasks("shop", discover=False)

    error = registration_error(app.on_error(KeyError), partial(nothing))
    assert "never called; mark a function" in str(error)
    assert not app.plugins.list_name_plugin()


@both_ways
def test_r2_a_handler_that_comes_later_is_asked_about_tasks_that_were_there(run):
    """R2: also of an app that has run the task before."""
    app = QueueTasks("shop", discover=False)
    task = app.task(name="price_tea")(failing("function", KeyError()))
    with pytest.raises(KeyError):
        run(TaskExecutor(task))

    app.on_error(KeyError)(lambda: "late")
    assert "late" == run(TaskExecutor(task))
    app.remove_plugin("<lambda>")
    with pytest.raises(KeyError):
        run(TaskExecutor(task))
