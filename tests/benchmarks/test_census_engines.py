"""The census through each engine: run by run the same as direct calls."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.examples.conftest import BROKEN, EXAMPLES, records, run_command

CENSUS = str(EXAMPLES / "census.py")
FILES = sorted(Path(json.__file__).parents[1].glob("*.py"))[:60]


def census(task, folder, site, *engine):
    """Count some files, the broken ones too; return each run's end, by line, and the totals."""
    folder.mkdir()
    each = ("--each", "-", "--out", "out.jsonl", "--json")
    code, out, err = run_command(
        "run",
        CENSUS,
        task,
        *each,
        *engine,
        given=records([*FILES, *BROKEN]),
        folder=folder,
        PYTHONPATH=str(site),
    )
    assert 0 == code, err
    lines = [json.loads(line) for line in (folder / "out.jsonl").read_text("utf-8").splitlines()]
    ends = {one["line"]: {k: v for k, v in one.items() if k != "uuid"} for one in lines}
    assert len({one["uuid"] for one in lines}) == len(lines)
    totals = {name: told for name, told in json.loads(out).items() if name != "seconds"}
    return ends, totals


@pytest.mark.parametrize("task", ["census", "census_async"])
@pytest.mark.parametrize(
    "url",
    ["memory://", pytest.param("huey+sqlite:///runs.db", marks=pytest.mark.engines)],
    ids=["memory", "huey"],
)
def test_an_engine_comes_to_the_same_as_direct_calls(site, tmp_path, task, url):
    """Results, recoveries and totals are those of runs in place, for every single record."""
    direct = census(task, tmp_path / "direct", site)
    submitted = census(task, tmp_path / "submitted", site, "--engine", url)

    assert direct == submitted
    assert len(FILES) + len(BROKEN) == direct[1]["runs"]
    assert {"census-fallback": len(BROKEN)} == direct[1]["recovered"]
