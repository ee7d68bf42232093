"""``run`` without ``--each``: one run, in this very process."""

from __future__ import annotations

import json

import pytest

APP = """
    import asyncio
    import sys
    from qtasks_hookspecs import Cancel, DeadLetter, Raise, Replace, Retry, hookimpl
    from qtasks_pluggy import QueueTasks

    class Plugin:
        name = "helper"

        @hookimpl
        def task_executor_run_task_trigger_error(self, e):
            answer = e.kwargs.get("answer")
            return eval(answer) if answer else None

    app = QueueTasks("shop", plugins=[Plugin()], discover=False)

    @app.task
    def echo(*args, **kwargs):
        return [args, kwargs]

    @app.task
    async def echo_async(*args, **kwargs):
        await asyncio.sleep(0)
        return [args, kwargs]

    @app.task(echo=True)
    def ask(self, answer=None):
        self.ctx.plugin_error("no price", answer=answer)

    @app.task(echo=True)
    async def ask_async(self, answer=None):
        self.ctx.plugin_error("no price", answer=answer)

    @app.task(echo=True)
    def later(self):
        if self.ctx.attempt == 1:
            self.ctx.plugin_error(answer="Retry()")
        return self.ctx.attempt

    @app.task
    def give_up():
        sys.exit("enough")

    @app.task
    def divide(by):
        return 1 / by

    @app.task(echo=True)
    def stop_it(self):
        self.ctx.cancel("not today")

    @app.task
    def odd(what):
        class Broken(dict):
            def items(self):
                raise OSError("no items")
        class Mute:
            def __repr__(self):
                raise RuntimeError
        return {
            "set": {1},
            "inside": {"a": [frozenset()]},
            "nan": float("nan"),
            "key": {(1, 2): 3},
            "mute": Mute(),
            "broken": Broken(a=1),
            "huge": 10 ** 5000,
            "surrogate": "\\udc80",
        }[what]

    @app.task
    def endless():
        found = []
        found.append(found)
        return found

    class BadText(Exception):
        def __str__(self):
            raise RuntimeError

    @app.task
    def bad_text():
        raise BadText
"""


@pytest.fixture(autouse=True)
def _app(workplace):
    workplace.write("shop.py", APP)


def record(workplace, *args):
    """Run with ``--json``; return the exit code and the record."""
    result = workplace.run("run", "shop", *args, "--json")
    return result.exit_code, json.loads(result.stdout)


@pytest.mark.parametrize("task", ["echo", "echo_async"])
def test_arguments_reach_the_task_and_its_result_is_printed(workplace, task):
    """JSON, else text; ``key=value`` is a keyword; the result is JSON in one line on a pipe."""
    result = workplace.run("run", "shop", task, "1", "text", "x=[true]", "--", "-5")

    assert result.exit_code == 0, result.stderr
    assert '[[1, "text", -5], {"x": [true]}]\n' == result.stdout
    assert result.stderr == ""


@pytest.mark.parametrize("task", ["ask", "ask_async"])
def test_a_recovered_run_prints_the_plugins_result_and_names_it(workplace, task):
    """The result alone is on standard output; who decided is on standard error."""
    result = workplace.run("run", "shop", task, "answer=Replace([0])")

    assert (0, "[0]\n") == (result.exit_code, result.stdout)
    assert "recovered by plugin 'helper'\n" == result.stderr


def test_a_run_that_succeeds_after_a_retry_names_who_asked_for_it(workplace):
    """The last decision is what recovered it."""
    code, found = record(workplace, "later")

    assert (0, 2, "helper") == (code, found["result"], found["plugin"])


@pytest.mark.parametrize("task", ["ask", "ask_async"])
def test_a_failed_run_shows_the_error_from_the_tasks_own_code_on(workplace, task):
    """Exit code 1; a traceback without our frames, who was asked, and the error in one line."""
    result = workplace.run("run", "shop", task)

    assert (1, "") == (result.exit_code, result.stdout)
    assert 'self.ctx.plugin_error("no price", answer=answer)' in result.stderr
    assert "_executor.py" not in result.stderr
    assert "asyncio" not in result.stderr
    assert "plugin 'helper'  no opinion" in result.stderr
    assert f"Error: task '{task}' failed: TaskPluginTriggerError: no price" in result.stderr


