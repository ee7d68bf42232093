"""A year of exchange rates: without a plugin, with one, and what failed even so.

    python examples/rates/demo.py

It prints each command, then runs it in a shell. It needs ``qtasks-pluggy[cli,failures]``
and ``qtasks-last-rate`` in this Python's environment, and neither a network nor a server.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).resolve().parent
BIN = Path(sys.executable).parent  # where pip put this environment's commands

ONE = "qtasks-pluggy run rates.py eur_100 2022-04-17 USD"  # Easter Sunday
YEAR = "qtasks-pluggy run rates.py eur_100 --each -"
WITHOUT = "QTASKS_PLUGGY_DISABLE=last-rate"
RECORD = "echo 'enable = [\"failures\"]' > qtasks_pluggy.toml"
A_YEAR = "printf '[plugin.last-rate]\\nmax_age_days = 365\\n' >> qtasks_pluggy.toml"
LAST_FAILED = "qtasks-pluggy failures list --status failed --limit 1 --json"


class Command(NamedTuple):
    """A line for the shell, and the exit code that belongs to it."""

    line: str
    exit_code: int = 0


class Step(NamedTuple):
    """What is shown, and by which commands."""

    title: str
    commands: tuple[Command, ...]


STEPS = (
    Step(
        "Without the plugin (a setting switches it off), a day without a rate is a failed run.",
        (
            Command(f"{WITHOUT} {ONE}", exit_code=1),
            Command(f"python rates.py | {WITHOUT} {YEAR}", exit_code=1),
        ),
    ),
    Step(
        "With the plugin, the run's result is the last rate, if that is at most five days old.\n"
        "300 runs still fail: the rouble has had no rate since 2 March. Failures are recorded.",
        (
            Command(RECORD),
            Command("qtasks-pluggy plugins"),
            Command(ONE),
            Command(f"python rates.py | {YEAR}", exit_code=1),
        ),
    ),
    Step(
        "What was recorded says what failed, why, and who was asked and decided.",
        (
            Command("qtasks-pluggy failures groups"),
            Command("qtasks-pluggy failures show UUID"),
        ),
    ),
    Step(
        "A year-old rate will do? Ask the plugin about the recorded errors, before it goes live;\n"
        "then run what failed again. No failure is left, and no code was touched.",
        (
            Command(A_YEAR),
            Command("qtasks-pluggy failures replay --app rates.py --dry-run"),
            Command("qtasks-pluggy failures replay --app rates.py --yes"),
            Command("qtasks-pluggy failures groups"),
        ),
    ),
)


def in_shell(line: str, folder: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a line without the reader's own settings, which would change what is shown."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("QTASKS_PLUGGY_")}
    path = os.pathsep.join([str(BIN), kept.get("PATH", os.defpath)])
    env = kept | {"PATH": path, "XDG_STATE_HOME": folder}  # failures are stored there
    return subprocess.run(line, shell=True, check=False, cwd=folder, env=env, text=True, **options)  # noqa: S602  # a line of this file


def run(command: Command, folder: str) -> None:
    """Print a command and run it; what it prints comes after it."""
    line = command.line
    if line.endswith("UUID"):
        (last,) = json.loads(in_shell(LAST_FAILED, folder, stdout=subprocess.PIPE).stdout)
        line = line.replace("UUID", last["uuid"])
    print(f"\n$ {line}", flush=True)
    done = in_shell(line, folder)
    if done.returncode != command.exit_code:
        sys.exit(f"exit code {done.returncode} instead of {command.exit_code}")


def main() -> None:
    """Run all steps in a copy of this folder."""
    if not entry_points(group="qtasks_pluggy", name="last-rate"):
        package = HERE.parent / "qtasks-last-rate"
        sys.exit(f"install the plugin first: {sys.executable} -m pip install {package}")
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(HERE, folder, dirs_exist_ok=True)
        print(f"In a copy of {HERE}, with {BIN} first on PATH.")
        for number, step in enumerate(STEPS, 1):
            print(f"\n{number}. {step.title}")
            for command in step.commands:
                run(command, folder)


if __name__ == "__main__":
    main()
