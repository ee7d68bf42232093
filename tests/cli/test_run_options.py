"""What ``run --each`` can be asked for: to stop, to go on, to be silent, to be read by a script."""

from __future__ import annotations

import json
import os
import re
import subprocess
import threading
from pathlib import Path

import pytest

from tests.cli.conftest import COMMAND

FLAKY = """
    from pathlib import Path
    from qtasks_pluggy import QueueTasks

    app = QueueTasks("flaky", discover=False)

    @app.task
    def flip(how):
        if how == "bad" and not Path("fixed").exists():
            raise ValueError(how)
"""
APP = """
    import asyncio
    import os
    import subprocess
    import sys
    import threading
    import time
    from qtasks_hookspecs import Raise, blocking, hookimpl
    from qtasks_pluggy import QueueTasks

    print("the app prints when it is imported")

    class Broken:
        name = "broken"

        @hookimpl
        def task_executor_run_task_trigger_error(self):
            raise RuntimeError("a bug")

    class Slow:
        name = "slow"

        @hookimpl
        async def task_executor_run_task_trigger_error(self):
            await asyncio.Event().wait()

    settings = {"timeout": 0.01, "quarantine_after": 2}
    app = QueueTasks("shop", discover=False)
    plugins = [Broken(), Slow()]
    watched = QueueTasks(
        "watched", plugins=plugins, discover=False, intercept=Exception, settings=settings
    )

    @app.task
    def odd(n):
        if n % 2:
            raise ValueError("odd")
        return n

    @app.task
    def chatty(n):
        print(f"printed {n}\\n", end="")
        os.write(1, b"written\\n")
        subprocess.run([sys.executable, "-c", "print('by a child')"], check=True)
        return n

    release = threading.Event()

    @app.task
    def waits(n):
        if n:
            release.wait()
        return n

    @app.task
    async def waits_async(n):
        if n:
            await asyncio.Event().wait()
        return n

    @watched.task
    def fail(n):
        raise ValueError(n)
"""


@pytest.fixture(autouse=True)
def _app(workplace):
    workplace.write("shop.py", APP)


def test_a_batch_stops_after_so_many_failures(workplace):
    """``--max-failures`` begins no further run, says so, and is exit code 1."""
    workplace.records([[1]] * 50)

    given = ("-i", "in.jsonl", "-c", "1", "--max-failures", "3", "--json")
    result = workplace.run("run", "shop", "odd", *given)
    found = json.loads(result.stdout)

    assert (1, {"ValueError": 3}) == (result.exit_code, found["failed"])
    assert "stopped after 3 failed runs" in found["trouble"]
    assert "Error: stopped after 3 failed runs, as --max-failures says" in result.stderr


def test_a_batch_that_stops_waits_for_no_further_input(workplace):
    """Whoever writes the records may keep the pipe open: the summary is whole all the same."""
    given = ("--each", "-", "--max-failures", "1", "--json")
    process = workplace.spawn("run", "shop", "odd", *given)
    process.stdin.write(b"[2]\n[1]\n")
    process.stdin.flush()

    assert process.wait(60) == 1
    found = json.loads(process.stdout.read())
    assert (1, {"ValueError": 1}) == (found["succeeded"], found["failed"])


@pytest.mark.parametrize(
    ("task", "engine"),
    [
        ("waits", ()),
        ("waits_async", ()),
        ("waits_async", ("--engine", "memory://?grace=0.1")),
    ],
)
def test_a_run_that_takes_too_long_fails_and_the_others_go_on(workplace, task, engine):
    """``--timeout`` is for each run; a thread that is left behind takes no other run's room."""
    workplace.records([[1], [1], [0], [0], [0]])

    given = ("-i", "in.jsonl", "-o", "out.jsonl", "-c", "2", "--timeout", "0.5", *engine)
    code, out, _ = workplace.finish("run", "shop", task, *given)
    lines = {one["line"]: one for one in workplace.lines()}

    assert code == 1
    assert ["failed"] * 2 + ["succeeded"] * 3 == [lines[n]["status"] for n in range(1, 6)]
    assert "TimeoutError: it took longer than 0.5 s" == lines[1]["error"]
    assert re.search("failed +2 +TimeoutError", out)


def test_a_single_run_that_takes_too_long_fails(workplace):
    """The process ends though the function does not."""
    code, out, err = workplace.finish("run", "shop", "waits", "1", "--timeout", "0.3", "-q")

    assert (1, "the app prints when it is imported\n") == (code, out)
    assert err.startswith("Error: task 'waits' failed: TimeoutError: it took longer than 0.3 s")


