"""Public bug reports of people who handle failing tasks, turned into expectations: runs in place and on memory://.

Public names only; needs the product and pytest. Every test stands for itself, so any of them may be kept back.
"""

import asyncio
import contextvars
import dataclasses
import datetime
import decimal
import gc
import logging
import pickle
import sys
import threading
import time
import types
import typing
import uuid
import weakref

import pytest

from qtasks_hookspecs import Replace, Retry, blocking, hookimpl
from qtasks_pluggy import QueueTasks, TaskExecutor
from qtasks_pluggy.exc import TaskCancelError, TaskPluginTriggerError

TRIGGER = "task_executor_run_task_trigger_error"


def plugin(name="shop-plugin", **hooks):
    """A plugin as a module, the way that most are; `trigger=` is short for the long name."""
    module = types.ModuleType(name)
    for hook, function in hooks.items():
        setattr(module, TRIGGER if hook == "trigger" else hook, hookimpl(function))
    return module


def make_app(*plugins, **options):
    options.setdefault("intercept", Exception)
    return QueueTasks("reports", discover=False, plugins=list(plugins), **options)


class Listener:
    """Hears how runs end."""

    name = "listener"

    def __init__(self):
        self.heard = []

    @hookimpl
    def task_executor_task_failed(self, e):
        self.heard.append(("failed", type(e).__name__))

    @hookimpl
    def task_executor_task_close(self):
        self.heard.append("over")


# ---------------------------------------------------------------- what a plugin sees of the run

REQUEST = contextvars.ContextVar("request", default="nothing bound")


def bind_and_fail():
    REQUEST.set("order 7")
    raise LookupError("no such order")


async def abind_and_fail():
    REQUEST.set("order 7")
    await asyncio.sleep(0)
    raise LookupError("no such order")


def _awaited(task):
    """Await a run; the error is carried out of the loop by hand, as asyncio.run() itself trips over some errors."""

    async def main():
        try:
            return await TaskExecutor(task).execute(), None
        except Exception as e:
            return None, e

    result, error = asyncio.run(main())
    if error is not None:
        raise error
    return result


def _in_memory(app, task):
    with app:
        return task.submit_sync().result(timeout=10)


STYLES = {
    "def, called": (bind_and_fail, None, lambda app, task: task()),
    "def with max_time, called": (bind_and_fail, 5, lambda app, task: task()),
    "def, awaited": (bind_and_fail, None, lambda app, task: _awaited(task)),
    "async, awaited": (abind_and_fail, None, lambda app, task: _awaited(task)),
    "async with max_time, awaited": (abind_and_fail, 5, lambda app, task: _awaited(task)),
    "async, execute_sync": (
        abind_and_fail,
        None,
        lambda app, task: TaskExecutor(task).execute_sync(),
    ),
    "def, memory": (bind_and_fail, None, _in_memory),
    "async, memory": (abind_and_fail, None, _in_memory),
}


@pytest.mark.parametrize("style", STYLES)
def test_plugin_sees_what_the_task_bound(style):
    """A task binds a context variable (structlog, OpenTelemetry) and fails; the error handler logs without it.

    Sources: cpython #96704 (task context in the loop's exception handler), asgiref #148/#171 (propagate back
    from the thread), starlette #1258, taskiq #482.
    """
    function, max_time, call = STYLES[style]
    seen = []
    app = make_app(
        plugin(trigger=lambda e: seen.append(REQUEST.get()) or "recovered"), engine="memory://"
    )
    task = app.task(name="bind", max_time=max_time)(function)
    assert contextvars.copy_context().run(call, app, task) == "recovered"
    assert seen == ["order 7"], f"{style}: the plugin saw {seen}"


def test_next_run_in_memory_does_not_inherit_context():
    """What one run binds must not show up in the next run of the same worker thread.

    Sources: talisker #443, django-structlog #76 (context of the last task leaks into the next).
    """
    app = make_app(engine="memory://?workers=1")
    first = app.task(name="first")(lambda: REQUEST.set("order 1") and None)
    second = app.task(name="second")(lambda: REQUEST.get())
    with app:
        first.submit_sync().result(timeout=10)
        assert second.submit_sync().result(timeout=10) == "nothing bound"


