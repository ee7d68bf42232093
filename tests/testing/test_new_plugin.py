"""``qtasks-pluggy new-plugin``: a project that is fine as it is written, or nothing."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from qtasks_pluggy.testing import project
from tests.cli.conftest import workplace  # noqa: F401  # a fixture
from tests.plugins.conftest import distributions  # noqa: F401  # a fixture

FILES = ["README.md", "pyproject.toml", "qtasks_last_good.py", "tests/test_last_good.py"]


def files(folder):
    """Every file below a folder, hidden ones too."""
    return sorted(str(one.relative_to(folder)) for one in folder.rglob("*") if one.is_file())


def python(*arguments, folder, path=()):
    """Run Python in a folder, with folders of its own to import from."""
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "COV"))
    }
    environment["PYTHONPATH"] = os.pathsep.join(map(str, path))
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=environment,
        check=False,
        capture_output=True,
        text=True,
        timeout=300,
    )


def install(folder):
    """Put a project's metadata beside its module, as an editable installation does."""
    told = tomllib.loads((folder / "pyproject.toml").read_text("utf-8"))["project"]
    info = folder / f"{told['name'].replace('-', '_')}-{told['version']}.dist-info"
    info.mkdir()
    metadata = f"Metadata-Version: 2.1\nName: {told['name']}\nVersion: {told['version']}\n"
    (info / "METADATA").write_text(metadata, "utf-8")
    points = told["entry-points"]["qtasks_pluggy"].items()
    lines = ["[qtasks_pluggy]", *(f"{name} = {target}" for name, target in points), ""]
    (info / "entry_points.txt").write_text("\n".join(lines), "utf-8")


@pytest.mark.parametrize("name", ["x", "a1-b2-c3"])
def test_every_name_stands_where_it_belongs(name, tmp_path):
    """The folder, the entry point, the distribution, the module, and the tests."""
    project.new_project(name, tmp_path, frozenset())

    folder, under = tmp_path / name, name.replace("-", "_")
    told = tomllib.loads((folder / "pyproject.toml").read_text("utf-8"))["project"]
    assert told["name"] == f"qtasks-{name}"
    assert told["entry-points"]["qtasks_pluggy"] == {name: f"qtasks_{under}:Plugin"}
    assert {f"qtasks_{under}.py", f"tests/test_{under}.py"} < {*files(folder)}
    for path in folder.rglob("*.py"):
        compile(path.read_text("utf-8"), path, "exec")


def test_a_new_project_passes_its_own_tests_and_the_check(workplace):  # noqa: F811  # the fixture
    """As it is written, beside whatever else is installed."""
    name = "last-good"
    ended = workplace.run("new-plugin", name)

    assert ended.exit_code == 0, ended.output
    folder = workplace.folder / name
    assert files(folder) == FILES
    install(folder)
    tests = python("-m", "pytest", "-p", "no:cacheprovider", folder=folder, path=[folder])
    assert re.search(r"\b20 passed", tests.stdout), tests.stdout + tests.stderr
    told = python("-m", "qtasks_pluggy.cli", "check", name, folder=folder, path=[folder])
    assert told.returncode == 0, told.stdout + told.stderr
    listed = python("-m", "qtasks_pluggy.cli", "plugins", folder=folder, path=[folder])
    assert re.search(rf"^{name} +qtasks-{name} +0\.1\.0 +yes ", listed.stdout, re.MULTILINE)


@pytest.mark.installed
def test_pip_installs_a_new_project(tmp_path):
    """It is built by its own backend, and the command finds it."""
    project.new_project("last-good", tmp_path, frozenset())
    target = tmp_path / "target"
    offline = ("--no-index", "--no-deps", "--no-build-isolation", "--target", str(target))

    installed = python(
        "-m", "pip", "install", *offline, str(tmp_path / "last-good"), folder=tmp_path
    )

    assert installed.returncode == 0, installed.stderr
    told = python("-m", "qtasks_pluggy.cli", "check", "last-good", folder=tmp_path, path=[target])
    assert told.returncode == 0, told.stdout + told.stderr


def test_the_next_steps_are_told(workplace):  # noqa: F811  # the fixture
    """With --dir the folder is there."""
    (workplace.folder / "plugins").mkdir()

    ended = workplace.run("new-plugin", "last-good", "--dir", "plugins")

    assert files(workplace.folder / "plugins/last-good") == FILES
    for part in ("plugins/last-good", "pip install --editable", "pytest", "check last-good"):
        assert part in ended.stdout


