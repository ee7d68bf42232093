"""The rates through SQLite, the worker killed halfway: nothing is lost."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from tests.examples.conftest import RATES

pytestmark = pytest.mark.engines


@pytest.mark.parametrize(
    "runs", [300, pytest.param(11_680, marks=pytest.mark.full)], ids=["300", "11680"]
)
def test_every_run_has_its_end_though_the_worker_is_killed(runs, tmp_path):
    """Counted by uuid, all runs have ended, good or as their plugins say."""
    done = subprocess.run(
        [sys.executable, str(RATES / "durable.py"), "--runs", str(runs)],
        capture_output=True,
        check=False,
        cwd=tmp_path,
        text=True,
        timeout=600,
    )
    out = done.stdout

    assert 0 == done.returncode, done.stderr
    assert "killed the worker with -9" in out
    assert f"{runs:,} runs by uuid" in out
    counted = re.findall(r"^ +([\d,]+)  \w", out, re.MULTILINE)
    assert runs == sum(int(number.replace(",", "")) for number in counted)
