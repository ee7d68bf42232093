"""A new plugin's files, written all or none."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from importlib.metadata import entry_points, version
from pathlib import Path
from typing import Final

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from qtasks_pluggy.testing.given import GROUP

TEMPLATES: Final = Path(__file__).parent / "templates"
_NAME: Final = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
_MOST: Final = 50
_OWN: Final = frozenset({"pluggy", "hookspecs"})


class NameNotAllowedError(ValueError):
    """A name that a plugin cannot have."""


def new_project(name: str, parent: Path, builtins: frozenset[str]) -> list[Path]:
    """Write the files of a new plugin into a folder of its name.

    Args:
        name: The plugin's name, which is also the folder's and the entry point's.
        parent: Where the folder is made.
        builtins: The names of the built-in plugins.

    Returns:
        The files, by their paths in the folder.

    Raises:
        FileExistsError: Something of that name is there.
        NameNotAllowedError: Nothing can have that name, or a plugin has it.
        OSError: The folder cannot be written; nothing is left of it.
    """
    _check_name(name, builtins)
    folder = parent / name
    if os.path.lexists(folder):
        raise FileExistsError(folder)
    files = rendered(name)
    made: Path | None = None
    try:
        # Beside its place, so that the whole folder appears at once.
        made = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=parent))
        for path, text in files.items():
            (made / path).parent.mkdir(exist_ok=True)
            (made / path).write_text(text, "utf-8")
        umask = os.umask(0)
        os.umask(umask)
        made.chmod(0o777 & ~umask)
        made.rename(folder)
    except BaseException:
        if made is not None:
            shutil.rmtree(made, ignore_errors=True)
        raise
    return list(files)


def rendered(name: str) -> dict[Path, str]:
    """Render the templates for a plugin, by the files' paths in its folder.

    Names stand in strings and texts only, so the templates are Python and TOML, and are read by the
    same tools as all other files of the project.
    """
    environment = Environment(  # noqa: S701  # the files are Python, TOML and Markdown
        loader=FileSystemLoader(TEMPLATES),
        keep_trailing_newline=True,
        undefined=StrictUndefined,
    )
    words = name.replace("-", " ")
    major, minor = map(int, version("qtasks-pluggy").split(".")[:2])
    # Before 1.0, a minor release may break plugins.
    bounds = f">={major}.{minor},<{f'{major}.{minor + 1}' if major == 0 else major + 1}"
    values = {
        "name": name,
        "distribution": f"qtasks-{name}",
        "module": f"qtasks_{name.replace('-', '_')}",
        "title": words[0].upper() + words[1:],
        "requirement": f"qtasks-pluggy{bounds}",
        "testing": f"qtasks-pluggy[testing]{bounds}",
    }
    found: dict[Path, str] = {}
    for path in sorted(filter(_is_ours, TEMPLATES.rglob("*.*"))):
        template = path.relative_to(TEMPLATES).as_posix()
        target = template.replace("plugin.py", f"{values['module']}.py", 1)
        if template.startswith("tests/"):
            target = f"tests/test_{values['module'].removeprefix('qtasks_')}.py"
        found[Path(target)] = environment.get_template(template).render(values)
    return dict(sorted(found.items()))


def _is_ours(path: Path) -> bool:
    # pip compiles what it installs.
    return path.is_file() and path.suffix != ".pyc"


def _check_name(name: str, builtins: frozenset[str]) -> None:
    if not _NAME.fullmatch(name) or len(name) > _MOST:
        near = re.sub(r"[^a-z0-9]+", "-", name.lower())[:_MOST].strip("-").lstrip("0123456789-")
        hint = f"; did you mean {near!r}?" if near else ""
        msg = (
            f"{name!r} cannot be the name of a plugin and a part of names on PyPI and in Python:"
            f" give a letter, then letters, digits and single hyphens, at most {_MOST}, in lower"
            f" case{hint}"
        )
        raise NameNotAllowedError(msg)
    if name in builtins:
        msg = f"{name!r} is the name of a built-in plugin; give another"
        raise NameNotAllowedError(msg)
    if name in _OWN or name.startswith("qtasks-"):
        rest = name.removeprefix("qtasks-")
        msg = (
            f"a plugin {name!r} would be the distribution 'qtasks-{name}'; leave out 'qtasks-', as"
            f" in {rest!r}"
            if rest != name
            else f"'qtasks-{name}' and its module are names of the project itself; give another"
        )
        raise NameNotAllowedError(msg)
    for point in entry_points(group=GROUP, name=name):
        owner = point.dist
        who = "" if owner is None else f" of {owner.name} {owner.version}"
        msg = f"{name!r} is the name of an installed plugin{who}; give another, or uninstall it"
        raise NameNotAllowedError(msg)
