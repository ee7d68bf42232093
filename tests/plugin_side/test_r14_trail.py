"""R14: the trail of a run, its short form, and what is logged of it."""

from __future__ import annotations

import logging
import subprocess
import sys
import textwrap
from typing import Any

import pytest
import structlog

from qtasks_hookspecs import Replace, Retry, TaskFunc
from qtasks_pluggy import PluginManager, TaskExecutor, Trail, TrailRecord, _log
from qtasks_pluggy.exc import TaskPluginTriggerError
from tests.runs import answering, both_ways, failing, plugin

TRIGGER = "task_executor_run_task_trigger_error"
SECRET = "s3cr3t"  # noqa: S105  # a word to look for in the logs


def failing_run(*plugins: Any, **settings: Any) -> TaskExecutor:
    """Make a run that fails, with these plugins, and an argument that nobody may log."""
    func = TaskFunc("sells", failing("function", TaskPluginTriggerError("no", token=SECRET)))
    manager = PluginManager(plugins, settings=settings)
    return TaskExecutor(func, args=(SECRET,), kwargs={"key": SECRET}, plugins=manager)


def breaks() -> None:
    """Fail."""
    raise ValueError("a bug")


@both_ways
def test_r14_records_tell_who_was_asked_and_what_each_answered(run):
    """A record for each hookimpl, in order, with all that is known of it."""
    broken = plugin("broken", **{TRIGGER: breaks})
    run_of = failing_run(
        answering(None, "shy"), answering(5, "value"), broken, answering(Replace(6), "last")
    )

    assert 6 == run(run_of)
    trail = run_of.trail

    assert isinstance(trail, Trail)
    assert all(isinstance(record, TrailRecord) for record in trail)
    assert [
        ("shy", "no_opinion", None, False),
        ("value", "answered", "value", False),
        ("broken", "raised", "ValueError", False),
        ("last", "answered", "Replace", True),
    ] == [(one.plugin, one.status, one.kind, one.won) for one in trail]
    assert {(TRIGGER, 1, None, None, False)} == {
        (one.hook, one.attempt, one.distribution, one.version, one.observed) for one in trail
    }
    assert all(0 <= one.seconds < 1 for one in trail)


@both_ways
def test_r14_attempts_are_told_apart(run):
    """Each attempt has its own records, and its own winner."""
    run_of = failing_run(answering(Retry(limit=1), "again"))

    with pytest.raises(TaskPluginTriggerError):
        run(run_of)

    assert [(1, "answered", True), (2, "no_opinion", False)] == [
        (one.attempt, one.status, one.won) for one in run_of.trail
    ]


def test_r14_a_trail_is_a_sequence():
    """Indices, slices, length, iteration and equality work."""
    run_of = failing_run(answering(1, "a"), answering(2, "b"))
    run_of.execute_sync()
    trail = run_of.trail

    assert 2 == len(trail)
    assert trail[1].plugin == "b"
    assert trail[:1] == Trail([trail[0]])
    assert trail == run_of.trail
    assert hash(trail) == hash(run_of.trail)
    assert trail != [*trail]


def test_r14_a_trail_reads_well():
    """``str()`` has a line for each call of a hook and one for each hookimpl below it."""
    run_of = failing_run(answering(None, "shy"), answering(1, "helpful"))
    run_of.execute_sync()

    head, first, second = str(run_of.trail).splitlines()

    assert f"{TRIGGER}, attempt 1" == head
    assert first.startswith("  plugin 'shy'      no opinion")
    assert second.startswith("  plugin 'helpful'  answered value")
    assert second.endswith("ms  won")
    assert "no plugin was asked" == str(TaskExecutor(len).trail)


@both_ways
def test_r14_the_error_has_the_trail_in_one_note(run):
    """An error that goes on tells in one note who was asked and what each said."""
    run_of = failing_run(answering(None, "shy"), plugin("broken", **{TRIGGER: breaks}))

    with pytest.raises(TaskPluginTriggerError) as raised:
        run(run_of)

    (note,) = raised.value.__notes__
    assert note.endswith("plugin 'shy' no opinion; plugin 'broken' raised ValueError")


@both_ways
def test_r14_one_event_a_dispatch_at_debug_level(run):
    """``task_error_dispatched`` tells task, run, attempt, error, winner and trail, not values."""
    with structlog.testing.capture_logs() as events:
        run(failing_run(answering(SECRET, "helpful")))

    decided, event = events
    assert ("task_error_decided", "info") == (decided["event"], decided["log_level"])
    assert ("task_error_dispatched", "debug") == (event["event"], event["log_level"])
    assert ("sells", 1, "helpful") == (event["task"], event["attempt"], event["won"])
    assert ["helpful"] == [record["plugin"] for record in event["trail"]]
    assert SECRET not in repr(events)


