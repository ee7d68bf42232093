"""The examples, and what is needed to run them from any folder."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
BROKEN = sorted((EXAMPLES / "broken_sources").glob("*.py"))


def load(name):
    """Import an example by its path."""
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run_command(*args, given, folder, **environment):
    """Run the command; return exit code, output and errors."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("QTASKS_PLUGGY_")}
    done = subprocess.run(
        [sys.executable, "-m", "qtasks_pluggy.cli", *args],
        capture_output=True,
        check=False,
        cwd=folder,
        env=kept | environment,
        input=given,
        text=True,
        timeout=300,
    )
    return done.returncode, done.stdout, done.stderr


def records(paths):
    """Write one record a file."""
    return "".join(f"{json.dumps({'path': str(path)})}\n" for path in paths)


@pytest.fixture
def site(tmp_path):
    """Install the example plugin by hand: its module, and the ``dist-info`` of its pyproject."""
    source = EXAMPLES / "qtasks-census-fallback"
    project = tomllib.loads((source / "pyproject.toml").read_text("utf-8"))["project"]
    folder = tmp_path / "site"
    info = folder / f"qtasks_census_fallback-{project['version']}.dist-info"
    info.mkdir(parents=True)
    shutil.copy(source / "qtasks_census_fallback.py", folder)
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n", "utf-8"
    )
    lines = []
    for group, points in project["entry-points"].items():
        lines += [f"[{group}]", *(f"{name} = {target}" for name, target in points.items()), ""]
    (info / "entry_points.txt").write_text("\n".join(lines), "utf-8")
    return folder