def test_resume_does_what_is_missing_and_no_more(workplace):
    """Records that the output has by line and input are skipped; others are added to it."""
    each = ("run", "shop", "odd", "-i", workplace.records([[2], [4], [6]]))
    workplace.run(*each, "--resume", "out.jsonl")
    first = (workplace.folder / "out.jsonl").read_bytes()
    assert [1, 2, 3] == sorted(line["line"] for line in workplace.lines())

    # One line was never written whole, one record is another now, one is new.
    whole = first.splitlines(keepends=True)
    (workplace.folder / "out.jsonl").write_bytes(b"".join(whole[:2]) + whole[2][:10])
    second = [json.loads(line)["line"] for line in whole[:2]]
    records = [[2], [4], [6], [8]]
    records[second[0] - 1] = [10]
    workplace.records(records)
    result = workplace.run(*each, "--resume", "out.jsonl", "--json")
    found = json.loads(result.stdout)

    assert (0, 1, 3) == (result.exit_code, found["skipped"], found["succeeded"])
    assert whole[:2] == (workplace.folder / "out.jsonl").read_bytes().splitlines(keepends=True)[:2]
    assert 5 == len(workplace.lines())
    assert re.search(r"skipped +4 ", workplace.run(*each, "--resume", "out.jsonl").stdout)


def test_resume_runs_failed_records_again_if_asked_to(workplace):
    """Without --retry-failed they are skipped and counted; a good retry counts from then on."""
    records = workplace.records([["ok"], ["bad"], "no record"])
    each = ("run", "flaky", "flip", "-i", records, "--resume", "out.jsonl")
    workplace.write("flaky.py", FLAKY)
    workplace.run(*each)
    skipped = workplace.run(*each)
    assert "already in the output, 2 of them failed; --retry-failed" in skipped.stdout
    workplace.write("fixed", "")

    again = workplace.run(*each, "--retry-failed", "--json")
    then = workplace.run(*each, "--retry-failed", "--json")

    # What is no record fails each time.
    assert [(1, 1, 2), (1, 2, 1)] == [
        (one.exit_code, found["skipped"], found["runs"])
        for one in (again, then)
        for found in [json.loads(one.stdout)]
    ]
    assert [1, 2, 2, 3, 3, 3] == sorted(line["line"] for line in workplace.lines())


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("nonsense\n", "--resume out.jsonl: line 1 was not written by --out"),
        ('{"line": 1}\n', "--resume out.jsonl: line 1 was not written by --out"),
        ("[]\n", "--resume out.jsonl: line 1 was not written by --out"),
    ],
)
def test_what_is_no_output_is_not_resumed(workplace, content, said):
    """Exit code 2, and the file stays as it is."""
    path = workplace.write("out.jsonl", content)

    each = ("-i", workplace.records([[2]]), "--resume", "out.jsonl")
    result = workplace.run("run", "shop", "odd", *each)

    assert (2, content) == (result.exit_code, path.read_text("utf-8"))
    assert said in result.stderr


def test_only_a_file_can_be_resumed(workplace):
    """Nobody knows what a pipe had before."""
    each = ("-i", workplace.records([[2]]), "--resume", "-")

    assert "only a file can be resumed" in workplace.run("run", "shop", "odd", *each).stderr


@pytest.mark.parametrize("many", [True, False])
def test_json_is_all_that_standard_output_has(workplace, many):
    """What the app, its tasks and their processes print goes to standard error."""
    each = ("-i", workplace.records([[2], [4]])) if many else ("2",)

    code, out, err = workplace.finish("run", "shop", "chatty", *each, "--json")
    found = json.loads(out)

    assert (0, 2) == (code, found["succeeded"] if many else found["result"])
    for text in ("the app prints", "printed 2", "written", "by a child"):
        assert text in err


def test_output_lines_are_all_that_standard_output_has(workplace):
    """The same for ``--out -``: each line is JSON, and the summary goes to standard error."""
    each = ("-i", workplace.records([[2], [4]]), "-o", "-")

    code, out, err = workplace.finish("run", "shop", "chatty", *each)

    assert (0, {2, 4}) == (code, {json.loads(line)["result"] for line in out.splitlines()})
    assert "chatty: 2 runs in" in err


@pytest.mark.parametrize("command", ["plugins", "doctor"])
def test_the_json_of_other_commands_is_as_clean(workplace, command):
    """What an app prints when it is imported is no part of it."""
    _, out, err = workplace.finish(command, "shop", "--json")

    json.loads(out)
    assert "the app prints" in err


