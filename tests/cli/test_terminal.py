"""What people see on a terminal: real ones, and what comes out on a pipe instead."""

from __future__ import annotations

import errno
import os
import pty
import re
import signal

import pytest

from qtasks_pluggy import QueueTasks
from qtasks_pluggy._console.say import one_line
from qtasks_pluggy._console.table import Column, show_table
from qtasks_pluggy.cli._each import Batch
from qtasks_pluggy.cli._records import Record
from qtasks_pluggy.cli._runs import Run
from qtasks_pluggy.cli._summary import Tally, show_summary

APP = """
    from qtasks_pluggy import QueueTasks

    app = QueueTasks("shows", discover=False)

    @app.task
    def show(what, pipe=None):
        if pipe is not None:
            with open(pipe) as opened:
                opened.read()
        if what == "fail":
            raise ValueError("[bold]no markup[/bold] \\x1b[31mno colour\\nno line \\udc80")
        return {"what": what, "letter": "\\u00e9"}
"""
SHOW_CURSOR = "\x1b[?25h"


class Terminal:
    """A terminal that a command writes to."""

    def __init__(self):
        self.reading, self.writing = pty.openpty()
        self.seen = ""

    def read_until(self, pattern):
        """Wait for a text; None waits for the end."""
        while pattern is None or not re.search(pattern, self.seen):
            try:
                piece = os.read(self.reading, 65536)
            except OSError as error:
                assert error.errno == errno.EIO, error
                break
            if not piece:
                break
            self.seen += piece.decode("utf-8", "surrogateescape")
        return self.seen


@pytest.fixture
def terminal(monkeypatch):
    """Open a terminal of a usual width that knows colours."""
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "CI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("PYTHONUTF8", "1")
    opened = Terminal()
    yield opened
    os.close(opened.reading)


def start(workplace, terminal, *args, **streams):
    """Start the command with some of its streams on the terminal."""
    workplace.write("shows.py", APP)
    on_terminal = {name: terminal.writing for name in ("stdout", "stderr") if name not in streams}
    process = workplace.spawn("run", "shows", "show", *args, **on_terminal, **streams)
    os.close(terminal.writing)
    return process


def test_a_progress_bar_tells_how_far_it_is_and_goes_away(workplace, terminal):
    """Per cent and counts while it runs; at the end the table alone, and the cursor is back."""
    os.mkfifo(workplace.folder / "pipe")
    records = [["good"], ["fail"], ["good", "pipe"]]
    process = start(workplace, terminal, "--each", workplace.records(records))

    terminal.read_until(" 2 runs.*1 failed")
    (workplace.folder / "pipe").write_text("", "utf-8")
    seen = terminal.read_until(None)

    assert process.wait(60) == 1
    assert re.search(r"show.* \d+%", seen)
    assert "\x1b[32msucceeded" in seen
    assert "\x1b[31mfailed" in seen
    assert seen.rindex(SHOW_CURSOR) < seen.rindex("show: 3 runs")


def test_an_endless_input_has_a_bar_without_an_end(workplace, terminal):
    """Of standard input nobody knows the size: counts, but no per cent."""
    process = start(workplace, terminal, "--each", "-")
    process.stdin.write(b'["good"]\n')
    process.stdin.flush()

    seen = terminal.read_until(" 1 run ")
    process.stdin.close()

    assert "%" not in seen
    assert process.wait(60) == 0


