"""What an existing app of an engine imports stands on the page of public names."""

from __future__ import annotations

import inspect
import re
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

pytestmark = pytest.mark.engines

PAGE = (Path(__file__).parents[2] / "docs/reference/api.md").read_text("utf-8")
SECTION = PAGE.partition("\n## An existing app\n")[2].partition("\n## ")[0]
ENGINES = ("celery", "django", "dramatiq", "huey", "procrastinate", "qtasks", "rq", "taskiq")


@pytest.mark.parametrize("engine", ENGINES)
def test_names_of_an_engine_s_module_are_public(engine):
    """Each name that a module exports is named, and ``install`` with its parameters."""
    if find_spec(engine) is None:
        pytest.skip(f"{engine} is not installed")
    if engine == "django":
        # It is set up once in a process.
        import_module("tests.engines.django_apps")
    module = import_module(f"qtasks_pluggy.engines.{engine}")
    for name in module.__all__:
        assert re.search(rf"`[\w.:]*\b{name}\b", SECTION), name
    row = re.search(rf"^\| `{engine}` \| `install\((.*)\)` \|", SECTION, re.MULTILINE)[1]
    documented = [part.partition("=")[0] for part in row.split(", ") if part != "*"]
    has = inspect.signature(module.install).parameters
    if "options" in has:
        # Celery's hands these on to the base.
        assert {"native", "plugins", "discover", "intercept"} == set(documented)
    else:
        assert list(has) == documented
