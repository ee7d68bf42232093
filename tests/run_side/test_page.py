"""The page that started it: its program runs as written, and so do its plugin's other forms."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from qtasks_hookspecs import Replace
from qtasks_pluggy import QueueTasks, TaskExecutor
from qtasks_pluggy.exc import TaskPluginTriggerError
from tests.runs import plugin

PAGE = Path(__file__).parents[2] / "examples" / "page.py"
TRIGGER = "task_executor_run_task_trigger_error"


@pytest.fixture
def page(capsys):
    """Run the page; return the names that it leaves behind."""
    names = runpy.run_path(str(PAGE))
    capsys.readouterr()
    return names


def test_page_runs_as_a_program():
    """It ends well, warns of nothing, and its plugin was given the hook's four parameters."""
    ended = subprocess.run(
        [sys.executable, "-W", "error", str(PAGE)],
        capture_output=True,
        check=False,
        text=True,
        timeout=60,
    )

    assert (ended.returncode, ended.stderr) == (0, "")
    (line,) = ended.stdout.splitlines()
    assert sorted(re.findall(r"'(\w+)': ", line)) == [
        "e",
        "task_broker",
        "task_executor",
        "task_func",
    ]
    assert "Non-standard situation" in line


def test_page_is_as_it_was_written():
    """Nobody has made it easier for us: the plugin is async, and added to the app as it is."""
    text = PAGE.read_text("utf-8")

    for line in (
        'self.ctx.plugin_error(message="Non-standard situation")',
        f'self.handlers = {{"{TRIGGER}": self.task_trigger_error}}',
        "async def start(self, *args, **kwargs):",
        "return super().start(*args, **kwargs)",
        "async def trigger(self, name, **kwargs):",
        "app.add_plugin(TestPlugin())",
        "assert asyncio.run(main()) == 123",
    ):
        assert line in text


@pytest.mark.parametrize("form", ["instance", "class", "named", "limited", "in the constructor"])
def test_page_plugin_may_be_added_in_any_form(form, page):
    """As an instance, as its class, under a name, for one trigger, or with the app."""
    test_plugin = page["TestPlugin"]
    app = QueueTasks("other", discover=False)
    if form == "instance":
        app.add_plugin(test_plugin())
    elif form == "class":
        app.add_plugin(test_plugin)
    elif form == "named":
        app.add_plugin(test_plugin("mine"))
    elif form == "limited":
        app.add_plugin(test_plugin(), trigger_names=[TRIGGER])
    else:
        app = QueueTasks("other", discover=False, plugins=[test_plugin()])

    @app.task
    def task():
        raise TaskPluginTriggerError("Direct error")

    with app:
        assert task() == 123


def test_page_task_without_its_plugin_fails_with_its_own_error(page):
    """The error says what the task said."""
    executor = TaskExecutor(page["test_task"], plugins=[])

    with pytest.raises(TaskPluginTriggerError, match="Non-standard situation"):
        executor.execute_sync()


@pytest.mark.parametrize(("kind", "result"), [("price", 7), ("stock", None)])
def test_page_natural_form(kind, result):
    """A module of hookimpls names the parameters it wants and answers what it knows about."""

    def answer(task_func, e):
        return Replace(len(task_func.name)) if e.kwargs.get("kind") == "price" else None

    app = QueueTasks(
        "shop",
        discover=False,
        plugins=[plugin("prices", task_executor_run_task_trigger_error=answer)],
    )

    @app.task(echo=True, name="prices!")
    def task(self):
        self.ctx.plugin_error(kind=kind)

    if result is None:
        with pytest.raises(TaskPluginTriggerError):
            task()
    else:
        assert task() == result
