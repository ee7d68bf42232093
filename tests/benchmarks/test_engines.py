"""The benchmark of engines still runs; nothing else would notice a renamed attribute in it."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.benchmarks.conftest import BENCHMARKS
from tests.engines.conftest import redis_url  # noqa: F401  # a fixture

pytestmark = pytest.mark.engines


@pytest.mark.parametrize(
    ("engine", "mode", "figures"),
    [
        ("dramatiq", [], ("install", "app", "bare runs a second")),
        pytest.param("dramatiq", ["--cpu"], ("bare", "install", "ratio"), marks=pytest.mark.full),
        pytest.param(
            *("taskiq", [], ("install", "app", "bare runs a second")), marks=pytest.mark.full
        ),
    ],
    ids=["plain", "cpu", "async"],
)
def test_a_few_runs_of_each_side_are_measured(engine, mode, figures, redis_url):  # noqa: F811  # the fixture
    """Each mode starts the engine's workers, and prints its figures beside the goal."""
    few = ("--engines", engine, "--rounds", "1", "--runs", "20", *mode)
    where = ("--broker", redis_url, "--results", redis_url, "--json")
    done = subprocess.run(
        [sys.executable, BENCHMARKS / "engines.py", *few, *where],
        capture_output=True,
        check=False,
        cwd=BENCHMARKS.parent,
        text=True,
        timeout=100,
    )
    assert 0 == done.returncode, done.stderr
    (row,) = json.loads(done.stdout)
    assert engine == row["engine"]
    assert {*figures} <= row.keys()
