"""Runs one function under one plugin."""

from __future__ import annotations

import asyncio
import difflib
import inspect
import re
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import partial, wraps
from typing import Any, Final, Literal, TypeAlias, TypeVar, get_args

import attrs

from qtasks_hookspecs import Outcome, OutcomeStatus, hookimpl
from qtasks_hookspecs.exc import safe_repr
from qtasks_pluggy import QueueTasks, TaskExecutor, Trail
from qtasks_pluggy.exc import PluginError
from qtasks_pluggy.testing.given import find_plugin
from qtasks_pluggy.testing.isolation import isolated_app

T = TypeVar("T")
Style: TypeAlias = Literal["def", "async def"]
_RECORDER: Final = "qtasks_pluggy.testing"
_TRIGGER: Final = "task_executor_run_task_trigger_error"


@attrs.frozen(kw_only=True)
class Run:
    """The result of a run; ``str()`` of it shows the whole trail.

    Attributes:
        task: The task's name.
        style: ``def`` if it was called from plain code, ``async def`` if it was awaited.
        result: Its result; None after an error.
        error: What its caller got instead of a result; None on success.
        outcomes: How each attempt ended.
        trail: Who was asked in all of its hooks, what each answered, what won.
    """

    task: str
    style: Style
    result: Any
    error: BaseException | None
    outcomes: tuple[Outcome, ...]
    trail: Trail

    @property
    def outcome(self) -> Outcome:
        """How the last attempt ended."""
        return self.outcomes[-1]

    def __str__(self) -> str:
        """Tell how the run ended, and who was asked."""
        end = self.outcome
        by = "" if end.decided_by is None else f" by {end.decided_by}"
        what = f"result {_shown(self.result)}"
        if self.error is not None:
            what = f"{type(self.error).__name__} for the caller"
        lines = (
            f"{self.task} ({self.style}): {end.status}{by} in attempt {end.attempt}, {what}",
            str(self.trail),
        )
        return "\n".join(lines)


class _Recorder:
    """Hears how each attempt of a run ended."""

    def __init__(self) -> None:
        self.outcomes: list[Outcome] = []

    @hookimpl
    def task_executor_attempt_ended(self, outcome: Outcome) -> None:
        """Record it."""
        self.outcomes.append(outcome)


def run_with(
    plugin: Any,
    function: Callable[..., Any],
    *,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
    app_settings: Mapping[str, Any] | None = None,
    style: Style | None = None,
    **task: Any,
) -> Run:
    """Run a function as a task of an isolated app that has this plugin and no other.

    The app starts, so the plugin's ``qtasks_start`` is called, and stops afterwards. Plugins are
    asked about every ``Exception``, and a plugin that fails raises ``PluginError``.

    Args:
        plugin: The name of an entry point, a module or where to import it from, an object, or a
            class or factory, of which each app makes one for itself.
        function: The function, of any kind.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
        settings: The plugin's own section, which its ``qtasks_start`` gets.
        app_settings: Other keys of the settings, ``{"strict": False}`` for example.
        style: ``"def"`` to call it from plain code, ``"async def"`` to await it; a ``def`` is made
            an ``async def`` for that. None does both, each in an app of its own, and expects both
            to end alike: not for a function that remembers its last call.
        **task: Options of ``app.task``: ``name``, ``tags``, ``max_retries``, ``intercept``.

    Returns:
        The result, also of a failed run; without a style, that of the plain one.

    Raises:
        AssertionError: The two styles ended differently.
        PluginError: The plugin failed, or did not start.
        PluginRegistrationError: Faults of the plugin or of its settings, all of them.
        ValueError: There is no such style.
    """
    __tracebackhide__ = True
    if style not in {None, *get_args(Style)}:
        msg = f"run_with(style=): expected 'def', 'async def' or None for both, got {style!r}"
        raise ValueError(msg)
    given = find_plugin(plugin)
    runs: list[Run] = []
    for one in ("def", "async def") if style is None else (style,):
        made, keys = given.make(), {**(app_settings or {})}
        name = given.name_of(made)
        if settings is not None:
            keys["plugin"] = {**keys.get("plugin", {}), name: settings}
        app, recorder = isolated_app(settings=keys), _Recorder()
        app.plugins.register(made, name)
        app.plugins.register(recorder, _RECORDER)
        shown = as_async(function) if one == "async def" else function
        call = partial(TaskExecutor, app.task(**task)(shown), args=args, kwargs=kwargs)
        runs.append(_run(app, call, recorder, one))
    if len({_end(run) for run in runs}) > 1:
        msg = "\n\n".join(("the two styles ended differently:", *map(str, runs)))
        raise AssertionError(msg)
    return runs[0]


