"""Whatever comes from data, names or errors is made printable before it reaches a terminal."""

from __future__ import annotations

import ast
import json
import logging
import sys
import unicodedata
from pathlib import Path

import pytest

import qtasks_pluggy
from qtasks_pluggy._console.say import SayingHandler, readable_json
from qtasks_pluggy._text import printable

# The title of a window, a cleared screen, C1's own way to begin a sequence, a change of
# direction, an overwritten line, a backspace, DEL.
EVIL = "\x1b]0;owned\x07\x1b[2Jx\x9b31my\u202ez\r\x08\x7f"
APP = """
    from qtasks_pluggy import QueueTasks
    from qtasks_pluggy.exc import TaskCancelError

    app = QueueTasks("shop", discover=False)

    @app.task
    def echo(text): return text

    @app.task
    def boom(text): raise ValueError(text)

    @app.task
    def cancel(text): raise TaskCancelError(text)

    @app.task
    def noted(text):
        error = ValueError("x")
        error.add_note(text)
        raise error
"""
NAME = "na\x1b]0;owned\x07me"


def is_harmless(text: str) -> bool:
    """Say whether a terminal only shows it."""
    kinds = {unicodedata.category(letter) for letter in text if letter not in "\n\t"}
    return kinds.isdisjoint({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})


def test_printable_leaves_nothing_that_a_terminal_obeys():
    """Of all letters there are, those that are not shown are spelled out; the others stay."""
    every = "".join(map(chr, range(sys.maxunicode + 1)))

    shown = printable(every)

    assert is_harmless(shown)
    assert "\\x1b\\x1c" in shown
    assert shown == printable(shown)
    readable = "a é \u65e5\u672c\u3000\xa0 \U0001f600\n\t| [bold]"
    assert readable == printable(readable)


def test_a_result_is_json_however_it_is_shown():
    """What is spelled out in a result is spelled as JSON does, so it can be read again."""
    value = {EVIL: ["é", "\U000e0001", "\udc80", EVIL]}

    text = readable_json(value)

    assert is_harmless(text)
    assert value == json.loads(text)
    assert "é" in text


@pytest.mark.parametrize(
    "args",
    [
        ("run", "shop", "echo", json.dumps(EVIL)),
        ("run", "shop", "echo", json.dumps(EVIL), "--json"),
        ("run", "shop", "boom", json.dumps(EVIL)),
        ("run", "shop", "cancel", json.dumps(EVIL)),
        ("run", "shop", "noted", json.dumps(EVIL)),
        ("run", "shop", "boom", "--each", "in.jsonl"),
        ("run", "shop", "boom", "--each", "in.jsonl", "--out", "-"),
        ("run", "shop", "boom", "--each", f"no{EVIL}"),
        ("run", "shop", f"x{EVIL}"),
        ("run", f"shop{EVIL}", "x"),
        ("run", "raises", "x"),
        ("run", "shop", "echo", f"--{EVIL}"),
        ("run", "shop", "echo", "--each", "in.jsonl", "--concurrency", EVIL),
        ("run", "shop", "echo", "--each", "in.jsonl", EVIL),
        ("run", "shop", "echo", "--engine", EVIL),
        ("doctor", f"shop:{EVIL}"),
        ("hooks", EVIL),
        (f"--{EVIL}",),
        (EVIL,),
    ],
)
def test_nothing_that_is_given_changes_the_terminal(workplace, args):
    """Results, errors, notes, tracebacks, and what the command line itself says wrong."""
    workplace.write("shop.py", APP)
    workplace.write("raises.py", f"raise ValueError({EVIL!r})\n")
    workplace.records([{"text": EVIL}, EVIL])

    result = workplace.run(*args)

    assert result.output
    assert is_harmless(result.output), ascii(result.output)


@pytest.mark.parametrize("command", ["plugins", "doctor"])
@pytest.mark.parametrize(
    "variables",
    [
        {"QTASKS_PLUGGY_DISABLE": NAME},
        {"QTASKS_PLUGGY_TIMEOUT": EVIL},
        {f"QTASKS_PLUGGY_{NAME}": "1"},
    ],
)
def test_nothing_in_the_settings_changes_the_terminal(workplace, monkeypatch, command, variables):
    """Names and values of settings, in errors, in tables, and in what is logged to stderr."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)

    # In a process of its own, where nobody has configured the log.
    _, out, err = workplace.finish(command)

    assert "owned" in out + err
    assert is_harmless(out + err), ascii(out + err)


@pytest.mark.parametrize("command", [("plugins",), ("doctor",), ("run", "finds", "x")])
@pytest.mark.parametrize("point", [f"{NAME} = no\x1b[2Jmodule", "fine = raises"])
def test_nothing_in_a_distribution_changes_the_terminal(workplace, command, point):
    """Names, versions and import errors of what pip installed."""
    app = (
        "from qtasks_pluggy import QueueTasks\napp = QueueTasks('finds')\napp.task(name='x')(len)\n"
    )
    workplace.write("finds.py", app)
    workplace.write("raises.py", f"raise RuntimeError({EVIL!r})\n")
    about = "Metadata-Version: 2.1\nName: na\x1b[2Jme\nVersion: 1\x1b]0;owned\x07\n"
    workplace.write("evil-1.0.dist-info/METADATA", about)
    workplace.write("evil-1.0.dist-info/entry_points.txt", f"[qtasks_pluggy]\n{point}\n")
    sys.path.insert(0, str(workplace.folder))

    result = workplace.run(*command)

    assert "owned" in result.output
    assert is_harmless(result.output), ascii(result.output)


def test_a_failing_plugin_s_traceback_cannot_change_the_terminal(workplace):
    """What is logged to stderr for want of a log, tracebacks included, is printable too."""
    workplace.write(
        "fails.py",
        f"""
        from types import SimpleNamespace
        from qtasks_hookspecs import hookimpl
        from qtasks_pluggy import QueueTasks

        def fail():
            raise RuntimeError({EVIL!r})

        plugin = SimpleNamespace(name={NAME!r}, task_executor_task_failed=hookimpl(fail))
        app = QueueTasks("shop", plugins=[plugin], discover=False)

        @app.task
        def boom(): raise ValueError
        """,
    )

    code, out, err = workplace.finish("run", "fails", "boom")

    assert code == 1
    assert "plugin_failed" in err
    assert "RuntimeError" in err
    assert is_harmless(out + err), ascii(out + err)


def test_the_command_prints_by_one_function():
    """No module of the command but ``say.py`` prints by click; ``say`` makes it printable."""
    printing = {
        path.name
        for folder in ("cli", "_console", "failures")
        for path in (Path(qtasks_pluggy.__file__).parent / folder).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Attribute) and ast.unparse(node) in {"click.echo", "click.secho"}
    }

    assert {"say.py"} == printing


def test_what_is_logged_is_remembered_within_bounds(capsys):
    """Equal events are printed once; a million that differ by a run's id fill no memory."""
    handler = SayingHandler(logging.WARNING)

    def log(text):
        handler.emit(logging.LogRecord("qtasks_pluggy", logging.ERROR, "", 0, text, None, None))

    for number in range(3000):
        log(f"task_dead_lettered uuid={number}")
        log("plugin_failed plugin=mine")

    assert 3001 == len(capsys.readouterr().err.splitlines())
    assert len(handler._said) < 3000
