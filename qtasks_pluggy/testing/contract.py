"""The contract of every plugin, as a test class.

It is used in two ways: as a base class in the plugin's own tests, and by ``qtasks-pluggy check``.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Final, TypeVar

from qtasks_hookspecs import Cancel, DeadLetter, Raise, Replace, Retry, on_error
from qtasks_pluggy import BasePlugin, QueueTasks, TaskExecutor
from qtasks_pluggy.exc import PluginError, PluginRegistrationError
from qtasks_pluggy.testing import probe
from qtasks_pluggy.testing.delays import no_delays
from qtasks_pluggy.testing.given import Given, find_plugin
from qtasks_pluggy.testing.isolation import isolated_app
from qtasks_pluggy.testing.questions import Question, is_unmade, odd_errors, plain_error, questions
from qtasks_pluggy.testing.run import Style, as_async, in_loop
from qtasks_pluggy.testing.trial import (
    CHECK_THREAD,
    ContractError,
    Finding,
    HangError,
    failure,
    try_run,
    within,
)

T = TypeVar("T")
_MISSING: Final[Any] = object()
_BOTH: Final[tuple[Style, ...]] = ("def", "async def")
_MARK: Final = "a-value-that-may-be-secret"
_RUNS: Final = 20


class PluginContract:
    """The tests that every plugin should pass: ``class TestMine(PluginContract): plugin = mine``.

    They run the plugin for real, including everything that it connects to and writes.

    Attributes:
        plugin: The name of its entry point, a module or where to import it from, an object, or a
            class or factory, which each app calls to make its own.
        settings: The plugin's own section, if it needs one to start.
        args: The positional arguments of the failing tasks that it is asked about.
        kwargs: Their keyword arguments.
        seconds: How long one step may take, in seconds.

    Raises:
        TypeError: A test class has no ``plugin``.
    """

    plugin: ClassVar[Any] = _MISSING
    settings: ClassVar[Mapping[str, Any]] = {}
    args: ClassVar[Sequence[Any]] = ()
    kwargs: ClassVar[Mapping[str, Any]] = {}
    seconds: ClassVar[float] = 30.0
    _found: ClassVar[Given | None] = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Refuse a test class without a plugin, before any of its tests runs."""
        super().__init_subclass__(**kwargs)
        if cls.plugin is _MISSING:
            msg = (
                f"{cls.__name__}(PluginContract) has no plugin; write plugin = ... into the class:"
                " a module, an object, a class, or the name of an entry point in quotes"
            )
            raise TypeError(msg)

    def test_importing_it_does_nothing_else(self) -> None:
        """Importing the plugin's module prints, starts, sets and connects nothing."""
        __tracebackhide__ = True
        module = self._given().module
        file = getattr(sys.modules.get(module or ""), "__file__", None)
        # The plugin is not responsible for what a test module does when it is imported.
        if module is not None and file is not None and module != type(self).__module__:
            is_old = isinstance(self._make(), BasePlugin)
            _check(_import_findings(module, file, may_import_app=is_old))

    def test_its_names_and_parameters_are_known(self) -> None:
        """Each hookimpl has the name of a hook, and parameters that the hook has."""
        __tracebackhide__ = True
        self._app()

    def test_it_starts_stops_and_starts_again(self) -> None:
        """It starts and stops twice, plain and async, and leaves no thread running."""
        __tracebackhide__ = True
        before = {*threading.enumerate()}
        app = self._app()
        for style in _BOTH * 2:
            self._within(partial(_in_started, app, _nothing, style), "while it starts and stops")
        left = [one.name for one in {*threading.enumerate()} - before if _is_left(one)]
        if left:
            text = f"threads of the plugin still run after the app has stopped: {', '.join(left)}"
            _check([Finding(text, "stop them in qtasks_stop, and join them there")])

    def test_a_wrong_setting_stops_the_start(self) -> None:
        """It refuses an unknown key or a value of a wrong type, and shows no value."""
        __tracebackhide__ = True
        app = self._app()
        hooks: Any = app.plugins.hook
        starts = hooks.qtasks_start.chain
        given = () if starts is None else starts.links
        if not any("settings" in inspect.signature(one.impl.function).parameters for one in given):
            return
        (info,) = app.plugins.list_plugin_info()
        wrong = {key: {**self.settings, key: _Unsuitable()} for key in info.keys}
        for key, section in ({"no_such_key": {**self.settings, "no_such_key": 1}} | wrong).items():
            error = self._start_error(section)
            if error is None and key == "no_such_key":
                text = "the plugin starts with an unknown key in its settings, and says nothing"
                remedy = "annotate settings of qtasks_start with an attrs class that has its keys"
                _check([Finding(text, remedy)])
            if error is not None and _MARK in str(error):
                text = f"the error for a wrong {key!r} shows the value, which may be a secret"
                _check([Finding(text, "name the key and what it takes, never the value")])

    def test_odd_exceptions_do_no_harm(self) -> None:
        """Whatever a task raises, the plugin answers or returns None, and does not change it."""
        __tracebackhide__ = True
        _check(
            finding
            for question in self._questions()
            for cls in question.errors
            for style in _BOTH
            for finding in self._first_findings(question, cls, style)
        )

    def test_asked_twice_it_does_no_harm(self) -> None:
        """The same error may come again, by a retry or from a nested task."""
        __tracebackhide__ = True
        for question in self._questions():
            cls = question.errors[0]
            error, what = plain_error(cls), f"{cls.__name__} that comes twice"
            _check(finding for _ in range(2) for finding in self._ask(question, what, error))

    def test_every_end_of_a_run_does_no_harm(self) -> None:
        """It copes with successful, recovered, retried, failed, cancelled, dead-lettered runs."""
        __tracebackhide__ = True
        ends = {
            "in a recovered run": Replace(1),
            "in a retried run": Retry(limit=1),
            "in a run that failed with another error": Raise(ValueError("clearer")),
            "in a cancelled run": Cancel("by another plugin"),
            "in a dead-lettered run": DeadLetter("by another plugin"),
        }
        for question in self._questions():
            self._run(self._app(), question, _good, "in a good run")
            for when, decision in ends.items():
                fails = _failing(partial(plain_error, question.errors[0]))
                self._run(self._app(_Deciding(decision)), question, fails, when)

    def test_threads_and_loops_run_side_by_side(self) -> None:
        """It copes with many runs at once, in threads and on an event loop."""
        __tracebackhide__ = True
        for question in self._questions():
            fails = _failing(partial(plain_error, question.errors[0]))
            app = self._app()
            in_threads = partial(self._in_threads, question.task_of(app, fails))
            self._within(partial(_in_started, app, in_threads), "in eight threads at once")
            app = self._app()
            on_loop = partial(self._on_loop, question.task_of(app, as_async(fails)))
            self._within(partial(_in_started, app, on_loop), "in many runs on one loop")

    def test_cancelled_it_lets_the_run_end(self) -> None:
        """A cancelled run ends, even if it is cancelled while the plugin is asked."""
        __tracebackhide__ = True
        for question in self._questions():
            app = self._app()
            fails = as_async(_failing(partial(plain_error, question.errors[0])))
            task = question.task_of(app, fails)
            for steps in range(6):
                cancelled = partial(in_loop, partial(self._cancelled, task, steps))
                self._within(partial(_in_started, app, cancelled), "when its run is cancelled")

    def test_early_and_late_it_does_no_harm(self) -> None:
        """It can be asked before its start and after its stop, and by a run without an app."""
        __tracebackhide__ = True
        for question in self._questions():
            app = self._app()
            task = question.task_of(app, _failing(partial(plain_error, question.errors[0])))
            early = partial(_made_and_run, self._executor, task)
            self._within(early, "before its start")
            self._within(partial(_in_started, app, _nothing), "while it starts and stops")
            late = partial(
                _made_and_run,
                partial(TaskExecutor, args=self.args, kwargs=self.kwargs, plugins=app.plugins),
                task.task_func,
            )
            self._within(late, "after its stop, by a run without an app")

    def test_its_answers_are_json(self) -> None:
        """Its answers can be stored as JSON, which most engines require."""
        __tracebackhide__ = True
        for question in self._questions():
            for cls in question.errors:
                fails = _failing(partial(plain_error, cls))
                when = f"when asked about {cls.__name__}"
                result, error = self._run(self._app(), question, fails, when)
                _check(() if error is not None else _json_findings(result, cls.__name__))

    @classmethod
    def _given(cls) -> Given:
        # Not as an attribute of the object, because that would bind a function.
        plugin: Any = inspect.getattr_static(cls, "plugin")
        # Once for each class, because finding an entry point reads all installed metadata.
        found: Given | None = vars(cls).get("_found")
        if found is None:
            try:
                found = cls._found = find_plugin(plugin)
            except PluginRegistrationError as error:
                raise ContractError(map(registration, error.problems)) from None
        return found

    def _make(self) -> Any:
        try:
            return self._given().make()
        except Exception as error:  # noqa: BLE001  # whatever the plugin's own code raises
            raise ContractError([failure(error, "while it is made")]) from None

    def _app(self, *others: Any, section: Mapping[str, Any] | None = None) -> QueueTasks:
        """Make an app, not started, with the plugin as its last."""
        plugin = self._make()
        name = self._given().name_of(plugin)
        section = self.settings if section is None else section
        keys: dict[str, Any] = {"timeout": self.seconds}
        if section:
            keys["plugin"] = {name: section}
        app = isolated_app(*others, name="contract", settings=keys)
        try:
            app.plugins.register(plugin, name)
        except PluginRegistrationError as error:
            raise ContractError(map(registration, error.problems)) from None
        return app

    def _start_error(self, section: Mapping[str, Any]) -> Exception | None:
        app = self._app(section=section)
        try:
            within(self.seconds, partial(_in_started, app, _nothing), "on a wrong setting")
        except PluginError as error:
            return error
        return None

    def _within(self, call: Callable[[], Any], when: str) -> Any:
        """Call something within the time limit; an error from the plugin is a finding."""
        try:
            with no_delays(attempts=3):
                return within(self.seconds, call, when)
        except (ContractError, KeyboardInterrupt):
            raise
        except PluginRegistrationError as error:
            raise ContractError(map(registration, error.problems)) from None
        except BaseException as error:  # noqa: BLE001  # SystemExit too, of a plugin
            if is_unmade(error.__cause__):
                # Not the plugin's fault: nobody here knows what the constructor wants.
                return None, error
            raise ContractError([failure(error, when)]) from None

    def _questions(self) -> list[Question]:
        return questions(self._app().plugins)

    def _executor(self, task: Any) -> TaskExecutor:
        return TaskExecutor(task, args=self.args, kwargs=self.kwargs)

    def _run(
        self,
        app: QueueTasks,
        question: Question,
        function: Callable[..., Any],
        when: str,
        style: Style = "def",
    ) -> tuple[Any, BaseException | None]:
        """Run a function in an app that starts and stops; return the result and the error."""
        task = question.task_of(app, as_async(function) if style == "async def" else function)

        def run() -> tuple[Any, BaseException | None]:
            return try_run(self._executor(task), style)

        ended: tuple[Any, BaseException | None] = self._within(partial(_in_started, app, run), when)
        return ended

    def _ask(
        self, question: Question, what: str, error: Exception, style: Style = "def"
    ) -> Iterator[Finding]:
        """Ask the plugin about an error, and yield what is wrong."""
        before = error.args, error.__cause__, error.__context__
        try:
            self._run(
                self._app(), question, _failing(lambda: error), f"when asked about {what}", style
            )
        except HangError:
            raise
        except ContractError as broken:
            yield from broken.findings
            return
        after = error.args, error.__cause__, error.__context__
        if any(one is not other for one, other in zip(before, after, strict=True)):
            text = f"the plugin changed the error that it was asked about, {what}"
            yield Finding(text, "do not change it; answer Raise(another) to raise a clearer one")

    def _first_findings(
        self, question: Question, cls: type[Exception], style: Style
    ) -> list[Finding]:
        """Ask about odd errors of a class until one has findings; the others fail the same way."""
        asked = ([*self._ask(question, what, one, style)] for what, one in odd_errors(cls))
        return next(filter(None, asked), [])

    def _in_threads(self, task: Any) -> None:
        with ThreadPoolExecutor(8) as pool:
            for one in [pool.submit(try_run, self._executor(task)) for _ in range(_RUNS)]:
                one.result()

    def _on_loop(self, task: Any) -> None:
        async def main() -> None:
            runs = (self._executor(task).execute() for _ in range(_RUNS))
            for one in await asyncio.gather(*runs, return_exceptions=True):
                if isinstance(one, PluginError):
                    raise one

        in_loop(main)

    async def _cancelled(self, task: Any, steps: int) -> None:
        """Cancel a run after some steps of its loop."""
        run = asyncio.ensure_future(self._executor(task).execute())
        for _ in range(steps):
            await asyncio.sleep(0)
        run.cancel()
        await asyncio.wait({run})
        error = None if run.cancelled() else run.exception()
        if isinstance(error, PluginError):
            raise error


