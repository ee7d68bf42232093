"""Ctrl-C, pipes and disks that fail: real processes, real signals."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import COMMAND
from tests.engines.processes import wait_until

# A run says that it has begun, and goes on until it can read a line from the pipe of its number.
APP = """
    import asyncio
    import os
    from qtasks_hookspecs import hookimpl
    from qtasks_pluggy import QueueTasks

    def say(text):
        if "SAY_NOTHING" not in os.environ:
            os.write(1, f"{text}\\n".encode())

    class Plugin:
        @hookimpl
        def qtasks_stop(self):
            say("stopped")

    app = QueueTasks("holds", plugins=[Plugin()], discover=False)

    def wait(number):
        say(f"begun {number}")
        with open(f"pipe-{number}") as pipe:
            return pipe.read()

    @app.task
    def hold(number):
        return wait(number)

    @app.task
    async def hold_async(number):
        return await asyncio.to_thread(wait, number)

    @app.task
    async def never_listens(number):
        say(f"begun {number}")
        while True:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                pass

    @app.task
    def quick(number):
        say(f"begun {number}")
        return number
"""

SHORT_GRACE = (
    sys.executable,
    "-c",
    "from qtasks_pluggy.cli import _each, main;"
    " _each.GRACE_SECONDS = 0.3; _each.LEAVE_SECONDS = 0.3; main()",
)
both_kinds = pytest.mark.parametrize("task", ["hold", "hold_async"])


class Holding:
    """A command that runs tasks which wait, each for its own pipe."""

    def __init__(self, workplace, task, numbers, *, each="-", more=(), **options):
        workplace.write("holds.py", APP)
        self.workplace = workplace
        for number in numbers:
            os.mkfifo(workplace.folder / f"pipe-{number}")
        args = ("run", "holds", task, "--each", each, "--out", "out.jsonl", "--concurrency", "2")
        self.process = workplace.spawn(*args, *more, **options)
        self.give(*numbers)

    def give(self, *numbers):
        """Hand records over."""
        for number in numbers:
            self.process.stdin.write(b"[%d]\n" % number)
        self.process.stdin.flush()

    def begun(self, count):
        """Wait until so many runs have begun; return their numbers."""
        found = []
        while len(found) < count:
            line = self.process.stdout.readline()
            assert line.startswith(b"begun "), line
            found.append(int(line.split()[1]))
        return sorted(found)

    def press(self, key=signal.SIGINT):
        """Press Ctrl-C, or what else ends a process."""
        self.process.send_signal(key)

    def told(self):
        """Wait for the next line on standard error."""
        return self.process.stderr.readline().decode()

    def release(self, number):
        """Let a run end."""
        (self.workplace.folder / f"pipe-{number}").write_text(f"end of {number}", "utf-8")

    def end(self):
        """Wait for the end; return exit code, output and errors."""
        code = self.process.wait(60)
        return code, self.process.stdout.read().decode(), self.process.stderr.read().decode()


both_signals = pytest.mark.parametrize(
    ("task", "key", "word", "code"),
    [
        ("hold", signal.SIGINT, "Interrupted", 130),
        ("hold_async", signal.SIGTERM, "Terminated", 143),
    ],
)


@both_signals
def test_a_signal_lets_the_runs_in_flight_end(workplace, task, key, word, code):
    """No further record is begun, what was begun is written whole, and the exit code tells."""
    holding = Holding(workplace, task, [1, 2, 3, 4])
    assert [1, 2] == holding.begun(2)

    holding.press(key)
    assert f"{word}: waiting up to 10 seconds for 2 runs in flight" in holding.told()
    holding.release(1)
    holding.release(2)
    found, out, err = holding.end()

    assert (code, "") == (found, err)
    assert {"end of 1", "end of 2"} == {line["result"] for line in workplace.lines()}
    assert "2 runs in" in out
    assert f"then {word.lower()}" in out
    assert out.startswith("stopped\n")


@both_kinds
def test_a_second_ctrl_c_ends_at_once(workplace, task):
    """What was in flight is listed by line and id, and what was written is whole."""
    holding = Holding(workplace, task, [1, 2])
    holding.begun(2)
    holding.release(1)
    os.mkfifo(workplace.folder / "pipe-3")
    holding.give(3)
    assert [3] == holding.begun(1)

    holding.press()
    assert "2 runs in flight" in holding.told()
    holding.press()
    code, out, err = holding.end()

    assert (130, "") == (code, out)
    assert "Interrupted twice: these runs were left behind:\n" in err
    assert "  line 2, run " in err
    assert "  line 3, run " in err
    assert ["end of 1"] == [line["result"] for line in workplace.lines()]


@pytest.mark.parametrize("task", ["hold", "hold_async", "never_listens"])
def test_runs_that_do_not_end_are_listed_after_a_while(workplace, task):
    """One Ctrl-C is enough: a run that hangs cannot keep the command from ending."""
    holding = Holding(workplace, task, [1], program=SHORT_GRACE)
    holding.begun(1)

    holding.press()
    assert "waiting up to 0.3 seconds for 1 run in flight" in holding.told()
    code, out, err = holding.end()

    assert (130, "") == (code, err)
    assert "unfinished" in out
    assert "line 1 (" in out
    assert workplace.lines() == []
    assert task == "never_listens" or out.startswith("stopped\n")


@pytest.mark.parametrize(
    "url",
    ["memory://?grace=1000", pytest.param("huey+sqlite:///runs.db", marks=pytest.mark.engines)],
)
def test_runs_that_an_engine_waits_for_are_left_behind_too(workplace, url):
    """What does not end after Ctrl-C holds up nobody, however long its engine would wait for it."""
    holding = Holding(workplace, "hold", [1], program=SHORT_GRACE, more=("--engine", url))
    holding.begun(1)

    holding.press()
    code, out, _ = holding.end()

    assert 130 == code
    assert "unfinished     1" in out


def test_ctrl_c_while_nothing_runs_ends_the_command(workplace):
    """Waiting for input that never comes holds up nothing."""
    holding = Holding(workplace, "quick", [])
    holding.give(1)
    assert [1] == holding.begun(1)

    holding.press()
    code, out, _ = holding.end()

    assert code == 130
    assert "1 run in" in out
    assert [1] == [line["result"] for line in workplace.lines()]


def test_ctrl_c_that_wakes_nobody_is_heard(workplace):
    """A signal that comes just before the wait cuts no wait short, and ends the command too."""
    workplace.write(
        "marks.py",
        """
        import pathlib, threading, _thread
        from qtasks_pluggy import QueueTasks

        app = QueueTasks("marks", discover=False)

        def mark_the_signal():
            while not pathlib.Path("out.jsonl").read_text():
                pass
            # As the system does it, but for the wait of the main thread that it cuts short.
            _thread.interrupt_main()

        @app.task
        def quick():
            threading.Thread(target=mark_the_signal, daemon=True).start()
        """,
    )
    process = workplace.spawn("run", "marks", "quick", "--each", "-", "--out", "out.jsonl")
    process.stdin.write(b"[]\n")
    process.stdin.flush()

    assert 130 == process.wait(60)


@both_signals
def test_a_signal_in_a_single_run_ends_it(workplace, task, key, word, code):
    """The exit code tells, one word, no traceback; the app is stopped."""
    workplace.write("holds.py", APP.replace('with open(f"pipe-{number}")', "with open(0)"))
    process = workplace.spawn("run", "holds", task, "1")
    assert process.stdout.readline() == b"begun 1\n"

    process.send_signal(key)

    assert code == process.wait(60)
    assert process.stdout.read() == b"stopped\n"
    assert process.stderr.read() == f"{word}.\n".encode()


HANGS = """
    import os
    import time
    from qtasks_hookspecs import hookimpl
    from qtasks_pluggy import QueueTasks

    class Plugin:
        def _hang(self, hook):
            if os.environ["HANGS_IN"] == hook:
                os.write(1, b"begun 1\\n")
                time.sleep(3600)

        @hookimpl
        def qtasks_start(self):
            self._hang("start")

        @hookimpl
        def qtasks_stop(self):
            self._hang("stop")

    app = QueueTasks("hangs", plugins=[Plugin()], discover=False)

    @app.task
    async def block():
        Plugin()._hang("task")
