"""``QueueTasks``: when it starts and stops, and what its tasks do before, meanwhile and after."""

from __future__ import annotations

import asyncio
import threading

import pytest

from qtasks_hookspecs import hookimpl
from qtasks_pluggy import QueueTasks
from qtasks_pluggy.exc import NotRunningError, PluginError, TaskPluginTriggerError
from tests.runs import answering, failing, plugin


def started_by(app, how, body=None):
    """Start and stop an app, plainly or from async code; call the body in between."""
    if how == "with":
        with app as entered:
            return body(entered) if body else None

    async def main():
        async with app as entered:
            return body(entered) if body else None

    return asyncio.run(main())


both_ways = pytest.mark.parametrize("how", ["with", "async with"])


class Phases:
    """A plugin that writes down when it is started and stopped, and fails where it is told to."""

    def __init__(self, name, said, *, fails="", asynchronous=False):
        self.name = name

        def phase(word):
            said.append(f"{name} {word}")
            if word in fails.split():
                raise OSError(f"{name} cannot {word}")

        async def phase_async(word):
            await asyncio.sleep(0)
            phase(word)

        act = phase_async if asynchronous else phase
        self.qtasks_start = hookimpl(lambda: act("start"))
        self.qtasks_stop = hookimpl(lambda: act("stop"))


def app_with(*plugins, **options):
    """Make an app with nothing but these plugins."""
    return QueueTasks("shop", discover=False, plugins=plugins, **options)


@both_ways
@pytest.mark.parametrize("asynchronous", [True, False])
def test_plugins_start_in_order_and_stop_in_reverse(asynchronous, how):
    """Plain and async hookimpls alike, under ``with`` and ``async with``."""
    said = []
    app = app_with(*(Phases(name, said, asynchronous=asynchronous) for name in "abc"))

    started_by(app, how, lambda _: said.append("body"))

    assert said == ["a start", "b start", "c start", "body", "c stop", "b stop", "a stop"]


@both_ways
def test_entering_gives_the_app(how):
    """``with app as it`` names the app itself."""
    app = app_with()

    assert started_by(app, how, lambda entered: entered) is app


@both_ways
def test_start_hands_each_plugin_its_own_section(how):
    """``settings`` is the plugin's section and nobody else's; ``app`` is the app."""
    given = []

    def taking(name):
        return plugin(name, qtasks_start=lambda app, settings: given.append((app, dict(settings))))

    sections = {"plugin": {"one": {"url": "x"}, "other": {"url": "y"}}}
    app = app_with(taking("one"), taking("two"), settings=sections)

    started_by(app, how)

    assert given == [(app, {"url": "x"}), (app, {})]


def test_a_task_runs_before_the_start():
    """Without any start a task runs and plugins are asked, but none of them is started."""
    said = []
    app = app_with(Phases("a", said), answering("saved"))
    good, bad = app.task(name="good")(lambda: 1), app.task(failing("function", _trigger()))

    assert (good(), bad()) == (1, "saved")
    assert said == []


@both_ways
def test_a_task_runs_while_the_app_runs(how):
    """Plainly called under either kind of start."""
    app = app_with(answering("saved"))
    task = app.task(failing("function", _trigger()))

    assert started_by(app, how, lambda _: task()) == "saved"


@both_ways
@pytest.mark.parametrize("kind", ["function", "coroutine"])
def test_a_stopped_app_runs_no_task(kind, how):
    """It says so at once, naming the app and what to do; the function is not called."""
    called = []
    app = app_with()
    task = app.task(failing(kind, AssertionError("called")))
    started_by(app, how)

    with pytest.raises(NotRunningError, match=r"app 'shop' was stopped.*'with app:'"):
        asyncio.run(task()) if kind == "coroutine" else task()

    assert called == []


@both_ways
def test_a_stopped_app_may_start_again(how):
    """Then its plugins are started again, and its tasks run again until the next stop."""
    said = []
    app = app_with(Phases("a", said))
    task = app.task(name="task")(lambda: "ran")

    for _ in range(3):
        assert started_by(app, how, lambda _: task()) == "ran"
        with pytest.raises(NotRunningError):
            task()

    assert said == ["a start", "a stop"] * 3


@both_ways
def test_a_started_app_does_not_start_twice(how):
    """A second start is an error that leaves the first one alone."""
    said = []
    app = app_with(Phases("a", said))
    task = app.task(name="task")(lambda: "ran")

    def again(_):
        with pytest.raises(RuntimeError, match="app 'shop' is started already; stop it first"):
            app.__enter__()
        return task()

    assert started_by(app, how, again) == "ran"
    assert said == ["a start", "a stop"]


