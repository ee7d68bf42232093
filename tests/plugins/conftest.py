"""Real distributions for the tests of plugins: written to disk, found by their entry points."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from textwrap import dedent

import pytest

GROUP = "qtasks_pluggy"


class Distributions:
    """Writes distributions into folders, and makes those importable.

    Args:
        folder: Where the folders go.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.others = {point.name for point in importlib.metadata.entry_points(group=GROUP)}

    def site(self, name: str = "site") -> Path:
        """Return a folder that is on the import path, in front of those before it."""
        path = self.folder / name
        if not path.exists():
            path.mkdir()
            sys.path.insert(0, str(path))
        importlib.invalidate_caches()
        return path

    def add(
        self,
        name: str,
        entry_points: str | dict[str, str],
        /,
        *,
        version: str = "1.0",
        site: str = "site",
        **modules: str,
    ) -> None:
        """Install a distribution: its modules, and the two files of its ``dist-info``."""
        folder = self.site(site)
        for module, source in modules.items():
            (folder / f"{module}.py").write_text(dedent(source), "utf-8")
        if not isinstance(entry_points, str):
            lines = [f"{entry} = {target}" for entry, target in entry_points.items()]
            entry_points = "\n".join((f"[{GROUP}]", *lines, ""))
        info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        (info / "METADATA").write_text(metadata, "utf-8")
        (info / "entry_points.txt").write_text(entry_points, "utf-8")
        importlib.invalidate_caches()

    def answering(self, name: str, answer: object = "saved", **options: str) -> None:
        """Install a plugin that answers every error; its module is named after it."""
        source = f"""
            from qtasks_hookspecs import hookimpl

            @hookimpl
            def task_executor_run_task_trigger_error():
                return {answer!r}
            """
        module = f"{name}_plugin"
        self.add(f"qtasks-{name}", {name: module}, **options, **{module: source})

    def mend(self, module: str, source: str) -> None:
        """Write a module anew, as an upgrade of its distribution does."""
        path = self.site() / f"{module}.py"
        path.write_text(dedent(source), "utf-8")
        # A second version within one second looks like the first to the cache of bytecode.
        for cached in path.with_name("__pycache__").glob(f"{module}.*"):
            cached.unlink()

    def own(self, names: Iterable[str]) -> list[str]:
        """Leave out the plugins that were installed before the test."""
        return [name for name in names if name not in self.others]


@pytest.fixture
def distributions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Distributions]:
    """Write distributions; afterwards neither path nor modules of them are left."""
    for variable in list(os.environ):
        if variable.startswith("QTASKS_PLUGGY_"):
            monkeypatch.delenv(variable)
    monkeypatch.chdir(tmp_path)
    path, modules = list(sys.path), set(sys.modules)
    try:
        yield Distributions(tmp_path)
    finally:
        sys.path[:] = path
        for name in set(sys.modules) - modules:
            file = getattr(sys.modules[name], "__file__", None)
            if file is not None and Path(file).is_relative_to(tmp_path):
                del sys.modules[name]
        importlib.invalidate_caches()
