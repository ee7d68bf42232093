"""The seam to engines: what an executor does for one, what is refused, and how one is found."""

from __future__ import annotations

import asyncio
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import structlog

from qtasks_hookspecs import DeadLetter, Raise, Replace, Retry, TaskMessage, hookimpl
from qtasks_pluggy import QueueTasks, TaskExecutor
from qtasks_pluggy.engines import (
    Capabilities,
    Engine,
    executor_for,
    url_options,
    worker_lifespan,
)
from qtasks_pluggy.engines.memory import MemoryEngine
from qtasks_pluggy.exc import (
    CapabilityError,
    EngineError,
    PluginError,
    TaskNameError,
    TaskPluginTriggerError,
)
from tests.engines.harness import Pool
from tests.runs import plugin

LONG = 30.0


class StopHereError(Exception):
    """An engine's control exception, after which it is done with the run."""


class ComeAgainError(Exception):
    """An engine's control exception, after which it runs the task again."""


def refuse_secrets(run: Any) -> None:
    """Refuse one certain result."""
    if run.result == "secret":
        msg = f"task {run.task_func.name!r} has a secret"
        raise EngineError(msg)


def engine_of(**capabilities: bool) -> Any:
    """Make as much of an engine as an executor looks at."""
    can = Capabilities(**capabilities)
    return SimpleNamespace(
        name="toy",
        capabilities=can,
        control=(StopHereError, ComeAgainError),
        will_retry=lambda error: isinstance(error, ComeAgainError),
        failure=lambda error: error,
        check_answer=lambda value: None,
        check_result=refuse_secrets,
    )


def raising(error: BaseException) -> Any:
    """Make a function that raises this very error."""

    def function() -> None:
        raise error

    return function


class Ends:
    """Counts what the plugins hear of a run's end."""

    name = "ends"

    def __init__(self, answer: Any = None) -> None:
        self.answer = answer
        self.heard: list[str] = []

    @hookimpl
    def task_executor_run_task_trigger_error(self):
        self.heard.append("asked")
        return self.answer

    @hookimpl
    def task_executor_task_failed(self):
        self.heard.append("failed")

    @hookimpl
    def task_executor_task_close(self):
        self.heard.append("closed")


def test_an_attempt_is_made_once_unless_it_is_to_be_retried():
    """R9: an executor makes another attempt for an engine only after a retry."""
    ends = Ends(Retry())
    executor = TaskExecutor(raising(TaskPluginTriggerError()), plugins=[ends])
    engine = engine_of()

    assert "retry" == executor.execute_attempt_sync(engine).action
    assert 1 == executor.attempt
    ends.answer = "enough"
    outcome = executor.execute_attempt_sync(engine)
    assert ("succeed", "enough", 2) == (outcome.action, outcome.result, executor.attempt)
    assert executor.engine is engine
    with pytest.raises(RuntimeError, match="has run"):
        executor.execute_attempt_sync(engine)
    assert ["asked", "asked", "closed"] == ends.heard


def test_r15_a_result_that_the_engine_refuses_is_a_failure():
    """R15: plugins are told of a result that cannot travel, before they are told of the end."""
    ends = Ends()
    outcome = TaskExecutor(lambda: "secret", plugins=[ends]).execute_attempt_sync(engine_of())

    assert ("fail", EngineError) == (outcome.action, type(outcome.error))
    assert ["failed", "closed"] == ends.heard


@pytest.mark.parametrize("is_async", [False, True])
def test_r15_a_retry_that_the_engine_cannot_arrange_is_a_failure(is_async):
    """R15, R16: a run whose next attempt cannot be has failed, by the engine's error, and ends."""
    ends = Ends(Retry())
    executor = TaskExecutor(raising(TaskPluginTriggerError()), plugins=[ends])
    assert "retry" == executor.execute_attempt_sync(engine_of()).action
    error = EngineError("the server is gone")
    outcome = asyncio.run(executor.give_up(error)) if is_async else executor.give_up_sync(error)

    assert ("fail", error) == (outcome.action, outcome.error)
    assert ["asked", "failed", "closed"] == ends.heard
    with pytest.raises(RuntimeError, match="has run"):
        executor.execute_attempt_sync(engine_of())


@pytest.mark.parametrize(
    ("error", "heard"),
    [(StopHereError(), ["closed"]), (ComeAgainError(), [])],
    ids=["over", "again"],
)
def test_control_exceptions_pass(error, heard):
    """No plugin is asked about an engine's control exception, nor told of a failure."""
    ends = Ends("never")
    task = QueueTasks("shop", intercept=Exception, discover=False).task(raising(error))
    outcome = TaskExecutor(task, plugins=[ends]).execute_attempt_sync(engine_of())

    assert ("pass", error) == (outcome.action, outcome.error)
    assert heard == ends.heard


async def test_a_cancelled_attempt_is_closed():
    """R16: a run that is cut from outside tells its plugins that it is over."""
    ends = Ends()
    entered = asyncio.Event()

    async def wait():
        entered.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(TaskExecutor(wait, plugins=[ends]).execute_attempt(engine_of()))
    await entered.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ["closed"] == ends.heard


