"""The commands ``doctor`` and ``hooks``."""

from __future__ import annotations

import json
import re
import subprocess
import sys
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


@pytest.mark.parametrize(
    ("plugin", "section", "why"),
    [
        ("retry", {}, "plugin.retry needs errors"),
        ("retry", {"errors": 3}, "takes the name of an exception class"),
        ("fallback", {"rules": 1}, "takes a list of tables"),
        ("failures", {"url": "nowhere"}, "url of the failures store"),
    ],
)
@pytest.mark.parametrize("app", [(), ("shop_for_doctor.py",)])
def test_a_builtin_that_cannot_start_is_a_problem(monkeypatch, plugin, section, why, app):
    """Of an app and of none: 1, and what its start would say."""
    monkeypatch.setenv("QTASKS_PLUGGY_ENABLE", plugin)
    monkeypatch.setenv("QTASKS_PLUGGY_PLUGIN", json.dumps({plugin: section}))

    result = run("doctor", *app, "--json")

    assert result.exit_code == 1
    (fault,) = json.loads(result.stdout)["faults"]
    assert f"plugin {plugin!r} failed in hook 'qtasks_start'" in fault
    assert why in fault


def test_a_builtin_without_its_package_is_a_problem(monkeypatch):
    """It names what to install, as the start would."""
    monkeypatch.setenv("QTASKS_PLUGGY_ENABLE", "failures")
    monkeypatch.setitem(sys.modules, "qtasks_pluggy.failures.recorder", None)

    result = run("plugins", "--json")

    assert result.exit_code == 1
    assert "pip install 'qtasks-pluggy[failures]'" in result.output


def test_a_filter_by_tag_that_no_task_has_is_noted():
    """It is no fault: other apps may have such tasks."""
    Path("tagged_for_doctor.py").write_text(
        """
from qtasks_pluggy import QueueTasks
app = QueueTasks("shop", discover=False)

@app.task(tags=["a"])
def price(): ...

@app.on_error(KeyError, tag="a", task="pri*")
def good(): ...

@app.on_error(KeyError, tag="nobody")
def lost(): ...
""",
        "utf-8",
    )

    result = run("doctor", "tagged_for_doctor.py")

    (note,) = result.stderr.splitlines()
    assert result.exit_code == 0
    assert note.startswith("plugin 'lost', handler 'lost': no task of app 'shop' matches tag=")


def test_doctor_tells_a_chain_in_call_order():
    """Wrappers begin first, and ``trylast`` comes last."""
    chain = examined()["hooks"]["task_executor_run_task_trigger_error"]

    assert ["wrapper", "slow", "picky"] == [link["plugin"] for link in chain]
    assert ["task_executor_run_task_trigger_error"] * 3 == [link["handler"] for link in chain]
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
    assert "no faults" not in result.output


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
    assert "qtasks_pluggy.toml) names 'falback', but no plugin has that name" in fault
    assert "did you mean 'fallback'?" in fault
    assert ("give that APP" in fault) == (not app)
    assert fault in run("doctor", *app).output


def test_a_name_in_the_environment_that_no_plugin_has_is_a_fault(monkeypatch):
    """The fault names the variable, and suggests no name that is not near."""
    monkeypatch.setenv("QTASKS_PLUGGY_OBSERVE", "nosuch")

    result = run("doctor", "--json")

    assert 1 == result.exit_code
    (fault,) = json.loads(result.stdout)["faults"]
    assert "(QTASKS_PLUGGY_OBSERVE) names 'nosuch', but no plugin has that name. If an" in fault


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


FILTERS = """
from qtasks_hookspecs import hookimpl, when
from qtasks_hookspecs.exc import TaskPluginTriggerError
from qtasks_pluggy import QueueTasks

class Gone(Exception):
    pass

class Asked:
    name = "asked"

    @hookimpl
    @when({when})
    def task_executor_run_task_trigger_error(self):
        pass

app = QueueTasks("shop", plugins=[Asked()], discover=False, intercept={app})

@app.task(intercept={task}, tags=["slow"])
def price():
    pass
"""