def test_nothing_is_left_to_fill_in(tmp_path):
    """No part of a template is left, and the folder may be read by others."""
    project.new_project("last-good", tmp_path, frozenset())
    folder = tmp_path / "last-good"

    texts = [(folder / name).read_text("utf-8") for name in files(folder)]
    assert not [text for text in texts if "{{" in text or "}} " in text]
    umask = os.umask(0)
    os.umask(umask)
    assert folder.stat().st_mode & 0o777 == 0o777 & ~umask


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("Last Good", "did you mean 'last-good'?"),
        ("last_good", "did you mean 'last-good'?"),
        ("9lives", "did you mean 'lives'?"),
        ("last--good", "did you mean 'last-good'?"),
        ("-x", "o such option"),
        ("../x", "did you mean 'x'?"),
        ("", "cannot be the name"),
        ("ä", "cannot be the name"),
        ("x" * 51, "at most 50"),
        ("retry", "built-in plugin"),
        ("failures", "built-in plugin"),
        ("pluggy", "names of the project itself"),
        ("hookspecs", "names of the project itself"),
        ("qtasks-price", "as in 'price'"),
    ],
)
def test_a_name_that_cannot_be_is_refused(workplace, name, told):  # noqa: F811  # the fixture
    """By Python, by PyPI, or because it is taken; the error says what to do."""
    ended = workplace.run("new-plugin", name)

    assert ended.exit_code == 2
    assert told in ended.stderr
    assert files(workplace.folder) == []


def test_the_name_of_an_installed_plugin_is_refused(distributions):  # noqa: F811  # the fixture
    """Two distributions that claim one name stop every app."""
    distributions.answering("taken")

    with pytest.raises(project.NameNotAllowedError, match=r"installed plugin of qtasks-taken 1\.0"):
        project.new_project("taken", distributions.folder, frozenset())


@pytest.mark.parametrize("kind", ["folder", "file", "dangling link"])
def test_what_is_there_is_left_alone(workplace, kind):  # noqa: F811  # the fixture
    """A folder with something in it, a file, a link that leads nowhere."""
    there = workplace.folder / "last-good"
    if kind == "folder":
        workplace.write("last-good/mine.txt", "mine")
    elif kind == "file":
        there.write_text("mine", "utf-8")
    else:
        there.symlink_to("nowhere")
    before = files(workplace.folder)

    ended = workplace.run("new-plugin", "last-good")

    assert ended.exit_code == 2
    assert "last-good already exists; give another name" in ended.stderr
    assert files(workplace.folder) == before


@pytest.mark.parametrize("where", ["no/such", "a-file"])
def test_a_place_that_cannot_be_written_is_refused(workplace, where):  # noqa: F811  # the fixture
    """The error names it and says why."""
    workplace.write("a-file", "mine")

    ended = workplace.run("new-plugin", "last-good", "--dir", where)

    assert ended.exit_code == 2
    assert re.search(r"cannot be written: (No such file|Not a directory)", ended.stderr)
    assert files(workplace.folder) == ["a-file"]


def test_without_permission_nothing_is_written(workplace, monkeypatch):  # noqa: F811  # the fixture
    """As who may write everywhere, root, is refused by the system only now and then."""
    (workplace.folder / "closed").mkdir(mode=0o500)
    if os.geteuid() == 0:

        def refuse(*_, **__):
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(project.tempfile, "mkdtemp", refuse)

    ended = workplace.run("new-plugin", "last-good", "--dir", "closed")

    assert ended.exit_code == 2
    assert "cannot be written: Permission denied; give another --dir" in ended.stderr
    assert files(workplace.folder) == []


@pytest.mark.parametrize("after", range(5))
def test_an_interrupt_half_way_leaves_nothing(workplace, monkeypatch, after):  # noqa: F811  # the fixture
    """Ctrl-C after any number of files: 130, and neither folder nor file is left."""
    written = []
    write_text, rename = Path.write_text, Path.rename

    def interrupted(self, *args, **kwargs):
        if len(written) == after:
            raise KeyboardInterrupt
        written.append(self)
        call = rename if self.is_dir() else write_text
        return call(self, *args, **kwargs)

    monkeypatch.setattr(Path, "write_text", interrupted)
    monkeypatch.setattr(Path, "rename", interrupted)

    ended = workplace.run("new-plugin", "last-good")

    assert (ended.exit_code, len(written)) == (130, after)
    assert list(workplace.folder.iterdir()) == []


def test_without_its_extra_the_command_says_what_to_install(workplace, monkeypatch):  # noqa: F811  # the fixture
    """jinja2 is needed for this alone."""
    monkeypatch.setitem(sys.modules, "jinja2", None)
    monkeypatch.delitem(sys.modules, "qtasks_pluggy.testing.project")

    ended = workplace.run("new-plugin", "last-good")

    assert ended.exit_code == 2
    assert "qtasks-pluggy[testing]" in ended.stderr