def test_r7_an_interrupt_while_a_failure_is_told_closes_the_attempt():
    """R7, R16: Ctrl-C in a hookimpl goes on to the engine, and the plugins hear of the end."""
    ends = Ends()
    interrupted = plugin("interrupted", task_executor_task_failed=raising(KeyboardInterrupt()))
    executor = TaskExecutor(raising(TaskPluginTriggerError()), plugins=[ends, interrupted])
    with pytest.raises(KeyboardInterrupt):
        executor.execute_attempt_sync(engine_of())

    assert ["asked", "failed", "closed"] == ends.heard


def test_strict_fails_the_attempt():
    """R7: under strict, a plugin that fails at the end of a run fails the run."""
    broken = plugin("broken", task_executor_task_close=raising(ZeroDivisionError()))
    app = QueueTasks("shop", plugins=[broken], settings={"strict": True}, discover=False)
    task = app.task(lambda: 1)
    outcome = TaskExecutor(task).execute_attempt_sync(engine_of())

    assert "fail" == outcome.action
    assert isinstance(outcome.error, PluginError)


@pytest.mark.parametrize(
    ("decision", "needs"),
    [(Retry(delay=1), "delay"), (DeadLetter(), "dead_letter")],
    ids=["Retry(delay)", "DeadLetter"],
)
def test_r7_a_decision_that_the_engine_lacks_is_a_failure_of_its_plugin(decision, needs):
    """R7: what an engine cannot do is refused, by name; the others' answers count."""
    plugins = [Ends("before"), Ends(decision)]
    plugins[0].name = "other"
    refused = TaskExecutor(raising(TaskPluginTriggerError()), plugins=plugins)
    outcome = refused.execute_attempt_sync(engine_of())

    assert ("succeed", "before") == (outcome.action, outcome.result)
    assert ["answered", "raised"] == [
        record.status for record in refused.trail if record.hook.endswith("trigger_error")
    ]
    taken = TaskExecutor(raising(TaskPluginTriggerError()), plugins=plugins)
    assert taken.execute_attempt_sync(engine_of(**{needs: True})).action in {"retry", "dead_letter"}


def test_r7_an_engine_s_own_exception_is_nothing_to_raise():
    """R7: ``Raise`` of a control exception, which could leave its caller waiting, is refused."""
    refused = TaskExecutor(
        raising(TaskPluginTriggerError()), plugins=[Ends(Raise(StopHereError()))]
    )
    outcome = refused.execute_attempt_sync(engine_of())

    assert ("fail", TaskPluginTriggerError) == (outcome.action, type(outcome.error))
    assert "raised CapabilityError" in "".join(outcome.error.__notes__)


@pytest.mark.parametrize("decision", [Retry(), Replace(1)], ids=repr)
def test_what_every_engine_can_is_not_refused(decision):
    """A retry at once, and an answer, need nothing of an engine."""
    executor = TaskExecutor(raising(TaskPluginTriggerError()), plugins=[Ends(decision)])

    assert executor.execute_attempt_sync(engine_of()).action in {"retry", "succeed"}


def test_what_a_task_asks_for_in_vain_is_refused_when_it_is_declared():
    """A priority on an engine that has none is an error at declaration, or at ``set_engine``."""
    app = QueueTasks("shop", engine=Pool().engine(), discover=False)
    with pytest.raises(CapabilityError, match=r"engine 'pool' has no priorities.*priority=3"):
        app.task(priority=3)(print)
    assert {} == dict(app.tasks)
    other = QueueTasks("shop", discover=False)
    other.task(priority=3)(print)
    with pytest.raises(CapabilityError, match="'print'"):
        other.set_engine(Pool().engine())
    assert other.engine is None


@pytest.mark.parametrize("options", [{"delay": 1}, {"priority": 1}], ids=str)
def test_options_that_the_engine_lacks_are_refused_when_submitting(options):
    """``with_options`` names the engine, the task and the option."""
    app = QueueTasks("shop", engine=Pool().engine(), discover=False)
    task = app.task(name="price")(lambda: 1)
    (option,) = options
    with app, pytest.raises(CapabilityError, match=rf"'pool'.*'price'.*{option}=1"):
        task.with_options(**options).submit()


def test_an_unknown_task_is_named_with_the_nearest():
    """A message for a task that the worker does not have says what the worker has to import."""
    app = QueueTasks("shop", discover=False)
    with pytest.raises(TaskNameError, match="it has none"):
        executor_for(app, TaskMessage("price"))
    app.task(name="price")(print)
    with pytest.raises(TaskNameError, match=r"did you mean 'price'.*import every module"):
        executor_for(app, TaskMessage("prise"))


