"""A folder with apps and files, and the command, in this process or in one of its own."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
from click.testing import CliRunner, Result

from qtasks_pluggy.cli._command import command

COMMAND = (sys.executable, "-m", "qtasks_pluggy.cli")


class Workplace:
    """A folder of one test, which is the current one.

    Args:
        folder: The folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._spawned: list[subprocess.Popen[bytes]] = []

    def write(self, name: str, source: str) -> Path:
        """Write a file, a module for example."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(dedent(source), "utf-8")
        importlib.invalidate_caches()
        return path

    def records(self, records: Iterable[Any], name: str = "in.jsonl") -> str:
        """Write records as JSON lines; return the file's name."""
        text = "".join(f"{json.dumps(record)}\n" for record in records)
        (self.folder / name).write_text(text, "utf-8")
        return name

    def lines(self, name: str = "out.jsonl") -> list[dict[str, Any]]:
        """Read JSON lines; each has to be whole."""
        text = (self.folder / name).read_text("utf-8")
        assert text == "" or text.endswith("\n")
        return [json.loads(line) for line in text.splitlines()]

    def run(self, *args: str) -> Result:
        """Run the command in this process."""
        return CliRunner().invoke(command, args)

    def spawn(self, *args: str, program: Iterable[str] = COMMAND, **options: Any) -> Any:
        """Start the command in a process of its own, with pipes."""
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        started = subprocess.Popen([*program, *args], **pipes | options)
        self._spawned.append(started)
        return started

    def finish(self, *args: str, given: str = "", **options: Any) -> tuple[int, str, str]:
        """Run the command in a process of its own; return exit code, output and errors."""
        process = self.spawn(*args, **options)
        out, err = process.communicate(given.encode(), timeout=60)
        return process.returncode, (out or b"").decode(), err.decode()

    def close(self) -> None:
        """Leave no process behind."""
        for process in self._spawned:
            if process.poll() is None:
                process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout, process.stderr):
                if pipe is not None:
                    pipe.close()


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Workplace]:
    """Work in a folder; afterwards nothing of it is on the path, imported, or running."""
    for variable in list(os.environ):
        if variable.startswith("QTASKS_PLUGGY_"):
            monkeypatch.delenv(variable)
    monkeypatch.chdir(tmp_path)
    path, modules = list(sys.path), set(sys.modules)
    place = Workplace(tmp_path)
    try:
        yield place
    finally:
        place.close()
        sys.path[:] = path
        for name in set(sys.modules) - modules:
            file = getattr(sys.modules[name], "__file__", None)
            if file is not None and Path(file).is_relative_to(tmp_path):
                del sys.modules[name]
        importlib.invalidate_caches()
