"""Real message servers, and engines' own workers as processes, for the tests of engines."""

from __future__ import annotations

import contextlib
import gc
import os
import sysconfig
import warnings
from collections.abc import Callable, Generator, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from textwrap import dedent

import pytest

import qtasks_hookspecs
import qtasks_pluggy
from tests.engines.keeper import shared
from tests.engines.processes import Guard, Process
from tests.engines.servers import NotInstalledError, RabbitMQ, Redis
from tests.engines.versions import is_older

FORGETS = pytest.StashKey[bool]()
# Whose own clients leave connections behind, for the garbage collector to find at any time.
LEAVES = ("taskiq", "qtasks", "test_replay")

# The core suite runs without the engines.
ENGINES = ("celery", "dramatiq", "huey", "taskiq")
missing = [name for name in ENGINES if find_spec(name) is None]
collect_ignore_glob = [f"test_{name}*.py" for name in missing]
if missing:
    # They import all four.
    collect_ignore_glob += [
        *("test_bad_*.py", "test_installed_in.py", "test_kills.py", "test_native_*.py"),
        "test_replay.py",
    ]

# These have tests of their own alone.
INSTALL_ONLY = ("django", "procrastinate", "qtasks", "rq")
collect_ignore_glob += [f"test_{name}*.py" for name in INSTALL_ONLY if find_spec(name) is None]

if find_spec("taskiq_aio_pika") is not None and is_older("taskiq-aio-pika", "0.6"):
    collect_ignore_glob.append("test_taskiq_brokers.py")  # it is about the queues of later ones


@contextlib.contextmanager
def installed() -> Iterator[None]:
    """Skip without the server's program, but where the whole suite has to run."""
    try:
        yield
    except NotInstalledError as error:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(str(error))


def run_folder(factory: pytest.TempPathFactory) -> Path:
    """Give a folder that is one and the same for all of pytest-xdist's workers."""
    folder = factory.getbasetemp()
    return folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """One Redis for the whole run, never stopped: use queue names of the test's own."""
    with installed(), shared("redis", run_folder(tmp_path_factory) / "redis") as url:
        yield url


@pytest.fixture(scope="session")
def rabbitmq_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """One RabbitMQ for the whole run, never stopped: use queue names of the test's own."""
    with installed(), shared("rabbitmq", run_folder(tmp_path_factory) / "rabbitmq") as url:
        yield url


@pytest.fixture(scope="session")
def guard() -> Iterator[Guard]:
    """End what this process starts, also when it is killed."""
    with contextlib.closing(Guard()) as one:
        yield one


@pytest.fixture
def redis_server(tmp_path: Path, guard: Guard) -> Iterator[Redis]:
    """A Redis of the test's own, which it may stop, kill and start."""
    with installed(), contextlib.closing(Redis(tmp_path / "redis", guard)) as server:
        server.start()
        yield server


@pytest.fixture
def rabbitmq_server(tmp_path: Path, guard: Guard) -> Iterator[RabbitMQ]:
    """A RabbitMQ of the test's own, which it may stop, kill and start."""
    with installed(), contextlib.closing(RabbitMQ(tmp_path / "rabbitmq", guard)) as server:
        server.start()
        yield server


@pytest.fixture
def project(tmp_path: Path) -> Callable[[Mapping[str, str]], Path]:
    """Write source files, by their relative names, into the folder that is returned."""
    folder = tmp_path / "project"

    def write(files: Mapping[str, str]) -> Path:
        folder.mkdir(exist_ok=True)
        for name, source in files.items():
            path = folder / name
            path.parent.mkdir(exist_ok=True, parents=True)
            path.write_text(dedent(source), "utf-8")
        return folder

    return write


def environment_in(folder: Path) -> dict[str, str]:
    """Give this process's environment, with our packages and the folder on the import path.

    Without settings of ours, and without what tells pytest's own processes about this run.
    """
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST_", "QTASKS_PLUGGY_"))}
    packages = (qtasks_hookspecs, qtasks_pluggy)
    path = [folder, *(Path(package.__file__).parents[1] for package in packages)]
    # Where they are installed they are found, and in front they would hide the standard library.
    path = [str(one) for one in path if one != Path(sysconfig.get_path("purelib"))]
    if "PYTHONPATH" in kept:
        path.append(kept["PYTHONPATH"])
    # A file that is written twice within a second must not be run from the first's bytecode.
    return kept | {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": os.pathsep.join(path)}


class Workers:
    """Starts the worker commands of engines, and leaves nothing of them running.

    Args:
        folder: Where the logs go.
        guard: Who ends them if this process does not get to it.
    """

    def __init__(self, folder: Path, guard: Guard) -> None:
        self._folder = folder
        self._guard = guard
        self._started: list[Process] = []

    def __call__(
        self,
        *command: str | Path,
        cwd: Path,
        env: Mapping[str, str] | None = None,
        ready: Callable[[], object] | str | None = None,
        log: Path | None = None,
        deadline: float = 60,
    ) -> Process:
        """Start a worker in a session of its own, and wait until it is ready.

        Args:
            command: The program and its arguments.
            cwd: The folder to run in, which is on the worker's import path too.
            env: What to add to this process's environment.
            ready: What becomes true, or stands in the log, when it is; ``None``: do not wait.
            log: The file for its output and errors.
            deadline: How many seconds it may take.

        Raises:
            ProcessError: It ended before it was ready, or the deadline passed.
        """
        process = Process(
            *command,
            cwd=cwd,
            env=environment_in(cwd) | dict(env or {}),
            log=log or self._folder / f"worker-{len(self._started)}.txt",
            watched_by=self._guard,
        )
        self._started.append(process)
        if ready is not None:
            process.wait_ready(ready, deadline)
        return process

    def close(self) -> None:
        """Kill them all.

        Raises:
            ProcessError: Something of one of them lives even so.
        """
        with contextlib.ExitStack() as every:
            for process in self._started:
                every.callback(process.kill)


@pytest.fixture(autouse=True)
def shared_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the tasks that Celery shares between apps within the test that declares them."""
    if find_spec("celery") is not None:
        from celery import _state
        from celery.app import builtins

        own = {one for one in _state._on_app_finalizers if one.__module__ == builtins.__name__}
        monkeypatch.setattr(_state, "_on_app_finalizers", own)


@pytest.fixture
def forget(request: pytest.FixtureRequest) -> None:
    """Find after the test what clients of servers leave behind, which warns when it is found."""
    request.node.stash[FORGETS] = True


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Forget, not before pytest has let go of the values of the test's fixtures."""
    # Only what the test makes is looked at: the suite's whole heap takes a second or two.
    gc.freeze()
    try:
        return (yield)
    finally:
        if FORGETS in item.stash or any(name in item.nodeid for name in LEAVES):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                gc.collect()
        gc.unfreeze()


@pytest.fixture
def worker(tmp_path: Path, guard: Guard) -> Iterator[Workers]:
    """Start engines' own workers; after the test nothing of them is left."""
    with contextlib.closing(Workers(tmp_path, guard)) as workers:
        yield workers