def test_an_engine_that_does_not_start_starts_nothing():
    """Plugins that were started are stopped again when the engine cannot start."""
    heard = []
    listener = plugin(
        "listener",
        qtasks_start=lambda: heard.append("start"),
        qtasks_stop=lambda: heard.append("stop"),
    )

    class Broken(MemoryEngine):
        async def start(self, app, workers):
            raise EngineError("no server")

    app = QueueTasks("shop", engine=Broken("memory://"), plugins=[listener], discover=False)
    with pytest.raises(EngineError, match="no server"), app:
        pass
    assert ["start", "stop"] == heard


def test_an_engine_that_does_not_stop_leaves_the_plugins_stopped():
    """``qtasks_stop`` is called whatever the engine's own stop comes to."""
    heard = []
    listener = plugin("listener", qtasks_stop=lambda: heard.append("stop"))

    class Broken(MemoryEngine):
        def stop(self):
            super().stop()
            raise EngineError("gone")

    app = QueueTasks("shop", engine=Broken("memory://"), plugins=[listener], discover=False)
    with pytest.raises(EngineError, match="gone"), app:
        pass
    assert ["stop"] == heard


@pytest.mark.parametrize("kind", ["plain", "async"])
def test_in_a_worker_the_plugins_have_their_life(kind):
    """``worker_lifespan(app)`` starts and stops plugins, and leaves the engine alone."""
    heard = []
    listener = plugin(
        "listener",
        qtasks_start=lambda app: heard.append(app.name),
        qtasks_stop=lambda: heard.append("stop"),
    )
    app = QueueTasks("shop", engine="memory://", plugins=[listener], discover=False)

    async def live():
        async with worker_lifespan(app):
            assert app.engine.loop is None

    with structlog.testing.capture_logs() as logs:
        if kind == "async":
            asyncio.run(live())
        else:
            with worker_lifespan(app):
                assert app.engine.loop is None
    assert ["shop", "stop"] == heard
    (told,) = [one for one in logs if one["event"] == "worker_asks_plugins"]
    assert ("info", ["listener"]) == (told["log_level"], told["plugins"])


def test_r14_an_app_that_does_its_runs_itself_says_whom_it_asks():
    """On ``memory://`` the app is the worker; without an engine there is none."""
    listener = plugin("listener", task_executor_task_close=lambda: None)

    with structlog.testing.capture_logs() as logs:
        for engine in (None, "memory://"):
            with QueueTasks("shop", engine=engine, plugins=[listener], discover=False):
                pass

    (told,) = [one for one in logs if one["event"] == "worker_asks_plugins"]
    assert ("info", ["listener"]) == (told["log_level"], told["plugins"])


def test_engines_are_found_by_entry_point(tmp_path, monkeypatch):
    """A URL finds its engine by scheme, an engine's own object by its package."""
    (tmp_path / "acme_queue.py").write_text(
        "from qtasks_pluggy.engines.memory import MemoryEngine\n"
        "class Acme: pass\n"
        "class Own(Acme): pass\n"
        "class AcmeEngine(MemoryEngine):\n"
        "    def __init__(self, given):\n"
        "        super().__init__('memory://')\n"
        "        self.native = given\n",
        "utf-8",
    )
    (tmp_path / "acme_broken.py").write_text("import no_such_client\n", "utf-8")
    info = tmp_path / "acme-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme\nVersion: 1.0\n", "utf-8")
    (info / "entry_points.txt").write_text(
        "[qtasks_pluggy.engines]\n"
        "acme = acme_queue:AcmeEngine\n"
        "acme_queue = acme_queue:AcmeEngine\n"
        "broken+sql = acme_broken:Engine\n",
        "utf-8",
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "acme_queue", raising=False)
    import acme_queue

    own = acme_queue.Own()
    assert "acme://x" == QueueTasks("shop", engine="acme://x").engine.native
    assert own is QueueTasks("shop", engine=own).engine.native
    with pytest.raises(EngineError, match=r"no_such_client.*qtasks-pluggy\[broken\]"):
        QueueTasks("shop", engine="broken+sql://")
    with pytest.raises(TypeError, match="got builtins.type"):
        QueueTasks("shop", engine=MemoryEngine)


def test_an_adapter_is_known_by_what_it_has():
    """Every adapter is an ``Engine``, without inheriting from it."""
    assert isinstance(MemoryEngine("memory://"), Engine)
    assert isinstance(Pool().engine(), Engine)
    assert not isinstance(object(), Engine)


def test_a_message_needs_no_started_app():
    """A worker that was not told of its start loads the plugins with its first run."""
    app = QueueTasks("shop", plugins=[Ends("late")], discover=False)
    app.task(name="ask")(raising(TaskPluginTriggerError()))
    assert "late" == executor_for(app, TaskMessage("ask")).execute_attempt_sync(engine_of()).result


def test_an_option_is_on_or_off():
    """A switch in a URL is 0 or 1."""
    assert {"ledger": False} == url_options("x://?ledger=0", {"ledger": True})
    assert {"ledger": True} == url_options("x://?ledger=1", {"ledger": False})
    with pytest.raises(EngineError, match="expected 0 or 1"):
        url_options("x://?ledger=maybe", {"ledger": True})
