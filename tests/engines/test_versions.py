"""Engines' packages that are too old are refused in one sentence, whatever importing them does."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"][
    "optional-dependencies"
]
ENGINES = {
    "celery": "5.2.7",
    "django": "5.1.15",
    "dramatiq": "1.16.0",
    "huey": "2.6.0",
    "procrastinate": "2.15.1",
    "qtasks": "1.5.1",
    "rq": "1.15.1",
    "taskiq": "0.11.19",
}


@pytest.fixture
def old(tmp_path):
    """Make an import path on which an engine's package is an old one, of which nothing is left."""

    def make(engine):
        (tmp_path / engine).mkdir()
        (tmp_path / engine / "__init__.py").write_text("raise ImportError('something within')\n")
        metadata = tmp_path / f"{engine}-{ENGINES[engine]}.dist-info"
        metadata.mkdir()
        said = f"Metadata-Version: 2.1\nName: {engine}\nVersion: {ENGINES[engine]}\n"
        (metadata / "METADATA").write_text(said)
        path = (tmp_path, ROOT, ROOT / "hookspecs")
        return os.environ | {"PYTHONPATH": os.pathsep.join(map(str, path))}

    return make


@pytest.mark.parametrize("engine", ENGINES)
def test_an_older_version_is_one_sentence(old, engine):
    """The last line says what is needed and what is there; the bound is that of the extra."""
    command = [sys.executable, "-c", f"import qtasks_pluggy.engines.{engine}"]
    ended = subprocess.run(command, env=old(engine), capture_output=True, text=True, check=False)
    lowest = re.search(r">=([\d.]+)", EXTRAS[engine][0])[1]
    said = f"needs {engine} {lowest} or later, {ENGINES[engine]} is installed"
    assert ended.stderr.splitlines()[-1] == f"ImportError: engine {engine!r} {said}"
