"""The command's entry, with and without what it needs."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import qtasks_pluggy.cli
from qtasks_pluggy.cli._command import command


def test_the_package_imports_without_click_and_rich():
    """Only running the command needs the extra."""
    program = "import sys, qtasks_pluggy, qtasks_pluggy.cli; print('click' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, check=True, text=True
    )

    assert done.stdout == "False\n"


@pytest.mark.parametrize("missing", ["click", "rich"])
def test_without_the_extra_the_command_says_what_to_install(missing):
    """Exit code 2, and one line with the command that fixes it."""
    program = (
        f"import sys; sys.modules[{missing!r}] = None; import qtasks_pluggy.cli as c; c.main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, check=False, text=True
    )

    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == (
        f"Error: the command qtasks-pluggy needs {missing}, which is not installed; run:"
        " python -m pip install 'qtasks-pluggy[cli]'\n"
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


@pytest.mark.parametrize("name", ["run", "plugins", "doctor", "hooks"])
def test_each_command_has_an_example_and_its_exit_codes(workplace, name):
    """``--help`` says what a script can rely on, and fits a terminal of 80 columns."""
    text = workplace.run(name, "--help").stdout

    assert re.search(rf"\n  Examples?:\n    qtasks-pluggy {name} ", text)
    assert "Exit codes:\n    0 " in text
    assert "\n    2 " in text
    assert 80 >= max(map(len, text.splitlines()))
    assert "..." not in text.replace("[ARGS]...", "")


def test_run_tells_every_exit_code(workplace):
    """Interrupted and terminated too."""
    text = workplace.run("run", "--help").stdout.partition("Exit codes:")[2]

    assert ["0", "1", "2", "130", "143"] == re.findall(r"^    (\d+) ", text, re.MULTILINE)


def test_the_list_of_commands_is_not_cut(workplace):
    """Each line says all that it has to."""
    text = workplace.run("--help").stdout

    assert "..." not in text.replace("[ARGS]...", "")
    assert 80 >= max(map(len, text.splitlines()))


def test_the_command_as_a_whole_has_an_example_and_every_exit_code(workplace):
    """Who asks for help first learns how to begin, and what a script can rely on."""
    text = workplace.run("--help").stdout
    example, _, codes = text.partition("Exit codes:")

    assert "  Example:\n    qtasks-pluggy run " in example
    assert ["0", "1", "2", "130", "143"] == re.findall(r"^    (\d+) ", codes, re.MULTILINE)


def _commands(command, name="qtasks-pluggy"):
    yield name, command
    for word, one in getattr(command, "commands", {}).items():
        yield from _commands(one, f"{name} {word}")


@pytest.mark.parametrize(("name", "one"), [*_commands(command)])
def test_the_first_line_of_every_help_is_whole(workplace, monkeypatch, name, one):
    """It is one sentence, and the list of commands shows all of it on 80 columns."""
    monkeypatch.setenv("COLUMNS", "80")
    first = (one.help or "").strip().splitlines()[0]
    shown = workplace.run(*name.split()[1:], "--help").stdout

    assert re.fullmatch(r"[A-Z][^.]{10,77}\.", first), first
    assert f"  {first}\n" in shown
    assert "..." not in shown.partition("Commands:")[2]


SCRIPT = Path(sys.executable).with_name("qtasks-pluggy")


@pytest.mark.parametrize(
    ("shell", "check"),
    [("bash", ("bash", "-n")), ("zsh", ("zsh", "-n")), ("fish", ("fish", "--no-execute"))],
)
def test_a_shell_gets_its_completion(tmp_path, shell, check):
    """What the documentation says generates a script, which the shell itself can read."""
    environment = os.environ | {"_QTASKS_PLUGGY_COMPLETE": f"{shell}_source"}
    made = subprocess.run([SCRIPT], env=environment, capture_output=True, check=True, text=True)
    (tmp_path / "completion").write_text(made.stdout, "utf-8")

    assert f"_QTASKS_PLUGGY_COMPLETE={shell}_complete" in made.stdout
    if shutil.which(shell):
        subprocess.run([*check, tmp_path / "completion"], check=True)


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash here")
@pytest.mark.parametrize(
    ("line", "completed"),
    [
        ("qtasks-pluggy do", ["plain,doctor"]),
        ("qtasks-pluggy run --re", ["plain,--resume", "plain,--retry-failed"]),
        ("qtasks-pluggy run shop price -i na", ["file,na"]),
    ],
)
def test_bash_completes_commands_options_and_files(line, completed):
    """A real bash evaluates the line of the documentation, and asks for the last word."""
    program = f"""
        eval "$(_QTASKS_PLUGGY_COMPLETE=bash_source qtasks-pluggy)"
        complete -p qtasks-pluggy >/dev/null || exit 1
        words=({line})
        COMP_WORDS="${{words[*]}}" COMP_CWORD=$((${{#words[@]}} - 1)) \\
            _QTASKS_PLUGGY_COMPLETE=bash_complete qtasks-pluggy
    """
    path = f"{SCRIPT.parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        [shutil.which("bash"), "-c", program],
        env=os.environ | {"PATH": path},
        capture_output=True,
        check=True,
        text=True,
    )

    assert completed == done.stdout.splitlines()


def test_the_version_is_that_of_the_distribution(workplace):
    """One line, as the package's metadata has it."""
    version = importlib.metadata.version("qtasks-pluggy")

    assert f"qtasks-pluggy {version}\n" == workplace.run("--version").stdout
