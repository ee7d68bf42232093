"""The project's promises about itself: names, hooks, files and dependencies agree everywhere."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import tomllib
from pathlib import Path
from types import FunctionType

import pytest

import qtasks_hookspecs
import qtasks_pluggy
import qtasks_pluggy.testing
from qtasks_hookspecs import _hooks

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
PACKAGES = {
    package.__name__: Path(package.__file__).parent for package in (qtasks_hookspecs, qtasks_pluggy)
}
HOOKS = {name: hook for name, hook in vars(_hooks).items() if hasattr(hook, "qtasks_pluggy_spec")}
SECTIONS = ["When", "Args", "Returns", "Raises", "Example"]

# What semantic versioning covers. A name is added here when it is added there, on purpose.
PUBLIC = {
    qtasks_hookspecs: """
        Cancel DeadLetter Outcome OutcomeStatus Raise Replace Retry RunningApp RunningTask TaskFunc
        TaskMessage blocking exc hookimpl hookspec on_error when
    """,
    qtasks_pluggy: """
        AsyncTask BasePlugin Cancel DeadLetter PluginManager QueueTasks Raise Replace Retry SyncTask
        TaskExecutor TaskFunc TaskHandle TaskMessage TaskStatus Trail TrailRecord exc
    """,
    qtasks_pluggy.testing: """
        ContractError FakeClock Finding Heard PluginContract RecordingPlugin Run assert_outcome
        assert_trail installed_app isolated_app isolated_settings no_delays run_with
    """,
    qtasks_hookspecs.exc: """
        CapabilityError EngineError NotRunningError PluginError PluginRegistrationError
        QTasksError QueueFullError SettingsError TaskCancelError TaskDeadLetteredError
        TaskNameError TaskPluginTriggerError TaskTimeoutError
    """,
}


def _modules() -> dict[str, Path]:
    """Every module of both packages, by its dotted name."""
    found = {}
    for name, folder in PACKAGES.items():
        for path in folder.rglob("*.py"):
            parts = path.relative_to(folder).with_suffix("").parts
            if "templates" in parts:
                continue  # a new plugin's files, not ours
            found[".".join((name, *parts)).removesuffix(".__init__")] = path
    return found


def _numbers(version: str) -> list[int]:
    """A version as numbers, which can be compared."""
    return [int(number) for number in version.split(".")]


def _required() -> set[str]:
    """The name of every requirement of the project, runtime and development."""
    project, groups = PROJECT["project"], PROJECT["dependency-groups"]
    lists = [project["dependencies"], *project["optional-dependencies"].values(), *groups.values()]
    requirements = [one for several in lists for one in several if isinstance(one, str)]
    names = {re.match(r"[\w.-]+", requirement)[0] for requirement in requirements}
    return names - {project["name"]}  # an extra that brings others


@pytest.mark.parametrize("module", PUBLIC, ids=lambda module: module.__name__)
def test_public_names_are_exactly_those_promised(module):
    """A package's ``__all__`` is sorted, exists, and is the list that users rely on."""
    expected = PUBLIC[module].split()

    assert sorted(expected) == sorted(module.__all__)
    assert list(module.__all__) == sorted(module.__all__)
    assert all(hasattr(module, name) for name in expected)


def test_errors_are_one_set_of_classes():
    """``qtasks_pluggy.exc`` offers the classes of ``qtasks_hookspecs.exc``, all of them."""
    contract, front = qtasks_hookspecs.exc, qtasks_pluggy.exc

    assert {name: getattr(contract, name) for name in contract.__all__} == {
        name: getattr(front, name) for name in front.__all__
    }


def test_shared_names_are_the_same_objects():
    """What both packages export, a plugin and an app mean the same by."""
    shared = set(qtasks_hookspecs.__all__) & set(qtasks_pluggy.__all__) - {"exc"}

    decisions = {"Cancel", "DeadLetter", "Raise", "Replace", "Retry"}
    assert {"TaskFunc", "TaskMessage", *decisions} == shared
    assert all(getattr(qtasks_hookspecs, n) is getattr(qtasks_pluggy, n) for n in shared)


def test_both_packages_come_from_one_place():
    """Both packages are those of the checkout, or both are those of one site-packages."""
    contract, front = PACKAGES["qtasks_hookspecs"].parent, PACKAGES["qtasks_pluggy"].parent

    assert contract in {front, front / "hookspecs"}
    assert all((folder / "py.typed").is_file() for folder in PACKAGES.values())


def test_every_module_is_on_the_map():
    """The docstring of each package, and of each folder of the core, names every module of it."""
    folders = ("_console", "_plugins", "_run", "_submit", "testing")
    folders += ("failures", "failures.command", "failures.web")
    maps = [qtasks_hookspecs, qtasks_pluggy]
    maps += [importlib.import_module(f"qtasks_pluggy.{folder}") for folder in folders]
    unnamed = [
        name
        for name in _modules()
        for package in maps
        if name.rpartition(".")[0] == package.__name__
        and name.rpartition(".")[2] not in package.__doc__
    ]

    assert [] == unnamed


def test_the_hooks_are_found():
    """The hooks below are those of the contract, in the order in which they are declared."""
    assert len(HOOKS) >= 7
    assert all(isinstance(hook, FunctionType) for hook in HOOKS.values())