# ---------------------------------------------------------------- exceptions that are not like others


class SilentError(Exception):
    """Its text cannot be made."""

    def __str__(self):
        raise RuntimeError("no text for you")

    __repr__ = __str__


def test_error_text_is_safe_when_the_cause_has_none():
    """An exception whose __str__ raises must not break whoever reports it.

    Sources: celery #298 and #481 (unprintable exceptions crash the error path of the worker).
    """
    texts = []

    def report(e):
        texts.append((str(e), e.message, repr(e), f"{e.cause.__class__.__name__}"))
        return "reported"

    app = make_app(plugin(trigger=report))

    @app.task
    def fails():
        raise SilentError(1)

    assert fails() == "reported"
    text, message, _, _ = texts[0]
    assert isinstance(text, str) and isinstance(message, str)


class OddBase(Exception):
    pass


@dataclasses.dataclass(frozen=True)
class FrozenError(Exception):
    code: int


@dataclasses.dataclass(frozen=True, slots=True)
class SlottedError(Exception):
    code: int


class UnhashableError(Exception):
    def __eq__(self, other):
        raise TypeError("compare me with nothing")

    __hash__ = None


class ProxyError(Exception):
    def __getattr__(self, name):
        raise KeyError(name)


class LockedError(Exception):
    def __setattr__(self, name, value):
        raise AttributeError("immutable")


class FalsyError(Exception):
    """Like an exception that carries a list of problems, and has none."""

    def __len__(self):
        return 0


ODD = [
    lambda: FrozenError(3),
    lambda: SlottedError(3),
    lambda: UnhashableError("x"),
    lambda: ProxyError("x"),
    lambda: LockedError("x"),
    lambda: FalsyError(),
    lambda: SilentError(1),
    lambda: ExceptionGroup("two at once", [ValueError(1), KeyError(2)]),
    lambda: StopIteration("no more pages"),
    lambda: StopAsyncIteration("no more pages"),
]


@pytest.mark.parametrize("max_time", [None, 5])
def test_own_timeout_error_is_not_the_limit(max_time):
    """A TimeoutError of an HTTP client inside the task is not the task's time limit.

    Source: dramatiq #791 (any TimeoutError of an async actor is taken for the time limit).
    """
    seen = []
    app = make_app(plugin(trigger=lambda e: seen.append(type(e.cause)) or "asked"))
    own = TimeoutError("the other server")

    @app.task(max_time=max_time)
    async def call_server():
        await asyncio.sleep(0)
        raise own

    assert _awaited(call_server) == "asked"
    assert seen == [TimeoutError]


# ---------------------------------------------------------------- cancellation


def test_waiting_between_attempts_can_be_cancelled():
    """`asyncio.timeout` around a run that waits for its next attempt ends it at once.

    Sources: tenacity #529 and #186.
    """
    listener = Listener()
    app = make_app(listener, plugin(trigger=lambda e: Retry(delay=60)))

    @app.task
    async def fails():
        raise ValueError

    async def main():
        async with asyncio.timeout(0.2):
            await fails()

    started = time.monotonic()
    with pytest.raises(TimeoutError):
        asyncio.run(main())
    assert time.monotonic() - started < 3
    assert listener.heard == ["over"]


def test_hook_that_swallows_cancellation_does_not_eat_the_callers_timeout():
    """A hookimpl with a bare `except` around its await must not make the caller's timeout vanish.

    Sources: arq #247, cpython #116720 (a cancellation that is swallowed on the way).
    """

    async def greedy(e):
        try:
            await asyncio.sleep(30)
        except BaseException:
            return "swallowed"

    app = make_app(plugin(trigger=greedy), settings={"timeout": 20})

    @app.task
    async def fails():
        raise ValueError

    async def main():
        async with asyncio.timeout(0.2):
            return await fails()

    started = time.monotonic()
    with pytest.raises(TimeoutError):
        asyncio.run(main())
    assert time.monotonic() - started < 5


