"""What holds before a change is done: ``nox`` runs it, ``nox -l`` lists it.

``nox -s tests -- -k trail`` hands what follows ``--`` to pytest.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
from collections.abc import Iterator
from pathlib import Path

import nox

nox.needs_version = ">=2025.10.14"
nox.options.default_venv_backend = "virtualenv"
nox.options.reuse_venv = "yes"


def pythons() -> Iterator[tuple[str, str]]:
    """Find the other CPythons of this machine, the first of each version."""
    folders = [Path(folder) for folder in os.get_exec_path()]
    for versions in dict.fromkeys((os.environ.get("PYENV_ROOT"), "~/.pyenv")):
        if versions:
            folders += sorted(Path(versions).expanduser().glob("versions/*/bin"), reverse=True)
    # The shims of version managers are there even for versions that are not, so each is tried.
    ask = "import sys; print(sys.implementation.name, '%d.%d' % sys.version_info[:2])"
    found = {sys.version_info[:2]}
    for minor in range(11, 30):
        for folder in folders:
            path = folder / f"python3.{minor}"
            if (3, minor) in found or not path.is_file():
                continue
            answer = subprocess.run(  # noqa: S603  # an interpreter, found by its name
                [path, "-c", ask], capture_output=True, check=False, text=True
            )
            if answer.stdout.split() == ["cpython", f"3.{minor}"]:
                found.add((3, minor))
                yield f"3.{minor}", str(path.absolute())


OTHERS = list(pythons())
nox.options.sessions = [
    "lint",
    "types",
    "tests",
    *(f"tests_other({version})" for version, _ in OTHERS[-1:]),  # the newest
    "engine_ends(quick)",
    "page",
    "docs",
    "wheel",
]

ROOT = Path(__file__).parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
PACKAGES = ("qtasks_pluggy", "hookspecs/qtasks_hookspecs")
PYTEST_PLUGIN = "hookspecs/pytest_qtasks_pluggy.py"
EXAMPLE = "examples/qtasks-last-rate"
EXTRAS = PROJECT["project"]["optional-dependencies"]
# Without the engines, which the core suite does without.
CORE_EXTRAS = ("cli", "failures", "retry", "testing", "web")
CORE = f".[{','.join(CORE_EXTRAS)}]"
EVERYTHING = f".[{','.join(EXTRAS)}]"
RUNTIME = PROJECT["project"]["dependencies"] + [
    requirement
    for extra in CORE_EXTRAS
    for requirement in EXTRAS[extra]
    # Our own suite needs a newer pytest than plugins do, and an extra may bring other extras.
    if not requirement.startswith(("pytest", PROJECT["project"]["name"]))
]

# More than there are processors, because many tests wait more than they compute.
PARALLEL = ("-n", str(min((os.cpu_count() or 1) + 2, 4)), "--dist", "worksteal")
CORE_SUITE = (
    "-m",
    "not engines and not full and not installed and not page",
    # These are about whole processes, and take minutes of them.
    *(
        f"--ignore=tests/{name}.py"
        for name in (
            "cli/test_interrupt",
            "failures/web/test_command",
            "testing/test_check",
            "testing/test_new_plugin",
            "testing/test_pytest_plugin",
        )
    ),
)
# What the tests of engines say with no server, and in a few minutes.
QUICK = (
    "tests/engines/test_contract.py",
    "tests/engines/test_native_promises.py",
    "tests/engines/test_replay.py",
    "tests/engines/test_django.py",
    *(f"tests/engines/test_{name}_install.py" for name in ("celery", "dramatiq", "huey", "taskiq")),
    *("-m", "engines and not full", "-k", "not redis and not rabbitmq"),
)

# The rest is mostly the wording of texts, which no test should pin.
MUTANTS_NOTICED = 0.75
TEXT = {".cfg", ".md", ".py", ".sh", ".toml", ".txt", ".yml", ""}
KNOWN_HOSTS = {
    "127.0.0.1",
    "docs.celeryq.dev",
    "docs.djangoproject.com",
    "docs.python.org",
    "dramatiq.io",
    "example.com",
    "github.com",
    "huey.readthedocs.io",
    "json-schema.org",
    "keepachangelog.com",
    "localhost",
    "pluggy.readthedocs.io",
    "procrastinate.readthedocs.io",
    "python-rq.org",
    "semver.org",
    "taskiq-python.github.io",
}
FORBIDDEN = {
    r"\b(?:TO-?DO|FIX-?ME|X{3}|HA[C]K)\b": "finish it, or leave it out",
    r"(?<![\w.:/~-])/(?:home|opt|root|tmp|work|Users)/\w": "a path that only one machine has",
    r"(?i)\b(?:issue|section|ticket)s? #?\d+\b": "a number that no reader can look up",
    r"(?i)\b(?:sub-?agent|chat-?bot|co-?pilot)s?\b": "the project speaks of itself alone",
    r"# (?:noqa: |type: ignore\[|pyright: ignore\[|pragma: no)[^#]*$": "no reason on the line",
}


def install(session: nox.Session, *what: str) -> None:
    """Install, and keep the working tree from being imported by accident."""
    session.env["PYTHONSAFEPATH"] = "1"
    session.install(*what)


def group(*names: str) -> list[str]:
    """Give the requirements of dependency groups."""
    return list(nox.project.dependency_groups(PROJECT, *names))


@nox.session
def lint(session: nox.Session) -> None:
    """Style, import laws, docstrings, and what no file may say."""
    install(session, *group("lint"))
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("lint-imports", "--no-logo", env={"PYTHONPATH": "hookspecs"})
    session.run("interrogate", "--quiet", "--fail-under=100", *PACKAGES, PYTEST_PLUGIN)
    if faults := list(house_faults()):
        session.error("\n".join(("house rules:", *faults)))


def house_faults() -> Iterator[str]:
    """Find lines that do not belong here."""
    files = list(project_files())
    pages = {path.name for path in files}
    for path in files:
        where = path.relative_to(ROOT)
        lines = path.read_text("utf-8", errors="replace").splitlines()
        if re.fullmatch(r"_?(?:common|helpers?|misc|utils?)", path.stem):
            yield f"{where}: name it after what it does"
        for number, line in enumerate(lines, 1):
            faults = [why for pattern, why in FORBIDDEN.items() if re.search(pattern, line)]
            hosts = set(re.findall(r"https?://([\w.-]+)", line)) - KNOWN_HOSTS
            faults += [f"add {host!r} to KNOWN_HOSTS if we need it" for host in hosts]
            missing = set(re.findall(r"[\w-]+\.md\b", line)) - pages
            faults += [f"there is no page {page!r}" for page in missing]
            for fault in faults:
                yield f"{where}:{number}: {line.strip()!r}: {fault}"


def project_files() -> Iterator[Path]:
    """Find the project's own text files, in a checkout and in an unpacked sdist alike."""
    for parent, folders, names in os.walk(ROOT):
        made = (".", "__pycache__", "mutants", "site")
        folders[:] = sorted(
            folder for folder in folders if folder == ".ci" or not folder.startswith(made)
        )
        paths = [Path(parent, name) for name in sorted(names) if not name.startswith(".")]
        yield from (path for path in paths if path.suffix in TEXT)