"""


@pytest.mark.parametrize("where", ["start", "task", "stop"])
@pytest.mark.parametrize("presses", [1, 2])
@pytest.mark.parametrize("many", [True, False])
def test_what_blocks_the_event_loop_cannot_keep_the_process(
    workplace, monkeypatch, where, presses, many
):
    """A plain hook or an async task that never lets go: one Ctrl-C ends it in time, two at once."""
    monkeypatch.setenv("HANGS_IN", where)
    workplace.write("holds.py", HANGS)
    each = ("--each", workplace.records([[]]), "--out", "out.jsonl") if many else ()
    program = SHORT_GRACE if presses == 1 else COMMAND
    process = workplace.spawn("run", "holds", "block", *each, program=program)
    assert process.stdout.readline() == b"begun 1\n"

    process.send_signal(signal.SIGINT)
    if presses == 2:
        # Of two that come at the same moment the system may hand over one.
        assert wait_until(lambda: process.send_signal(signal.SIGINT) or process.poll(), 10)
    code = process.wait(60)
    out, err = process.stdout.read().decode(), process.stderr.read().decode()

    assert code == 130
    assert ("Interrupted twice" if presses == 2 else "nterrupted") in out + err
    if many:
        assert (where == "stop") == (len(workplace.lines()) == 1)


def test_ctrl_c_that_is_ignored_stays_ignored(workplace):
    """A job in the background, which a shell keeps from Ctrl-C, goes on."""
    ignoring = (
        sys.executable,
        "-c",
        "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_IGN);"
        " os.execv(sys.executable, [sys.executable, '-m', 'qtasks_pluggy.cli', *sys.argv[1:]])",
    )
    holding = Holding(workplace, "hold", [1], program=ignoring)
    holding.begun(1)

    holding.press()
    holding.release(1)
    holding.process.stdin.close()

    assert holding.end()[0] == 0


@pytest.fixture
def silent(monkeypatch):
    """Keep standard output for what the command itself writes."""
    monkeypatch.setenv("SAY_NOTHING", "1")


@pytest.mark.usefixtures("silent")
def test_a_broken_pipe_on_output_is_quiet(workplace):
    """``| head`` is no error: nothing is said, and no further record is begun."""
    workplace.write("holds.py", APP)
    each = workplace.records([[number] for number in range(50_000)])
    process = workplace.spawn("run", "holds", "quick", "--each", each, "--out", "-")

    assert json.loads(process.stdout.readline())["status"] == "succeeded"
    process.stdout.close()

    assert process.wait(60) == 1
    assert process.stderr.read() == b""


@pytest.mark.usefixtures("silent")
def test_a_closing_table_that_nobody_reads_is_quiet(workplace):
    """Standard output that is closed already breaks nothing."""
    workplace.write("holds.py", APP)
    each = workplace.records([[1]])
    reading, writing = os.pipe()
    os.close(reading)

    process = workplace.spawn(
        "run", "holds", "quick", "--each", each, "--out", "out.jsonl", stdout=writing
    )
    os.close(writing)

    assert process.wait(60) in {0, 1}
    assert process.stderr.read() == b""
    assert len(workplace.lines()) == 1


@pytest.mark.usefixtures("silent")
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device here that is always full")
def test_a_full_disk_stops_the_batch_and_says_so(workplace):
    """Exit code 1, no further record is begun, and what could not be written is counted."""
    workplace.write("holds.py", APP)
    each = workplace.records([[number] for number in range(10_000)])

    code, out, err = workplace.finish(
        "run", "holds", "quick", "--each", each, "--out", "/dev/full", "--json"
    )
    found = json.loads(out)

    assert code == 1
    assert err == (
        "Error: /dev/full cannot be written: No space left on device;"
        " the lines in it are whole: fix that, and continue with --resume\n"
    )
    assert 0 < found["runs"] == found["not_written"]["output"] < 10_000


@pytest.mark.usefixtures("silent")
def test_a_line_that_did_not_fit_is_taken_back(workplace):
    """Where the disk ends within a line, the file ends before it."""
    workplace.write("holds.py", APP)
    each = workplace.records([[number] for number in range(10_000)])
    limited = (
        sys.executable,
        "-c",
        "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        " most = resource.getrlimit(resource.RLIMIT_FSIZE);"
        " resource.setrlimit(resource.RLIMIT_FSIZE, (1000, most[1]));"
        # What is measured about this process is written at its exit.
        " import atexit; atexit.register(resource.setrlimit, resource.RLIMIT_FSIZE, most);"
        " from qtasks_pluggy.cli import main; main()",
    )

    code, _, err = workplace.finish(
        "run", "holds", "quick", "--each", each, "--out", "out.jsonl", program=limited
    )

    assert code == 1
    assert "out.jsonl cannot be written: File too large" in err
    assert 1 <= len(workplace.lines()) <= 10


@pytest.mark.usefixtures("silent")
def test_records_come_from_standard_input_and_lines_go_to_standard_output(workplace):
    """``-`` twice makes a filter; the table goes to standard error."""
    workplace.write("holds.py", APP)

    code, out, err = workplace.finish(
        "run", "holds", "quick", "--each", "-", "--out", "-", given='[1]\n{"number": 2}\n'
    )

    assert code == 0
    assert {1, 2} == {json.loads(line)["result"] for line in out.splitlines()}
    assert "quick: 2 runs in " in err


def test_standard_input_that_is_closed_is_an_error(workplace):
    """Exit code 2, and what to do."""
    workplace.write("holds.py", APP)
    closed = ("/bin/sh", "-c", 'exec "$@" <&-', "sh", *COMMAND)

    code, _, err = workplace.finish("run", "holds", "quick", "--each", "-", program=closed)

    assert code == 2
    assert "cannot be read from standard input: Bad file descriptor; give another file" in err


def test_a_task_that_prints_much_does_not_hold_up_the_batch(workplace):
    """Standard output belongs to the tasks: the table comes after what they print."""
    workplace.write("holds.py", APP)
    each = workplace.records([[number] for number in range(500)])

    code, out, _ = workplace.finish("run", "holds", "quick", "--each", each)

    assert code == 0
    assert out.count("begun") == 500
    assert "quick: 500 runs in" in out.partition("stopped\n")[2]
