"""The documentation says what is so: pages, links, programs, and what is made from docstrings."""

from __future__ import annotations

import builtins
import dis
import os
import re
import subprocess
import sys
import tomllib
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

import qtasks_hookspecs
import qtasks_pluggy
from qtasks_pluggy.testing import project
from tests.plugins.conftest import distributions  # noqa: F401  # a fixture

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
README = ROOT / "README.md"
PAGES = [README, *sorted(DOCS.rglob("*.md"))]
RULES = (DOCS / "reference/rules.md").read_text("utf-8")
EVENTS = (DOCS / "reference/events.md").read_text("utf-8")
OPERATE = (DOCS / "how-to/operate.md").read_text("utf-8")
TUTORIAL = DOCS / "tutorial/first-plugin.md"
PROMISED = [f"R{number}" for number in range(1, 20)]

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)


def _generator():
    spec = spec_from_file_location("generate_docs", DOCS / "_generate.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _links(page):
    """Every relative link of a page, as a path and an anchor."""
    prose = re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", prose):
        if "://" not in target:
            path, _, anchor = target.partition("#")
            yield (page.parent / path).resolve() if path else page, anchor


def _anchors(page):
    """The anchors that the headings of a page get."""
    heads = re.findall(r"^#+ (.+)$", page.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", head).strip().lower().replace(" ", "-") for head in heads}


def _project(folder):
    """Make the project of the tutorial, as its reader would, and return its pyproject."""
    (made,) = re.findall(
        r"^\$ qtasks-pluggy new-plugin ([\w-]+)$", TUTORIAL.read_text("utf-8"), re.MULTILINE
    )
    project.new_project(made, folder, frozenset())
    found = re.findall(
        r"^Put this into `([^`]+)`:\n\n```\w+\n(.*?)^```$",
        TUTORIAL.read_text("utf-8"),
        re.MULTILINE | re.DOTALL,
    )
    there = [name for name, _ in found if (folder / made / name).is_file()]
    assert there == ["qtasks_last_good.py", "tests/test_last_good.py"]  # the others are new
    for name, text in found:
        (folder / made / name).write_text(text, "utf-8")
    description, settings = re.findall(
        r"^```toml\n(.*?)^```$", TUTORIAL.read_text("utf-8"), re.MULTILINE | re.DOTALL
    )
    for name, old, new in [
        ("pyproject.toml", r"^description = [^\n]*\n", description),
        ("README.md", r"(?<=^```toml\n).*?(?=^```$)", settings),
    ]:
        text = (folder / made / name).read_text("utf-8")
        text, changes = re.subn(old, new, text, flags=re.MULTILINE | re.DOTALL)
        assert changes == 1
        (folder / made / name).write_text(text, "utf-8")
    return folder / made, tomllib.loads((folder / made / "pyproject.toml").read_text("utf-8"))


def _python(*arguments, folder, path=()):
    """Run Python in a folder, with folders of its own to import from."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, path))}
    environment.pop("PYTEST_ADDOPTS", None)
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=environment,
        check=False,
        capture_output=True,
        text=True,
    )


def test_generated_parts_are_up_to_date():
    """What pages take from docstrings is as they are; ``python docs/_generate.py`` writes it."""
    assert [] == [str(path) for path, _ in _generator().stale_pages()]


@pytest.mark.parametrize(
    "package",
    [qtasks_hookspecs, qtasks_pluggy, qtasks_hookspecs.exc, qtasks_pluggy.testing],
)
def test_public_names_are_documented(package):
    """Every public name has its line in the reference of names."""
    page = "api" if package is not qtasks_pluggy.testing else "testing"
    page = (DOCS / f"reference/{page}.md").read_text("utf-8")

    rows = set(re.findall(r"^\| `(\w+)", page, re.MULTILINE))

    assert set() == set(package.__all__) - rows


def test_every_log_event_is_documented_with_its_level():
    """The page of events has those of the code, each with its level, and no others."""
    pattern = r'(?:(?:event|log_once)\(\s*"(\w+)",|log\.(?!event)(\w+)\()\s*"(\w+)"'
    found = {("plugin_timed_out", "error")}  # whose name is chosen where it is logged
    for path in Path(qtasks_pluggy.__file__).parent.rglob("*.py"):
        calls = re.findall(pattern, path.read_text("utf-8"))
        found |= {(name, first or second) for first, second, name in calls}
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \|", EVENTS, re.MULTILINE)

    assert sorted(found) == sorted(rows)


def test_operators_are_told_of_events_that_exist():
    """Each event that the page for operators explains is on the page of events."""
    watched = re.findall(
        r"^\| (`\w+`(?:, `\w+`)*) \| ", OPERATE.partition("\n## Size")[0], re.MULTILINE
    )
    events = re.findall(r"^\| `(\w+)`", EVENTS, re.MULTILINE)

    assert len(watched) > 10
    assert set() == {name for cell in watched for name in re.findall(r"\w+", cell)} - set(events)


def test_every_rule_has_its_place():
    """The rules come in order, and each that is promised is there."""
    found = re.findall(r"^## (R\d+) ", RULES, re.MULTILINE)

    assert sorted(set(found), key=lambda rule: int(rule[1:])) == found
    assert set(PROMISED) <= set(found)


@pytest.mark.parametrize("rule", re.findall(r"^## (R\d+) ", RULES, re.MULTILINE))
def test_every_rule_has_an_example_that_asserts(rule):
    """A rule's code, which the suite runs, would fail if the rule were broken."""
    text = re.search(rf"^## {rule} .*?(?=^## |\Z)", RULES, re.MULTILINE | re.DOTALL)[0]

    assert re.search(r"^```python\n(?:(?!^```).)*^assert ", text, re.MULTILINE | re.DOTALL)


def test_the_readme_begins_with_a_program_that_runs(tmp_path, monkeypatch):
    """The first 30 lines of README hold a whole program, short, and it runs by itself."""
    monkeypatch.setenv("QTASKS_PLUGGY_SAFE_MODE", "true")  # whatever plugins are installed here
    text = README.read_text("utf-8")
    program = re.search(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    (tmp_path / "program.py").write_text(program[1], "utf-8")

    ended = _python("-W", "error", "program.py", folder=tmp_path)

    assert "assert" in program[1]
    assert 2 == program[1].count("@app.on_error(")
    assert 15 >= len([line for line in program[1].splitlines() if line])
    assert text[: program.end(1)].count("\n") <= 30
    assert (0, "") == (ended.returncode, ended.stderr)


def test_the_readme_is_short():
    """README is a front door of 150 lines at most; what is more is a page."""
    assert 150 >= len(README.read_text("utf-8").splitlines())


@every_page
def test_links_lead_somewhere(page):
    """A relative link names a file that is there, and a heading that is in it."""
    broken = [
        f"{path.name}#{anchor}"
        for path, anchor in _links(page)
        if not path.is_file() or (anchor and anchor not in _anchors(path))
    ]

    assert [] == broken


def test_every_page_can_be_found():
    """The index links every page, and README links the index."""
    linked = {path for path, _ in _links(DOCS / "index.md")}

    assert set() == {page for page in PAGES if page.name != "index.md"} - linked
    assert DOCS / "index.md" in {path for path, _ in _links(README)}


@every_page
def test_a_sentence_is_a_line(page):
    """Prose has semantic newlines: no sentence ends in the middle of a line."""
    text = re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    prose = [line for line in text.splitlines() if not line.startswith(("|", "- `"))]

    assert [] == [line for line in prose if re.search(r"[a-z)`]\. [A-Z]", line)]


def test_the_tutorial_makes_a_plugin_that_passes_its_tests(distributions):  # noqa: F811  # the fixture
    """The tutorial's files pass its own tests, also beside a plugin that answers everything."""
    folder, told = _project(distributions.folder)
    distributions.add(told["project"]["name"], told["project"]["entry-points"]["qtasks_pluggy"])
    distributions.answering("greedy", "eaten")
    path = [folder, distributions.site()]

    ended = _python("-m", "pytest", folder=folder, path=path)
    checked = _python("-m", "qtasks_pluggy.cli", "check", "last-good", folder=folder, path=path)

    generated, count = re.findall(r"^\d+ passed$", TUTORIAL.read_text("utf-8"), re.MULTILINE)
    assert generated != count  # a reader sees that these are the new tests
    assert count in ended.stdout, ended.stdout + ended.stderr
    assert 0 == checked.returncode, checked.stdout + checked.stderr


@pytest.mark.installed
def test_the_tutorial_makes_a_package_that_pip_installs(tmp_path):
    """The tutorial's folder can be built and installed by pip, and the command lists its plugin."""
    source, _ = _project(tmp_path)
    target = tmp_path / "target"
    offline = ("--no-index", "--no-deps", "--no-build-isolation", "--target", str(target))

    installed = _python("-m", "pip", "install", *offline, str(source), folder=tmp_path)
    listed = _python("-m", "qtasks_pluggy.cli", "plugins", folder=tmp_path, path=[target])

    assert 0 == installed.returncode, installed.stderr
    assert re.search(r"^last-good +qtasks-last-good +0\.1\.0 +yes ", listed.stdout, re.MULTILINE)


@pytest.mark.parametrize("engine", ["celery", "dramatiq", "taskiq"])
def test_a_module_of_a_guide_is_whole(engine):
    """What is to be put into a module imports all that it names; no earlier block is needed."""
    page = (DOCS / f"how-to/use-{engine}.md").read_text("utf-8")
    (text,) = re.findall(
        r"in a module, `shop.py`.*?^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL
    )
    code = compile(text, "shop.py", "exec")
    here = set()
    for step in dis.get_instructions(code):
        if step.opname == "STORE_NAME":
            here.add(step.argval)
        elif step.opname == "LOAD_NAME":
            assert step.argval in here | set(dir(builtins)), step.argval
    assert "app" in here