@nox.session
def types(session: nox.Session) -> None:
    """Both type checkers, and what they see of an installed package."""
    install(session, EVERYTHING, *group("engines", "types"))
    session.run("mypy")
    session.run("pyright")
    # Elsewhere, because in a checkout it would find the working tree.
    session.chdir(session.create_tmp())
    for package in ("qtasks_hookspecs", "qtasks_pluggy"):
        faults = untyped(session, package)
        if faults:
            session.error(f"users see no whole type of {', '.join(faults)}")


def untyped(session: nox.Session, package: str) -> list[str]:
    """Name what an installed package exports without a whole type.

    An adapter has the types that its engine has, and Celery and Huey have none.
    """
    told = session.run(
        *("pyright", "--verifytypes", package, "--ignoreexternal", "--outputjson"),
        silent=True,
        success_codes=[0, 1],
    )
    symbols = json.loads(str(told))["typeCompleteness"]["symbols"]
    if len(symbols) < 100:  # noqa: PLR2004  # it has found something else of this name
        session.error(f"pyright sees only {len(symbols)} symbols of {package}")
    points = PROJECT["project"]["entry-points"]["qtasks_pluggy.engines"].values()
    modules = {re.escape(point.partition(":")[0]) for point in points}
    adapter = re.compile(rf"(?:{'|'.join(modules)})\b").match
    return [
        symbol["name"]
        for symbol in symbols
        if symbol["isExported"]
        and (not symbol["isTypeKnown"] or symbol["isTypeAmbiguous"])
        and not adapter(symbol["name"])
    ]


@nox.session
def tests(session: nox.Session) -> None:
    """The whole suite on this CPython."""
    install(session, "-e", EVERYTHING, *group("engines"))
    session.run("pytest", *PARALLEL, *session.posargs)


