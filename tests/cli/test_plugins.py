"""``plugins``: the plugins, and which are enabled."""

from __future__ import annotations

import json
import re
import sys

import pytest

GOOD = """
    from qtasks_hookspecs import hookimpl

    @hookimpl
    def qtasks_start(): ...

    @hookimpl
    def task_executor_run_task_trigger_error(): return 1
"""
BROKEN = "raise RuntimeError('a bug')\n"
APP = """
    from qtasks_hookspecs import hookimpl
    from qtasks_pluggy import QueueTasks

    class Own:
        name = "own"

        @hookimpl
        def qtasks_stop(self): ...

    app = QueueTasks("shop", plugins=[Own()])
    alone = QueueTasks("alone", plugins=[Own()], discover=False)
"""


@pytest.fixture
def install(workplace, monkeypatch):
    """Install distributions, as pip leaves them on disk."""
    site = workplace.folder / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(str(site))

    def installed(name, source, *, module=None):
        module = module or f"listed_{name}"
        workplace.write(f"site/{module}.py", source)
        info = f"site/qtasks_{name}-1.5.dist-info"
        workplace.write(
            f"{info}/METADATA", f"Metadata-Version: 2.1\nName: qtasks-{name}\nVersion: 1.5\n"
        )
        workplace.write(f"{info}/entry_points.txt", f"[qtasks_pluggy]\n{name} = {module}\n")

    return installed


def listed(workplace, *args):
    """List the plugins as JSON; return exit code, the installed ones by name, and errors."""
    result = workplace.run("plugins", "--json", *args)
    rows = json.loads(result.stdout)
    return result.exit_code, {row["name"]: row for row in rows}, result.stderr


def test_an_installed_plugin_is_listed_with_all_that_is_known(workplace, install):
    """Name, distribution, version, hooks, and that it is enabled."""
    install("good", GOOD)

    code, found, _ = listed(workplace)

    assert code == 0
    assert {
        "name": "good",
        "distribution": "qtasks-good",
        "version": "1.5",
        "builtin": False,
        "hooks": ["qtasks_start", "task_executor_run_task_trigger_error"],
        "enabled": True,
        "reason": None,
        "keys": [],
    } == found["good"]


def test_the_table_says_the_same(workplace, install):
    """Plain columns on a pipe."""
    install("good", GOOD)

    result = workplace.run("plugins")
    (row,) = [line.split() for line in result.stdout.splitlines() if line.startswith("good ")]

    assert ["good", "qtasks-good", "1.5", "yes", "qtasks_start,"] == row[:5]


def test_a_disabled_plugin_is_listed_and_not_imported(workplace, install, monkeypatch):
    """It says why it is not asked; even one that would raise does no harm."""
    install("broken", BROKEN)
    monkeypatch.setenv("QTASKS_PLUGGY_DISABLE", "broken")

    code, found, _ = listed(workplace)
    table = workplace.run("plugins").stdout

    assert code == 0
    assert not found["broken"]["enabled"]
    assert found["broken"]["reason"] in table
    assert "no: " in table
    assert "listed_broken" not in sys.modules


def test_a_faulty_plugin_is_named_and_the_others_are_listed(workplace, install):
    """Exit code 1; every fault is told, not only the first."""
    install("broken", BROKEN)
    install("good", GOOD)
    install("wrong", "from qtasks_hookspecs import hookimpl\n@hookimpl\ndef nonsense(): ...\n")

    code, found, err = listed(workplace)

    assert code == 1
    assert found["good"]["enabled"]
    assert not found["broken"]["enabled"]
    assert not found["wrong"]["enabled"]
    assert "Error: plugin 'broken' (qtasks-broken 1.5): entry point 'listed_broken' failed" in err
    assert "Error: plugin 'wrong' (qtasks-wrong 1.5): " in err
    assert "QTASKS_PLUGGY_DISABLE=wrong" in err


