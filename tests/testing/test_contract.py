"""The contract: each check finds what it is for, and plugins that are fine pass all of them."""

from __future__ import annotations

import asyncio
import threading
import time
from types import SimpleNamespace

import attrs
import pytest
import structlog

from qtasks_hookspecs import Raise, Replace, Retry, hookimpl, on_error, when
from qtasks_pluggy import BasePlugin
from qtasks_pluggy.builtin import Fallback, RetryPlugin
from qtasks_pluggy.failures import Failures
from qtasks_pluggy.testing import ContractError, PluginContract, RecordingPlugin
from qtasks_pluggy.testing.contract import CHECKS
from tests.plugins.conftest import distributions  # noqa: F401  # a fixture
from tests.runs import answering, plugin


class TestFallback(PluginContract):
    """The built-in plugin keeps the contract."""

    plugin = Fallback
    settings = {"rules": [{"task": "*", "result": 1}]}  # noqa: RUF012  # as users write it


class TestRetry(PluginContract):
    """Likewise."""

    plugin = RetryPlugin
    settings = {"errors": ["Exception"], "delay": 60}  # noqa: RUF012  # as users write it


class TestFailures(PluginContract):
    """Likewise, with a store."""

    plugin = Failures

    @pytest.fixture(autouse=True)
    def _store(self, tmp_path, monkeypatch):
        monkeypatch.setattr(type(self), "settings", {"url": f"sqlite:///{tmp_path}/failures.db"})


class TestRecording(PluginContract):
    """The kit's own plugin has all hooks."""

    plugin = RecordingPlugin


class TestOldPlugin(PluginContract):
    """A plugin of QTasks' shape keeps it too."""

    plugin = BasePlugin


def findings(given, check, **members):
    """Run one check of a plugin; return what it finds."""
    contract = type("Tried", (PluginContract,), {"plugin": given, "seconds": 2.0, **members})()
    with structlog.testing.capture_logs():
        try:
            getattr(contract, f"test_{check}")()
        except ContractError as broken:
            assert all(one.text and one.remedy for one in broken.findings)
            return str(broken)
    return ""


def starting(function, name="mine"):
    """Make a plugin that has a start."""
    function.__name__ = "qtasks_start"
    return SimpleNamespace(name=name, qtasks_start=hookimpl(function))


def trigger(function):
    """Make a plugin that is asked about errors."""
    return plugin("mine", task_executor_run_task_trigger_error=function)


@attrs.frozen
class Shown:
    """A setting whose refusal shows its value."""

    url: str = attrs.field(default="", converter=lambda value: value)


def shows(settings: Shown):
    """Refuse a value, and show it."""
    if settings.url:
        raise ValueError(f"cannot use {settings.url!r}")


class Forgetful:
    """A plugin that leaves a thread behind."""

    name = "mine"

    @hookimpl
    def qtasks_start(self):
        threading.Thread(target=time.sleep, args=(20,), name="left", daemon=True).start()


class Once:
    """A plugin that starts once."""

    name = "mine"

    def __init__(self):
        self.started = False

    @hookimpl
    def qtasks_start(self):
        if self.started:
            raise RuntimeError("started already")
        self.started = True


class NeedsStart:
    """A plugin that cannot be asked before its start, or after its stop."""

    name = "mine"

    @hookimpl
    def qtasks_start(self):
        self.known = {}

    @hookimpl
    def qtasks_stop(self):
        del self.known

    @on_error(KeyError)
    def answer(self):
        return self.known.get("a")


class OneAtATime:
    """A plugin that two threads upset."""

    name = "mine"

    def __init__(self):
        self.inside = False

    @on_error(KeyError)
    def answer(self):
        if self.inside:
            raise RuntimeError("two at a time")
        self.inside = True
        time.sleep(0.001)
        self.inside = False


class Seen:
    """A plugin that takes each error once."""

    name = "mine"
    seen: set[int] = set()  # noqa: RUF012  # shared on purpose

    @on_error(KeyError)
    def answer(self, error):
        if id(error) in self.seen:
            raise RuntimeError("seen")
        self.seen.add(id(error))


