"""``qtasks-pluggy check``: the same contract by the command, with remedies."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import pytest

from qtasks_pluggy.testing import PluginContract, contract
from tests.cli.conftest import Workplace, workplace  # noqa: F401  # a fixture
from tests.plugins.conftest import distributions  # noqa: F401  # a fixture

HANDLER = """
from qtasks_hookspecs import on_error

@on_error(KeyError)
def answer():
    return 1
"""
"""The source of a plugin that is fine."""


def check(*args, folder, seconds=120):
    """Run the command in a process of its own, as its script does: not with the folder in front."""
    return subprocess.run(
        [sys.executable, "-P", "-m", "qtasks_pluggy.cli", "check", *args],
        cwd=folder,
        check=False,
        capture_output=True,
        text=True,
        timeout=seconds,
    )


def test_a_plugin_that_is_fine_passes_by_name_and_by_path(distributions):  # noqa: F811  # the fixture
    """Installed, as a module and as a file; 0, and each check is listed."""
    distributions.add("qtasks-mine", {"mine": "mine_plugin"}, mine_plugin=HANDLER)
    place = Workplace(distributions.folder)

    for name in ("mine", "mine_plugin", "site/mine_plugin.py"):
        ended = place.run("check", name)
        assert ended.exit_code == 0, ended.output
        assert ended.stdout.count("fine") == len(contract.CHECKS)
        assert f"{name}: keeps the contract" in ended.stdout


def test_a_file_may_hold_the_plugin_in_a_class(workplace):  # noqa: F811  # the fixture
    """One is found by itself, one of several is named."""
    handler = "class {}:\n    @on_error(KeyError)\n    def answer(self): ...\n"
    begin = "from qtasks_hookspecs import on_error\n"
    workplace.write("single.py", f"{begin}{handler.format('Mine')}")
    workplace.write("several.py", f"{begin}{handler.format('Mine')}{handler.format('Other')}")

    assert workplace.run("check", "single.py").exit_code == 0
    assert workplace.run("check", "several.py:Other").exit_code == 0
    ended = workplace.run("check", "several.py")
    assert ended.exit_code == 2
    assert "name one: Mine, Other, as in several:Name" in ended.stderr


def test_both_doors_have_the_same_checks(distributions):  # noqa: F811  # the fixture
    """What the command lists are the tests of the class, with their claims."""
    distributions.add("qtasks-mine", {"mine": "mine_plugin"}, mine_plugin=HANDLER)

    told = json.loads(Workplace(distributions.folder).run("check", "mine", "--json").stdout)

    tests = [name for name in vars(PluginContract) if name.startswith("test_")]
    assert [f"test_{one['check']}" for one in told["checks"]] == tests
    assert all(one["claim"] and one["findings"] == [] for one in told["checks"])


def test_a_finding_has_a_remedy_and_exit_code_1(distributions):  # noqa: F811  # the fixture
    """In text and in JSON, which nothing that the plugin prints disturbs."""
    source = f"{HANDLER.replace('return 1', 'print(1); return {1}')}"
    distributions.add("qtasks-mine", {"mine": "mine_plugin"}, mine_plugin=source)
    place = Workplace(distributions.folder)

    text, told = place.run("check", "mine"), place.run("check", "mine", "--json")

    assert text.exit_code == told.exit_code == 1
    assert "its answers are json                wrong" in text.stdout
    assert "set is not JSON serializable\n  -> answer text, numbers" in text.stdout
    assert "mine: 1 to fix" in text.stdout
    found = [one for one in json.loads(told.stdout)["checks"] if one["findings"]]
    assert [one["check"] for one in found] == ["its_answers_are_json"]
    assert found[0]["findings"][0]["remedy"].startswith("answer text")


CLASS = """
from qtasks_hookspecs import on_error

class Plugin:
    @on_error(KeyError)
    def answer(self): ...
"""
"""The source of a plugin whose handlers are in a class."""


def test_what_no_app_can_load_does_not_pass(distributions):  # noqa: F811  # the fixture
    """Its entry point forgets the class or misspells it, or two claim its name: 1, and why."""
    distributions.add("qtasks-mine", {"mine": "mine_plugin"}, mine_plugin=CLASS)
    distributions.add("qtasks-slip", {"slip": "mine_plugin:Plugn"})
    for name in ("qtasks-one", "qtasks-two"):
        distributions.add(name, {"both": "mine_plugin:Plugin"})
    place = Workplace(distributions.folder)

    told = {
        "mine": "no hookimpl\n  -> did you mean 'mine_plugin:Plugin', which has some?",
        "slip": "has no attribute 'Plugn')\n  -> fix the module of its entry point",
        "both": "both claim this name",
    }
    for name, why in told.items():
        ended = place.run("check", name)
        assert ended.exit_code == 1, ended.output
        assert why in ended.stdout, ended.output
        assert f"{name}: 1 to fix" in ended.stdout


def test_one_mistake_is_told_once(distributions):  # noqa: F811  # the fixture
    """A setting that it needs breaks most checks: one finding, which names the way to give it."""
    source = """
import attrs
from qtasks_hookspecs import hookimpl, on_error

@attrs.frozen
class Settings:
    url: str

@hookimpl
def qtasks_start(settings: Settings): ...

