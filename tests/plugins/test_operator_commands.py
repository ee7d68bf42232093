"""What commands and settings do about faulty plugins, and without any plugin package."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from click.testing import CliRunner

from qtasks_pluggy.cli._command import command

ROOT = Path(__file__).parents[2]


def test_doctor_tells_every_fault_and_the_chain_without_them(distributions):
    """All faults of all installed plugins are told; the plugins without any are in the chain."""
    distributions.add("qtasks-a", {"a": "mod_a"}, mod_a="raise OSError('no disk')")
    distributions.add(
        "qtasks-b",
        {"b": "mod_b"},
        mod_b="""
        from qtasks_hookspecs import hookimpl

        @hookimpl
        def qtasks_strat():
            pass

        @hookimpl
        def task_executor_task_failed(error):
            pass
        """,
    )
    distributions.answering("good")

    result = CliRunner().invoke(command, ["doctor", "--json"])
    found = json.loads(result.stdout)
    faults = "\n".join(found["faults"])

    assert 1 == result.exit_code
    assert "'a' (qtasks-a 1.0)" in faults
    assert "no disk" in faults
    assert "'qtasks_start'" in faults
    assert "'error'" in faults
    chain = found["hooks"]["task_executor_run_task_trigger_error"]
    assert "good" in [link["plugin"] for link in chain]
    reasons = {one["name"]: one["reason"] for one in found["plugins"]}
    assert ("faulty", "faulty") == (reasons["a"], reasons["b"])
    assert "faults" in CliRunner().invoke(command, ["doctor"]).output


SECTIONS = {
    "fallback": {"rules": [{"task": "eur_*", "error": ["KeyError"], "result": 0}]},
    "retry": {"errors": ["LookupError"], "limit": 2, "delay": 0.001, "jitter": 0},
}


SHOWS = """
import sys
from qtasks_pluggy import QueueTasks

sys.path.insert(0, {folder!r})
from rates import RATES

app = QueueTasks("rates", intercept=(KeyError, ValueError))

@app.task
def eur_100(day, currency):
    return round(100 * float(RATES[day][currency]), 2)
"""


def test_rates_that_plugins_may_see_recover_by_settings_alone(tmp_path):
    """The built-in plugins, enabled in the environment, decide without any code or package."""
    calls = [["2022-04-14", "USD"], ["2022-04-15", "USD"], ["2022-04-14", "RUB"]]
    settings = {
        "QTASKS_PLUGGY_ENABLE": "fallback,retry",
        "QTASKS_PLUGGY_PLUGIN": json.dumps(SECTIONS),
        "QTASKS_PLUGGY_SAFE_MODE": "true",
    }
    app = tmp_path / "shows.py"
    app.write_text(SHOWS.format(folder=str(ROOT / "examples/rates")), "utf-8")
    args = ("run", str(app), "eur_100", "--each", "-", "--out", "-")
    done = subprocess.run(
        [sys.executable, "-m", "qtasks_pluggy.cli", *args],
        capture_output=True,
        check=False,
        cwd=tmp_path,
        env=os.environ | settings,
        input="\n".join(map(json.dumps, calls)),
        text=True,
        timeout=60,
    )
    ended = sorted(map(json.loads, done.stdout.splitlines()), key=lambda one: one["line"])

    assert len(calls) == len(ended), done.stderr
    assert [None, "fallback", None] == [one["plugin"] for one in ended]
    assert [108.78, 0] == [one["result"] for one in ended[:2]]
    assert "failed" == ended[2]["status"]
