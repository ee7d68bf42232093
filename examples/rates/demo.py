"""A year of exchange rates, first without a plugin, then with one.

    python examples/rates/demo.py

It prints each command, then runs it in a shell. It needs ``qtasks-pluggy[cli]`` and
``qtasks-last-rate`` in this Python's environment, and neither a network nor a server.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from importlib.metadata import entry_points
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
BIN = Path(sys.executable).parent  # where pip put this environment's commands

ONE = "qtasks-pluggy run rates.py eur_100 2022-04-17 USD"  # Easter Sunday
YEAR = "qtasks-pluggy run rates.py eur_100 --each -"
WITHOUT = "QTASKS_PLUGGY_DISABLE=last-rate"


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
        "300 runs still fail: the rouble has had no rate since 2 March.",
        (
            Command("qtasks-pluggy plugins"),
            Command(ONE),
            Command(f"python rates.py | {YEAR}", exit_code=1),
        ),
    ),
)


def run(command: Command, folder: str) -> None:
    """Print a command and run it; what it prints comes after it."""
    # Settings of the reader's own would change what is shown.
    kept = {k: v for k, v in os.environ.items() if not k.startswith("QTASKS_PLUGGY_")}
    env = kept | {"PATH": os.pathsep.join([str(BIN), kept.get("PATH", os.defpath)])}
    print(f"\n$ {command.line}", flush=True)
    done = subprocess.run(command.line, shell=True, check=False, cwd=folder, env=env)  # noqa: S602  # a line of STEPS
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
