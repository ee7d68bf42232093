"""The plugin against the project's own executor, as an app would meet it."""

from __future__ import annotations

import ast
import asyncio
import importlib.metadata
from pathlib import Path
from typing import Any

import pytest

import qtasks_census_fallback as fallback
from qtasks_pluggy import QueueTasks, SyncTask
from qtasks_pluggy.exc import TaskPluginTriggerError


def an_app(task: str = "census") -> Any:
    """An app whose task gives up on every file; only this plugin is there to help."""
    app = QueueTasks("app", plugins=[fallback], discover=False)

    @app.task(echo=True, name=task)
    def give_up(self: SyncTask, **about: Any) -> None:
        self.ctx.plugin_error(message="cannot parse", **about)

    return give_up


def test_a_file_that_cannot_be_parsed_gets_approximate_counts(tmp_path: Path) -> None:
    """A half-written file is counted by what its text looks like."""
    file = tmp_path / "half.py"
    file.write_text("class A:\n    def one(self): ...\n\n    async def two(self):\n        (")

    assert an_app()(path=str(file), kind="syntax") == {
        "path": str(file),
        "functions": 2,
        "classes": 1,
        "lines": 5,
        "approximate": True,
    }


def test_the_async_task_of_the_census_is_answered_too(tmp_path: Path) -> None:
    """The plugin is plain code and serves an async task as well."""
    file = tmp_path / "one.py"
    file.write_text("def one(:\n")
    app = QueueTasks("app", plugins=[fallback], discover=False)

    @app.task(echo=True)
    async def census_async(self: Any, path: str) -> dict[str, Any]:
        self.ctx.plugin_error(path=path)

    assert asyncio.run(census_async(str(file)))["functions"] == 1


@pytest.mark.parametrize("name", ["census", "shop.tasks.census", "shop.tasks:census"])
@pytest.mark.parametrize("by_keyword", [False, True])
def test_a_task_that_never_heard_of_plugins_is_answered(
    tmp_path: Path, name: str, *, by_keyword: bool
) -> None:
    """The parser's own error is enough, where the app intercepts it: the path is the argument."""
    file = tmp_path / "one.py"
    file.write_text("def one(:\n")
    app = QueueTasks("app", plugins=[fallback], discover=False, intercept=Exception)

    @app.task(name=name)
    def census(path: str, lines: int = 0) -> dict[str, Any]:
        return {"body": len(ast.parse(Path(path).read_text()).body), "lines": lines}

    found = census(path=str(file)) if by_keyword else census(str(file), 1)
    assert (found["functions"], found["approximate"]) == (1, True)
    with pytest.raises(FileNotFoundError):
        census(str(tmp_path / "gone.py"))


@pytest.mark.parametrize(
    ("source", "functions", "classes"),
    [
        (b"", 0, 0),
        (b"def f(): pass\n", 1, 0),
        (b"    async  def f (x): pass\n", 1, 0),
        (b"def f[T](x: T): pass\nclass C[T]: pass\n", 1, 1),
        (b"class A: pass\nclass B(A): pass\n", 0, 2),
        (b'"""\ndef f(): pass\n"""\n', 0, 0),
        (b"'''\nclass A:\n'''\ndef f():\n", 1, 0),
        (b'x = "def f():"  # class A:\n', 0, 0),
        (b'def f():\n    x = """never ends\ndef g():\n', 1, 0),
        (b"x = 'never ends\ndef f():\n", 1, 0),
        (b"x = '''ends ''here'''\ndef f():\n", 1, 0),
        (b"def f():\r\n    pass\rclass A:\r", 1, 1),
        (b"\xff\xfe\x00def f():\n", 0, 0),
        (b"# coding: klingon-8\ndef f():\n", 1, 0),
        (b"# coding: latin-1\n\xe9 = 1\ndef f\xe9():\n", 1, 0),
        (b"x = '\x00'\ndef f():\n", 1, 0),
        (b"definitely(1)\nclassy = 2\n", 0, 0),
    ],
)
def test_counts(source: bytes, functions: int, classes: int) -> None:
    """Functions and classes are counted where they are code, not in strings or comments."""
    found = fallback.counts(source)

    assert (found["functions"], found["classes"]) == (functions, classes)


@pytest.mark.parametrize("piece", [b"'''a\"\"\"\n\\", b"'\\", b'"""\\', b"'''\n", b"# '", b" "])
def test_no_file_takes_more_than_one_pass(piece: bytes) -> None:
    """Half a million strings that are opened and never closed are counted all the same."""
    found = fallback.counts(piece * 500_000)

    assert (found["functions"], found["classes"]) == (0, 0)


def test_other_tasks_and_other_errors_get_no_opinion(tmp_path: Path) -> None:
    """A task of another name, an error without a path and a vanished file go on as they were."""
    file = tmp_path / "one.py"
    file.write_text("def one(:\n")

    with pytest.raises(TaskPluginTriggerError):
        an_app("prices")(path=str(file))
    with pytest.raises(TaskPluginTriggerError):
        an_app()(kind="syntax")
    with pytest.raises(TaskPluginTriggerError):
        an_app()(path=str(tmp_path / "gone.py"))


def test_it_is_found_by_its_entry_point() -> None:
    """The installed distribution claims the name ``census-fallback``."""
    (found,) = importlib.metadata.entry_points(group="qtasks_pluggy", name="census-fallback")

    assert found.load() is fallback
    assert found.dist is not None
    assert found.dist.name == "qtasks-census-fallback"