def test_the_plugins_of_an_app_come_after_the_installed_ones(workplace, install):
    """They are listed in the order in which they are asked, without starting the app."""
    install("good", GOOD)
    workplace.write("shop.py", APP)

    code, found, _ = listed(workplace, "shop")

    assert code == 0
    names = list(found)
    assert names.index("good") < names.index("own")
    assert (None, None, ["qtasks_stop"]) == (
        found["own"]["distribution"],
        found["own"]["version"],
        found["own"]["hooks"],
    )


def test_a_built_in_plugin_is_listed_as_such(workplace, monkeypatch):
    """Neither the table nor the JSON takes it for one that the app adds."""
    workplace.write("shop.py", APP)
    monkeypatch.setenv("QTASKS_PLUGGY_ENABLE", "fallback")

    _, found, _ = listed(workplace, "shop")
    table = workplace.run("plugins", "shop").stdout

    assert (True, None) == (found["fallback"]["builtin"], found["fallback"]["distribution"])
    assert found["own"]["builtin"] is False
    assert {"fallback": "built in", "own": "-"} == {
        name: re.search(rf"^{name} +(built in|-) ", table, re.MULTILINE)[1]
        for name in ("fallback", "own")
    }


def test_an_app_that_does_not_discover_has_its_own_plugins_alone(workplace, install):
    """What is installed is not asked there, so it is not listed."""
    install("good", GOOD)
    workplace.write("shop.py", APP)

    code, found, _ = listed(workplace, "shop:alone")

    assert (0, {"own"}) == (code, {name for name, row in found.items() if not row["builtin"]})


def test_built_in_plugins_that_are_off_say_how_to_enable_them(workplace, monkeypatch):
    """They come last, in JSON too; one that is enabled is listed once."""
    monkeypatch.setenv("QTASKS_PLUGGY_ENABLE", "fallback")
    workplace.write(
        "bare.py", "from qtasks_pluggy import QueueTasks\napp = QueueTasks('b', discover=False)\n"
    )

    code, found, _ = listed(workplace, "bare")
    table = workplace.run("plugins", "bare").stdout

    assert (0, {"fallback": True, "failures": False, "retry": False}) == (
        code,
        {name: row["enabled"] for name, row in found.items()},
    )
    hint = "no: off; QTASKS_PLUGGY_ENABLE=fallback,retry enables it"  # the whole list
    assert re.search(rf"^retry +built in +{hint}", table, re.MULTILINE)
    assert 1 == table.count("fallback ")


@pytest.mark.parametrize("command", ["plugins", "doctor"])
@pytest.mark.parametrize("key", ["enable", "disable", "observe"])
def test_a_variable_that_drops_names_of_the_file_is_reported(workplace, monkeypatch, command, key):
    """It names the file and what is missing; a variable with all names is not reported."""
    names = ["failures", "fallback", "retry"]
    file = workplace.write("qtasks_pluggy.toml", f"{key} = {json.dumps(names)}\n")
    variable = f"QTASKS_PLUGGY_{key.upper()}"
    monkeypatch.setenv("QTASKS_PLUGGY_PLUGIN_RETRY_ERRORS", '["KeyError"]')
    note = f"{variable} replaces the list of {file}, which also names failures, fallback\n"

    monkeypatch.setenv(variable, "retry")
    dropped = workplace.run(command)
    monkeypatch.setenv(variable, ",".join(reversed(names)))
    whole = workplace.run(command)

    assert [(0, note), (0, "")] == [(one.exit_code, one.stderr) for one in (dropped, whole)]


@pytest.mark.parametrize("app", [[], ["shop"]])
def test_wrong_settings_are_exit_code_2(workplace, app, monkeypatch):
    """The nearest key is named."""
    workplace.write("shop.py", APP)
    monkeypatch.setenv("QTASKS_PLUGGY_STRIKT", "1")

    result = workplace.run("plugins", *app)

    assert (2, "") == (result.exit_code, result.stdout)
    assert "QTASKS_PLUGGY_STRICT" in result.stderr


def test_an_app_that_is_not_there_is_exit_code_2(workplace):
    """As for every command."""
    assert workplace.run("plugins", "nowhere").exit_code == 2