def test_task_group_sibling_fails_while_a_plugin_thinks():
    """In a TaskGroup the failure of a sibling cancels a run whose plugin is thinking; only the sibling's error is left.

    Source: cpython #95704 (errors and cancellation of a TaskGroup mixed up).
    """

    async def ponder(e):
        await asyncio.sleep(30)

    listener = Listener()
    app = make_app(listener, plugin(trigger=ponder), settings={"timeout": 20})

    @app.task
    async def fails():
        raise ValueError

    async def sibling():
        await asyncio.sleep(0.1)
        raise KeyError("sibling")

    async def main():
        async with asyncio.TaskGroup() as group:
            group.create_task(fails())
            group.create_task(sibling())

    with pytest.raises(ExceptionGroup) as caught:
        asyncio.run(main())
    assert [type(e) for e in caught.value.exceptions] == [KeyError]
    assert ("failed", "ValueError") not in listener.heard


# ---------------------------------------------------------------- a task is still its function


def tax(amount: "decimal.Decimal", rate: float = 0.19) -> "decimal.Decimal":
    """The tax on an amount."""
    return amount


async def atax(amount: "decimal.Decimal", rate: float = 0.19) -> "decimal.Decimal":
    """The tax on an amount, later."""
    return amount


IDENTITY = QueueTasks("identity", discover=False)
tax_task = IDENTITY.task(name="tax")(tax)
atax_task = IDENTITY.task(name="atax")(atax)


@IDENTITY.task(name="double")
def double(x):
    return 2 * x


@pytest.mark.parametrize(
    "task, function", [(tax_task, tax), (atax_task, atax)], ids=["def", "async"]
)
def test_type_hints_of_a_task(task, function):
    """Frameworks read the type hints of what they are given (dependency injection, CLI makers, schema generators).

    Sources: celery PR #4422 and #2459, inspect_ai #1171, sentry-python #432 (wrapping hides or breaks annotations).
    """
    hints = typing.get_type_hints(task)
    assert hints == typing.get_type_hints(function)


def test_task_of_a_module_can_be_pickled():
    """`multiprocessing.Pool.map(task, rows)` and joblib pickle what they call, by reference.

    Sources: huey #172, python-doit-api #3, sentry-python #421 (a wrapped task no longer pickles).
    """
    again = pickle.loads(pickle.dumps(double))
    assert again is double and again(4) == 8


def test_every_parameter_name_in_place_and_in_the_error():
    """Parameters may be called self, task, e, args, kwargs, name, func ... and must reach the function.

    Sources: rq #98/#322, prefect #3034/#5508 (keyword arguments collide with the framework's own).
    """
    names = [
        "self",
        "task",
        "e",
        "args",
        "kwargs",
        "name",
        "func",
        "cls",
        "message",
        "cause",
        "result",
        "timeout",
        "delay",
        "priority",
        "queue",
        "engine",
        "app",
    ]
    app = make_app(plugin(trigger=lambda e: dict(e.kwargs)), engine="memory://")

    @app.task(name="keep")
    def keep(**given):
        return given

    @app.task(name="tell", echo=True)
    def tell(this, /, **given):
        this.ctx.plugin_error(**given)

    given = {name: n for n, name in enumerate(names)}
    assert keep(**given) == given
    assert tell(**given) == given
    error = pickle.loads(pickle.dumps(TaskPluginTriggerError(**given)))
    assert error.kwargs == given
    with app:
        assert keep.submit_sync(**given).result(timeout=10) == given


# ---------------------------------------------------------------- memory, frames and leaks


class Big:
    """Stands for a data frame."""


