"""The census: real input, its errors, and a plugin that answers them."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import sys
import warnings

import pytest

from qtasks_pluggy.exc import TaskPluginTriggerError
from tests.examples.conftest import BROKEN, EXAMPLES, load, records, run_command

CENSUS = str(EXAMPLES / "census.py")


@pytest.fixture(params=["census", "census_async"])
def count(request):
    """Run one of the tasks, without any installed plugin."""
    module = load("census")
    module.app.plugins.set_blocked("census-fallback")
    task = getattr(module, request.param)
    if request.param == "census":
        return task
    return lambda path: asyncio.run(task(path))


@pytest.fixture
def write(tmp_path):
    """Write a Python file; return its path."""

    def written(source):
        path = tmp_path / "source.py"
        path.write_bytes(source)
        return str(path)

    return written


@pytest.mark.parametrize(
    ("source", "functions", "classes", "lines"),
    [
        (b"", 0, 0, 0),
        (b"def f(): pass\nasync def g(): pass\n\nclass A:\n    def h(self): pass\n", 3, 1, 5),
        (b"# coding: latin-1\nx = '\xe9'\r\nclass A: pass", 0, 1, 3),
        (b"\xef\xbb\xbfclass A: pass\r", 0, 1, 1),
        (b"x = lambda: 0\x0c\n", 0, 0, 1),
    ],
)
def test_functions_classes_and_lines_are_counted(count, write, source, functions, classes, lines):
    """Whatever the encoding, the mark at the beginning and the ends of the lines."""
    path = write(source)

    assert {
        "path": path,
        "functions": functions,
        "classes": classes,
        "lines": lines,
    } == count(path)


@pytest.mark.parametrize(
    ("source", "kind", "said"),
    [
        (b"\n\nx = '\xff'", "decode", "can't decode byte 0xff"),
        (b"# coding: klingon-8", "decode", "unknown encoding: klingon-8"),
        (b"# coding: rot13\nx = 1", "decode", "not a text encoding"),
        (b"\xef\xbb\xbf# coding: latin-1", "decode", "encoding problem: utf-8"),
        (b"x = '\x00'", "null bytes", "the source contains null bytes"),
        (b"\ndef f(:", "syntax", ", line 2: "),
        (b"x = " + b"(" * 5000, "syntax", "too many nested parentheses"),
        (b"# coding: unicode_escape\nx = '\\ud800'", "syntax", "surrogates not allowed"),
        (b"x = " + b"1" * 5000, "syntax", "Exceeds the limit"),
    ],
)
def test_what_cannot_be_counted_asks_the_plugins(count, write, source, kind, said):
    """The error says which file, what kind of trouble, and where."""
    path = write(source)

    with pytest.raises(TaskPluginTriggerError) as caught:
        count(path)

    error = caught.value
    assert {"path": path, "kind": kind} == {name: error.kwargs[name] for name in ("path", "kind")}
    assert str(error).startswith(path)
    assert said in str(error)


@pytest.mark.parametrize("operator", [b"-", b"not ", b"*a, ", b"lambda: ", b"a.b[0]("])
def test_deep_nesting_is_an_error_like_any_other(count, write, operator):
    """The parser's stack and the interpreter's: neither ends the process."""
    with pytest.raises(TaskPluginTriggerError) as caught:
        count(write(b"x = " + operator * 20_000 + b"!"))

    assert caught.value.kwargs["kind"] in {"syntax", "nesting"}


def test_a_deep_tree_is_an_error_like_any_other(count, write):
    """Source that would parse, were it not so deep."""
    with pytest.raises(TaskPluginTriggerError) as caught:
        count(write(b"x = " + b"-" * 100_000 + b"1\n"))

    assert "nesting" == caught.value.kwargs["kind"]


def test_a_file_that_cannot_be_read_is_an_ordinary_error(count, tmp_path):
    """No plugin is asked about a file that is not there."""
    with pytest.raises(FileNotFoundError):
        count(str(tmp_path / "gone.py"))
    with pytest.raises(IsADirectoryError):
        count(str(tmp_path))


def test_what_the_compiler_thinks_of_a_file_is_not_told(count, write):
    """Warnings about other people's source neither show nor fail the run, nor are filters left."""
    path = write(b"x = '\\d'\nassert (x, 'always')\nx is 1\n")
    filters = list(warnings.filters)

    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        assert count(path)["lines"] == 3

    assert told == []
    assert filters == warnings.filters


