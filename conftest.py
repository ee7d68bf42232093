"""What the whole suite shares: Hypothesis profiles, and the documentation's code, run as tests."""

from __future__ import annotations

import compileall
import faulthandler
import os
import sys
import tempfile
import threading
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import pytest
import structlog
from hypothesis import HealthCheck, settings
from sybil import Document
from sybil.parsers.markdown import PythonCodeBlockParser

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Iterator

ROOT = Path(__file__).parent

# A deadline measures the machine, not the code; nothing here is derandomized, because each run of
# the suite should look somewhere new, and a failure prints how to see it again.
settings.register_profile("dev", deadline=None, max_examples=50)
settings.register_profile(
    "ci",
    deadline=None,
    derandomize=False,
    max_examples=50,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile(
    "full", settings.get_profile("ci"), max_examples=2_000, stateful_step_count=100
)
_default = "ci" if "CI" in os.environ else "dev"
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", _default))


def pytest_configure(config: pytest.Config) -> None:
    """Compile our packages once for hundreds of processes, also where those write no bytecode."""
    if not hasattr(config, "workerinput"):
        for folder in ("qtasks_pluggy", "hookspecs", "tests/engines"):
            compileall.compile_dir(ROOT / folder, quiet=2)


@pytest.fixture(autouse=True)
def _structlog_as_new() -> Iterator[None]:
    """Take back what a test does to structlog's configuration, ``capture_logs`` included."""
    yield
    structlog.reset_defaults()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(
    item: pytest.Item, nextitem: pytest.Item | None
) -> Generator[None, object, object]:
    """Keep the tasks that Celery shares between apps within the file that declares them."""
    ended = yield
    state = sys.modules.get("celery._state")
    if state is not None and (nextitem is None or nextitem.path != item.path):
        # A later app would have them, and warn of its own task of the same name.
        shared = vars(state)["_on_app_finalizers"]
        own = {one for one in shared if one.__module__ == "celery.app.builtins"}
        vars(state)["_on_app_finalizers"] = own
    return ended


@pytest.fixture
def patient() -> None:
    """Let a test of many processes take its time: each of its steps has a limit of its own."""
    faulthandler.cancel_dump_traceback_later()


class Page(Document):
    """A page of the documentation, whose code blocks run as one module, from top to bottom.

    A real module, so that a block can hand itself over as a plugin: ``sys.modules[__name__]``.
    """

    def __init__(self, text: str, path: str) -> None:
        super().__init__(text, path)
        name = Path(path).relative_to(ROOT).with_suffix("").as_posix().replace("/", "_")
        self.module = ModuleType(f"page_{name.replace('-', '_').lower()}")
        self.namespace = vars(self.module)


def parse(path: Path) -> Page:
    """Find the Python code blocks of a page."""
    page = Page(path.read_text("utf-8"), str(path))
    for region in PythonCodeBlockParser()(page):
        page.add(region)
    return page


class PageItem(pytest.Item):
    """All of a page as one test: its blocks belong together, in their order, in one process."""

    def runtest(self) -> None:
        """Run the blocks; then nothing of them may be left behind."""
        page = parse(self.path)
        name = page.namespace["__name__"]
        environment, before, threads = dict(os.environ), Path.cwd(), set(threading.enumerate())
        sys.modules[name] = page.module
        # Files that a page makes are gone with its folder.
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
            try:
                for example in page:
                    example.evaluate()
                left = [thread.name for thread in still_running(threads)]
                changed = dict(os.environ) != environment or not Path.cwd().samefile(folder)
            finally:
                del sys.modules[name]
                os.environ.clear()
                os.environ.update(environment)
                os.chdir(before)
        if left or changed:
            what = f"threads: {', '.join(left)}" if left else "a changed environment or folder"
            pytest.fail(f"{self.path}: its code blocks leave behind {what}", pytrace=False)

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException]) -> object:
        """Begin the traceback in the page, not in what runs it."""
        excinfo.traceback = excinfo.traceback.cut(path=self.path)
        return super().repr_failure(excinfo)

    def reportinfo(self) -> tuple[Path, int, str]:
        """Name the page where pytest lists tests."""
        return self.path, 0, f"code of {self.path.relative_to(ROOT)}"


class PageFile(pytest.File):
    """A page that has code to run."""

    def collect(self) -> Iterable[pytest.Item]:
        """Collect the page as one test."""
        if any(True for _ in parse(self.path)):
            item = PageItem.from_parent(self, name="code")
            text = self.path.read_text("utf-8")
            if "qtasks_pluggy.engines." in text or "from fastapi " in text:
                item.add_marker("engines")  # it needs that package
            yield item


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> pytest.Collector | None:
    """Collect README.md and every page of docs/."""
    if file_path.suffix != ".md":
        return None
    if file_path == ROOT / "README.md" or file_path.is_relative_to(ROOT / "docs"):
        return PageFile.from_parent(parent, path=file_path)
    return None


def still_running(before: set[threading.Thread]) -> Iterator[threading.Thread]:
    """Name the threads that were started since and do not end."""
    for thread in set(threading.enumerate()) - before:
        # The background event loop is one per process, and stays for the next who needs it.
        if thread.name != "qtasks-pluggy-loop":
            thread.join(timeout=5)
            if thread.is_alive():
                yield thread