async def swallows(e):
    """Go on whatever comes."""
    for _ in range(500):
        try:
            await asyncio.sleep(0.01)
        except asyncio.CancelledError:  # it is what is wrong
            continue


def changes(e):
    """Write to somebody else's error."""
    e.cause.args = ("changed",)


BROKEN = {
    "a misspelt hook": (
        SimpleNamespace(name="mine", task_executor_task_faild=hookimpl(lambda: None)),
        "its_names_and_parameters_are_known",
        "did you mean",
    ),
    "no hookimpl": (
        SimpleNamespace(name="mine"),
        "its_names_and_parameters_are_known",
        "@hookimpl",
    ),
    "a name that is none": ("no.such.module", "its_names_and_parameters_are_known", "no.such"),
    "a start that fails": (
        starting(lambda: 1 / 0),
        "it_starts_stops_and_starts_again",
        "ZeroDivisionError while it starts",
    ),
    "a start that hangs": (
        starting(lambda: time.sleep(30)),
        "it_starts_stops_and_starts_again",
        "hangs while it starts",
    ),
    "a start that ends the program": (
        starting(lambda: exit(3)),  # noqa: PLR1722  # as a plugin does
        "it_starts_stops_and_starts_again",
        "SystemExit",
    ),
    "a start that works once": (Once, "it_starts_stops_and_starts_again", "started already"),
    "a thread that is left": (Forgetful, "it_starts_stops_and_starts_again", "left"),
    "settings that are not checked": (
        starting(lambda settings: None),
        "a_wrong_setting_stops_the_start",
        "unknown key",
    ),
    "a value that is shown": (
        starting(shows),
        "a_wrong_setting_stops_the_start",
        "'url' shows the value",
    ),
    "the text of any error": (
        trigger(lambda e: str(e.cause) and None),
        "odd_exceptions_do_no_harm",
        "RuntimeError when asked about Exception whose texts raise",
    ),
    "the truth of an error": (
        trigger(lambda e: e.cause.args[0] and None),
        "odd_exceptions_do_no_harm",
        "IndexError when asked about Exception without arguments",
    ),
    "an error that is changed": (
        trigger(changes),
        "odd_exceptions_do_no_harm",
        "changed the error",
    ),
    "an error that is taken once": (Seen, "asked_twice_it_does_no_harm", "that comes twice"),
    "a hook for an end that fails": (
        plugin("mine", task_executor_task_failed=lambda e: e.no_such),
        "every_end_of_a_run_does_no_harm",
        "AttributeError in a retried run",
    ),
    "a hook for a dead letter that fails": (
        plugin("mine", task_executor_dead_letter=lambda reason: reason.no_such),
        "every_end_of_a_run_does_no_harm",
        "AttributeError in a dead-lettered run",
    ),
    "one at a time": (OneAtATime, "threads_and_loops_run_side_by_side", "two at a time"),
    "a cancellation that is swallowed": (
        trigger(swallows),
        "cancelled_it_lets_the_run_end",
        "hangs when its run is cancelled",
    ),
    "a start that is needed": (NeedsStart, "early_and_late_it_does_no_harm", "before its start"),
    "an answer that is no JSON": (
        answering(Replace({1, 2}), "mine"),
        "its_answers_are_json",
        "set is not JSON",
    ),
    "arguments that are not there": (
        trigger(lambda task_executor: task_executor.args[0] and None),
        "odd_exceptions_do_no_harm",
        "IndexError",
    ),
}


@pytest.mark.parametrize("what", BROKEN)
def test_each_check_finds_what_it_is_for(what):
    """With what the plugin did, when, and a remedy."""
    given, check, told = BROKEN[what]

    assert told in findings(given, check)


def test_each_check_has_a_plugin_that_does_not_pass_it():
    """The table above, and the imports below, leave none out."""
    tried = {f"test_{check}" for _, check, _ in BROKEN.values()}

    assert {*CHECKS} - tried == {"test_importing_it_does_nothing_else"}