def test_finished_runs_are_let_go():
    """The arguments and results of finished runs are garbage once nobody holds the handle.

    Sources: twisted #10745 (finite object leak in the thread pool), celery #5249/#8882 (results and frames kept).
    """
    alive = []
    app = make_app(engine="memory://?workers=2")

    @app.task(name="use")
    def use(big):
        out = Big()
        alive.append(weakref.ref(out))
        return out

    with app:
        for _ in range(6):
            big = Big()
            alive.append(weakref.ref(big))
            handle = use.submit_sync(big)
            handle.result(timeout=10)
            del handle, big
        time.sleep(0.2)
        gc.collect()
        kept = [n for n, ref in enumerate(alive) if ref() is not None]
    assert not kept, f"still alive: {len(kept)} of {len(alive)} ({kept})"


def test_asking_for_the_error_again_does_not_make_it_grow():
    """`handle.result()` in a polling loop raises the same error each time; its traceback must not grow.

    Sources: ipython PR #8017, pickledb #70 (the same error raised again and again grows without bound).
    """
    app = make_app(engine="memory://")
    task = app.task(name="t")(lambda: 1 / 0)

    def depth(error):
        frames, tb = 0, error.__traceback__
        while tb:
            frames, tb = frames + 1, tb.tb_next
        return frames

    with app:
        handle = task.submit_sync()
        depths = []
        for _ in range(20):
            with pytest.raises(ZeroDivisionError) as caught:
                handle.result(timeout=10)
            depths.append(depth(caught.value))
    assert depths[-1] <= depths[0] + 2


# ---------------------------------------------------------------- ends of runs


def test_spent_retries_end_in_the_tasks_own_error():
    """After the last retry the caller gets the task's error, not an error about retries; failed is told once.

    Sources: celery #5061 and #3348, tenacity #24 and #44 (an error about retries hides the real one).
    """
    listener = Listener()
    attempts = []
    app = make_app(listener, plugin(trigger=lambda e: Retry(delay=0, limit=2)))

    @app.task
    def fails():
        attempts.append(1)
        raise ConnectionError(len(attempts))

    with pytest.raises(ConnectionError) as caught:
        fails()
    assert caught.value.args == (3,) and len(attempts) == 3
    assert listener.heard == [("failed", "ConnectionError"), "over"]


@pytest.mark.parametrize("kind", ["def", "async"])
def test_task_that_exits_is_told_as_failed(kind):
    """A task calls sys.exit() (argparse, a library's main()): its run has failed for good, so plugins must hear it.

    Sources: airflow PR #36986 and #36809 (on_failure_callback is not called after sys.exit), billiard #275.
    """
    listener = Listener()
    app = make_app(listener, engine="memory://")

    if kind == "def":

        @app.task(name="main")
        def main():
            sys.exit(3)
    else:

        @app.task(name="main")
        async def main():
            sys.exit(3)

    with app:
        handle = main.submit_sync()
        with pytest.raises(BaseException):
            handle.result(timeout=10)
        time.sleep(0.2)
        assert handle.status == "failed"
    assert listener.heard[-1] == "over"
    assert [word for word in listener.heard if word != "over"], (
        "nobody was told that the run failed"
    )


def test_error_handled_inside_the_outer_task_can_be_told_apart():
    """A task calls another and handles its error itself: the outer run is a success, and no `failed` is told for it.

    Source: sentry-python #370 (an error of a nested task is reported though it was handled).
    """
    failed = []

    def heard(task_func, e):
        failed.append(task_func.name)

    app = make_app(plugin(task_executor_task_failed=heard))

    @app.task(name="inner")
    def inner():
        raise LookupError("handled outside")

    @app.task(name="outer")
    def outer():
        try:
            return inner()
        except LookupError:
            return "handled"

    assert outer() == "handled"
    assert failed == ["inner"]


def test_recursive_task_is_asked_at_every_level_but_ends():
    """A task that calls itself too deeply: RecursionError ends the run, plugins are asked, nothing hangs.

    Source: celery #6473 (maximum recursion depth).
    """
    asked = []
    app = make_app(plugin(trigger=lambda e: asked.append(type(e.cause).__name__)))

    @app.task
    def down(n=0):
        return down(n + 1)

    outcome = []

    def go():
        try:
            down()
        except RecursionError as e:
            outcome.append(e)

    thread = threading.Thread(target=go, daemon=True)
    thread.start()
    thread.join(30)
    assert outcome and set(asked) <= {"RecursionError"}


