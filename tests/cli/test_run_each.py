"""``run --each``: one run for each record."""

from __future__ import annotations

import json
import threading

import pytest

from qtasks_pluggy import QueueTasks
from qtasks_pluggy.cli._each import Batch
from qtasks_pluggy.cli._records import Record

APP = """
    import asyncio
    import threading
    from qtasks_hookspecs import Cancel, DeadLetter, Raise, Replace, Retry, hookimpl
    from qtasks_pluggy import QueueTasks

    class Plugin:
        def __init__(self, name, kind):
            self.name = name
            self.kind = kind

        @hookimpl
        def task_executor_run_task_trigger_error(self, e):
            if self.kind == e.args[0] == "retry":
                return Retry(limit=2)
            if self.kind == e.args[0]:
                return {"zero": 0, "cancel": Cancel("late"), "dead": DeadLetter("odd")}[self.kind]

    kinds = ("zero", "retry", "cancel", "dead")
    app = QueueTasks(
        "shop",
        plugins=[Plugin(f"{kind}-plugin", kind) for kind in kinds],
        discover=False,
    )

    def body(ctx, what, until=0):
        if what == "odd":
            return {1}
        if what == "exit":
            raise SystemExit(3)
        if what == "bug":
            raise ValueError("a\\nbug")
        if what != "good" and ctx.attempt > until > 0:
            return "at last"
        if what != "good":
            ctx.plugin_error(what)
        return what

    @app.task(echo=True)
    def price(self, what, until=0):
        return body(self.ctx, what, until)

    @app.task(echo=True)
    async def price_async(self, what, until=0):
        await asyncio.sleep(0)
        return body(self.ctx, what, until)

    meeting = threading.Barrier(3)
    alone = threading.Lock()

    @app.task
    def meet():
        meeting.wait(30)

    waiting = []

    @app.task
    async def meet_async():
        waiting.append(asyncio.get_running_loop().create_future())
        if len(waiting) == 3:
            for one in waiting:
                one.set_result(None)
            waiting.clear()
        else:
            await waiting[-1]

    @app.task
    def by_yourself():
        assert alone.acquire(blocking=False)
        threading.Event().wait(0.001)
        alone.release()

    @app.task
    async def by_yourself_async():
        assert alone.acquire(blocking=False)
        await asyncio.sleep(0.001)
        alone.release()
"""
both_kinds = pytest.mark.parametrize("task", ["price", "price_async"])
on_huey = pytest.param(("--engine", "huey+sqlite:///runs.db"), marks=pytest.mark.engines)
every_engine = pytest.mark.parametrize(
    "engine", [(), ("--engine", "memory://"), on_huey], ids=["in place", "memory", "huey"]
)

RECORDS = [
    {"what": "good"},
    {"what": "zero"},
    {"what": "nobody"},
    {"what": "retry", "until": 2},
    {"what": "retry"},
    {"what": "cancel"},
    {"what": "dead"},
    {"what": "bug"},
    {"waht": "good"},
    {"what": "exit"},
    {"what": "odd"},
]
ENDS = {
    1: ("succeeded", "good", None, None),
    2: ("succeeded", 0, "zero-plugin", None),
    3: ("failed", None, None, "TaskPluginTriggerError: nobody"),
    4: ("succeeded", "at last", "retry-plugin", None),
    5: ("failed", None, None, "TaskPluginTriggerError: retry"),
    6: ("cancelled", None, "cancel-plugin", "TaskCancelError: late"),
    7: ("dead_lettered", None, "dead-plugin", "TaskDeadLetteredError: odd"),
    8: ("failed", None, None, "ValueError: a\nbug"),
}


@pytest.fixture(autouse=True)
def _app(workplace):
    workplace.write("shop.py", APP)


