"""Build the documentation as a site in the folder ``site/``: ``python docs/_site.py``.

The pages are those of the repository, where they are, so that a link works in both places. The
navigation is that of ``index.md``, a tab for each heading, and what docstrings say of public names
is added to the last one but one, the reference. A link that leads nowhere is an error.
"""  # noqa: INP001  # a folder of pages, not a package

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[1]
SITE: Final = ROOT / "site"
MODULES: Final = {
    "qtasks_hookspecs": "hookspecs/qtasks_hookspecs/__init__.py",
    "qtasks_hookspecs.exc": "hookspecs/qtasks_hookspecs/exc.py",
    "qtasks_pluggy": "qtasks_pluggy/__init__.py",
    "qtasks_pluggy.testing": "qtasks_pluggy/testing/__init__.py",
}
FROM_ELSEWHERE: Final = re.compile(r"<(?:script|link|img)\b[^>]*\"https?://[^>]*>")


def main() -> int:
    """Build the site; return 1 where a link is broken, or a page loads something from elsewhere."""
    with tempfile.TemporaryDirectory() as folder:
        sources = Path(folder, "sources")
        for name in ("docs", "examples"):
            ignored = shutil.ignore_patterns("*.py", "__pycache__")
            shutil.copytree(ROOT / name, sources / name, ignore=ignored)
        for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE"):
            shutil.copy(ROOT / name, sources)
        Path(folder, "zensical.toml").write_text(_settings(sources), "utf-8")
        packages = os.pathsep.join((str(ROOT), str(ROOT / "hookspecs")))  # where docstrings are
        built = subprocess.run(
            [sys.executable, "-m", "zensical", "build", "--strict", "--clean"],
            check=False,
            cwd=folder,
            env=os.environ | {"PYTHONPATH": packages},
        )
        if built.returncode:
            return 1
        shutil.rmtree(SITE, ignore_errors=True)
        shutil.move(Path(folder, "site"), SITE)
    loads = {
        str(page.relative_to(ROOT)): found
        for page in SITE.rglob("*.html")
        if (found := FROM_ELSEWHERE.findall(page.read_text("utf-8")))
    }
    for name, found in loads.items():
        sys.stderr.write(f"{name} loads something from elsewhere: {found}\n")
    return 1 if loads else 0


def _settings(sources: Path) -> str:
    """Give the settings of ``zensical.toml``, with the folder of the pages and the navigation."""
    tabs = dict(_tabs())
    tabs["Reference"] += _write_api_pages(sources)
    nav = ", ".join(f"{{ {json.dumps(tab)} = [{_entries(pages)}] }}" for tab, pages in tabs.items())
    text = (ROOT / "zensical.toml").read_text("utf-8")
    return text.replace("[project]\n", f'[project]\ndocs_dir = "sources"\nnav = [{nav}]\n', 1)


def _entries(pages: list[tuple[str, str]]) -> str:
    return ", ".join(f"{{ {json.dumps(title)} = {json.dumps(path)} }}" for title, path in pages)


def _tabs() -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """Read tabs and their pages from the index: its headings, and the first link of each item."""
    yield "Home", [("qtasks-pluggy", "README.md"), ("All pages", "docs/index.md")]
    for part in (ROOT / "docs/index.md").read_text("utf-8").split("\n## ")[1:]:
        links = re.findall(r"^- \[(.+?)\]\((\S+?)\)", part, re.MULTILINE)
        pages = [(title, os.path.normpath(f"docs/{path}")) for title, path in links]
        yield part.partition("\n")[0], pages


def _write_api_pages(sources: Path) -> list[tuple[str, str]]:
    """Write a page for each public module; a name that two have is on the first one's."""
    pages, done = [], {"exc"}
    for module, path in MODULES.items():
        code = ast.parse((ROOT / path).read_text("utf-8"))
        (names,) = (
            ast.literal_eval(node.value)
            for node in code.body
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
        )
        page = f"docs/reference/{module}.md"
        own = "\n".join(f"::: {module}.{name}\n" for name in names if name not in done)
        text = f"# `{module}`\n\nCalls and defaults are in [Public names](api.md).\n\n{own}"
        (sources / page).write_text(text, "utf-8")
        pages.append((module, page))
        done |= set(names)
    return pages


if __name__ == "__main__":
    sys.exit(main())