IMPORTS = {
    "prints": ("print('hello')", "prints 'hello'"),
    "changes the environment": ("import os; os.environ['A_KEY'] = '1'", "the environment"),
    "changes the folder": ("import os; os.chdir('/')", "the current folder"),
    "starts a thread": (
        "import threading, time\n"
        "threading.Thread(target=time.sleep, args=(9,), daemon=True).start()",
        "the running threads",
    ),
    "handles a signal": (
        "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)",
        "the handlers of signals",
    ),
    "configures logging": (
        "import logging; logging.basicConfig(filename='/dev/null')",
        "root logger",
    ),
    "imports what is for apps": ("import qtasks_pluggy", "import qtasks_hookspecs"),
}


@pytest.mark.parametrize("what", IMPORTS)
def test_what_an_import_does_besides_is_found(distributions, what):  # noqa: F811  # the fixture
    """In a Python of its own, however often the module was imported here."""
    source, told = IMPORTS[what]
    handler = "from qtasks_hookspecs import on_error\n@on_error(KeyError)\ndef answer(): ..."
    module = f"import_{[*IMPORTS].index(what)}"
    distributions.add("qtasks-mine", {"mine": module}, **{module: f"{handler}\n"})
    check = "importing_it_does_nothing_else"
    assert "" == findings("mine", check)

    distributions.mend(module, f"{handler}\n{source}\n")

    assert told in findings("mine", check)


def test_handlers_behind_a_filter_are_asked_too():
    """By task, tag, class and dotted name: a task is made that the filter lets through."""
    asked = set()

    class Filtered:
        name = "mine"

        @on_error(KeyError, task="price_*", tag="slow")
        def by_task(self, run):
            asked.add((run.task_func.name, run.task_func.tags))

        @hookimpl
        @when(error="shop.errors.NoPrice")
        def task_executor_run_task_trigger_error(self, e):
            asked.add(type(e.cause).__mro__[0].__name__)

    assert "" == findings(Filtered, "odd_exceptions_do_no_harm")
    assert ("price_", ("slow",)) in asked
    assert {"NoPrice", "OddNoPrice"} <= asked


def test_retries_of_a_plugin_do_not_make_its_contract_wait():
    """Delays are left out, and endless retries are bounded."""
    begin = time.monotonic()

    assert "" == findings(answering(Retry(delay=900, limit=900)), "odd_exceptions_do_no_harm")
    assert time.monotonic() - begin < 60


def test_clearer_errors_are_no_change():
    """``Raise`` is the way to change what the caller gets."""
    better = trigger(lambda e: Raise(ValueError("clearer")))

    assert all("" == findings(better, one.removeprefix("test_")) for one in CHECKS)


def test_arguments_are_given_by_the_class():
    """For plugins that look at the arguments of their tasks."""
    looks = trigger(lambda task_executor: task_executor.args[0] and None)

    assert "" == findings(looks, "odd_exceptions_do_no_harm", args=("tea",))


def test_a_class_without_a_plugin_is_refused_when_it_is_made():
    """Before any test runs, and the error says what to write."""
    with pytest.raises(TypeError, match=r"TestMine\(PluginContract\) has no plugin; write plugin"):
        type("TestMine", (PluginContract,), {})


def test_a_function_in_the_class_is_not_bound():
    """A factory is given as it is."""

    def make():
        return answering(1)

    assert "" == findings(make, "its_answers_are_json")


class RateLimitedError(Exception):
    """An error that is made with more than a text."""

    def __init__(self, message, *, response):
        super().__init__(message)
        self.response = response


def test_what_an_error_s_own_constructor_sets_may_be_read():
    """The kit cannot call it, so an attribute that is missing is no finding; any other error is."""

    class Patient:
        name = "patient"

        @on_error(RateLimitedError)
        def wait(self, error):
            return Retry(delay=error.response["after"], limit=1)

    class Careless:
        name = "careless"

        @on_error(KeyError)
        def wait(self, error):
            return error.response

    class Good(PluginContract):
        plugin = Patient

    class Bad(PluginContract):
        plugin = Careless

    for name in CHECKS:
        getattr(Good(), name)()
    with pytest.raises(ContractError, match="'KeyError' object has no attribute 'response'"):
        Bad().test_odd_exceptions_do_no_harm()