def _run(
    app: QueueTasks, call: Callable[[], TaskExecutor], recorder: _Recorder, style: Style
) -> Run:
    """Run a task in an app that starts and stops."""
    result, error = None, None
    made: list[TaskExecutor] = []

    def plain() -> Any:
        with app:
            made.append(call())
            return made[0].execute_sync()

    async def awaited() -> Any:
        async with app:
            made.append(call())
            return await made[0].execute()

    try:
        result = plain() if style == "def" else in_loop(awaited)
    except PluginError:
        raise
    except Exception as raised:
        if not recorder.outcomes:
            raise  # not the run's: the app did not start
        error = raised
    return Run(
        task=made[0].task_func.name,
        style=style,
        result=result,
        error=error,
        outcomes=tuple(recorder.outcomes),
        trail=Trail(one for one in made[0].trail if one.plugin != _RECORDER),
    )


def in_loop(main: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run a coroutine in a new event loop, even if one is already running."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        is_running = False
    else:
        is_running = True
    if not is_running:
        return asyncio.run(main())
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(copy_context().run, lambda: asyncio.run(main())).result()


def as_async(function: Callable[..., Any]) -> Callable[..., Any]:
    """Make an ``async def`` of a function; one that is async already is left alone."""
    if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
        return function
    if inspect.isgeneratorfunction(function):

        @wraps(function)
        async def items(*args: Any, **kwargs: Any) -> AsyncIterator[Any]:
            """Yield its items."""
            for item in function(*args, **kwargs):
                await asyncio.sleep(0)
                yield item

        return items

    @wraps(function)
    async def value(*args: Any, **kwargs: Any) -> Any:
        """Return its result."""
        await asyncio.sleep(0)
        return function(*args, **kwargs)

    return value


def _end(run: Run) -> tuple[Any, ...]:
    """Return what both styles of a run have in common; delays may be random."""
    ends = [(one.status, one.decided_by, one.reason) for one in run.outcomes]
    # The default repr of an object shows its address.
    return *ends, type(run.error), re.sub(r" at 0x[0-9a-f]+", "", _shown(run.result))


def assert_outcome(
    run: Run,
    status: OutcomeStatus | str,
    *,
    result: Any = ...,
    error: type[BaseException] | None = None,
    decided_by: Any = ...,
    attempts: int | None = None,
    delays: Sequence[float | None] | None = None,
) -> None:
    """Assert how a run ended; if it ended otherwise, show the run and its trail.

    Args:
        run: What ``run_with`` returned.
        status: The way in which it ended, ``"recovered"`` for example.
        result: Its result; whatever it is without this.
        error: A class of what the caller got.
        decided_by: The name of the plugin whose decision it was; None for nobody.
        attempts: How many there were.
        delays: Seconds before each further attempt.

    Raises:
        AssertionError: It ended otherwise.
        ValueError: There is no such status.
    """
    __tracebackhide__ = True
    end = run.outcome
    expected: dict[str, tuple[Any, Any]] = {"status": (_status(status), end.status)}
    if result is not ...:
        expected["result"] = (result, run.result)
    if decided_by is not ...:
        expected["decided_by"] = (decided_by, end.decided_by)
    if attempts is not None:
        expected["attempts"] = (attempts, len(run.outcomes))
    if delays is not None:
        expected["delays"] = ([*delays], [one.delay for one in run.outcomes[:-1]])
    wrong = [
        f"{what}: expected {_shown(wanted)}, got {_shown(got)}"
        for what, (wanted, got) in expected.items()
        if got != wanted
    ]
    if error is not None and not isinstance(run.error, error):
        got = "none" if run.error is None else type(run.error).__name__
        wrong.append(f"error: expected {error.__name__}, got {got}")
    if wrong:
        raise AssertionError("\n".join((*wrong, "", str(run))))


def _status(name: str) -> OutcomeStatus:
    __tracebackhide__ = True
    try:
        return OutcomeStatus(name)
    except ValueError:
        (near,) = difflib.get_close_matches(str(name), OutcomeStatus, n=1, cutoff=0)
        msg = f"assert_outcome: there is no status {name!r}; did you mean {str(near)!r}?"
        raise ValueError(msg) from None


def assert_trail(run: Run, *expected: str) -> None:
    """Assert who was asked about the errors of a run, and what each did.

    Args:
        run: What ``run_with`` returned.
        *expected: A text for each record of the trail, in order: the plugin's name and what it
            did, such as ``"mine answered Retry"``, ``"mine no opinion"`` or
            ``"mine not asked (filter)"``.

    Raises:
        AssertionError: It was otherwise.
    """
    __tracebackhide__ = True
    got = [f"{one.plugin} {one.did}" for one in run.trail if one.hook == _TRIGGER]
    if got != [*expected]:
        lines = ["asked about the error: expected", *(f"  {one}" for one in expected or ["nobody"])]
        lines += ["got", *(f"  {one}" for one in got or ["nobody"]), "", str(run)]
        raise AssertionError("\n".join(lines))


def _shown(value: Any) -> str:
    return str(value) if isinstance(value, OutcomeStatus) else safe_repr(value)