@pytest.mark.parametrize("task", ["ask", "ask_async"])
@pytest.mark.parametrize(
    ("answer", "status", "error", "plugin"),
    [
        ("Raise(LookupError('none'))", "failed", "LookupError: none", "helper"),
        ("Cancel('late')", "cancelled", "TaskCancelError: late", "helper"),
        ("DeadLetter('odd')", "dead_lettered", "TaskDeadLetteredError: odd", "helper"),
        ("Retry(limit=2)", "failed", "TaskPluginTriggerError: no price", None),
    ],
)
def test_json_tells_how_a_run_ended_and_who_decided(workplace, task, answer, status, error, plugin):
    """The fields are those of an output line; a run without a result is exit code 1."""
    code, found = record(workplace, task, f"answer={answer}")

    assert code == 1
    assert found.pop("uuid")
    assert {
        "line": None,
        "status": status,
        "result": None,
        "plugin": plugin,
        "error": error,
    } == found


def test_a_cancelled_run_is_a_run_without_a_result(workplace):
    """Cancelled on purpose or not: exit code 1, and its status is told."""
    result = workplace.run("run", "shop", "stop_it")

    assert result.exit_code == 1
    assert "Error: task 'stop_it' cancelled: TaskCancelError: not today" in result.stderr


@pytest.mark.parametrize(
    ("args", "error"),
    [
        (["give_up"], "SystemExit: enough"),
        (["divide", "0"], "ZeroDivisionError: division by zero"),
        (["divide"], "TypeError: divide() missing 1 required positional argument: 'by'"),
        (["bad_text"], "BadText: (no text: its __str__ raised RuntimeError)"),
    ],
)
def test_any_other_error_of_a_task_fails_the_run_and_nothing_else(workplace, args, error):
    """Even ``sys.exit()`` is the run's own end, and exit code 1."""
    code, found = record(workplace, *args)
    result = workplace.run("run", "shop", *args)

    assert (1, "failed", error) == (code, found["status"], found["error"])
    assert result.exit_code == 1
    assert f"failed: {error}" in result.stderr


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (
            ["odd", "set"],
            "which JSON cannot hold (Object of type set is not JSON serializable): {1};",
        ),
        (
            ["odd", "inside"],
            "of type dict, which JSON cannot hold (Object of type frozenset is not",
        ),
        (
            ["odd", "nan"],
            "of type float, which JSON cannot hold (Out of range float values are not",
        ),
        (
            ["odd", "key"],
            "of type dict, which JSON cannot hold (keys must be str, int, float, bool or None",
        ),
        (["odd", "mute"], "type Mute is not JSON serializable): <Mute instance at"),
        (["odd", "broken"], "of type odd.<locals>.Broken, which JSON cannot hold (no items)"),
        (
            ["odd", "huge"],
            "integer string conversion): (not shown: its __repr__ raised ValueError)",
        ),
        (["endless"], "of type list, which JSON cannot hold (Circular reference detected)"),
    ],
)
def test_a_result_that_json_cannot_hold_is_named(workplace, args, said):
    """The run has succeeded; the error names the type, and the exit code is 1."""
    code, found = record(workplace, *args)
    result = workplace.run("run", "shop", *args)

    assert (1, "succeeded", None) == (code, found["status"], found["result"])
    assert said in found["error"]
    assert (1, "") == (result.exit_code, result.stdout)
    assert f"Error: {found['error'][:60]}" in result.stderr


def test_a_result_that_is_no_text_anywhere_else_is_json(workplace):
    """What cannot be encoded is escaped."""
    assert workplace.run("run", "shop", "odd", "surrogate").stdout == '"\\udc80"\n'


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--concurrency", "2"], "--concurrency is for many runs; add --each FILE"),
        (["--out", "out.jsonl"], "--out is for many runs; add --each FILE"),
        (["1", "--each", "-"], "--each takes the arguments from its file; leave out ARGS"),
        (["--each", "-", "--concurrency", "0"], "0 is not in the range x>=1"),
        (["--each", "-", "--timeout", "nan"], "--timeout takes a number of seconds"),
        (["--each", "-", "--out", "a", "--resume", "a"], "--resume OUT writes to OUT; leave out"),
        (["--each", "-", "--retry-failed"], "--retry-failed goes with --resume OUT"),
        (["--resume", "a"], "--resume is for many runs; add --each FILE"),
        (["--max-failures", "1"], "--max-failures is for many runs"),
        (["--json-cells"], "--json-cells is for many runs"),
        (["--each", "in.jsonl"], "File 'in.jsonl' does not exist"),
        (["--nonsense"], "No such option"),
    ],
)
def test_options_that_do_not_belong_together_are_refused(workplace, args, said):
    """Exit code 2, before the app is imported."""
    workplace.write("shop.py", "raise AssertionError\n")

    result = workplace.run("run", "shop", "echo", *args)

    assert result.exit_code == 2
    assert said in result.stderr


