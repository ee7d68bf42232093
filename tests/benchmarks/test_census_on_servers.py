"""The census on each engine over real servers: run by run the same as direct calls."""

from __future__ import annotations

import functools
import json
import os
import re
import subprocess
import sys
from uuid import uuid4

import pytest

from tests.benchmarks.conftest import BENCHMARKS
from tests.engines.conftest import rabbitmq_url, redis_url  # noqa: F401  # fixtures

pytestmark = pytest.mark.engines

ENGINES = ("celery", "dramatiq", "taskiq")
DIRECT = """
import json, sys
from itertools import islice
from census import app, census
from census_on import paths
with app:
    for path in islice(paths(), int(sys.argv[1])):
        print(json.dumps(census(path), sort_keys=True))
"""


@pytest.fixture(scope="module")
def direct(tmp_path_factory):
    """Give what so many direct calls come to, which is the same for every engine."""

    @functools.cache
    def results(runs):
        where = {"CENSUS_ENGINE": "celery", "CENSUS_BROKER": "memory://"}
        folder = tmp_path_factory.mktemp("direct")
        told = run("-c", DIRECT, str(runs), folder=folder, **where, CENSUS_RESULTS="")
        return [json.loads(line) for line in told.splitlines()]

    return results


def run(*command, folder, **more):
    """Run a script beside the census."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("QTASKS_PLUGGY_")}
    path = os.pathsep.join([str(BENCHMARKS), str(folder), env.pop("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, *command],
        capture_output=True,
        check=False,
        cwd=folder,
        env={**env, "PYTHONPATH": path, **more},
        text=True,
        timeout=900,
    )
    assert 0 == done.returncode, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize(
    "runs", [100, pytest.param(10_000, marks=pytest.mark.full)], ids=["100", "10000"]
)
@pytest.mark.parametrize("engine", ENGINES)
def test_an_engine_over_servers_comes_to_the_same(
    engine, runs, direct, tmp_path, request, record_testsuite_property
):
    """Two workers over RabbitMQ: every run by uuid, results and recoveries those in place."""
    where = {
        "CENSUS_ENGINE": engine,
        "CENSUS_BROKER": request.getfixturevalue("rabbitmq_url"),
        "CENSUS_RESULTS": request.getfixturevalue("redis_url"),
        "CENSUS_NAME": f"census-{uuid4().hex[:8]}",
    }
    options = ("--runs", str(runs), "--workers", "2", "--out", "out.jsonl")
    told = run(str(BENCHMARKS / "census_on.py"), *options, folder=tmp_path, **where)
    record_testsuite_property(f"census on {engine}, {runs}", told)
    results = direct(runs)
    assert f"{runs:,} runs by uuid" in told
    counted = dict(re.findall(r"^ +([\d,]+)  (\w+)", told, re.MULTILINE))
    counted = {end: int(number.replace(",", "")) for number, end in counted.items()}
    # Besides every twentieth, whatever in this installation no parser takes.
    recovered = sum("approximate" in result for result in results)
    assert recovered >= runs // 20
    assert {"good": runs - recovered, "recovered": recovered} == counted
    lines = (tmp_path / "out.jsonl").read_text("utf-8").splitlines()
    assert results == [json.loads(line) for line in lines]