@every_engine
@both_kinds
def test_every_run_is_a_line_that_says_how_it_ended(workplace, task, engine):
    """Line, uuid, status, result, plugin (where it is known) and error, as in the app."""
    workplace.records(RECORDS)

    each = ("--each", "in.jsonl", "--out", "out.jsonl", *engine)
    result = workplace.run("run", "shop", task, *each)
    lines = {line["line"]: line for line in workplace.lines()}
    assert result.exit_code == 1, result.output
    assert len(lines) == len(RECORDS)
    assert all(
        list(line) == ["line", "uuid", "status", "result", "plugin", "error", "input"]
        for line in lines.values()
    )
    assert len({line["uuid"] for line in lines.values()}) == len(RECORDS)
    # What would end whoever waits for it, in another process, is told by another error.
    name = next((one for one in ("huey", "memory") if one in str(engine)), None)
    cut = "SystemExit: 3"
    if name:
        cut = f"EngineError: engine {name!r}: the task raised SystemExit: 3"
    ends = ENDS | {10: ("failed", None, None, cut)}
    if name == "huey":
        # What travels through a file is the result: who decided is what failures keeps.
        ends = {number: (*end[:2], None, end[3]) for number, end in ends.items()}
    assert ends == {
        number: tuple(lines[number][key] for key in ("status", "result", "plugin", "error"))
        for number in (*ENDS, 10)
    }
    assert "missing 1 required positional argument: 'what'" in lines[9]["error"] or (
        "unexpected keyword argument 'waht'" in lines[9]["error"]
    )


@both_kinds
def test_a_result_that_json_cannot_hold_keeps_its_status_and_names_its_type(workplace, task):
    """The run is not lost: its line is there, it counts as good, and the exit code is 1."""
    workplace.records([{"what": "odd"}])

    result = workplace.run("run", "shop", task, "--each", "in.jsonl", "--out", "out.jsonl")
    (line,) = workplace.lines()

    assert result.exit_code == 1
    assert ("succeeded", None) == (line["status"], line["result"])
    assert line["error"].startswith("the result is of type set, which JSON cannot hold")
    assert "succeeded       1" in result.stdout
    assert "set in line 1: the result is of type set" in result.stdout


@both_kinds
def test_the_closing_table_counts_and_names(workplace, task):
    """Good; recovered, and by which plugin; without a result, and by which error."""
    workplace.records([*RECORDS[:8], {"what": "good"}])

    result = workplace.run("run", "shop", task, "--each", "in.jsonl")
    table = result.stdout.partition("\noutcome")[2]
    rows = [" ".join(line.split()) for line in table.splitlines()[1:]]

    assert f"{task}: 9 runs in " in result.stdout
    assert ["succeeded 2", "recovered 1 zero-plugin", "retried 1 retry-plugin"] == rows[:3]
    assert rows[3].startswith("failed 2 TaskPluginTriggerError in line ")
    assert [
        "cancelled 1 cancel-plugin TaskCancelError in line 6: late",
        "dead-lettered 1 dead-plugin TaskDeadLetteredError in line 7: odd",
        "failed 1 ValueError in line 8: a bug",
    ] == sorted(rows[4:])


@both_kinds
def test_json_is_the_same_for_a_script(workplace, task):
    """One object; the counts are by plugin and by error."""
    workplace.records(RECORDS)

    result = workplace.run("run", "shop", task, "--each", "in.jsonl", "--out", "o", "--json")
    found = json.loads(result.stdout.splitlines()[-1])

    assert found.pop("seconds") >= 0
    assert {
        "task": task,
        "runs": 11,
        "skipped": 0,
        "succeeded": 2,
        "recovered": {"zero-plugin": 1},
        "retried": {"retry-plugin": 1},
        "failed": {"TaskPluginTriggerError": 2, "ValueError": 1, "TypeError": 1, "SystemExit": 1},
        "cancelled": {"TaskCancelError": 1},
        "dead_lettered": {"TaskDeadLetteredError": 1},
        "not_written": {"set": 1},
        "unfinished": [],
        "plugins": [],
        "signal": None,
        "trouble": None,
    } == found


