"""The demo, with the plugin that pip has installed."""

from __future__ import annotations

import pytest

from tests.examples.conftest import RATES, run_python

pytestmark = pytest.mark.installed


def test_the_demo_runs_with_the_installed_plugin(tmp_path):
    """The year fails in part without the plugin, and with it only where no rate is recent."""
    code, out, err = run_python(str(RATES / "demo.py"), folder=tmp_path)

    assert 0 == code, err
    assert "last-rate  qtasks-last-rate  0.1.0    yes" in out
    assert "failed     3,456              KeyError in line" in out
    assert "recovered  3,371  last-rate" in out
    assert "300 runs replayed: 300 recovered" in out