@pytest.mark.parametrize(
    ("when", "app", "task", "is_dead"),
    [
        ("error=KeyError", None, None, True),
        ("error='KeyError'", None, None, True),
        ("error='nowhere.Gone'", None, None, True),
        ("error=KeyError", "()", None, True),
        ("error=KeyError", "ValueError", None, True),
        ("error=KeyError", "Exception", "()", True),
        ("error=KeyError, tag='slow'", "ValueError", None, True),
        ("error=KeyError", "KeyError", None, False),
        ("error=KeyError", "LookupError", None, False),
        ("error=LookupError", "KeyError", None, False),
        ("error=KeyError", "()", "Exception", False),
        ("error='nowhere.Gone'", "ValueError", None, False),
        ("error=TaskPluginTriggerError", None, None, False),
        ("error=Exception", None, None, False),
        ("task='price'", None, None, False),
        ("error=KeyError, task='tax'", "KeyError", "()", False),
    ],
)
def test_a_filter_that_no_task_can_lead_to_is_a_fault(tmp_path, when, app, task, is_dead):
    """Both commands say so and exit with 1; one that any task may lead to is none."""
    (tmp_path / "filters_for_doctor.py").write_text(
        FILTERS.format(when=when, app=app, task=task), "utf-8"
    )

    result = run("doctor", "filters_for_doctor.py", "--json")
    faults = json.loads(result.stdout)["faults"]
    listed = run("plugins", "filters_for_doctor.py")

    assert ([is_dead] * 2, int(is_dead)) == (
        [bool(result.exit_code), bool(listed.exit_code)],
        len(faults),
    )
    if is_dead:
        assert "plugin 'asked', handler 'task_executor_run_task_trigger_error'" in faults[0]
        assert f"Error: {faults[0]}\n" == listed.stderr


def test_a_handler_that_names_its_errors_itself_is_no_fault(tmp_path):
    """Naming a class by ``on_error`` is enough, unless the app refuses that; rows name handlers."""
    source = FILTERS.format(when="error=Gone", app="{app}", task=None)
    handler = "\n\n@app.on_error(ValueError)\ndef use_another():\n    pass\n"
    path = tmp_path / "filters_for_doctor.py"
    path.write_text(source.format(app="Gone") + handler, "utf-8")

    result = run("doctor", "filters_for_doctor.py")
    shown = re.findall("^[0-9] .*", result.output, re.MULTILINE)

    assert 0 == result.exit_code, result.output
    assert re.fullmatch(r"1 +asked +- +error=Gone +5 s", shown[0])
    assert re.fullmatch(r"2 +use_another +use_another +- +error=ValueError +5 s", shown[1])


BUILT_IN = """
from qtasks_pluggy import QueueTasks

app = QueueTasks("shop", discover=False, intercept={app}, settings={{
    "enable": ["{name}"], "plugin": {{"{name}": {section}}}
}})

@app.task(intercept={task})
def price():
    pass
"""
RETRY, FALLBACK = '{"errors": ["KeyError"]}', '{"rules": [{"error": "KeyError", "result": 0}]}'


@pytest.mark.parametrize(
    ("name", "section", "app", "task", "is_dead"),
    [
        ("retry", RETRY, None, None, True),
        ("retry", RETRY, "ValueError", None, True),
        ("retry", RETRY, "Exception", "()", True),
        ("retry", RETRY, "Exception", None, False),
        ("retry", RETRY, None, "LookupError", False),
        ("retry", '{"errors": "Exception"}', None, None, False),
        ("fallback", FALLBACK, None, None, True),
        ("fallback", FALLBACK, "KeyError", None, False),
        ("fallback", '{"rules": [{"task": "price", "result": 0}]}', None, None, False),
    ],
)
def test_a_built_in_plugin_for_errors_that_no_task_shows_is_a_fault(
    tmp_path, name, section, app, task, is_dead
):
    """Doctor says so, with what to do."""
    source = BUILT_IN.format(name=name, section=section, app=app, task=task)
    (tmp_path / "built_in_for_doctor.py").write_text(source, "utf-8")

    result = run("doctor", "built_in_for_doctor.py", "--json")
    faults = json.loads(result.stdout)["faults"]

    assert (int(is_dead), int(is_dead)) == (result.exit_code, len(faults))
    if is_dead:
        assert faults[0].startswith(f"plugin '{name}' is never asked about KeyError: no intercept=")
        assert "pass intercept=Exception" in faults[0]


