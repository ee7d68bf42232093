"""The command's entry, with and without what it needs."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys

import pytest

import qtasks_pluggy.cli


def test_the_package_imports_without_click_and_rich():
    """Only running the command needs the extra."""
    program = "import sys, qtasks_pluggy, qtasks_pluggy.cli; print('click' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, check=True, text=True
    )

    assert done.stdout == "False\n"


@pytest.mark.parametrize("missing", ["click", "rich"])
def test_without_the_extra_the_command_says_what_to_install(missing):
    """Exit code 2, and one line with the command that mends it."""
    program = (
        f"import sys; sys.modules[{missing!r}] = None; import qtasks_pluggy.cli as c; c.main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, check=False, text=True
    )

    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == (
        f"Error: the command qtasks-pluggy needs {missing}, which is not installed;"
        " install the extra that brings it: python -m pip install 'qtasks-pluggy[cli]'\n"
    )


def test_another_module_that_is_missing_is_an_ordinary_error(monkeypatch):
    """Only what the extra brings is taken for a missing extra."""
    monkeypatch.setitem(sys.modules, "qtasks_pluggy.cli._command", None)

    with pytest.raises(ModuleNotFoundError, match=r"qtasks_pluggy\.cli\._command"):
        qtasks_pluggy.cli.main()


def test_the_command_runs_as_a_module_and_by_its_main(monkeypatch, capsys):
    """``python -m qtasks_pluggy.cli`` and the installed script are the same."""
    done = subprocess.run(
        [sys.executable, "-m", "qtasks_pluggy.cli", "--help"],
        capture_output=True,
        check=True,
        text=True,
    )
    monkeypatch.setattr(sys, "argv", ["qtasks-pluggy", "--help"])
    with pytest.raises(SystemExit) as left:
        qtasks_pluggy.cli.main()

    assert left.value.code == 0
    assert capsys.readouterr().out == done.stdout
    assert "Usage: qtasks-pluggy" in done.stdout


@pytest.mark.parametrize("name", ["run", "plugins"])
def test_each_command_tells_its_exit_codes(workplace, name):
    """``--help`` says what a script can rely on."""
    text = workplace.run(name, "--help").stdout

    assert "Exit codes:\n    0 " in text
    assert "\n    2 " in text


def test_the_version_is_that_of_the_distribution(workplace):
    """One line, as the package's metadata has it."""
    version = importlib.metadata.version("qtasks-pluggy")

    assert f"qtasks-pluggy {version}\n" == workplace.run("--version").stdout