@nox.session
def coverage(session: nox.Session) -> None:
    """The whole suite with branch coverage, which makes it half as slow again."""
    install(session, "-e", EVERYTHING, *group("engines"))
    session.run("coverage", "erase")
    session.run("pytest", *PARALLEL, "--cov", "--cov-report=", *session.posargs)
    if not session.posargs:
        session.run("coverage", "report")
        core = "*/qtasks_hookspecs/*.py,*/qtasks_pluggy/*.py"
        # Not 100: which of two threads comes first decides about a line or two.
        session.run("coverage", "report", f"--include={core}", "--precision=1", "--fail-under=99.7")


@nox.session
@nox.parametrize("python", [nox.param(path, id=version) for version, path in OTHERS])
def tests_other(session: nox.Session) -> None:
    """The core suite on every other CPython of this machine."""
    install(session, "-e", CORE, *group("tests"))
    session.run("pytest", *PARALLEL, *CORE_SUITE, *session.posargs)


@nox.session
@nox.parametrize("end", [nox.param(end, id=end) for end in ("lowest", "newest")])
def pluggy_ends(session: nox.Session, end: str) -> None:
    """The core suite on both ends of the ranges of pluggy and of what else is required."""
    names = [re.match(r"[\w-]+", requirement)[0] for requirement in RUNTIME]
    lowest = [re.sub(r">=([\w.]+).*", r"==\1", requirement) for requirement in RUNTIME]
    which = ["--upgrade", *names] if end == "newest" else lowest
    install(session, "-e", CORE, *group("tests"), *which)
    session.run("pytest", *PARALLEL, *CORE_SUITE, *session.posargs)


@nox.session
@nox.parametrize("end", [nox.param(end, id=end) for end in ("quick", "lowest", "newest")])
def engine_ends(session: nox.Session, end: str) -> None:
    """The engines' tests on both ends of their ranges; quick is the lowest with no server."""
    engines = PROJECT["project"]["entry-points"]["qtasks_pluggy.engines"]
    required = [one for name in EXTRAS if name in engines for one in EXTRAS[name]]
    names = [re.match(r"[\w-]+", requirement)[0] for requirement in required]
    lowest = [re.sub(r">=([\w.]+).*", r"==\1", requirement) for requirement in required]
    which = ["--upgrade", *names] if end == "newest" else lowest
    install(session, "-e", CORE, *group("engines"), *which)
    suite = QUICK if end == "quick" else ("tests/engines",)
    session.run("pytest", *PARALLEL, *suite, *session.posargs)


@nox.session
def page(session: nox.Session) -> None:
    """The page of failures in Debian's chromium; pictures of what it shows stay in pictures/."""
    install(session, "-e", ".[web]", *group("page"))
    session.env["PAGE_PICTURES"] = str(ROOT / "pictures")
    session.run("pytest", *PARALLEL, "tests/failures/web", "-m", "page", *session.posargs)


@nox.session
@nox.parametrize("python", [nox.param(path, id=version) for version, path in OTHERS])
def django_newest(session: nox.Session, python: str) -> None:  # noqa: ARG001  # nox reads it
    """The tests of Django's tasks on the other CPythons: its newest release is not for 3.11."""
    install(session, "-e", CORE, *group("tests"), "--upgrade", "django>=5.2,<7", "django-tasks-db")
    session.run("pytest", *PARALLEL, "tests/engines/test_django.py", *session.posargs)


@nox.session
def docs(session: nox.Session) -> None:
    """The documentation as a site, in site/; a link that leads nowhere is an error."""
    install(session, *group("docs"))
    session.run("python", "docs/_site.py")


def built(session: nox.Session, dist: Path) -> tuple[Path, Path]:
    """Build and check both distributions; return the wheel, and the sdist without the packages.

    A suite that runs in that folder can test only what is installed.
    """
    shutil.rmtree(dist, ignore_errors=True)
    session.run("python", "-m", "build", "--no-isolation", "--outdir", str(dist))
    (sdist,), (wheel,) = dist.glob("*.tar.gz"), dist.glob("*.whl")
    session.run("twine", "check", "--strict", str(sdist), str(wheel))
    session.run("check-wheel-contents", str(wheel))
    folder = Path(session.create_tmp()).absolute() / "unpacked"
    shutil.rmtree(folder, ignore_errors=True)
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    unpacked = folder / sdist.name.removesuffix(".tar.gz")
    for package in PACKAGES:
        shutil.rmtree(unpacked / package)
    (unpacked / PYTEST_PLUGIN).unlink()
    return wheel, unpacked


