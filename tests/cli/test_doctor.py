"""The commands ``doctor`` and ``hooks``."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from qtasks_pluggy.cli._command import command

APP = """
import asyncio
from qtasks_hookspecs import Replace, blocking, hookimpl, when
from qtasks_pluggy import QueueTasks

TRIGGER = "task_executor_run_task_trigger_error"


class Wrapper:
    name = "wrapper"

    @hookimpl(wrapper=True)
    def task_executor_run_task_trigger_error(self):
        return (yield)


class Picky:
    name = "picky"

    @hookimpl(trylast=True)
    @when(error=("ValueError", KeyError), task="price_*")
    @when(tag="slow")
    async def task_executor_run_task_trigger_error(self):
        return None


class Slow:
    name = "slow"

    @hookimpl
    @blocking
    def task_executor_run_task_trigger_error(self):
        return Replace(1)

    @hookimpl
    def qtasks_start(self):
        pass


app = QueueTasks("shop", plugins=[Picky(), Slow(), Wrapper()], discover=False)
"""


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep settings files and apps of other tests away."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shop_for_doctor.py").write_text(APP, "utf-8")


def run(*args: str) -> Result:
    """Run the command."""
    return CliRunner().invoke(command, args)


def examined(*args: str) -> Any:
    """Run doctor on the app; return what it found."""
    result = run("doctor", "shop_for_doctor.py", "--json", *args)
    assert result.exit_code in {0, 1}, result.output
    return json.loads(result.stdout)


def test_doctor_tells_a_chain_in_call_order():
    """Wrappers begin first, and ``trylast`` comes last."""
    chain = examined()["hooks"]["task_executor_run_task_trigger_error"]

    assert ["wrapper", "slow", "picky"] == [link["plugin"] for link in chain]
    assert ["wrapper", "blocking", "async"] == [link["kind"] for link in chain]
    assert [None, None, "trylast"] == [link["place"] for link in chain]
    assert ["error=ValueError or KeyError, task=price_*", "tag=slow"] == chain[2]["when"]
    assert [5.0] * 3 == [link["timeout"] for link in chain]


def test_doctor_sees_the_settings_change_the_chain(monkeypatch):
    """Order, limits, observe and disable show in the chain, and where they came from."""
    monkeypatch.setenv("QTASKS_PLUGGY_ORDER", "picky,slow")
    monkeypatch.setenv("QTASKS_PLUGGY_OBSERVE", "slow")
    monkeypatch.setenv("QTASKS_PLUGGY_TIMEOUTS", '{"slow": 0.5}')
    Path("qtasks_pluggy.toml").write_text('disable = ["wrapper"]\n', "utf-8")

    found = examined()
    chain = found["hooks"]["task_executor_run_task_trigger_error"]

    assert ["picky", "slow"] == [link["plugin"] for link in chain]
    assert ["order", "order"] == [link["place"] for link in chain]
    assert (0.5, True) == (chain[1]["timeout"], chain[1]["observed"])
    assert "QTASKS_PLUGGY_ORDER" == found["settings"]["order"]["source"]
    assert found["settings"]["disable"]["source"].endswith("qtasks_pluggy.toml")
    (off,) = [one for one in found["plugins"] if not one["enabled"]]
    assert ("wrapper", True) == (off["name"], off["reason"].startswith("disabled"))


@pytest.mark.parametrize("disable", ["", "fallback"])
def test_doctor_says_what_is_built_in(disable, monkeypatch):
    """A built-in plugin is not taken for one that the app adds, asked or not."""
    monkeypatch.setenv("QTASKS_PLUGGY_ENABLE", "fallback")
    monkeypatch.setenv("QTASKS_PLUGGY_DISABLE", disable)

    found = examined()
    links = found["hooks"]["task_executor_run_task_trigger_error"]
    rows = re.findall(r"^.*fallback  .*$", run("doctor", "shop_for_doctor.py").output, re.MULTILINE)

    assert {"fallback"} == {one["name"] for one in found["plugins"] if one["builtin"]}
    expected = set() if disable else {"fallback"}
    assert expected == {one["plugin"] for one in links if one["builtin"]}
    assert rows
    assert all("fallback  built in  " in row for row in rows)


def test_doctor_lists_declared_keys_and_what_is_wrong_with_them():
    """The keys that a plugin declares for its section, and every fault of what is set."""
    declares = """
import attrs

@attrs.define
class Settings:
    url: str
    retries: int = 3

class Declares:
    name = "declares"

    @hookimpl
    def qtasks_start(self, settings: Settings):
        pass

