"""The whole census, with the plugin that pip has installed."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.examples.conftest import BROKEN, EXAMPLES, run_command

pytestmark = pytest.mark.installed
CENSUS = str(EXAMPLES / "census.py")


@pytest.fixture(scope="module")
def every_file():
    """All records that the census finds on this machine."""
    done = subprocess.run([sys.executable, CENSUS], capture_output=True, check=True, text=True)
    return done.stdout


@pytest.mark.parametrize("task", ["census", "census_async"])
def test_every_file_of_this_machine_has_a_result(every_file, tmp_path, task):
    """Over a thousand files, no run lost, and the plugin recovers at least the broken ones."""
    args = ("run", CENSUS, task, "--each", "-", "--json")
    code, out, _ = run_command(*args, given=every_file, folder=tmp_path)
    found = json.loads(out)

    assert code == 0, out
    assert found["runs"] == len(every_file.splitlines()) > 1000
    assert list(found["recovered"]) == ["census-fallback"]
    assert found["recovered"]["census-fallback"] >= len(BROKEN)
    assert found["good"] + found["recovered"]["census-fallback"] == found["runs"]