def test_the_summary_tells_which_plugins_failed(workplace):
    """How often each failed, was cut off or was not asked, and whether it is in quarantine."""
    each = ("run", "shop:watched", "fail", "-i", workplace.records([[n] for n in range(5)]))
    each = (*each, "-c", "1")

    found = json.loads(workplace.run(*each, "--json").stdout)
    rows = {one["plugin"]: one for one in found["plugins"]}
    table = workplace.finish(*each)[1].partition("\n\nplugin")[2]

    trigger = "task_executor_run_task_trigger_error"
    assert (2, 0, 3, [trigger]) == tuple(
        rows["broken"][key] for key in ("failed", "cut_off", "not_asked", "quarantined")
    )
    assert (0, 2, 3, [trigger]) == tuple(
        rows["slow"][key] for key in ("failed", "cut_off", "not_asked", "quarantined")
    )
    assert re.search("broken +2 +0 +now, 3 times not asked", table)
    assert re.search("slow +0 +2 +now, 3 times not asked", table)


def test_quiet_shows_results_and_errors_alone(workplace):
    """Neither a table nor who decided; a failed run is one line."""
    each = ("run", "shop", "odd", "-q")

    good = workplace.run(*each, "2")
    bad = workplace.run(*each, "1")
    many = workplace.run(*each, "-i", workplace.records([[2]]))

    assert ("2\n", "") == (good.stdout.splitlines(keepends=True)[-1], good.stderr)
    assert 1 == len(bad.stderr.splitlines())
    assert (0, "") == (many.exit_code, many.stdout)


@pytest.mark.parametrize("form", ["json", "csv"])
def test_format_says_what_standard_input_is(workplace, form):
    """Without a name to tell by, it is JSON lines unless that is given."""
    given = {"json": '[{"n": 2}, [4]]', "csv": "n\n2\n4\n"}[form]
    args = ("run", "shop", "odd", "-i", "-", "-o", "out.jsonl", "--format", form, "--json-cells")

    code, _, err = workplace.finish(*args, given=given)

    assert code == 0, err
    assert {2, 4} == {line["result"] for line in workplace.lines()}


def test_the_name_says_what_a_file_is(workplace):
    """``.json`` is an array."""
    workplace.write("in.JSON", "[[2],\n[4]]")

    assert workplace.run("run", "shop", "odd", "-i", "in.JSON").exit_code == 0


def test_a_pipe_that_somebody_reads_is_an_output(workplace):
    """It is opened once there is a reader, and written to the end."""
    fifo = workplace.folder / "fifo"
    os.mkfifo(fifo)
    read = []
    reader = threading.Thread(target=lambda: read.append(fifo.read_text("utf-8")))
    process = workplace.spawn("run", "shop", "odd", "-i", workplace.records([[2]]), "-o", "fifo")
    reader.start()

    assert process.wait(60) == 0
    reader.join(60)
    assert 2 == json.loads(read[0])["result"]


@pytest.mark.parametrize("link", [os.link, os.symlink])
def test_the_input_by_another_name_is_no_output(workplace, link):
    """A link to it is refused, and so is standard input that comes from it."""
    link(workplace.records([[2]]), workplace.folder / "other")
    before = (workplace.folder / "in.jsonl").read_bytes()

    assert workplace.run("run", "shop", "odd", "-i", "in.jsonl", "-o", "other").exit_code == 2
    with (workplace.folder / "in.jsonl").open("rb") as given:
        code, _, err = workplace.finish("run", "shop", "odd", "-i", "-", "-o", "other", stdin=given)

    assert code == 2
    assert "is the input file" in err
    assert before == (workplace.folder / "in.jsonl").read_bytes()


@pytest.mark.parametrize("more", [(), ("--json",), ("-o", "out.jsonl")])
def test_standard_output_that_is_closed_does_no_harm(workplace, more):
    """The runs are done, and nothing is written into the wrong file."""
    closed = ("/bin/sh", "-c", 'exec "$@" >&-', "sh", *COMMAND)
    each = ("run", "shop", "chatty", "-i", workplace.records([[2]]), *more)

    done = subprocess.run([*closed, *each], stderr=subprocess.PIPE, check=False, text=True)

    assert "Traceback" not in done.stderr
    if "-o" in more:
        assert [2] == [line["result"] for line in workplace.lines()]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device here that is always full")
@pytest.mark.parametrize(
    "args",
    [
        ("run", "shop", "odd", "2"),
        ("run", "shop", "odd", "-i", "in.jsonl"),
        ("run", "shop", "odd", "-i", "in.jsonl", "--json"),
        ("doctor", "shop"),
        ("plugins", "shop", "--json"),
    ],
)
def test_standard_output_that_is_full_is_one_error(workplace, args):
    """Exit code 1, and no traceback."""
    workplace.records([[2]])
    # Where print does not buffer, it is the first to fail.
    workplace.write("shop.py", APP.replace("print(", "repr("))

    with Path("/dev/full").open("wb") as full:
        code, _, err = workplace.finish(*args, stdout=full)

    assert code == 1
    assert err.endswith("Error: the output cannot be written: No space left on device\n")
    assert "Traceback" not in err