def test_what_an_error_says_cannot_change_the_terminal(workplace, terminal):
    """Neither markup nor control characters nor line ends of an error's text have any effect."""
    process = start(workplace, terminal, "--each", workplace.records([["fail"]]))
    seen = terminal.read_until(None)

    assert process.wait(60) == 1
    told = " ".join(re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", seen).split())
    assert "in line 1: [bold]no markup[/bold] \\x1b[31mno colour no line \\udc80" in told


def test_a_result_is_readable_on_a_terminal(workplace, terminal):
    """Indented, and in letters as they are."""
    process = start(workplace, terminal, "good")
    seen = terminal.read_until(None)

    assert process.wait(60) == 0
    assert '{\r\n  "what": "good",\r\n  "letter": "é"\r\n}\r\n' == seen


@pytest.mark.parametrize("columns", [20, 40, 60, 120])
def test_no_line_of_a_table_is_wider_than_the_terminal(monkeypatch, terminal, columns):
    """Cells fold, and nothing of them is cut; the last column goes below its row."""
    monkeypatch.setenv("COLUMNS", str(columns))
    row = ["p" * 30, "d" * 30, "no: off; ENABLE=x", "h" * 99]
    heads = [Column("name"), Column("from"), Column("on"), Column("does", below=True)]
    with os.fdopen(os.dup(terminal.writing), "w") as stream:
        monkeypatch.setattr("sys.stdout", stream)
        show_table(heads, [row])
    monkeypatch.undo()
    os.close(terminal.writing)
    text = re.sub(r"\x1b\[[0-9;]*m", "", terminal.read_until(None))

    assert columns >= max(map(len, text.splitlines()))
    assert [30, 99] == [text.count("p"), text.count("h")]


def test_a_terminal_beside_a_pipe_gets_the_bar_and_the_pipe_stays_plain(workplace, terminal):
    """The bar is on standard error, the table on standard output."""
    os.mkfifo(workplace.folder / "pipe")
    each = workplace.records([["good"], ["good", "pipe"]])
    process = start(workplace, terminal, "--each", each, stdout=-1)

    terminal.read_until(" 1 run ")
    (workplace.folder / "pipe").write_text("", "utf-8")
    terminal.read_until(None)

    assert process.wait(60) == 0
    out = process.stdout.read().decode()
    assert "\x1b" not in out
    assert re.search(
        r"^show: 2 runs in [\d.]+ s, [\d,]+ a second\n\noutcome +runs .*\nsucceeded +2\n", out
    )


@pytest.mark.parametrize("change", [{"TERM": "dumb"}, {"stderr": -1}])
def test_no_bar_without_a_terminal_that_can_move(workplace, terminal, change, monkeypatch):
    """On a pipe, and on a terminal that only goes forward, there is no progress bar."""
    streams = {name: change[name] for name in change if name == "stderr"}
    for name in set(change) - set(streams):
        monkeypatch.setenv(name, change[name])
    process = start(workplace, terminal, "--each", workplace.records([["good"]]), **streams)
    seen = terminal.read_until(None)

    assert process.wait(60) == 0
    assert "\x1b[?25l" not in seen
    assert "show: 1 run in " in seen


def test_ctrl_c_twice_gives_the_cursor_back(workplace, terminal):
    """The progress bar hides it; whoever ends at once shows it again."""
    os.mkfifo(workplace.folder / "pipe")
    each = workplace.records([["good"], ["good", "pipe"]])
    process = start(workplace, terminal, "--each", each)
    terminal.read_until(" 1 run ")

    process.send_signal(signal.SIGINT)
    terminal.read_until("Interrupted: 1 run in flight")
    process.send_signal(signal.SIGINT)
    seen = terminal.read_until(None)

    assert process.wait(60) == 130
    assert SHOW_CURSOR in seen.partition("Interrupted: ")[2]
    assert "line 2 (" in seen


def test_records_can_be_typed(workplace, terminal):
    """Who types is told what to do, and no bar gets in the way."""
    process = start(workplace, terminal, "--each", "-", stdin=terminal.writing)
    terminal.read_until("Type one JSON record per line; Ctrl-D ends the input.")
    os.write(terminal.reading, b'["good"]\n\x04')
    seen = terminal.read_until(None)

    assert process.wait(60) == 0
    assert "show: 1 run in " in seen
    assert "\x1b[?25l" not in seen


@pytest.mark.parametrize(("width", "breaks"), [(60, True), (200, False)])
def test_a_table_that_is_too_wide_puts_its_last_column_below(
    workplace, terminal, width, breaks, monkeypatch
):
    """On a narrow terminal the text of an error has the whole width to itself."""
    monkeypatch.setenv("COLUMNS", str(width))
    process = start(workplace, terminal, "--each", workplace.records([["fail"], ["good"]]))
    seen = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.read_until(None))

    assert process.wait(60) == 1
    assert breaks == bool(re.search(r"failed +1 *\r\n +ValueError in line 1: \[bold\]no", seen))
    assert breaks != bool(re.search(r"failed +1 +ValueError in line 1: \[bold\]no", seen))
    assert breaks != bool(re.search(r"outcome +runs +decided by +error", seen))


def test_wide_letters_keep_columns_in_line(capsys):
    """A letter that takes two places counts as two."""
    show_table([Column("a"), Column("b", right=True)], [["\u65e5\u672c", "1"], ["x", "22"]])

    assert "a      b\n\u65e5\u672c   1\nx     22\n" == capsys.readouterr().out


class Stream:
    """Somewhere to write that takes ASCII alone."""

    encoding = "ascii"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\tb\n c", "a b c"),
        ("\x1b[31m\x07", "\\x1b[31m\\x07"),
        ("é \udc80", "\\xe9 \\udc80"),
        ("x" * 20, "xxxxxxx..."),
        ("", ""),
    ],
)
def test_what_cannot_be_shown_is_spelled_out(text, shown):
    """One line, nothing that moves a cursor, nothing that the stream cannot take."""
    assert shown == one_line(text, Stream(), 10 if len(text) == 20 else None)


def a_batch():
    """Make a batch that has not begun."""
    task = QueueTasks("app", discover=False).task(name="task")(len)
    return Batch(task.app, task, (), print, print)


@pytest.mark.parametrize(
    ("seconds", "told"),
    [(0.04, "0.0 s"), (59.94, "59.9 s"), (61.4, "0:01:01"), (7322, "2:02:02")],
)
def test_durations_are_told_as_people_do(capsys, seconds, told):
    """Seconds, and from a minute on as a clock shows them."""
    show_summary(Tally(), a_batch(), seconds, err=False)

    assert capsys.readouterr().out.startswith(f"task: 0 runs in {told}\n")


def test_many_unfinished_runs_are_not_all_listed(capsys):
    """The first twenty, and how many more."""
    batch = a_batch()
    batch.running = {Run(Record(number), f"id-{number}") for number in range(1, 24)}
    show_summary(Tally(), batch, 1, err=True)

    told = capsys.readouterr().err
    assert re.search("unfinished +23 ", told)
    assert "line 1 (id-1), 2 (id-2)" in told
    assert "20 (id-20) and 3 more" in told