@nox.session(reuse_venv=False)
def wheel(session: nox.Session) -> None:
    """Build, check and install the wheel, and run against it what is about plugins."""
    install(session, *group("tests", "wheel"))
    wheel, unpacked = built(session, Path(session.create_tmp()).absolute() / "built")
    session.chdir(unpacked)
    session.install(f"{wheel}{CORE[1:]}", f"./{EXAMPLE}")
    session.run("python", "-c", CHECK_INSTALLED, log=False)
    suite = (
        "tests/contract",
        "tests/plugins",
        "tests/examples/test_rates_installed.py",
        "tests/testing/test_new_plugin.py",
        "tests/testing/test_pytest_plugin.py",
    )
    session.run("pytest", *suite, "-m", "not engines and not full", *session.posargs)
    # The example's own tests, with what it asks for: pytest and our plugin, and no other.
    session.chdir(EXAMPLE)
    alone = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    session.run("pytest", "-p", "pytest_qtasks_pluggy", env=alone)


@nox.session(reuse_venv=False)
def release(session: nox.Session) -> None:
    """All of a release but the upload: dist/, whose wheel is tried on every CPython found."""
    install(session, *group("wheel"))
    wheel, unpacked = built(session, ROOT / "dist")
    environments = Path(session.create_tmp()).absolute()
    session.chdir(unpacked)
    for version, path in ((f"3.{sys.version_info.minor}", sys.executable), *OTHERS):
        folder = environments / version
        make = (sys.executable, "-m", "virtualenv", "--quiet", "--clear", "--python", path)
        session.run(*make, str(folder), external=True)
        python = str(folder / "bin/python")
        what = (f"{wheel}{CORE[1:]}", f"./{EXAMPLE}", *group("tests"))
        session.run(python, "-m", "pip", "install", "--quiet", *what, external=True)
        session.run(python, "-c", CHECK_INSTALLED, external=True, log=False)
        session.run(python, "examples/rates/demo.py", external=True)
        suite = (*PARALLEL, *CORE_SUITE, *session.posargs)
        session.run(python, "-m", "pytest", *suite, external=True)


CHECK_INSTALLED = """
from importlib.util import find_spec
from pathlib import Path
from sysconfig import get_path

assert find_spec("hookspecs") is None, "the folder is installed instead of the package in it"
for name in ("qtasks_hookspecs", "qtasks_pluggy"):
    folder = Path(find_spec(name).origin).parent
    assert folder.parent == Path(get_path("purelib")), folder
    assert (folder / "py.typed").is_file(), f"{name} has no py.typed"
assert Path(find_spec("pytest_qtasks_pluggy").origin).parent == Path(get_path("purelib"))
"""


@nox.session
@nox.parametrize("part", [nox.param(part, id=part) for part in ("repeats", "long", "mutation")])
def full(session: nox.Session, part: str) -> None:
    """The long runs: three orders of the suite, what is marked full, mutants of the core."""
    install(session, "-e", EVERYTHING, *group("engines", "mutation"))
    session.env["HYPOTHESIS_PROFILE"] = "full" if part == "long" else "ci"
    if part == "repeats":
        for _ in range(3):
            session.run("pytest", "-n", "2", *session.posargs)
    elif part == "long":
        patient = ("-o", "faulthandler_timeout=1800")
        session.run("pytest", "-m", "full", *patient, *session.posargs)
        session.run("pytest", "tests/properties", *patient, *session.posargs)
    else:
        mutate(session)


def mutate(session: nox.Session) -> None:
    """Change the core line by line, and see that some test of the core suite notices."""
    copy = Path(session.create_tmp()).absolute() / "copy"
    shutil.rmtree(copy, ignore_errors=True)
    # mutmut takes a folder's path for the dotted name: so both packages lie at the top.
    for package in PACKAGES:
        shutil.copytree(ROOT / package, copy / Path(package).name)
    shutil.copy(ROOT / PYTEST_PLUGIN, copy)
    for folder in ("benchmarks", "docs", "examples", "tests"):
        shutil.copytree(ROOT / folder, copy / folder)
    for path in (*ROOT.glob("*.py"), *ROOT.glob("*.md"), ROOT / "pyproject.toml"):
        shutil.copy(path, copy)
    session.chdir(copy)
    session.run("mutmut", "run", *session.posargs)
    if session.posargs:  # some mutants by name, which mutmut has just listed
        return
    session.run("mutmut", "results")
    session.run("mutmut", "export-cicd-stats")
    stats = json.loads((copy / "mutants/mutmut-cicd-stats.json").read_text("utf-8"))
    noticed = (stats["killed"] + stats["timeout"]) / stats["total"]
    session.log(f"{noticed:.1%} of {stats['total']} mutants were noticed")
    if noticed < MUTANTS_NOTICED:
        session.error(f"at least {MUTANTS_NOTICED:.0%} of the mutants must be noticed")
