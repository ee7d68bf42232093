"""What people get wrong, on every engine: each is one clear error, and no worker hangs or ends."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from contextvars import ContextVar

import huey
import pytest
from huey.utils import Error

from qtasks_hookspecs import Replace
from qtasks_pluggy import QueueTasks
from qtasks_pluggy.exc import EngineError
from tests.engines.harness import HARNESSES
from tests.engines.huey_apps import LONG, Keeps, app_on
from tests.engines.natives import NATIVES

pytestmark = pytest.mark.engines

OBJECTS = {"celery": "Celery", "dramatiq": "Broker", "taskiq": "AsyncBroker"}
INSTALL_ALONE = ("django", "procrastinate", "qtasks", "rq")


@pytest.mark.parametrize("engine", [*OBJECTS, *INSTALL_ALONE, "huey", "huey+redis", "nosuch"])
def test_a_url_that_no_engine_takes_says_what_to_give(engine):
    """The error names the engine and what it takes, and shows no password."""
    with pytest.raises(EngineError) as caught:
        QueueTasks("shop", engine=f"{engine}://user:secret@host/1")
    text = str(caught.value)
    assert "secret" not in text
    if engine in OBJECTS:
        assert f"engine {engine!r} takes a {OBJECTS[engine]} object" in text
    elif engine in INSTALL_ALONE:
        assert f"call install() of qtasks_pluggy.engines.{engine}" in text
    else:
        assert "huey+sqlite:///" in text


def test_a_package_that_is_missing_is_named():
    """An engine without its package says which extra brings it."""
    script = """
import sys
from qtasks_pluggy import QueueTasks
for engine in ("celery", "dramatiq", "huey", "taskiq"):
    sys.modules[engine] = None
    try:
        QueueTasks("shop", engine=f"{engine}://host")
    except Exception as error:
        print(type(error).__name__, error)
"""
    told = subprocess.run(
        [sys.executable, "-c", script], env=os.environ, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    for engine, line in zip(("celery", "dramatiq", "huey", "taskiq"), told, strict=True):
        assert line.startswith(f"EngineError engine {engine!r} cannot be imported")
        assert line.endswith(f"install it with pip install 'qtasks-pluggy[{engine}]'")


class OddError(Exception):
    """An error that its arguments do not make again."""

    def __init__(self, one, *, text):
        super().__init__(f"{one} and {text}")


def odd():
    """Fail with an error that cannot be made again."""
    raise OddError(1, text="two")


def local():
    """Fail with an error of a class that nobody can find."""

    class LocalError(Exception):
        pass

    raise LocalError("of a function")


@pytest.mark.parametrize("harness", HARNESSES)
@pytest.mark.parametrize(
    ("function", "kind", "text"),
    [(odd, "OddError", "1 and two"), (local, "LocalError", "of a function")],
)
def test_an_error_that_cannot_be_made_again_keeps_its_class_and_text(harness, function, kind, text):
    """Where the error is another process's, an ``EngineError`` has its task, class and text."""
    one = harness()
    app = QueueTasks("shop", engine=one.engine(), discover=False)
    task = app.task(name="fail")(function)
    with one.running(app), pytest.raises(Exception, match=text) as caught:
        task.submit().result(timeout=LONG)
    if one.serializes:
        assert isinstance(caught.value, EngineError)
        assert "'fail'" in str(caught.value)
    assert kind in f"{type(caught.value)} {caught.value}"


bound: ContextVar[str] = ContextVar("bound", default="nothing")
seen: list[tuple[str, int]] = []


def bind():
    """Take down what was bound, and in which thread; bind something, and fail."""
    seen.append((bound.get(), threading.get_ident()))
    bound.set("something")
    raise OSError("broken")


@pytest.mark.parametrize("engine", NATIVES)
def test_r19_a_native_run_leaves_nothing_to_the_next_of_its_thread(engine):
    """R19: what a run binds is gone in the next one, also where a plugin answers."""
    seen.clear()
    NATIVES[engine](bind, Keeps(Replace(1), Replace(2), Replace(3)), runs=3)
    assert ["nothing"] * 3 == [was for was, _ in seen]
    # Taskiq has a pool of threads, whose number is its own.
    assert engine == "taskiq" or 1 == len({thread for _, thread in seen})


@pytest.mark.parametrize(
    ("ended", "text"),
    [
        ({"status": "skipped", "error": {}}, "a run's result cannot be read here.*skipped"),
        ({"status": "failed"}, "a run's result cannot be read here"),
        ("failed", "a run's result cannot be read here"),
        ({"status": "failed", "error": {"class": "KeyError"}}, "its error cannot be read"),
        (
            {
                "status": "failed",
                "more": 1,
                "error": {
                    "module": "builtins",
                    "class": "KeyError",
                    "args": ["tea"],
                    "kwargs": {},
                    "text": "'tea'",
                    "notes": [],
                    "of a later version": 1,
                },
            },
            "tea",
        ),
    ],
)
def test_an_end_of_another_version_is_read_or_named(ended, text):
    """What a worker of another version stored is an error for whoever waits, never a hang."""
    app = app_on(huey.MemoryHuey("shop"), workers=None)
    work = app.task(name="work")(lambda: 1)
    with app:
        handle = work.submit()
        metadata = {"error": "x", "retries": 0, "task_id": str(handle.uuid)}
        stored = Error({**metadata, "_qtasks_pluggy": ended})
        app.engine.native.put_result(str(handle.uuid), stored)
        kind = KeyError if text == "tea" else EngineError
        with pytest.raises(kind, match=text):
            handle.result(timeout=LONG)