@pytest.mark.parametrize("path", BROKEN, ids=lambda path: path.stem)
def test_every_broken_source_is_broken(count, path):
    """None of them can be counted."""
    with pytest.raises(TaskPluginTriggerError):
        count(str(path))


def test_the_broken_sources_are_broken_in_every_way():
    """There is a file for each kind of trouble."""
    module = load("census")
    module.app.plugins.set_blocked("census-fallback")
    kinds = set()
    for path in BROKEN:
        try:
            module.census(str(path))
        except TaskPluginTriggerError as error:
            kinds.add(error.kwargs["kind"])

    assert {"decode", "null bytes", "syntax"} == kinds


def test_the_script_prints_a_record_for_every_file():
    """The standard library, what is installed and the broken files, each once."""
    done = subprocess.run([sys.executable, CENSUS], capture_output=True, check=True)
    found = [json.loads(line) for line in done.stdout.splitlines()]
    paths = [record["path"] for record in found]

    assert all(list(record) == ["path"] for record in found)
    assert len(paths) == len(set(paths)) > 1000
    assert json.__file__ in paths
    assert pytest.__file__ in paths
    assert {str(path) for path in BROKEN} <= set(paths)


def test_the_script_is_quiet_when_nobody_listens():
    """``| head`` is no error."""
    with subprocess.Popen(
        [sys.executable, CENSUS], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        process.stdout.readline()
        process.stdout.close()

        assert process.stderr.read() == b""
        assert process.wait(60) == 0


@pytest.mark.parametrize("task", ["census", "census_async"])
def test_an_installed_plugin_recovers_what_the_census_cannot_count(site, tmp_path, task):
    """Found by its entry point alone; the table names it, and each of its counts is marked."""
    given = records([json.__file__, *BROKEN])
    code, out, err = run_command(
        "run",
        CENSUS,
        task,
        "--each",
        "-",
        "--out",
        "out.jsonl",
        given=given,
        folder=tmp_path,
        PYTHONPATH=str(site),
    )
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text("utf-8").splitlines()]
    good = [line for line in lines if line["plugin"] is None]
    recovered = [line for line in lines if line["plugin"] == "census-fallback"]

    assert (0, "") == (code, err)
    assert f"recovered     {len(BROKEN)}  census-fallback\n" in out
    assert ["approximate" in line["result"] for line in good] == [False]
    assert [line["result"]["approximate"] for line in recovered] == [True] * len(BROKEN)
    assert all(line["result"]["lines"] >= 6 for line in recovered)
    assert sum(line["result"]["functions"] for line in recovered) >= len(BROKEN)


@pytest.mark.parametrize("how", ["uninstalled", "disabled"])
@pytest.mark.parametrize("task", ["census", "census_async"])
def test_without_the_plugin_the_same_runs_fail_with_the_tasks_own_error(site, tmp_path, task, how):
    """Uninstalled or switched off: exit code 1, and the error names the file."""
    switch = {}
    if how == "uninstalled":
        shutil.rmtree(site)
    else:
        switch = {"QTASKS_PLUGGY_DISABLE": "census-fallback"}
    code, out, _ = run_command(
        "run",
        CENSUS,
        task,
        "--each",
        "-",
        "--out",
        "out.jsonl",
        given=records(BROKEN),
        folder=tmp_path,
        PYTHONPATH=str(site),
        **switch,
    )
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text("utf-8").splitlines()]

    assert code == 1
    assert f"failed      {len(BROKEN)}  TaskPluginTriggerError" in out.replace("good       ", "")
    assert all(line["error"].startswith("TaskPluginTriggerError: ") for line in lines)
    assert {str(path) for path in BROKEN} == {
        line["error"].removeprefix("TaskPluginTriggerError: ").split(": ")[0].split(", line")[0]
        for line in lines
    }


def test_the_plugin_is_listed(site, tmp_path):
    """``plugins`` tells name, distribution, version and hook."""
    code, out, _ = run_command("plugins", "--json", given="", folder=tmp_path, PYTHONPATH=str(site))
    (row,) = [row for row in json.loads(out) if row["name"] == "census-fallback"]

    assert code == 0
    assert ("qtasks-census-fallback", "0.1.0", True) == (
        row["distribution"],
        row["version"],
        row["enabled"],
    )
    assert ["task_executor_run_task_trigger_error"] == row["hooks"]