app.add_plugin(Declares())
"""
    Path("shop_for_doctor.py").write_text(APP + declares, "utf-8")
    Path("qtasks_pluggy.toml").write_text('[plugin.declares]\nretries = "s3cret"\n', "utf-8")

    found = examined()
    result = run("doctor", "shop_for_doctor.py")

    assert [["url", "retries"]] == [one["keys"] for one in found["plugins"] if one["keys"]]
    assert 2 == len(found["faults"])
    assert 1 == result.exit_code
    for part in ("declares  url, retries", "'url' is missing", "'retries' takes int, got str"):
        assert part in result.output
    assert "s3cret" not in result.output


def test_doctor_shows_no_values_of_sections():
    """Of the plugins' own sections only the keys are shown."""
    Path("qtasks_pluggy.toml").write_text('[plugin.slow]\ntoken = "s3cret"\n', "utf-8")

    text = run("doctor", "shop_for_doctor.py").output

    assert "token" in text
    assert "s3cret" not in text


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("enable", '["falback"]'),
        ("disable", '["falback"]'),
        ("order", '["falback"]'),
        ("observe", '["falback"]'),
        ("timeouts", "{falback = 1.5}"),
        ("plugin", "{falback = {}}"),
    ],
)
@pytest.mark.parametrize("app", [[], ["shop_for_doctor.py"]])
def test_a_setting_that_names_no_plugin_is_a_fault(app, key, value):
    """Doctor lists it with the nearest name, and where it came from; its exit code is 1."""
    Path("qtasks_pluggy.toml").write_text(f"{key} = {value}\n", "utf-8")

    result = run("doctor", *app, "--json")
    (fault,) = json.loads(result.stdout)["faults"]

    assert 1 == result.exit_code
    assert fault.startswith(f"setting {key!r} (")
    assert "qtasks_pluggy.toml) names 'falback', and no plugin has that name" in fault
    assert "did you mean 'fallback'?" in fault
    assert ("name that APP" in fault) == (not app)
    assert fault in run("doctor", *app).output


def test_a_name_in_the_environment_that_no_plugin_has_is_a_fault(monkeypatch):
    """The fault names the variable."""
    monkeypatch.setenv("QTASKS_PLUGGY_OBSERVE", "nosuch")

    result = run("doctor", "--json")

    assert 1 == result.exit_code
    assert "(QTASKS_PLUGGY_OBSERVE) names 'nosuch'" in json.loads(result.stdout)["faults"][0]


def test_a_variable_for_a_plugin_that_is_not_there_is_a_fault(monkeypatch):
    """One that sets a value of a plugin's section stops no app, and doctor tells of it."""
    monkeypatch.setenv("QTASKS_PLUGGY_PLUGIN_SOLW_URL", "here")
    monkeypatch.setenv("QTASKS_PLUGGY_PLUGIN_SLOW_URL", "here")

    found = examined()

    (fault,) = found["faults"]
    assert "(QTASKS_PLUGGY_PLUGIN_SOLW_URL) names 'solw_url'" in fault
    assert "did you mean 'slow'?" in fault
    assert {"slow": ["url"]} == found["settings"]["plugin"]["value"]


def test_settings_may_name_what_the_app_adds(monkeypatch):
    """A plugin of the app's own is one that is there."""
    monkeypatch.setenv("QTASKS_PLUGGY_OBSERVE", "slow")

    assert [] == examined()["faults"]


def test_doctor_does_not_tell_of_quarantine():
    """It is kept by the process that does the runs, which doctor is not."""
    found = examined()

    assert "quarantine" not in json.dumps([found["hooks"], found["plugins"]])


@pytest.mark.parametrize("command_name", [[], *([name] for name in command.commands)])
def test_no_help_text_is_cut(command_name):
    """Each line of the list of commands, and each text, says all that it has to."""
    result = run(*command_name, "-h")

    assert 0 == result.exit_code
    assert "..." not in result.output.replace("[ARGS]...", "").replace("[ARGS]... ", "")


def test_doctor_reads_well_on_a_pipe():
    """Without a terminal doctor writes plain columns."""
    result = run("doctor", "shop_for_doctor.py")

    assert 0 == result.exit_code
    assert "task_executor_run_task_trigger_error\n" in result.output
    assert "\x1b" not in result.output
    assert "nobody implements\n" in result.output


def test_doctor_refuses_wrong_settings(monkeypatch):
    """A wrong setting is one clear error, and exit code 2."""
    monkeypatch.setenv("QTASKS_PLUGGY_TIMEOUT", "0")

    result = run("doctor")

    assert 2 == result.exit_code
    assert "QTASKS_PLUGGY_TIMEOUT" in result.output
    assert "more than 0 seconds" in result.output


def test_hooks_lists_them_in_the_order_of_a_run():
    """``hooks`` lists each hook with its first line."""
    listed = json.loads(run("hooks", "--json").stdout)

    assert "qtasks_start" == listed[0]["name"]
    assert "qtasks_stop" == listed[-1]["name"]
    assert 9 == len(listed)
    assert all(one["summary"] in run("hooks").output for one in listed)


def test_hooks_tells_all_about_one():
    """``hooks NAME`` shows signature and docstring."""
    text = run("hooks", "task_executor_task_failed").output

    assert "task_executor_task_failed(task_executor, task_func, task_broker, e)" in text
    assert "When:" in text


def test_hooks_names_the_nearest():
    """An unknown hook is an error that names the nearest, with exit code 2."""
    result = run("hooks", "task_executor_task_faild")

    assert 2 == result.exit_code
    assert "'task_executor_task_failed'" in result.output
