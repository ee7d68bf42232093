"""``QueueTasks``: an app's tasks, its plugins, and when they are ready."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable, Mapping
from contextlib import suppress
from enum import Enum
from types import MappingProxyType, TracebackType
from typing import Any, Literal, ParamSpec, Self, TypeAlias, TypeVar, overload

from qtasks_hookspecs import TaskFunc
from qtasks_hookspecs._types import error_classes
from qtasks_hookspecs.exc import (
    NotRunningError,
    PluginError,
    PluginRegistrationError,
    TaskNameError,
)
from qtasks_pluggy._chain import Entry
from qtasks_pluggy._executor import TaskExecutor
from qtasks_pluggy._names import nearest
from qtasks_pluggy._plugins import PluginManager
from qtasks_pluggy._task import AsyncTask, Decorator, EchoDecorator, SyncTask
from qtasks_pluggy._waiting import IN_THREAD, ON_LOOP, Waiting, finish, lock_of

P = ParamSpec("P")
Intercept: TypeAlias = type[BaseException] | Iterable[type[BaseException]] | None
R = TypeVar("R")
Y = TypeVar("Y")


class _State(Enum):
    NEW = "not started"
    STARTING = "starting"
    STARTED = "started"
    STOPPED = "stopped"


class QueueTasks:
    """An app: tasks by name, and the plugins that are asked about their errors.

    Args:
        name: The app's name.
        engine: What carries submitted runs; None runs tasks in place only.
        plugins: Modules or objects with hookimpls; checked at once.
        discover: Whether the installed plugins are loaded, at the start or the first run.
        intercept: Exception classes that plugins are asked about besides
            ``TaskPluginTriggerError``, for tasks that do not say.
        max_retries: The most retries of one run that plugins may cause; None for no bound.
        settings: Keys of the settings, this app's defaults; checked at once.
        dead_letter: Called with the message, the task's error and the reason of a run that a
            plugin sets aside; plain or async. The default logs one event.

    Raises:
        PluginRegistrationError: Faults of ``plugins``, all of them.
        SettingsError: Faults of ``settings``.
        TypeError: An argument is of the wrong type.
    """

    def __init__(
        self,
        name: str,
        *,
        engine: Any = None,
        plugins: Iterable[Any] = (),
        discover: bool = True,
        intercept: type[BaseException] | Iterable[type[BaseException]] = (),
        max_retries: int | None = 10,
        settings: Mapping[str, Any] | None = None,
        dead_letter: Callable[..., Any] | None = None,
    ) -> None:
        if not isinstance(name, str):
            msg = f"QueueTasks(name): expected a string, got {name!r}"
            raise TypeError(msg)
        if engine is not None:
            msg = f"QueueTasks(engine=...): no engine is supported yet, got {engine!r}"
            raise TypeError(msg)
        if dead_letter is not None and not callable(dead_letter):
            msg = f"QueueTasks(dead_letter=...): expected a function, got {dead_letter!r}"
            raise TypeError(msg)
        TaskFunc(name, len, max_retries=max_retries)  # its checks are the same
        self.name: str = name
        self.dead_letter: Callable[..., Any] | None = dead_letter
        self._discover = discover
        self._intercept = error_classes(intercept) or ()
        self._max_retries = max_retries
        self._tasks: dict[str, Any] = {}
        self._entries: list[Entry] = []
        self._attempt = 1
        self._state = _State.NEW
        self._runnable = False
        self._lock = lock_of(self)
        self.plugins: PluginManager = PluginManager(plugins, settings=settings)

    @property
    def tasks(self) -> Mapping[str, Any]:
        """The app's tasks by name."""
        return MappingProxyType(self._tasks)

    @overload
    def task(  # type: ignore[overload-overlap]  # any return type is the last resort
        self, func: Callable[P, AsyncGenerator[Y, Any]], /
    ) -> AsyncTask[P, list[Y]]: ...
    @overload
    def task(  # type: ignore[overload-overlap]  # any return type is the last resort
        self, func: Callable[P, Coroutine[Any, Any, R]], /
    ) -> AsyncTask[P, R]: ...
    @overload
    def task(self, func: Callable[P, R], /) -> SyncTask[P, R]: ...
    @overload
    def task(
        self,
        *,
        echo: Literal[True],
        name: str | None = ...,
        priority: int = ...,
        intercept: Intercept = ...,
        max_retries: int | None = ...,
        max_time: float | None = ...,
        tags: Iterable[str] = ...,
        description: str = ...,
        **extra: Any,
    ) -> EchoDecorator: ...
    @overload
    def task(
        self,
        *,
        echo: Literal[False] = ...,
        name: str | None = ...,
        priority: int = ...,
        intercept: Intercept = ...,
        max_retries: int | None = ...,
        max_time: float | None = ...,
        tags: Iterable[str] = ...,
        description: str = ...,
        **extra: Any,
    ) -> Decorator: ...
    def task(  # type: ignore[misc]  # mypy holds **extra against the positional func
        self,
        func: Any = None,
        /,
        *,
        name: str | None = None,
        echo: bool = False,
        priority: int = 0,
        intercept: Intercept = None,
        max_retries: int | None = None,
        max_time: float | None = None,
        tags: Iterable[str] = (),
        description: str = "",
        **extra: Any,
    ) -> Any:
        """Register a function as a task, ``@app.task`` or ``@app.task(...)``.

        Args:
            func: The function: plain or async, returning or yielding its result.
            name: The task's name; the function's without one.
            echo: Whether the function's first parameter is a view of its run.
            priority: Higher runs first, where an engine is behind the app.
            intercept: Exception classes that plugins are asked about besides
                ``TaskPluginTriggerError``; None for the app's, ``()`` for none.
            max_retries: The most retries of one run, within the app's bound.
            max_time: Seconds that one attempt may take.
            tags: Words that plugins can filter by.
            description: What the task does, for people.
            **extra: Anything else, for plugins to read in ``task_func.extra``.

        Returns:
            An ``AsyncTask`` or a ``SyncTask`` with the function's own parameters.

        Raises:
            TaskNameError: Another task has this name.
            TypeError: An argument is of the wrong type.
            ValueError: A number is out of its range.
        """

        def register(function: Callable[..., Any]) -> Any:
            bounds = [one for one in (max_retries, self._max_retries) if one is not None]
            task_func = TaskFunc(
                name or str(getattr(function, "__name__", type(function).__name__)),
                function,
                echo=echo,
                priority=priority,
                intercept=self._intercept if intercept is None else intercept,
                max_retries=min(bounds, default=None),
                max_time=max_time,
                tags=tags,  # type: ignore[arg-type]  # made a tuple there
                description=description,
                extra=extra,
            )
            if task_func.name in self._tasks:
                other = self._tasks[task_func.name].func
                msg = (
                    f"app {self.name!r}: task name {task_func.name!r} is taken by"
                    f" {_where(other)}, and {_where(function)} claims it too;"
                    " give one of them another name="
                )
                raise TaskNameError(msg)
            kind = AsyncTask if task_func.is_async else SyncTask
            task: Any = kind(task_func, self)
            self._tasks[task_func.name] = task
            return task

        return register if func is None else register(func)

    def add_plugin(
        self, plugin: Any, name: str | None = None, trigger_names: Iterable[str] | None = None
    ) -> str:
        """Add a plugin, behind those that are there; it has the last word.

        One added to a started app is asked from now on, but its ``qtasks_start`` is not called.

        Args:
            plugin: A module or an object with hookimpls; a ``BasePlugin`` or a subclass of it.
            name: Its name; else its ``.name``, else the module's or class's name.
            trigger_names: The triggers that a ``BasePlugin`` is limited to.

        Returns:
            The plugin's name.

        Raises:
            PluginRegistrationError: Faults of the plugin, all of them; it is not added.
        """
        registered = self.plugins.register(plugin, name, trigger_names)
        return registered or name or self.plugins.get_canonical_name(plugin)

    def remove_plugin(self, name: str) -> None:
        """Remove a plugin; runs that are asking it still do.

        Args:
            name: The plugin's name.

        Raises:
            PluginRegistrationError: No plugin has this name; the nearest is named.
        """
        if self.plugins.unregister(name=name) is None:
            known = [one for one, plugin in self.plugins.list_name_plugin() if plugin is not None]
            hint = f"did you mean {nearest(name, known)!r}?" if known else "there are no plugins"
            msg = f"app {self.name!r}: no plugin is named {name!r}; {hint}"
            raise PluginRegistrationError(msg)

    def __enter__(self) -> Self:
        """Start: load the installed plugins and call ``qtasks_start``.

        Raises:
            PluginError: A plugin failed to start; those that had started are stopped again.
            PluginRegistrationError: Faults of the installed plugins, all of them.
            RuntimeError: The app is started already.
            SettingsError: Faults of the settings.
        """
        finish(self._start(IN_THREAD))
        return self

    def __exit__(
        self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None
    ) -> None:
        """Stop: call ``qtasks_stop``, in reverse order."""
        finish(self._stop(IN_THREAD))

    async def __aenter__(self) -> Self:
        """Start as ``with`` does, from async code."""
        await self._start(ON_LOOP)
        return self

    async def __aexit__(
        self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None
    ) -> None:
        """Stop as ``with`` does, from async code."""
        await self._stop(ON_LOOP)

    def run_async(
        self, task: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Coroutine[Any, Any, Any]:
        """Run a task here and now; what ``await task(...)`` does.

        Raises:
            NotRunningError: The app was stopped.
        """
        if not self._runnable:
            self._get_ready()
        return TaskExecutor(task, None, args=args, kwargs=kwargs, plugins=self.plugins).execute()

    def run_sync(self, task: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a task here and now; what ``task(...)`` does.

        Raises:
            NotRunningError: The app was stopped.
        """
        if not self._runnable:
            self._get_ready()
        executor = TaskExecutor(task, None, args=args, kwargs=kwargs, plugins=self.plugins)
        return executor.execute_sync()

    def _get_ready(self) -> None:
        """Load what a first run needs; a stopped app has to be started again instead."""
        with self._lock:
            if self._state is _State.STOPPED:
                msg = (
                    f"app {self.name!r} was stopped, so its tasks do not run; start it again with"
                    " 'with app:' or 'async with app:'"
                )
                raise NotRunningError(msg)
            if not self._runnable:
                self.load_plugins()
                self._runnable = True

    def load_plugins(self, faults: list[str] | None = None) -> None:
        """Read the settings and load the installed plugins, as a start or a first run does.

        Args:
            faults: Takes the faults of installed plugins instead of an error.

        Raises:
            PluginRegistrationError: Faults of the installed plugins, all of them.
            SettingsError: Faults of the settings.
        """
        if self._discover:
            self.plugins.discover(faults)
        self.plugins.configure()

    async def _start(self, waiting: Waiting) -> None:
        with self._lock:
            if self._state in {_State.STARTING, _State.STARTED}:
                msg = f"app {self.name!r} is started already; stop it first"
                raise RuntimeError(msg)
            before = self._state, self._runnable
            self.load_plugins()
            self._state, self._runnable = _State.STARTING, True
        self._entries = []
        hooks = self.plugins.hook
        try:
            await self._call(hooks.qtasks_start, waiting, settings={})
        except BaseException:
            self._state, self._runnable = before
            started = [link.plugin for link, _, status, *_ in self._entries if status != "raised"]
            plugins = self.plugins.list_name_plugin()
            for name in reversed(started):
                # One by one: under strict, one that fails to stop must not keep the others running.
                others = [plugin for other, plugin in plugins if other != name]
                stop = self.plugins.subset_hook_caller("qtasks_stop", others)
                with suppress(PluginError):
                    await self._call(stop, waiting)
            raise
        self._state = _State.STARTED

    async def _stop(self, waiting: Waiting) -> None:
        try:
            await self._call(self.plugins.hook.qtasks_stop, waiting)
        finally:
            self._state, self._runnable = _State.STOPPED, False

    async def _call(self, hook: Any, waiting: Waiting, **values: Any) -> None:
        if waiting.on_loop:
            await hook.call_async(app=self, **values)
        else:
            hook(app=self, **values)

    def __repr__(self) -> str:
        """Show the name and how far the app is."""
        return f"<QueueTasks {self.name!r}, {self._state.value}, {len(self._tasks)} tasks>"


def _where(function: Any) -> str:
    module = getattr(function, "__module__", "?")
    return f"{module}.{getattr(function, '__qualname__', type(function).__name__)}"
