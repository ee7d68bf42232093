"""The census, the input of benchmarks and soak: what it counts, and what its plugin answers."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import warnings

import pytest

from qtasks_pluggy.exc import TaskPluginTriggerError
from tests.benchmarks.conftest import BENCHMARKS, BROKEN, load
from tests.examples.conftest import run_command

CENSUS = str(BENCHMARKS / "census.py")


@pytest.fixture(params=["census", "census_async"])
def count(request):
    """Run one of the tasks, without its plugin."""
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
def test_the_plugin_of_the_census_answers_for_what_it_cannot_count(tmp_path, task):
    """Each broken file is recovered, and its counts are marked; switched off, each one fails."""
    given = "".join(f"{json.dumps({'path': str(path)})}\n" for path in (json.__file__, *BROKEN))
    args = ("run", CENSUS, task, "--each", "-", "--out", "out.jsonl", "--json")
    code, out, err = run_command(*args, given=given, folder=tmp_path)
    told = json.loads(out)
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text("utf-8").splitlines()]
    recovered = [line["result"] for line in lines if line["plugin"] == "census-fallback"]
    disabled, out, _ = run_command(
        *args, given=given, folder=tmp_path, QTASKS_PLUGGY_DISABLE="census-fallback"
    )

    assert (0, "") == (code, err.strip())  # before rich 14 a bar that is off writes a newline
    assert {"census-fallback": len(BROKEN)} == told["recovered"]
    assert len(BROKEN) == len(recovered)
    assert all(counts["approximate"] and counts["lines"] >= 6 for counts in recovered)
    assert (1, 1) == (disabled, json.loads(out)["succeeded"])
