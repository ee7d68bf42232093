"""Exchange rates: the demo tells what is so, with the plugin found by its entry point."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys

import pytest

from tests.examples.conftest import EXAMPLES, RATES, run_command, run_python

APP = str(RATES / "rates.py")


@pytest.fixture(scope="module")
def year():
    """The records that the script prints."""
    return subprocess.run([sys.executable, APP], capture_output=True, check=True, text=True).stdout


def roubles(year):
    """The records of the currency that has no rates from March on."""
    return "".join(line for line in year.splitlines(keepends=True) if "RUB" in line)


def totals(folder, given, **environment):
    """Run the task for each record; return the exit code and the counts."""
    args = ("run", APP, "eur_100", "--each", "-", "--json")
    code, out, err = run_command(*args, folder=folder, given=given, **environment)
    told = json.loads(out)
    assert "" == err
    failed = told["failed"]
    return code, told["runs"], told["succeeded"], told["recovered"], failed


def test_there_is_a_record_for_each_day_and_currency(year):
    """365 days with 32 currencies, each once."""
    calls = [json.loads(line) for line in year.splitlines()]

    assert 365 * 32 == len(calls) == len({tuple(call.values()) for call in calls})
    assert ("2022-01-01", "2022-12-31") == (calls[0]["day"], calls[-1]["day"])


def test_without_the_plugin_every_missing_rate_is_a_failed_run(site, year, tmp_path):
    """323 of the rouble's 365 runs fail with the task's own errors."""
    shutil.rmtree(site)
    told = totals(tmp_path, roubles(year), PYTHONPATH=str(site))

    assert (1, 365, 42, {}, {"KeyError": 108, "ValueError": 215}) == told


def test_a_setting_is_enough_for_all_runs_to_have_a_result(site, year, tmp_path):
    """With rates that may be a year old, no run fails, and no code has changed."""
    (tmp_path / "qtasks_pluggy.toml").write_text("plugin.last-rate.max_age_days = 365\n", "utf-8")
    told = totals(tmp_path, roubles(year), PYTHONPATH=str(site))

    assert (0, 365, 42, {"last-rate": 323}, {}) == told


def test_the_figures_are_those_of_the_source():
    """258 days with 32 rates each, and only the rouble's are missing, from 2 March on."""
    with (RATES / "ecb-2022.csv").open(newline="", encoding="utf-8") as file:
        rows = {row.pop("Date"): row for row in csv.DictReader(file)}
    missing = {(day, name) for day, row in rows.items() for name in row if row[name] == "N/A"}

    assert 258 == len(rows)
    assert {32} == {len(row) for row in rows.values()}
    assert {"RUB"} == {name for _, name in missing}
    assert "2022-03-02" == min(day for day, _ in missing)
    assert 215 == len(missing)


@pytest.mark.usefixtures("patient")
def test_the_demo_shows_what_it_says(site, tmp_path):
    """Each command that it prints is run, and the output has what each of the steps says."""
    code, out, err = run_python(
        str(RATES / "demo.py"), folder=tmp_path, PYTHONPATH=str(site), QTASKS_PLUGGY_ORDER="mine"
    )

    assert 0 == code, err
    commands = [line for line in out.splitlines() if line.startswith("$ ")]
    assert 12 == len(commands)
    _, without, plugin = out.partition("failures groups\n")[0].split("eur_100: 11,680 runs in ")
    assert "succeeded  8,009" in without
    assert "failed     3,456              KeyError in line" in without
    assert "failed       215              ValueError in line" in without
    assert "succeeded  8,009" in plugin
    assert "recovered  3,371  last-rate" in plugin
    assert "failed       212              ValueError in line" in plugin
    assert "failed        88              KeyError in line" in plugin
    assert "\n108.78\n" in out
    assert "KeyError: '2022-04-17'" in err
    groups, show, _, dry_run, replay, left = out.partition("failures groups\n")[2].split("\n$ ")
    assert "212 failed" in groups
    assert "88 failed, 3,369 recovered" in groups
    assert "\nKeyError: '2022-12-31'\n" in show
    assert "last-rate  qtasks-last-rate 0.1.0" in show
    assert "no opinion" in show
    assert "300 asked: 300 would be recovered by last-rate\n" in dry_run
    assert "300 runs replayed: 300 recovered\n2 groups resolved: no failure" in replay
    assert (2, 0) == (left.count("  resolved  "), left.count("  open  "))
    assert "88 failed, 3,457 recovered" in left


def test_the_demo_asks_for_the_plugin_where_it_is_not_installed(tmp_path):
    """It says what to install, and runs nothing."""
    code, out, err = run_python("-I", "-S", str(RATES / "demo.py"), folder=tmp_path)

    assert (1, "") == (code, out)
    assert f"pip install {EXAMPLES}/qtasks-last-rate" in err
