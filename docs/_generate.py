"""Copy docstrings and signatures into the pages: ``python docs/_generate.py [--check]``.

The text between two comments like these is generated, the rest of a page is written by hand::

    <!-- generated: attributes qtasks_hookspecs.Retry -->
    <!-- end -->

=====================================  =========================================================
``hooks``                              every hook: signature, docstring, example
``names PACKAGE``                      the names of ``__all__``: signature and first line
``errors MODULE``                      the same for errors, with their base
``members PACKAGE.CLASS NAME ...``     methods and properties: signature and first line
``attributes PACKAGE.CLASS``           the attributes in the class's docstring
``settings``                           every settings key, from its declaration
=====================================  =========================================================
"""  # noqa: INP001  # a folder of pages, not a package

from __future__ import annotations

import argparse
import inspect
import re
import sys
from collections.abc import Iterable, Iterator
from enum import Enum
from importlib import import_module
from pathlib import Path
from typing import Any, Final

import attrs

from qtasks_hookspecs import _hooks
from qtasks_pluggy._settings import Settings

DOCS: Final = Path(__file__).parent
PART: Final = re.compile(r"(<!-- generated: (.+?) -->\n)(.*?)(<!-- end -->)", re.DOTALL)

# Instances and modules have no docstring of their own at run time.
SAYS: Final = {
    "hookimpl": "Mark a function as an implementation of the hook with its name.",
    "exc": "All errors; see below.",
}
# Users get these, and never make them.
GIVEN: Final = {"AsyncTask", "RunningApp", "RunningTask", "SyncTask", "TaskStatus"}


def main() -> int:
    """Update the pages, or with ``--check`` list the stale ones."""
    parser = argparse.ArgumentParser(description="Copy docstrings into the pages.")
    parser.add_argument("--check", action="store_true", help="only list stale pages")
    check = parser.parse_args().check
    stale = dict(stale_pages())
    for path, text in stale.items():
        sys.stdout.write(f"{path}: {'stale' if check else 'written'}\n")
        if not check:
            path.write_text(text, "utf-8")
    return 1 if check and stale else 0


def stale_pages() -> Iterator[tuple[Path, str]]:
    """Yield each stale page with its new text."""
    for path in sorted(DOCS.rglob("*.md")):
        text = path.read_text("utf-8")
        wanted = PART.sub(lambda part: f"{part[1]}{_made(part[2])}{part[4]}", text)
        if wanted != text:
            yield path, wanted


def _made(order: str) -> str:
    kind, *words = order.split()
    makers = {
        "hooks": _hooks_part,
        "names": _names,
        "errors": _errors,
        "members": _members,
        "attributes": _attributes,
        "settings": _settings_part,
    }
    made = "\n".join(makers[kind](*words)).strip()
    return f"\n{made}\n\n"


def _hooks_part() -> Iterator[str]:
    for name, hook in vars(_hooks).items():
        if not hasattr(hook, "qtasks_pluggy_spec"):
            continue
        parts = _parts(hook)
        parameters = inspect.signature(hook).parameters
        yield f"## {name}({', '.join(parameters)})"
        yield f"\n{parts['']}\n"
        yield f"**When.**\n{_sentences(parts['When'])}\n"
        for parameter, says in _entries(parts["Args"]):
            yield f"- `{parameter}` (`{parameters[parameter].annotation}`): {says}"
        yield f"\n**Answers.**\n{_sentences(parts['Returns'])}\n"
        yield f"**Failures.**\n{_sentences(parts['Raises'])}\n"
        example = re.sub(r"^(?:>>>|\.\.\.) ?", "", parts["Example"], flags=re.MULTILINE)
        yield f"```python\n{example}\n```\n"


def _settings_part() -> Iterator[str]:
    factories = _factories(Settings)
    yield from _table(
        ["key", "takes", "default", "what it is for"],
        (
            [
                f"`{field.name}`",
                field.metadata["kind"].wanted,
                f"`{factories.get(field.name, field.default)!r}`",
                _markdown(field.metadata["description"]),
            ]
            for field in attrs.fields(Settings)
        ),
    )


