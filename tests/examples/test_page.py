"""The example that is one page."""

from __future__ import annotations

import subprocess
import sys

from tests.examples.conftest import EXAMPLES


def test_the_page_runs_as_it_is_written(tmp_path):
    """It asserts its own result, and prints what its plugin was asked."""
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / "page.py")],
        capture_output=True,
        check=False,
        cwd=tmp_path,
        text=True,
    )

    assert (0, "") == (done.returncode, done.stderr)
    assert "'e': TaskPluginTriggerError(message='Non-standard situation')" in done.stdout


def test_every_example_is_listed():
    """The README of the examples names what is there, and nothing else."""
    text = (EXAMPLES / "README.md").read_text("utf-8")
    there = {path.name for path in EXAMPLES.iterdir()} - {"README.md", "__pycache__"}
    listed = {line.split("`")[1].rstrip("/") for line in text.splitlines() if line[:3] == "| `"}

    assert there == listed
