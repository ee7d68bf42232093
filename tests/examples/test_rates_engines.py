"""The rates through each engine without a server: run by run the same as direct calls."""

from __future__ import annotations

import json

import pytest

from tests.examples.conftest import RATES, run_command

APP = str(RATES / "rates.py")
DAYS = ("2022-02-26", "2022-02-28", "2022-03-07", "2022-03-12")
CALLS = [[day, currency] for day in DAYS for currency in ("USD", "CHF", "RUB", "XYZ")]


def ends(folder, site, *engine):
    """Run the task for some days; return each run's end, by line."""
    folder.mkdir()
    args = ("run", APP, "eur_100", "--each", "-", "--out", "out.jsonl", *engine)
    given = "".join(f"{json.dumps(call)}\n" for call in CALLS)
    code, _, err = run_command(*args, folder=folder, given=given, PYTHONPATH=str(site))
    assert 1 == code, err
    lines = [json.loads(line) for line in (folder / "out.jsonl").read_text("utf-8").splitlines()]
    return {one["line"]: {k: v for k, v in one.items() if k != "uuid"} for one in lines}


@pytest.mark.parametrize(
    "url",
    ["memory://", pytest.param("huey+sqlite:///runs.db", marks=pytest.mark.engines)],
    ids=["memory", "huey"],
)
def test_an_engine_comes_to_the_same_as_direct_calls(site, tmp_path, url):
    """Results, recoveries and failures are those of runs in place, for every single record."""
    direct = ends(tmp_path / "direct", site)
    submitted = ends(tmp_path / "submitted", site, "--engine", url)

    if url.startswith("huey"):
        # What travels through a file is the result: who decided is what failures keeps.
        assert {None} == {one["plugin"] for one in submitted.values()}
        submitted = {
            line: one | {"plugin": direct[line]["plugin"]} for line, one in submitted.items()
        }
    assert direct == submitted
    assert len(CALLS) == len(direct)
    assert {"last-rate", None} == {one["plugin"] for one in direct.values()}
