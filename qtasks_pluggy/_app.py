"""``QueueTasks``: an app's tasks, its plugins, and when they are ready."""

from __future__ import annotations

from collections.abc import (
    AsyncIterator,
    Callable,
    Coroutine,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from datetime import timedelta
from itertools import count
from types import FunctionType, MappingProxyType, MethodType, SimpleNamespace
from typing import TYPE_CHECKING, Any, Final, Literal, ParamSpec, TypeAlias, TypeVar, overload

from qtasks_hookspecs import TaskFunc, TaskMessage, on_error
from qtasks_hookspecs._decisions import check_whole
from qtasks_hookspecs._types import error_classes
from qtasks_hookspecs.exc import (
    CapabilityError,
    EngineError,
    PluginRegistrationError,
    TaskNameError,
)
from qtasks_pluggy._lifecycle import Lifecycle
from qtasks_pluggy._plugins.manager import PluginManager
from qtasks_pluggy._run.executor import TaskExecutor
from qtasks_pluggy._submit.handle import TaskHandle
from qtasks_pluggy._submit.lookup import resolve_engine
from qtasks_pluggy._submit.protocol import FindsRuns
from qtasks_pluggy._submit.replay import repetition_of, replay_in_place, replay_on
from qtasks_pluggy._submit.submit import Submissions, check_supported, submit, unknown_task
from qtasks_pluggy._task import AsyncTask, Decorator, EchoDecorator, SyncTask
from qtasks_pluggy._text import closest_match
from qtasks_pluggy._waiting import Backend

if TYPE_CHECKING:
    from uuid import UUID

P = ParamSpec("P")
Intercept: TypeAlias = type[BaseException] | Iterable[type[BaseException]] | None
F = TypeVar("F", bound=Callable[..., Any])
R = TypeVar("R")
Y = TypeVar("Y")
_NO_EXTRA: Final[Mapping[str, Any]] = {}


class QueueTasks(Lifecycle):
    """An app: its tasks, and the plugins that decide about their errors.

    Args:
        name: The app's name.
        engine: What carries submitted runs: ``"memory://"``, ``"huey+sqlite:///file.db"``, an
            engine's own object, or an adapter. None runs tasks in place only.
        plugins: Modules or objects with hookimpls; checked at once.
        discover: Whether the installed plugins are loaded, at the start or the first run.
        intercept: Exception classes that plugins are asked about besides
            ``TaskPluginTriggerError``, unless a task sets it; ``Exception`` for all. None asks only
            handlers that name the class with ``on_error``; ``()`` asks nobody.
        max_retries: The most retries of one run that plugins may cause; None for no bound.
        settings: This app's own settings, by key; checked at once.

    Raises:
        EngineError: No engine has this URL's scheme, or its package is not installed.
        PluginRegistrationError: Faults of ``plugins``, all of them.
        SettingsError: Faults of ``settings``.
        TypeError: An argument has the wrong type.
    """

    def __init__(
        self,
        name: str,
        *,
        engine: Any = None,
        plugins: Iterable[Any] = (),
        discover: bool = True,
        intercept: Intercept = None,
        max_retries: int | None = 10,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        if not isinstance(name, str):
            msg = f"QueueTasks(name): expected a string, got {name!r}"
            raise TypeError(msg)
        TaskFunc(name, len, max_retries=max_retries)  # for its checks
        self.name: str = name
        # Read when an error comes, so that it also applies to tasks declared before it.
        self._intercept = error_classes(intercept)
        self._max_retries = max_retries
        self._tasks: dict[str, Any] = {}
        super().__init__(PluginManager(plugins, settings=settings), discover=discover)
        if engine is not None:
            self.set_engine(engine)

    @property
    def engine(self) -> Any:
        """The adapter of the app's engine, whose ``native`` is the engine's own object; or None."""
        return self._engine

    def set_engine(self, engine: Any, workers: int | None = None) -> None:
        """Replace the engine of an app that has not started.

        Args:
            engine: As for ``QueueTasks``.
            workers: How many runs at a time this process does itself; None for the engine's own
                default, which for most engines is none.

        Raises:
            CapabilityError: A task asks for what the engine cannot do; nothing has changed.
            EngineError: No engine has this URL's scheme, its package is not installed, or it has
                a task of the same name; its own object may have got some of the tasks then.
            RuntimeError: The app is started.
            TypeError: ``workers`` is not a whole number.
            ValueError: ``workers`` is below 1.
        """
        if workers is not None:
            check_whole(workers, f"app {self.name!r}, set_engine(workers=...)", 1)
        adapter = resolve_engine(engine)
        with self._lock:
            self._refuse_if_started()
            functions = [task.task_func for task in self._tasks.values()]
            for task_func in functions:
                check_supported(adapter, task_func)
            for task_func in functions if adapter is not self._engine else ():
                adapter.register(self, task_func)
            self._engine, self._workers = adapter, workers

    @property
    def tasks(self) -> Mapping[str, AsyncTask[..., Any] | SyncTask[..., Any]]:
        """The app's tasks by name."""
        return MappingProxyType(self._tasks)

    @overload
    def task(  # type: ignore[overload-overlap]  # any return type is the last resort
        self, func: Callable[P, AsyncIterator[Y]], /
    ) -> AsyncTask[P, list[Y]]: ...
    @overload
    def task(  # type: ignore[overload-overlap]  # any return type is the last resort
        self, func: Callable[P, Coroutine[Any, Any, R]], /
    ) -> AsyncTask[P, R]: ...
    @overload
    def task(self, func: Callable[P, Iterator[Y]], /) -> SyncTask[P, list[Y]]: ...
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
        max_time: float | timedelta | None = ...,
        tags: Iterable[str] = ...,
        description: str = ...,
        extra: Mapping[str, Any] = ...,
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
        max_time: float | timedelta | None = ...,
        tags: Iterable[str] = ...,
        description: str = ...,
        extra: Mapping[str, Any] = ...,
    ) -> Decorator: ...
    def task(  # type: ignore[misc]  # mypy checks **unknown against the positional func
        self,
        func: Any = None,
        /,
        *,
        name: str | None = None,
        echo: bool = False,
        priority: int = 0,
        intercept: Intercept = None,
        max_retries: int | None = None,
        max_time: float | timedelta | None = None,
        tags: Iterable[str] = (),
        description: str = "",
        extra: Mapping[str, Any] = _NO_EXTRA,
        **unknown: Any,
    ) -> Any:
        """Register a function as a task, ``@app.task`` or ``@app.task(...)``.

        Args:
            func: The function: plain or async, returning or yielding its result.
            name: The task's name; the function's without one.
            echo: Whether the function's first parameter is a view of its run.
            priority: Higher runs first, if the app has an engine.
            intercept: Exception classes that plugins are asked about besides
                ``TaskPluginTriggerError``; None for the app's, ``()`` for none.
            max_retries: The most retries of one run, within the app's bound.
            max_time: Seconds that one attempt may take, or a ``timedelta``.
            tags: Words that plugins can filter by; a string is one of them.
            description: What the task does, for people.
            extra: Anything else, for plugins to read in ``task_func.extra``.
            **unknown: Refused: there are no other options.

        Returns:
            An ``AsyncTask`` or a ``SyncTask`` with the function's own parameters.

        Raises:
            TaskNameError: Another task has this name.
            TypeError: An argument has the wrong type or is unknown; the nearest is suggested.
            ValueError: A number is out of its range.
        """
        self._check_options(unknown, extra)

        def register(function: Callable[..., Any]) -> Any:
            bounds = [one for one in (max_retries, self._max_retries) if one is not None]
            task_func = TaskFunc(
                name or str(getattr(function, "__name__", type(function).__name__)),
                function,
                echo=echo,
                priority=priority,
                intercept=intercept,
                max_retries=min(bounds, default=None),
                max_time=max_time,
                tags=tags,  # type: ignore[arg-type]  # made a tuple there
                description=description,
                extra=dict(extra),
            )
            if task_func.name in self._tasks:
                other = self._tasks[task_func.name].func
                msg = (
                    f"app {self.name!r}: task name {task_func.name!r} is taken by"
                    f" {_describe_function(other)}, and {_describe_function(function)} claims it"
                    " too; give one of them another name="
                )
                raise TaskNameError(msg)
            kind = AsyncTask if task_func.is_async else SyncTask
            task: Any = kind(task_func, self)
            if self._engine is not None:
                check_supported(self._engine, task_func)
                self._engine.register(self, task_func)
            self._tasks[task_func.name] = task
            return task

        return register if func is None else register(func)

    def _check_options(self, unknown: Mapping[str, Any], extra: Any) -> None:
        """Refuse options that a task does not have."""
        for name in unknown:
            msg = (
                f"app {self.name!r}: a task has no option {name!r}; did you mean"
                f" {closest_match(name, _OPTIONS)!r}? What is for plugins to read goes into"
                f" extra={{{name!r}: ...}}"
            )
            raise TypeError(msg)
        if not isinstance(extra, Mapping):
            msg = (
                f"app {self.name!r}: a task's extra=... is a mapping of names and values, got"
                f" {type(extra).__name__}"
            )
            raise TypeError(msg)

    def add_plugin(
        self, plugin: Any, name: str | None = None, trigger_names: Iterable[str] | None = None
    ) -> str:
        """Add a plugin after all others, so that it has the last word.

        A started app asks it from now on, but does not call its ``qtasks_start``.

        Args:
            plugin: A module or an object with hookimpls, or where to import it from
                (``"module"``, ``"module:attribute"``); a ``BasePlugin`` or a subclass of it.
            name: Its name; else its ``.name``, else the module's or class's name.
            trigger_names: The triggers that a ``BasePlugin`` is limited to.

        Returns:
            The plugin's name.

        Raises:
            PluginRegistrationError: Faults of the plugin, all of them, or its name is blocked; it
                is not added.
        """
        registered = self.plugins.register(plugin, name, trigger_names)
        known = registered or name or self.plugins.get_canonical_name(plugin)
        if self.plugins.is_blocked(known):
            msg = (
                f"app {self.name!r}: plugin {known!r} is blocked, so it is not added; take it out,"
                f" or call app.plugins.unblock({known!r}) first"
            )
            raise PluginRegistrationError(msg)
        return known

    def on_error(
        self,
        *classes: type[Exception],
        task: str | None = None,
        tag: str | None = None,
        **marks: Any,
    ) -> Callable[[F], F]:
        """Ask this function about the errors of tasks, ``@app.on_error(ConnectionError)``.

        It becomes a plugin named after the function, with ``-2``, ``-3`` and so on if that name is
        taken. It can be ordered, observed and disabled, and has the last word.

        Args:
            *classes: The exception classes; without any, all errors that the app shows to plugins.
            task: A glob (``fnmatch``) for the task's name.
            tag: A tag that the task must have.
            **marks: As for ``hookimpl``: ``tryfirst``, ``trylast``.

        Returns:
            A decorator that returns the function itself.

        Raises:
            PluginRegistrationError: Faults of the function, all of them.
            TypeError: An argument is not an exception class that plugins can be asked about.
        """
        mark = on_error(*classes, task=task, tag=tag, **marks)

        def register(function: F) -> F:
            name = wanted = getattr(function, "__name__", type(function).__name__)
            numbers = count(2)
            while self.plugins.has_plugin(name):
                name = f"{wanted}-{next(numbers)}"
            plugin = {"name": name, wanted: _marked_copy(function, mark)}
            self.add_plugin(SimpleNamespace(**plugin), name)
            return function

        return register

    def remove_plugin(self, name: str) -> None:
        """Remove a plugin; a run that is asking plugins still asks it.

        Args:
            name: The plugin's name.

        Raises:
            PluginRegistrationError: No plugin has this name; the nearest is named.
        """
        if self.plugins.unregister(name=name) is None:
            known = [one for one, plugin in self.plugins.list_name_plugin() if plugin is not None]
            hint = (
                f"did you mean {closest_match(name, known)!r}?" if known else "there are no plugins"
            )
            msg = f"app {self.name!r}: no plugin is named {name!r}; {hint}"
            raise PluginRegistrationError(msg)

    def handle(self, uuid: UUID | str) -> TaskHandle[Any]:
        """Return a handle on a submitted run, even one of another process.

        The engine is not asked, so an unknown id gets a handle too: if the engine cannot tell,
        ``result(timeout)`` times out.

        Args:
            uuid: The run's id, as ``handle.uuid`` was.

        Returns:
            The handle, which does not know the task's name.

        Raises:
            CapabilityError: The engine stores no results, or only for the process that submitted.
            EngineError: The app has no engine.
            TypeError: ``uuid`` is not an id.
        """
        engine = self._engine
        if engine is None:
            msg = f"app {self.name!r} has no engine, so there is no run to find by its id"
            raise EngineError(msg)
        if not uuid or not (isinstance(uuid, str) or hasattr(uuid, "hex")):
            msg = f"app {self.name!r}, handle(uuid): expected a run's id, got {type(uuid).__name__}"
            raise TypeError(msg)
        if not isinstance(engine, FindsRuns) or not engine.capabilities.results:
            msg = (
                f"engine {engine.name!r} keeps no results that can be found by a run's id; keep the"
                " handle that submit returned, or use an engine with a result store"
            )
            raise CapabilityError(msg)
        message = TaskMessage("", uuid=uuid, engine=engine.name)
        return TaskHandle(engine, message, engine.ticket_for(str(uuid)))

    def _run_async(
        self, task: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Coroutine[Any, Any, Any]:
        """Run a task here and now; what ``await task(...)`` does."""
        if not self._loaded:
            self._ensure_loaded()
        return TaskExecutor(task, None, args=args, kwargs=kwargs, plugins=self.plugins).execute()

    def _run_sync(self, task: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a task here and now; what ``task(...)`` does."""
        if not self._loaded:
            self._ensure_loaded()
        executor = TaskExecutor(task, None, args=args, kwargs=kwargs, plugins=self.plugins)
        return executor.execute_sync()

    def _executor_for(self, message: TaskMessage) -> TaskExecutor:
        """Make the executor for a message that the app's engine handed to a worker."""
        task = self._tasks.get(message.name)
        if task is None:
            raise unknown_task(self, message.name)
        return self._executor(task, message)

    def _executor(self, task: Any, message: TaskMessage) -> TaskExecutor:
        """Make the executor of a task's run."""
        if not self._loaded:
            self._ensure_loaded()
        return TaskExecutor(task, message, plugins=self.plugins)

    def _submit(
        self, backend: Backend, task: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Coroutine[Any, Any, TaskHandle[Any]]:
        """Hand a run to the engine; what ``task.submit(...)`` does."""
        if self._engine is not None:
            self._refuse_unless_started(task.name)
        return submit(self, backend, task.task_func, task._options, args, kwargs)  # noqa: SLF001  # ours

    def replay(
        self,
        message: TaskMessage,
        *,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        delay: float | timedelta | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> UUID | str | None:
        """Run a message's task again: sent to the engine, or in place here and now.

        Args:
            message: The message of the run to repeat.
            args: Other positional arguments; None for the message's.
            kwargs: Other keyword arguments; None for the message's.
            delay: Seconds before the new run may begin, if the app has an engine.
            metadata: Values to add to those of the message. ``replay_of`` is always set to the id
                of the repeated run.

        Returns:
            The id of the new run; None on the event loop of a Procrastinate or QTasks worker, where
            the engine gives it one afterwards. Only its plugins learn how it ends.

        Raises:
            CapabilityError: It cannot be delayed, or the engine cannot send it from here.
            EngineError: The engine failed, or an argument does not travel.
            NotRunningError: The app is not started, or was stopped.
            TaskNameError: The app has no such task; the nearest is named.
            TypeError: An argument has the wrong type.
        """
        repeated = repetition_of(message, args=args, kwargs=kwargs, metadata=metadata)
        if repeated.name not in self.tasks:
            raise unknown_task(self, repeated.name)
        if self.engine is None:
            return replay_in_place(self._executor_for(repeated), self.name, delay)
        self._refuse_unless_started(repeated.name)
        return replay_on(self.engine, repeated, delay)

    def submit_many(
        self, task: AsyncTask[..., R] | SyncTask[..., R], calls: Iterable[Any]
    ) -> Submissions[R]:
        """Submit a run for each of many calls, one by one as the handles are asked for.

        Args:
            task: The task.
            calls: Read lazily, one call at a time. A tuple is positional arguments, a mapping
                keywords, and anything else the only argument.

        Returns:
            The handles, for ``for`` or ``async for``; each run is submitted when iteration reaches
            it. If the engine is full, iteration waits for room.

        Raises:
            TypeError: ``task`` is not a task of this app, or ``calls`` is not iterable.
        """
        if getattr(task, "app", None) is not self:
            msg = (
                f"app {self.name!r}: submit_many expects one of its own tasks, got {task!r}; its"
                f" tasks are {', '.join(self._tasks) or 'none'}"
            )
            raise TypeError(msg)
        if not any(hasattr(type(calls), one) for one in ("__iter__", "__getitem__")):
            msg = (
                f"app {self.name!r}: submit_many of task {task.name!r} expects an iterable of"
                f" calls, got {type(calls).__name__}; for one run use task.submit(...)"
            )
            raise TypeError(msg)
        return Submissions(self, task, calls)

    def __repr__(self) -> str:
        """Show the name and the state."""
        return f"<QueueTasks {self.name!r}, {self._state.value}, {len(self._tasks)} tasks>"


def _marked_copy(function: Any, mark: Callable[[Any], Any]) -> Any:
    """Mark a copy of a function, so that the marks belong to this handler alone.

    A method's copy stays bound.
    """
    plain = function.__func__ if isinstance(function, MethodType) else function
    if not isinstance(plain, FunctionType):
        return mark(function)
    # Without defaults: a handler gets a value for every parameter.
    copied = FunctionType(
        plain.__code__, plain.__globals__, plain.__name__, None, plain.__closure__
    )
    vars(copied).update(vars(plain))
    mark(copied)
    return copied if plain is function else MethodType(copied, function.__self__)


_OPTIONS: Final = tuple(vars(QueueTasks)["task"].__kwdefaults__)


def _describe_function(function: Any) -> str:
    module = getattr(function, "__module__", "?")
    return f"{module}.{getattr(function, '__qualname__', type(function).__name__)}"