CHECKS: Final = tuple(name for name in vars(PluginContract) if name.startswith("test_"))
"""The contract's tests, in order."""


def import_fault(module: str, file: str | None) -> Finding | None:
    """Return why a module cannot be imported in a new Python process; None if it can."""
    found, _ = _probed(module, file)
    for kind, (text, remedy) in _FAULTS.items():
        if kind in found:
            return Finding(f"importing {module!r} {text.format(found[kind])}", remedy)
    return None


def _import_findings(module: str, file: str, *, may_import_app: bool) -> Iterator[Finding]:
    """Yield what importing a module should not do."""
    found, output = _probed(module, file)
    if output:
        text = f"importing {module!r} prints {_cut(output)}"
        yield Finding(text, "log it when the app starts, in qtasks_start")
    for what in found.get("changes", ()):
        text = f"importing {module!r} changes {what}"
        yield Finding(text, "do it in qtasks_start, and undo it in qtasks_stop")
    ours = module.partition(".")[0] == "qtasks_pluggy"
    if found.get("imports_app") and not (ours or may_import_app):
        text = f"importing {module!r} imports qtasks_pluggy, which is for apps"
        yield Finding(text, "import qtasks_hookspecs, which has everything that a plugin needs")


def _probed(module: str, file: str | None) -> tuple[dict[str, Any], bytes]:
    """Import a module in a new Python process; return what it did and what it printed."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        order = {"name": module, "file": file, "path": sys.path, "report": str(report)}
        try:
            ended = subprocess.run(  # noqa: S603  # this very Python
                [sys.executable, "-P", str(probe.__file__), json.dumps(order)],
                capture_output=True,
                check=False,
                stdin=subprocess.DEVNULL,
                timeout=_IMPORT_SECONDS,
            )
        except subprocess.TimeoutExpired:
            return {"hangs": f"{_IMPORT_SECONDS:g}"}, b""
        found: dict[str, Any] = {"exits": str(ended.returncode)}
        with suppress(FileNotFoundError):
            found = json.loads(report.read_text("utf-8"))
    return found, ended.stdout or ended.stderr


_FAULTS: Final = {
    "hangs": (
        "hangs: it did not end within {} seconds",
        "move what waits to qtasks_start, with a timeout",
    ),
    "raises": ("raised {}", "fix the module, or install what it needs"),
    "exits": ("ends the program, with {}", "raise an error in qtasks_start instead"),
}
_IMPORT_SECONDS: Final = 30.0


def _cut(output: bytes) -> str:
    text = output.decode(errors="replace").strip()
    return repr(text if len(text) <= 60 else f"{text[:60]}...")  # noqa: PLR2004  # one line


class _Deciding:
    """Another plugin, which always gives the same answer."""

    name = "another"

    def __init__(self, decision: Any) -> None:
        self.decision: Any = decision

    @on_error()
    def decide(self) -> Any:
        """Answer the decision."""
        return self.decision


class _Unsuitable:
    """A value that no setting accepts."""

    def __repr__(self) -> str:
        return _MARK


def _check(findings: Any) -> None:
    __tracebackhide__ = True
    found = [*dict.fromkeys(findings)]
    if found:
        raise ContractError(found)


def registration(problem: str) -> Finding:
    """Split a problem's text into the fault and what its author can do about it."""
    # To disable it is the operator's remedy.
    own, _, _ = problem.partition(" (or disable it: ")
    text, _, hint = own.partition("; ")
    if " settings: " in text and text.endswith(" is missing"):
        hint = (
            f"{hint}; the contract starts it with settings = {{...}}, the command with --settings"
        )
    return Finding(text, hint or "fix the plugin")