@on_error(KeyError)
def answer(): ...
"""
    distributions.add("qtasks-mine", {"mine": "mine_plugin"}, mine_plugin=source)
    place = Workplace(distributions.folder)

    ended = place.run("check", "mine")

    assert ended.exit_code == 1
    assert "mine: 1 to fix" in ended.stdout
    assert "--settings" in ended.stdout
    assert "disable" not in ended.stdout
    assert place.run("check", "mine", "--settings", '{"url": "x"}').exit_code == 0


BAD = {
    "raises": ("raise ValueError('no')", "importing 'mine' raised ValueError: no", "fix"),
    "exits": ("import sys; sys.exit(5)", "ends the program, with 5", "qtasks_start"),
    "ends at once": ("import os; os._exit(5)", "ends the program, with 5", "qtasks_start"),
    "has no hookimpl": ("x = 1", "has no hookimpl", "@hookimpl"),
    "is no Python": ("def", "SyntaxError", "fix"),
}


@pytest.mark.parametrize("what", BAD)
def test_a_module_that_cannot_be_a_plugin_is_a_finding(tmp_path, what):
    """It raises, exits, has no hookimpl, or is no Python: told with a remedy, never a traceback."""
    source, told, remedy = BAD[what]
    (tmp_path / "mine.py").write_text(source, "utf-8")

    ended = check("mine.py", folder=tmp_path)

    assert ended.returncode == 1, ended.stderr
    assert told in ended.stdout
    assert remedy in ended.stdout
    assert "Traceback" not in ended.stdout + ended.stderr


def test_a_module_that_hangs_is_a_finding(tmp_path, monkeypatch, workplace):  # noqa: F811  # the fixture
    """Its import is given up after a while."""
    workplace.write("hanging.py", "import time\ntime.sleep(300)\n")
    monkeypatch.setattr(contract, "_IMPORT_SECONDS", 1.0)
    begin = time.monotonic()

    ended = workplace.run("check", "hanging.py")

    assert ended.exit_code == 1
    assert "importing 'hanging' hangs: it did not end within 1 seconds" in ended.stdout
    assert time.monotonic() - begin < 60


def test_a_handler_that_hangs_is_a_finding_and_the_command_ends(tmp_path):
    """The process ends although a thread does not."""
    (tmp_path / "mine.py").write_text(
        "from qtasks_hookspecs import on_error\n@on_error(KeyError, task='only')\n"
        "def answer():\n    import time\n    time.sleep(300)\n",
        "utf-8",
    )

    ended = check("mine.py", "--seconds", "2", folder=tmp_path)

    assert ended.returncode == 1, ended.stderr
    assert "the plugin hangs when asked about KeyError with a text" in ended.stdout


def test_settings_and_arguments_are_given_as_json(tmp_path):
    """For plugins that need a section, or look at the arguments of their tasks."""
    (tmp_path / "mine.py").write_text(
        "import attrs\n"
        "from qtasks_hookspecs import hookimpl, on_error\n"
        "@attrs.frozen\nclass Settings:\n    url: str\n"
        "@hookimpl\ndef qtasks_start(settings: Settings): ...\n"
        "@on_error(KeyError)\ndef answer(run):\n    return run.args[0]\n",
        "utf-8",
    )
    given = ("--settings", '{"url": "here"}', "--args", '["tea"]')

    assert "'url' is missing" in check("mine.py", folder=tmp_path).stdout
    assert check("mine.py", *given, folder=tmp_path).returncode == 0


def test_a_file_beside_the_plugin_shadows_no_module_of_python_s(tmp_path):
    """The plugin's own imports mean what they mean where it is installed."""
    (tmp_path / "calendar.py").write_text("raise ValueError('not this one')", "utf-8")
    (tmp_path / "mine.py").write_text(f"from calendar import monthrange\n{HANDLER}", "utf-8")

    for name in ("mine.py", "mine"):
        ended = check(name, folder=tmp_path)
        assert ended.returncode == 0, ended.stdout
    ended = check("calendar.py", folder=tmp_path)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert "has the name of another module" in ended.stderr


def test_what_a_plugin_s_processes_print_is_not_in_the_json(tmp_path):
    """Nor what goes past ``sys.stdout``."""
    printing = "import os\n    os.write(1, b'own')\n    os.system('echo child')"
    source = HANDLER.replace("return 1", f"{printing}\n    return 1")
    (tmp_path / "mine.py").write_text(source, "utf-8")

    ended = check("mine.py", "--json", folder=tmp_path)

    assert json.loads(ended.stdout)["plugin"] == "mine.py"
    assert "child" in ended.stderr


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (("no-such",), "there is no plugin and no module 'no-such'; plugins here are failures"),
        (("no_such.py",), "the file no_such.py does not exist"),
        (("json:no_such",), "'json:no_such' cannot be imported"),
        (("json", "--args", "{}"), "--args: expected an array of JSON, got dict"),
        (("json", "--settings", "no"), "--settings: expected JSON"),
    ],
)
def test_what_cannot_be_checked_is_exit_code_2(args, told, workplace):  # noqa: F811  # the fixture
    """There is no such plugin, or an option is no JSON."""
    ended = workplace.run("check", *args)

    assert ended.exit_code == 2, ended.output
    assert told in ended.stderr


def test_built_in_plugins_are_checked_by_name(workplace):  # noqa: F811  # the fixture
    """As if they were installed."""
    ended = workplace.run("check", "retry", "--settings", '{"errors": ["KeyError"]}')

    assert ended.exit_code == 0, ended.output