@pytest.mark.parametrize("task", ["echo", "echo_async"])
@pytest.mark.parametrize("each", [(), ("--each", "in.jsonl")])
def test_an_app_that_cannot_start_is_an_error_of_its_own(workplace, task, each, monkeypatch):
    """Exit code 2 for settings and for plugins, and no run."""
    workplace.records([[1]])
    monkeypatch.setenv("QTASKS_PLUGGY_DISABEL", "helper")

    result = workplace.run("run", "shop", task, *each)

    assert (2, "") == (result.exit_code, result.stdout)
    assert "Error: app 'shop' cannot start: " in result.stderr
    assert "QTASKS_PLUGGY_DISABLE" in result.stderr


ENDS = """
    import asyncio
    from qtasks_hookspecs import hookimpl
    from qtasks_pluggy import QueueTasks

    class Ends:
        @hookimpl
        def {hook}(self):
            raise RuntimeError("a bug")

    app = QueueTasks("ends", plugins=[Ends()], discover=False, settings={{"strict": True}})

    @app.task
    def one(): return 1

    @app.task
    async def one_async(): return 1
"""
both_kinds = pytest.mark.parametrize("task", ["one", "one_async"])
both_ways = pytest.mark.parametrize("each", [(), ("--each", "in.jsonl")])


@both_kinds
@both_ways
def test_ctrl_c_while_the_app_starts_is_exit_code_130(workplace, task, each):
    """Nothing was run, and no traceback is shown."""
    source = ENDS.format(hook="qtasks_start")
    workplace.write("ends.py", source.replace('RuntimeError("a bug")', "KeyboardInterrupt"))
    workplace.records([[]])

    result = workplace.run("run", "ends", task, *each)

    assert result.exit_code == 130
    assert "Traceback" not in result.stderr
    assert "Interrupted" in result.stderr


@both_kinds
@both_ways
def test_a_plugin_that_fails_to_start_is_exit_code_2(workplace, task, each):
    """Nothing was run."""
    workplace.write("ends.py", ENDS.format(hook="qtasks_start"))
    workplace.records([[]])

    result = workplace.run("run", "ends", task, *each)

    assert (2, "") == (result.exit_code, result.stdout)
    assert "app 'ends' cannot start: plugin 'Ends' failed in hook 'qtasks_start'" in result.stderr


@both_kinds
@both_ways
def test_a_plugin_that_fails_to_stop_loses_no_result(workplace, task, each):
    """The result is told, then the error; exit code 1."""
    workplace.write("ends.py", ENDS.format(hook="qtasks_stop"))
    workplace.records([[]])

    result = workplace.run("run", "ends", task, *each)

    assert result.exit_code == 1
    assert "1" in result.stdout
    assert "app 'ends' did not stop cleanly: plugin 'Ends' failed" in result.stderr


@pytest.mark.parametrize("task", ["later", "echo_async"])
def test_an_engine_does_a_single_run_too(workplace, task):
    """``--engine`` submits the run, and does it in this process."""
    result = workplace.run("run", "shop", task, "--engine", "memory://", "--json")

    told = json.loads(result.stdout)
    assert 0 == result.exit_code
    assert {"later": 2, "echo_async": [[], {}]}[task] == told["result"]
    assert {"later": "helper", "echo_async": None}[task] == told["plugin"]


@pytest.mark.parametrize(
    ("url", "said"),
    [("memry://", "did you mean 'memory://'?"), ("memory://?size=0", "expected a whole number")],
)
def test_an_engine_that_is_none_is_exit_code_2(workplace, url, said):
    """A wrong URL runs nothing, and says what is meant."""
    result = workplace.run("run", "shop", "echo", "--engine", url)

    assert 2 == result.exit_code
    assert said in result.stderr


def test_without_the_option_an_app_s_own_engine_stays_out_of_it(workplace):
    """A run in place needs no engine, so none is started."""
    workplace.write("shop.py", APP.replace("discover=False", "discover=False, engine='memory://'"))
    result = workplace.run("run", "shop", "echo", "1")

    assert 0 == result.exit_code
    assert "memory_engine" not in result.stderr