def test_all_runs_with_a_result_are_exit_code_0(workplace):
    """Recovered is as good as good; a file without records is no failure."""
    workplace.records([{"what": "good"}, {"what": "zero"}])
    workplace.records([], "none.jsonl")

    assert workplace.run("run", "shop", "price", "--each", "in.jsonl").exit_code == 0
    result = workplace.run("run", "shop", "price", "--each", "none.jsonl")
    assert (0, True) == (result.exit_code, "price: 0 runs" in result.stdout)


@both_kinds
def test_a_bad_line_fails_alone(workplace, task):
    """What is no record has no uuid, names its problem, and the others go on."""
    workplace.write("in.jsonl", '{"what": "good"}\nnonsense\n{"what": "good"}\n{"what": ')

    result = workplace.run("run", "shop", task, "--each", "in.jsonl", "--out", "out.jsonl")
    lines = {line["line"]: line for line in workplace.lines()}

    assert result.exit_code == 1
    assert ["succeeded", "failed", "succeeded", "failed"] == [
        lines[number]["status"] for number in (1, 2, 3, 4)
    ]
    assert [None, None] == [lines[number]["uuid"] for number in (2, 4)]
    assert (
        "not a record: this line is not JSON: Expecting value (line 2, column 1)"
        == lines[2]["error"]
    )
    assert "and the file ends here: is it whole?" in lines[4]["error"]
    assert (
        "failed        2              not a record in line 2: this line is not JSON"
        in result.stdout
    )


def test_csv_is_read_by_its_name(workplace):
    """The header names the keywords."""
    workplace.write("in.csv", "what,until\nretry,1\nzero,0\n")

    result = workplace.run(
        "run", "shop", "price", "-i", "in.csv", "-o", "out.jsonl", "--json-cells"
    )

    assert result.exit_code == 0, result.output
    assert ["at last", 0] == [
        line["result"] for line in sorted(workplace.lines(), key=lambda line: line["line"])
    ]


@pytest.mark.parametrize("task", ["meet", "meet_async"])
def test_as_many_run_at_a_time_as_are_allowed(workplace, task):
    """Three that wait for each other all end: none of them has to wait for its turn."""
    workplace.records([[]] * 9)

    result = workplace.run("run", "shop", task, "--each", "in.jsonl", "--concurrency", "3")

    assert result.exit_code == 0, result.output


@pytest.mark.parametrize("task", ["by_yourself", "by_yourself_async"])
def test_no_more_run_at_a_time_than_are_allowed(workplace, task):
    """With a concurrency of one, each run is alone."""
    workplace.records([[]] * 20)

    result = workplace.run("run", "shop", task, "--each", "in.jsonl", "--concurrency", "1")

    assert result.exit_code == 0, result.output


def batch(task, records, *, take_down, may_wait):
    """Make a batch that tells nobody anything."""

    def hear(text):
        raise AssertionError(text)

    return Batch(task.app, task, records, take_down, hear, size=3, may_wait=lambda: may_wait)


may_wait = pytest.mark.parametrize("may_wait", [False, True])


@may_wait
@pytest.mark.parametrize("is_async", [False, True])
def test_records_are_read_as_there_is_room(is_async, may_wait):
    """However long the input, what is held at any moment is bounded by the concurrency."""
    app = QueueTasks("app", discover=False)
    ended, ahead = [], []

    def records():
        for number in range(1, 501):
            ahead.append(number - len(ended))
            yield Record(number, (number,))

    def plain(number):
        return number

    async def coroutine(number):
        return number

    task = app.task(coroutine if is_async else plain)
    batch(task, records(), take_down=ended.append, may_wait=may_wait).run()

    assert list(range(1, 501)) == sorted(run.result for run in ended)
    assert max(ahead) <= 2 * 3 + 1