@pytest.mark.parametrize(
    "value",
    [
        decimal.Decimal("1.10"),
        datetime.datetime(2024, 3, 31, 1, 30, tzinfo=datetime.UTC),
        uuid.UUID(int=7),
        float("nan"),
        10**5000,
        "\ud800 half a pair",
        b"\x00\xff",
        {1, 2},
        threading.Lock(),
        (n for n in "abc"),
    ],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.parametrize("wrap", [lambda v: v, Replace], ids=["plain", "Replace"])
def test_any_value_is_a_result_in_place(value, wrap):
    """A fallback may be any object at all, equal to itself or not, iterable or not.

    Source: lithops #1396 (a result is tested for truth or equality), widened to other values.
    """
    app = make_app(plugin(trigger=lambda e: wrap(value)), engine="memory://")
    task = app.task(name="t")(lambda: 1 / 0)
    assert task() is value
    assert _in_memory(app, task) is value


def test_ambiguous_truth_of_a_result():
    """A fallback whose truth or equality cannot be taken (numpy arrays, data frames, SQL expressions) is a result.

    Source: lithops #1396 (ambiguous truth of a result).
    """

    class Frame:
        def __bool__(self):
            raise ValueError("the truth of a frame is ambiguous")

        def __eq__(self, other):
            raise ValueError("compare columns")

        __hash__ = None

    frame = Frame()
    app = make_app(plugin(trigger=lambda e: frame), engine="memory://")
    task = app.task(name="t")(lambda: 1 / 0)

    @app.task(name="ok")
    def ok():
        return frame

    assert ok() is frame
    assert task() is frame
    assert _in_memory(app, task) is frame


# ---------------------------------------------------------------- plugins


def test_properties_of_a_plugin_are_not_run_at_registration():
    """Adding a plugin must not evaluate its properties, which may connect somewhere or raise.

    Sources: pluggy #11 and PR #536/#701 (properties evaluated at registration).
    """
    touched = []

    class Lazy:
        name = "lazy"

        @property
        def connection(self):
            touched.append(1)
            raise RuntimeError("no server")

        @hookimpl
        def task_executor_run_task_trigger_error(self, e):
            return "fallback"

    app = make_app(Lazy())
    assert app.task(name="t")(lambda: 1 / 0)() == "fallback"
    assert not touched


def test_blocking_hook_does_not_stop_the_loop():
    """A hookimpl with blocking I/O, marked so, must not hold up the other tasks of the event loop.

    Source: fastapi-events PR #11 (plain handlers block the event loop).
    """

    @blocking
    def slow(e):
        time.sleep(0.5)
        return "slow answer"

    app = make_app(plugin(trigger=slow))

    @app.task
    async def fails():
        raise ValueError

    async def main():
        ticks = 0
        running = asyncio.create_task(fails())
        while not running.done():
            await asyncio.sleep(0.02)
            ticks += 1
        return ticks, await running

    ticks, answer = asyncio.run(main())
    assert answer == "slow answer"
    assert ticks > 10


def test_cancelled_memory_run_between_attempts():
    """An operator cancels a run that keeps being retried: it ends as cancelled, and `failed` is not told.

    Sources: arq #247, procrastinate #1131 (abort of a job that is retried).
    """
    listener = Listener()
    attempts = []
    app = make_app(
        listener,
        plugin(trigger=lambda e: Retry(delay=0.05, limit=200)),
        engine="memory://",
        max_retries=None,
    )

    @app.task(name="flaky")
    def flaky():
        attempts.append(1)
        raise ConnectionError

    with app:
        handle = flaky.submit_sync()
        time.sleep(0.3)
        until = time.monotonic() + 5
        while not handle.cancel("enough") and time.monotonic() < until:
            time.sleep(0.01)
        with pytest.raises(TaskCancelError):
            handle.result(timeout=10)
    assert 0 < len(attempts) < 100
    assert listener.heard == ["over"]


logging.getLogger("asyncio").setLevel(logging.CRITICAL)