@pytest.mark.parametrize("command_name", ["plugins", "doctor"])
def test_a_dead_setting_is_told_once(monkeypatch, command_name):
    """Both commands exit with 1, and nothing is logged beside it."""
    monkeypatch.setenv("QTASKS_PLUGGY_DISABLE", "nosuch")

    done = subprocess.run(
        [sys.executable, "-m", "qtasks_pluggy.cli", command_name],
        capture_output=True,
        check=False,
        text=True,
    )

    assert 1 == done.returncode
    assert 1 == (done.stdout + done.stderr).count("no plugin has that name")
    assert "unknown_plugin_name" not in done.stderr


PAGE = Path(__file__).parents[2] / "docs/reference/command.md"


def misfits(value: Any, schema: Any, where: str = "$") -> list[str]:
    """Return where a value is not as a JSON schema has it, of the words that ours uses."""
    types = {"object": dict, "array": list, "string": str, "boolean": bool, "number": (int, float)}
    known = {"type", "required", "additionalProperties", "properties", "items", "enum"}
    assert known >= schema.keys()
    wanted = schema.get("type", [])
    wanted = wanted if isinstance(wanted, list) else [wanted]
    found = []
    if wanted and not any(
        value is None if one == "null" else isinstance(value, types[one]) for one in wanted
    ):
        found.append(f"{where}: {value!r} is no {wanted}")
    if "enum" in schema and value not in schema["enum"]:
        found.append(f"{where}: {value!r} is none of {schema['enum']}")
    if isinstance(value, dict):
        found += [f"{where}: no {key}" for key in schema.get("required", ()) if key not in value]
        for key, inner in value.items():
            further = schema.get("properties", {}).get(key, schema.get("additionalProperties", {}))
            if further is False:
                found.append(f"{where}.{key} is not in the schema")
            else:
                found += misfits(inner, further, f"{where}.{key}")
    if isinstance(value, list):
        for inner in value:
            found += misfits(inner, schema.get("items", {}), f"{where}[]")
    return found


@pytest.mark.parametrize("app", [[], ["shop_for_doctor.py"]])
def test_doctor_s_json_is_as_the_page_says(monkeypatch, app):
    """The schema in the documentation fits what doctor writes, to the last key."""
    monkeypatch.setenv("QTASKS_PLUGGY_ENABLE", "fallback")
    monkeypatch.setenv("QTASKS_PLUGGY_DISABLE", "nosuch,slow")
    schema = json.loads(PAGE.read_text("utf-8").partition("```json\n")[2].partition("```")[0])

    found = json.loads(run("doctor", *app, "--json").stdout)

    assert [] == misfits(found, schema)
    assert ["$.more is not in the schema"] == misfits(found | {"more": 1}, schema)
    hooks = schema["properties"]["hooks"]["additionalProperties"]["items"]
    assert hooks["properties"].keys() == set(hooks["required"])


def test_doctor_does_not_tell_of_quarantine():
    """It is kept by the process that does the runs, which doctor is not."""
    found = examined()

    assert "quarantine" not in json.dumps([found["hooks"], found["plugins"]])


def test_doctor_reads_well_on_a_pipe():
    """Without a terminal doctor writes plain columns."""
    result = run("doctor", "shop_for_doctor.py")

    assert 0 == result.exit_code
    assert "task_executor_run_task_trigger_error\n" in result.output
    assert "\x1b" not in result.output
    assert "nobody implements\n" in result.output
    assert result.output.endswith("\nno faults\n")


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
