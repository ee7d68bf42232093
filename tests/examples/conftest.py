"""The examples, and what is needed to run them from any folder."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
RATES = EXAMPLES / "rates"


def run_python(*args, folder, given=None, **environment):
    """Run Python without settings of the reader's own; return exit code, output and errors."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("QTASKS_PLUGGY_")}
    done = subprocess.run(
        [sys.executable, *args],
        capture_output=True,
        check=False,
        cwd=folder,
        env=kept | environment,
        input=given,
        text=True,
        timeout=300,
    )
    return done.returncode, done.stdout, done.stderr


def run_command(*args, folder, given=None, **environment):
    """Run the command; return exit code, output and errors."""
    return run_python("-m", "qtasks_pluggy.cli", *args, folder=folder, given=given, **environment)


@pytest.fixture
def site(tmp_path):
    """Install the example plugin by hand: its module, and the ``dist-info`` of its pyproject."""
    source = EXAMPLES / "qtasks-last-rate"
    project = tomllib.loads((source / "pyproject.toml").read_text("utf-8"))["project"]
    folder = tmp_path / "site"
    info = folder / f"qtasks_last_rate-{project['version']}.dist-info"
    info.mkdir(parents=True)
    shutil.copy(source / "qtasks_last_rate.py", folder)
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n", "utf-8"
    )
    lines = []
    for group, points in project["entry-points"].items():
        lines += [f"[{group}]", *(f"{name} = {target}" for name, target in points.items()), ""]
    (info / "entry_points.txt").write_text("\n".join(lines), "utf-8")
    return folder