def _json_findings(result: Any, cls: str) -> Iterator[Finding]:
    try:
        json.dumps(result)
    except (TypeError, ValueError, RecursionError) as error:
        text = f"its answer to {cls} cannot be stored as JSON: {error}"
        remedy = "answer text, numbers, True, False, None, or lists and dicts of them"
        yield Finding(text, remedy)


def _good(*_: Any, **__: Any) -> int:
    return 1


def _failing(error: Callable[[], BaseException]) -> Callable[..., Any]:
    """Return a function that raises a new error each time."""

    def fails(*_: Any, **__: Any) -> None:
        raise error()

    return fails


def _made_and_run(make: Callable[[Any], TaskExecutor], task: Any) -> None:
    """Make an executor and run it, in the thread with the time limit."""
    try_run(make(task))


def _nothing() -> None:
    """Do nothing, in an app that starts and stops."""


def _in_started(app: QueueTasks, call: Callable[[], T], style: Style = "def") -> T:
    """Call something in an app that starts and stops."""

    async def awaited() -> T:
        async with app:
            return call()

    if style == "async def":
        return in_loop(awaited)
    with app:
        return call()


def _is_left(thread: threading.Thread) -> bool:
    # The whole process shares the background loop for async code of plain runs.
    if thread.name in {"qtasks-pluggy-loop", CHECK_THREAD}:
        return False
    thread.join(2)
    return thread.is_alive()