def test_two_starts_at_once():
    """Of two threads, or two tasks, that start one app, one does and the other is told."""
    said, ended = [], []
    app = app_with(Phases("a", said, asynchronous=True))
    together = threading.Barrier(2)

    def start():
        together.wait(10)
        try:
            app.__enter__()
        except RuntimeError:
            ended.append("told")
        else:
            ended.append("started")

    threads = [threading.Thread(target=start) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    app.__exit__(None, None, None)

    assert sorted(ended) == ["started", "told"]
    assert said == ["a start", "a stop"]

    async def main():
        return await asyncio.gather(app.__aenter__(), app.__aenter__(), return_exceptions=True)

    first, second = asyncio.run(main())
    assert first is app
    assert isinstance(second, RuntimeError)


@both_ways
@pytest.mark.parametrize("asynchronous", [True, False])
def test_a_failing_start_stops_what_was_started(asynchronous, how):
    """In reverse order, and only that: not the one that failed, nor those that came after it."""
    said = []
    fails = {"c": "start"}
    app = app_with(
        *(
            Phases(name, said, fails=fails.get(name, ""), asynchronous=asynchronous)
            for name in "abcd"
        )
    )

    with pytest.raises(PluginError) as caught:
        started_by(app, how, lambda _: said.append("body"))

    assert said == ["a start", "b start", "c start", "b stop", "a stop"]
    assert isinstance(caught.value.__cause__, OSError)
    for part in ("plugin 'c'", "qtasks_start", "OSError", "c cannot start", "DISABLE=c"):
        assert part in str(caught.value)


@both_ways
@pytest.mark.parametrize("strict", [True, False])
def test_a_failing_start_stops_all_of_them(strict, how):
    """A plugin that cannot even stop does not keep the others from it, nor hides what happened."""
    said = []
    app = app_with(
        Phases("a", said),
        Phases("b", said, fails="stop"),
        Phases("c", said, fails="start"),
        settings={"strict": strict},
    )

    with pytest.raises(PluginError, match="plugin 'c'"):
        started_by(app, how)

    assert said == ["a start", "b start", "c start", "b stop", "a stop"]


@both_ways
def test_a_failing_start_leaves_the_app_as_it_was(how):
    """Tasks run as before the start; once the plugin is mended, the app starts."""
    said = []
    faulty = Phases("faulty", said, fails="start")
    app = app_with(Phases("a", said), faulty)
    task = app.task(name="task")(lambda: "ran")

    with pytest.raises(PluginError):
        started_by(app, how)
    assert task() == "ran"

    app.remove_plugin("faulty")
    said.clear()
    assert started_by(app, how, lambda _: task()) == "ran"
    assert said == ["a start", "a stop"]

    app.add_plugin(faulty)
    with pytest.raises(PluginError):
        started_by(app, how)
    with pytest.raises(NotRunningError):
        task()


def test_a_cancelled_start_stops_what_was_started():
    """A start that asyncio cancels is undone, and the app can start afterwards."""
    said = []

    async def main():
        begun = asyncio.Event()

        async def hang():
            begun.set()
            await asyncio.Event().wait()

        app = app_with(Phases("a", said, asynchronous=True), plugin("hangs", qtasks_start=hang))
        starting = asyncio.create_task(app.__aenter__())
        await begun.wait()
        starting.cancel()
        await asyncio.wait([starting], timeout=10)
        assert starting.cancelled()
        app.remove_plugin("hangs")
        async with app:
            said.append("body")

    asyncio.run(main())

    assert said == ["a start", "a stop", "a start", "body", "a stop"]


@both_ways
def test_an_error_inside_of_with_stops_the_app(how):
    """The plugins are stopped, and the error goes on."""
    said = []
    app = app_with(Phases("a", said))

    with pytest.raises(KeyError):
        started_by(app, how, lambda _: {}["missing"])

    assert said == ["a start", "a stop"]


@both_ways
def test_a_failing_stop_does_not_stop_the_others(how, caplog):
    """It is logged with the plugin's name; the app is stopped all the same."""
    said = []
    app = app_with(Phases("a", said), Phases("b", said, fails="stop"))
    task = app.task(name="task")(lambda: 1)

    started_by(app, how)

    assert said == ["a start", "b start", "b stop", "a stop"]
    assert "plugin='b'" in caplog.text
    assert "hook='qtasks_stop'" in caplog.text
    with pytest.raises(NotRunningError):
        task()


@both_ways
def test_starting_and_stopping_plugins_may_run_tasks(how):
    """A task works while the app starts and while it stops."""
    results = []
    app = app_with(
        plugin(
            "warm",
            qtasks_start=lambda: results.append(task()),
            qtasks_stop=lambda: results.append(task()),
        )
    )
    task = app.task(name="task")(lambda: "ran")

    started_by(app, how)

    assert results == ["ran", "ran"]


def _trigger():
    return TaskPluginTriggerError("no")