@pytest.mark.parametrize("name", HOOKS)
def test_hook_has_all_parts_of_its_docstring(name):
    """A hook says When, Args, Returns, Raises and Example, and its Args are its parameters."""
    text = inspect.getdoc(HOOKS[name])
    args = text.partition("\nArgs:\n")[2].partition("\n\n")[0]

    assert SECTIONS == re.findall(r"^(\w+):$", text, re.MULTILINE)
    assert list(inspect.signature(HOOKS[name]).parameters) == re.findall(
        r"^    (\w+): ", args, re.MULTILINE
    )
    assert "``None``" in text.partition("\nReturns:\n")[2].partition("\n\n")[0]


@pytest.mark.parametrize("name", HOOKS)
def test_hook_has_an_example_that_would_register(name):
    """A hook's Example is a hookimpl of that hook with no parameter that it lacks."""
    example = inspect.getdoc(HOOKS[name]).partition("\nExample:\n")[2]
    code = re.sub(r"^ *(?:>>>|\.\.\.) ?", "", example, flags=re.MULTILINE)
    functions = [node for node in ast.parse(code).body if isinstance(node, ast.FunctionDef)]

    assert [name] == [function.name for function in functions]
    assert "hookimpl" in ast.unparse(functions[0].decorator_list[0])
    assert {arg.arg for arg in functions[0].args.args} <= set(
        inspect.signature(HOOKS[name]).parameters
    )


@pytest.mark.parametrize("name", HOOKS)
def test_hook_is_documented(name):
    """The hook reference has the signature of every hook as it is today."""
    page = (ROOT / "docs/reference/hooks.md").read_text("utf-8")

    assert f"{name}({', '.join(inspect.signature(HOOKS[name]).parameters)})" in page


def test_changes_of_the_contract_are_up_to_date():
    """The page of changes has the hooks with their parameters, and the names that plugins import.

    Nothing there is newer than the project.
    """
    page = (ROOT / "docs/reference/contract-changes.md").read_text("utf-8")
    hooks, names = page.partition("\n## Names ")[::2]
    rows = re.findall(r"^\| `(\w+)` \| [\d.]+ \| (.+) \|$", hooks, re.MULTILINE)
    told = {name: re.findall(r"`(\w+)`", parameters) for name, parameters in rows}
    cells = "".join(line for line in page.splitlines() if line.startswith("|"))

    assert {name: [*inspect.signature(hook).parameters] for name, hook in HOOKS.items()} == told
    assert qtasks_hookspecs.__all__ == re.findall(r"^\| `(\w+)` \|", names, re.MULTILINE)
    versions = [_numbers(one) for one in re.findall(r"\b\d+\.\d+\b", cells)]
    assert max(versions) <= _numbers(PROJECT["project"]["version"])


def test_versions_agree():
    """The README and the changelog have the version of ``pyproject.toml``."""
    version = PROJECT["project"]["version"]
    readme, changelog = (
        (ROOT / f"{name}.md").read_text("utf-8") for name in ("README", "CHANGELOG")
    )

    assert f"Version {version} " in readme
    assert version == re.findall(r"^## \[(\d[\w.]*)\]", changelog, re.MULTILINE)[0]


@pytest.mark.parametrize("name", HOOKS)
def test_hook_is_tested(name):
    """Some test other than these implements the hook."""
    paths = [path for path in (ROOT / "tests").rglob("*.py") if path != Path(__file__)]

    assert any(re.search(rf"\b{name}\b", path.read_text("utf-8")) for path in paths)


def test_private_modules_are_forbidden_to_our_own_plugins_and_engines():
    """The import law for builtins and adapters of engines names every private module or folder."""
    (law,) = [
        contract
        for contract in PROJECT["tool"]["importlinter"]["contracts"]
        if "qtasks_pluggy.builtin.**" in contract.get("source_modules", ())
    ]
    private = {name for name in _modules() if re.fullmatch(r"\w+\._[a-z]\w*", name)}
    ours = {"qtasks_pluggy.builtin", "qtasks_pluggy.builtin.**", "qtasks_pluggy.engines.**"}
    ours |= {f"qtasks_pluggy.{one}" for one in ("failures", "failures.**", "testing", "testing.**")}

    assert private == set(law["forbidden_modules"])
    assert ours == set(law["source_modules"])


def test_every_dependency_has_its_reason():
    """CONTRIBUTING gives a reason for each requirement, and for nothing that is not required."""
    text = CONTRIBUTING.partition("\n## Dependencies\n")[2]

    rows = re.findall(r"^\| (`.+?`) \| .*\w.* \|$", text, re.MULTILINE)
    assert _required() == {name for names in rows for name in re.findall(r"[\w.-]+", names)}


def test_contributing_is_short():
    """CONTRIBUTING is read to the end: it has 120 lines at most."""
    assert 120 >= len(CONTRIBUTING.splitlines())


def test_ci_runs_the_command_of_the_readme():
    """The README, CONTRIBUTING and ``.ci/run`` give one and the same command for the tests."""
    command = "python3 -m venv .venv && .venv/bin/pip install nox && .venv/bin/nox"
    texts = [(ROOT / name).read_text("utf-8") for name in ("README.md", "CONTRIBUTING.md")]

    assert all(command in text for text in texts)
    assert command in (ROOT / ".ci/run").read_text("utf-8")
