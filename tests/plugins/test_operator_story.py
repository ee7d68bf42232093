"""An operator's story: three installed plugins, and nothing but commands and settings."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from qtasks_pluggy import PluginManager

PLUGINS = {
    "broken": """
        from qtasks_hookspecs import hookimpl

        @hookimpl
        def task_executor_run_task_trigger_error():
            raise RuntimeError("a bug of mine")
    """,
    "good": """
        from qtasks_hookspecs import Replace, hookimpl

        @hookimpl
        def task_executor_run_task_trigger_error(e):
            return Replace("good")
    """,
    "slow": """
        import asyncio
        from qtasks_hookspecs import Replace, hookimpl

        @hookimpl
        async def task_executor_run_task_trigger_error():
            await asyncio.sleep(0.1)
            return Replace("slow")
    """,
}
APP = """
    from qtasks_pluggy import QueueTasks

    app = QueueTasks("shop")

    @app.task(echo=True)
    def price(self):
        self.ctx.plugin_error("no price")
"""


def install(site: Path, name: str, source: str) -> None:
    """Leave what pip does: a module and its entry point."""
    info = site / f"qtasks_{name}-2.1.dist-info"
    info.mkdir(parents=True)
    (site / f"qtasks_{name}.py").write_text(dedent(source), "utf-8")
    metadata = f"Metadata-Version: 2.1\nName: qtasks-{name}\nVersion: 2.1\n"
    (info / "METADATA").write_text(metadata, "utf-8")
    points = f"[qtasks_pluggy]\n{name} = qtasks_{name}\n"
    (info / "entry_points.txt").write_text(points, "utf-8")


class Machine:
    """A folder with an app, an installation of the plugins, and the operator's environment."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        site = folder / "site"
        for name, source in PLUGINS.items():
            install(site, name, source)
        (folder / "shop.py").write_text(dedent(APP), "utf-8")
        kept = {k: v for k, v in os.environ.items() if not k.startswith("QTASKS_PLUGGY_")}
        # Whatever else is installed where the tests run is none of this operator's.
        self.environment = kept | {
            "PYTHONPATH": str(site),
            "QTASKS_PLUGGY_ALLOW": ",".join(PLUGINS),
        }

    def run(self, *args: str, **settings: str) -> subprocess.CompletedProcess[str]:
        """Run the command with some settings in the environment."""
        variables = {f"QTASKS_PLUGGY_{key.upper()}": value for key, value in settings.items()}
        return subprocess.run(
            [sys.executable, "-m", "qtasks_pluggy.cli", *args],
            capture_output=True,
            check=False,
            cwd=self.folder,
            env=self.environment | variables,
            text=True,
            timeout=60,
        )

    def doctor(self, **settings: str) -> Any:
        """Return what doctor says of the error hook's chain."""
        found = json.loads(self.run("doctor", "shop:app", "--json", **settings).stdout)
        return found["hooks"]["task_executor_run_task_trigger_error"]


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Machine:
    """Install the three plugins once."""
    return Machine(tmp_path_factory.mktemp("operator"))


def test_an_operator_finds_and_tames_the_slow_and_the_broken(machine):
    """Through commands and settings alone the culprits are found, one is observed, one disabled."""
    # What is there, and what happens?
    listed = [one for one in json.loads(machine.run("plugins", "--json").stdout) if one["enabled"]]
    assert ["broken", "good", "slow"] == [one["name"] for one in listed]
    assert {"2.1"} == {one["version"] for one in listed}
    assert ["broken", "good", "slow"] == [link["plugin"] for link in machine.doctor()]

    # A limit shows who is slow, and the log who is broken; the run has a result all the same.
    first = machine.run("run", "shop:app", "price", timeout="0.02")
    assert 0 == first.returncode, first.stderr
    assert "good" in first.stdout
    errors = [line for line in first.stderr.splitlines() if line.startswith("plugin_")]
    assert any("plugin_failed" in line and "plugin='broken'" in line for line in errors)
    assert any("plugin_timed_out" in line and "plugin='slow'" in line for line in errors)
    assert not any("plugin='good'" in line for line in errors)

    # The slow one is put on observe, the broken one is disabled: the chain shows it.
    tamed = {"observe": "slow", "disable": "broken"}
    chain = machine.doctor(**tamed)
    assert [("good", False), ("slow", True)] == [(one["plugin"], one["observed"]) for one in chain]
    second = machine.run("run", "shop:app", "price", **tamed)
    assert 0 == second.returncode, second.stderr
    assert "good" in second.stdout
    assert "broken" not in second.stderr
    assert "slow" not in second.stderr


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"disable": "slow"}, "disabled (QTASKS_PLUGGY_DISABLE)"),
        ({"safe_mode": "yes"}, "safe_mode (QTASKS_PLUGGY_SAFE_MODE)"),
        ({"allow": "good"}, "not in allow (QTASKS_PLUGGY_ALLOW)"),
    ],
    ids=["disable", "safe_mode", "allow"],
)
def test_what_is_switched_off_is_not_imported_and_listed_with_the_reason(machine, settings, reason):
    """A plugin that is disabled, not allowed or kept out by safe mode is not even imported."""
    listed = json.loads(machine.run("plugins", "--json", **settings).stdout)
    (slow,) = [one for one in listed if one["name"] == "slow"]
    assert (False, reason) == (slow["enabled"], slow["reason"])

    code = (
        "import sys; from qtasks_pluggy import PluginManager; PluginManager(discover=True);"
        "print('qtasks_slow' in sys.modules)"
    )
    variables = {f"QTASKS_PLUGGY_{key.upper()}": value for key, value in settings.items()}
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        check=True,
        cwd=machine.folder,
        env=machine.environment | variables,
        text=True,
        timeout=60,
    )
    assert "False\n" == done.stdout


def test_other_peoples_broken_files_are_other_peoples(distributions):
    """An entry_points.txt that cannot be read and does not name our group is not our matter."""
    distributions.add("qtasks-x", "[other]\nx : mod\n")
    distributions.answering("good")

    assert "good" in [one.name for one in PluginManager(discover=True).list_plugin_info()]