def _names(package: str) -> Iterator[str]:
    module = import_module(package)
    yield from _table(
        ["name", ""],
        (
            [_signature(name, getattr(module, name)), _first_line(module, name)]
            for name in module.__all__
        ),
    )


def _errors(package: str) -> Iterator[str]:
    module = import_module(package)
    yield from _table(
        ["error", "is a", ""],
        (
            [
                _signature(name, getattr(module, name)),
                ", ".join(f"`{base.__name__}`" for base in getattr(module, name).__bases__),
                _first_line(module, name),
            ]
            for name in module.__all__
        ),
    )


def _members(path: str, *names: str) -> Iterator[str]:
    owner = _find(path)
    members = {name: inspect.getattr_static(owner, name) for name in names}
    yield from _table(
        ["", ""],
        ([_signature(name, member), _first_line(owner, name)] for name, member in members.items()),
    )


def _attributes(path: str) -> Iterator[str]:
    entries = _entries(_parts(_find(path))["Attributes"])
    yield from _table(["attribute", ""], ([f"`{name}`", says] for name, says in entries))


def _find(path: str) -> Any:
    package, _, name = path.rpartition(".")
    return getattr(import_module(package), name)


def _table(heads: list[str], rows: Iterable[list[str]]) -> Iterator[str]:
    yield _row(heads)
    yield _row(["---"] * len(heads))
    yield from map(_row, rows)


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _first_line(owner: Any, name: str) -> str:
    if name in SAYS:
        return SAYS[name]
    text = inspect.getdoc(getattr(owner, name)) or ""
    return _markdown(text.partition("\n\n")[0])


def _parts(documented: Any) -> dict[str, str]:
    """Split a docstring into its sections by head; the beginning is under ``""``."""
    text = inspect.getdoc(documented) or ""
    pieces = re.split(r"^(\w+):\n", text, flags=re.MULTILINE)
    heads, bodies = ["", *pieces[1::2]], pieces[::2]
    parts = {head: inspect.cleandoc(body) for head, body in zip(heads, bodies, strict=True)}
    return {head: body if head == "Example" else _markdown(body) for head, body in parts.items()}


def _entries(body: str) -> list[tuple[str, str]]:
    """Read ``name: text`` entries, whose texts may continue on indented lines."""
    found = re.findall(r"^(\w+): (.*(?:\n +.*)*)", body, re.MULTILINE)
    return [(name, re.sub(r"\s+", " ", says)) for name, says in found]


def _markdown(text: str) -> str:
    return text.replace("``", "`")


def _sentences(text: str) -> str:
    """Put each sentence on a line of its own."""
    return re.sub(r"(?<=\.) (?=[A-Z`])", "\n", re.sub(r"\s+", " ", text))


def _signature(name: str, documented: Any) -> str:
    if isinstance(documented, property) or inspect.ismodule(documented) or name in GIVEN:
        return f"`{name}`"
    if isinstance(documented, type) and issubclass(documented, Enum):
        return f"`{name}`"  # its signature differs between Python versions
    try:
        parameters = list(inspect.signature(documented).parameters.values())
    except ValueError:  # an exception class without its own has none
        return f"`{name}(message)`"
    if inspect.isfunction(documented) and parameters and parameters[0].name in {"self", "_"}:
        parameters = parameters[1:]
    factories = _factories(documented)
    bare = [
        one.replace(
            annotation=inspect.Parameter.empty,
            default=_Shown(factories.get(one.name, one.default))
            if one.default is not inspect.Parameter.empty
            else one.default,
        )
        for one in parameters
    ]
    return f"`{name}{inspect.Signature(bare)}`"


def _factories(documented: Any) -> dict[str, Any]:
    """Return the defaults that attrs makes for each instance."""
    if not attrs.has(documented):
        return {}
    defaults = {field.name: field.default for field in attrs.fields(documented)}
    return {name: one.factory() for name, one in defaults.items() if hasattr(one, "factory")}


class _Shown:
    """A default value, shown as a reader would write it."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __repr__(self) -> str:
        if callable(self.value):
            return f"{self.value.__module__}.{self.value.__qualname__}"
        return repr(self.value)


if __name__ == "__main__":
    sys.exit(main())