@may_wait
@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), RuntimeError("a bug")])
def test_records_that_cannot_be_read_further_end_the_batch(error, may_wait):
    """The runs before are done; the trouble is told, whatever the error is."""
    app = QueueTasks("app", discover=False)
    ended = []

    def records():
        yield Record(1, ("a",))
        raise error

    made = batch(app.task(len), records(), take_down=ended.append, may_wait=may_wait)
    made.run()

    assert [1] == [run.result for run in ended]
    assert f"the records cannot be read further: {type(error).__name__}: {error}" == made.trouble


ENDS_OTHERS = """
    import asyncio
    from qtasks_pluggy import QueueTasks
    app = QueueTasks("ends", discover=False)

    @app.task
    async def stop(do):
        if do:
            asyncio.get_running_loop().stop()
        await asyncio.sleep(0)
        return do

    @app.task
    async def cancel_all(do):
        for one in asyncio.all_tasks() if do else ():
            one.cancel()
        await asyncio.Event().wait()
"""


def test_a_task_that_stops_the_event_loop_stops_no_other_run(workplace):
    """The batch goes on, and every run has its result."""
    workplace.write("ends.py", ENDS_OTHERS)
    records = workplace.records([[False], [True], [False], [True]])

    code, out, err = workplace.finish("run", "ends", "stop", "--each", records, "--json")

    assert (0, "") == (code, err)
    assert 4 == json.loads(out)["succeeded"]


def test_a_task_that_cancels_all_others_is_told_of_and_nothing_hangs(workplace):
    """The runs in flight are listed, and the trouble is said; exit code 1."""
    workplace.write("ends.py", ENDS_OTHERS)
    records = workplace.records([[False], [True]])

    code, out, err = workplace.finish("run", "ends", "cancel_all", "--each", records, "--json")
    found = json.loads(out)

    assert code == 1
    assert {1, 2} >= {one["line"] for one in found["unfinished"]} > set()
    assert f"Error: {found['trouble']}\n" == err
    assert "a task cancelled all runs" in err


def test_the_output_replaces_what_was_there_only_when_runs_begin(workplace):
    """A command that cannot begin leaves the old file as it was."""
    (workplace.folder / "out.jsonl").write_text("old\n" * 100, "utf-8")

    workplace.run("run", "shop", "price", "--each", "gone.jsonl", "--out", "out.jsonl")
    workplace.run("run", "shop", "prize", "--each", workplace.records([]), "--out", "out.jsonl")
    assert (workplace.folder / "out.jsonl").read_text("utf-8") == "old\n" * 100

    workplace.run("run", "shop", "price", "--each", "in.jsonl", "--out", "out.jsonl")
    assert workplace.lines() == []


@pytest.mark.parametrize(
    ("out", "said"),
    [
        ("in.jsonl", "in.jsonl is the input file"),
        ("nowhere/out", "nowhere/out cannot be written: No such file or directory"),
        (".", "File '.' is a directory"),
    ],
)
def test_an_output_that_cannot_be_is_refused(workplace, out, said):
    """Exit code 2, nothing run, and the input untouched."""
    workplace.records([{"what": "good"}])

    result = workplace.run("run", "shop", "price", "--each", "in.jsonl", "--out", out)

    assert (2, "") == (result.exit_code, result.stdout)
    assert said in result.stderr
    assert [{"what": "good"}] == workplace.lines("in.jsonl")


def test_no_thread_is_left_behind(workplace):
    """When the command has ended, so have its threads."""
    workplace.records([{"what": "good"}] * 20)
    before = set(threading.enumerate())

    for task in ("price", "price_async"):
        workplace.run("run", "shop", task, "--each", "in.jsonl")

    for thread in set(threading.enumerate()) - before:
        if thread.name.startswith("qtasks-pluggy-r"):
            thread.join(30)
            assert not thread.is_alive()