@both_ways
def test_r14_no_event_where_nobody_listens(run):
    """The events are not built unless their levels are on."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    try:
        run_of = failing_run(answering(1))
        run(run_of)
        assert run_of._message is not None  # the hook was given it
        assert run_of._message._uuid is None  # and nobody read its id
    finally:
        structlog.reset_defaults()


@both_ways
def test_r14_values_are_logged_when_the_operator_asks(run):
    """``log_values`` adds arguments and answer, even those that cannot be shown."""

    class Awkward:
        def __repr__(self) -> str:
            raise RuntimeError

    with structlog.testing.capture_logs() as events:
        run(failing_run(answering(SECRET), log_values=True))
        run(failing_run(answering(Awkward()), log_values=True))
    events = [event for event in events if event["event"] == "task_error_dispatched"]

    assert all(SECRET in event["args"] and SECRET in event["kwargs"] for event in events)
    assert SECRET in events[0]["answer"]
    assert "its __repr__ raised RuntimeError" in events[1]["answer"]


@both_ways
def test_r14_each_decision_is_one_event_at_info_level(run):
    """``task_error_decided`` says what a plugin decided about which error; observed ones too."""
    first, second = answering(1, "first"), answering(Replace(SECRET), "second")

    with structlog.testing.capture_logs() as events:
        run(failing_run(first, second, answering(3, "trial"), observe=["trial"]))
        with pytest.raises(TaskPluginTriggerError):
            run(failing_run(plugin("mute", **{TRIGGER: lambda: None})))
    decided = [event for event in events if event["event"] == "task_error_decided"]

    assert [("second", "Replace", False), ("trial", "value", True)] == [
        (event["plugin"], event["decision"], event["observed"]) for event in decided
    ]
    assert {("sells", 1, "TaskPluginTriggerError", "info")} == {
        (event["task"], event["attempt"], event["error"], event["log_level"]) for event in decided
    }
    assert all(event["uuid"] and event["handler"] for event in decided)
    assert SECRET not in repr(decided)


PROGRAM = """
import logging, sys
import structlog
from types import SimpleNamespace
from qtasks_hookspecs import hookimpl
from qtasks_hookspecs.exc import TaskPluginTriggerError
from qtasks_pluggy import TaskExecutor

{configure}

@hookimpl
def task_executor_run_task_trigger_error():
    raise ValueError("a bug")

def sells():
    raise TaskPluginTriggerError("no")

broken = SimpleNamespace(
    name="broken", task_executor_run_task_trigger_error=task_executor_run_task_trigger_error
)
try:
    TaskExecutor(sells, plugins=[broken]).execute_sync()
except TaskPluginTriggerError:
    pass
"""


def output(configure: str) -> subprocess.CompletedProcess[str]:
    """Run a program that configures its logging in some way."""
    return subprocess.run(
        [sys.executable, "-c", PROGRAM.format(configure=textwrap.dedent(configure))],
        capture_output=True,
        check=True,
        text=True,
        timeout=60,
    )


def test_r14_without_configuration_warnings_and_worse_go_to_stderr():
    """Until the host configures logging, a failure is seen on stderr, and nothing on stdout."""
    done = output("")

    assert "" == done.stdout
    assert "plugin_failed" in done.stderr
    assert "plugin='broken'" in done.stderr
    assert "task_error_dispatched" not in done.stderr


def test_r14_a_host_that_configures_structlog_gets_the_events():
    """A host's structlog pipeline gets every event, with its keys."""
    done = output(
        """
        structlog.configure(
            processors=[structlog.processors.format_exc_info, structlog.processors.JSONRenderer()],
            logger_factory=structlog.PrintLoggerFactory(sys.stdout),
        )
        """
    )

    assert "" == done.stderr
    assert '"event": "plugin_failed"' in done.stdout
    assert '"event": "task_error_dispatched"' in done.stdout


def test_r14_a_host_that_configures_logging_gets_the_events():
    """A host's logging gets the events as texts, by its own levels."""
    done = output('logging.basicConfig(stream=sys.stdout, format="%(levelname)s %(message)s")')

    assert "" == done.stderr
    assert done.stdout.startswith("ERROR plugin_failed plugin='broken'")
    assert "Traceback" in done.stdout
    assert "task_error_dispatched" not in done.stdout


def test_r14_levels_are_asked_again_when_structlog_is_configured_anew():
    """What a level check remembers holds until the configuration changes, and no longer."""
    before = structlog.get_config()
    configured = structlog.is_configured()
    found = []
    try:
        for level in (logging.DEBUG, logging.INFO, logging.WARNING, logging.DEBUG):
            structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(level))
            found += [(_log.debug_enabled(), _log.info_enabled())] * 2
        structlog.configure(wrapper_class=structlog.BoundLogger)
        found.append((_log.debug_enabled(), _log.info_enabled()))
    finally:
        structlog.configure(**before)
        if not configured:
            structlog.reset_defaults()

    everything, info, nothing = (True, True), (False, True), (False, False)
    expected = [everything, info, nothing, everything]
    assert [one for one in expected for _ in range(2)] + [everything] == found


def test_r14_levels_of_logging_are_those_of_the_moment():
    """Without structlog configured, ``logging`` says what is shown, as for any library."""
    logger = logging.getLogger("qtasks_pluggy")
    before = logger.level
    try:
        logger.setLevel(logging.INFO)
        assert (False, True) == (_log.debug_enabled(), _log.info_enabled())
        logger.setLevel(logging.ERROR)
        assert (False, False) == (_log.debug_enabled(), _log.info_enabled())
    finally:
        logger.setLevel(before)
