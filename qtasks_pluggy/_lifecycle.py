"""The life of an app: starting and stopping its plugins and its engine."""

from __future__ import annotations

from contextlib import suppress
from enum import Enum
from operator import methodcaller
from types import TracebackType
from typing import Any, Final, Self

from qtasks_hookspecs.exc import NotRunningError, PluginError
from qtasks_pluggy import _log
from qtasks_pluggy._fork import lock_of, told_of_forks
from qtasks_pluggy._plugins.adapter import original_plugin
from qtasks_pluggy._plugins.chain import NO_LINKS, Asked
from qtasks_pluggy._plugins.manager import PluginManager
from qtasks_pluggy._submit.calls import call_engine, leave_behind
from qtasks_pluggy._submit.protocol import Engine
from qtasks_pluggy._waiting import ASYNCIO, SYNC, Backend, run_to_completion
from qtasks_pluggy.base_plugin import BasePlugin

_STARTED = frozenset({"answered", "no_opinion"})


class _State(Enum):
    NEW = "not started"
    STARTING = "starting"
    STARTED = "started"
    STOPPED = "stopped"
    # Only an engine with an event loop needs this: the others' connections work after a fork.
    LEFT_BEHIND = "started only in the process that this one was forked from"


class _Lifespan:
    """What ``with`` and ``async with`` start and stop."""

    async def _start(self, backend: Backend) -> None:
        raise NotImplementedError

    async def _stop(self, backend: Backend) -> None:
        raise NotImplementedError

    def __enter__(self) -> Self:
        """Start: load the installed plugins, call ``qtasks_start``, and start the engine, if any.

        Raises:
            CapabilityError: The engine cannot do what a task is declared with.
            EngineError: The engine cannot be used.
            PluginError: A plugin failed to start; those that had started are stopped again.
            PluginRegistrationError: Faults of the installed plugins, all of them.
            RuntimeError: The app is started already.
            SettingsError: Faults of the settings.
        """
        run_to_completion(self._start(SYNC))
        return self

    def __exit__(
        self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None
    ) -> None:
        """Stop the engine, which finishes its current runs here, then the plugins, in reverse."""
        run_to_completion(self._stop(SYNC))

    async def __aenter__(self) -> Self:
        """Start as ``with`` does, from async code."""
        await self._start(ASYNCIO)
        return self

    async def __aexit__(
        self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None
    ) -> None:
        """Stop as ``with`` does, from async code."""
        await self._stop(ASYNCIO)


class Lifecycle(_Lifespan):
    """An app's start and stop.

    Args:
        plugins: Its plugins.
        discover: Whether the installed plugins are loaded too.
    """

    name: str
    # Whether it needs no start to send runs, because what it sends them by is an engine's own app.
    _sends_unstarted: bool = False
    _start_hint: str = (
        "call tasks inside 'with app:' or 'async with app:', which calls qtasks_start"
    )

    def __init__(self, plugins: PluginManager, *, discover: bool) -> None:
        self.plugins: PluginManager = plugins
        self._discover = discover
        self._engine: Engine | None = None
        self._workers: int | None = None
        # The trail of the app's own hooks, as a run has one.
        self._entries: list[Asked] = []
        self._attempt = 1
        self._state = _State.NEW
        self._loaded = False
        self._warned: set[str] = set()
        self._lock = lock_of(self)
        _everybody.add(self)

    @property
    def _is_started(self) -> bool:
        """Whether the app is started, or starting."""
        return self._state in {_State.STARTING, _State.STARTED}

    @property
    def _does_runs_itself(self) -> bool:
        """Whether this process does the runs that it submits."""
        engine = self._engine
        # What has no object of its own is nowhere else.
        return engine is not None and (self._workers is not None or engine.native is None)

    def _refuse_if_started(self) -> None:
        if self._is_started:
            msg = f"app {self.name!r} is started already; stop it first"
            raise RuntimeError(msg)

    def _refuse_unless_started(self, task: str) -> None:
        is_ready = self._sends_unstarted and self._state is not _State.STOPPED
        if self._state is not _State.STARTED and not is_ready:
            msg = (
                f"app {self.name!r} is {self._state.value}, so task {task!r} cannot be submitted;"
                " do it inside 'with app:' or 'async with app:' of this process"
            )
            raise NotRunningError(msg)

    def _forked(self) -> None:
        """Count as not started, in a forked process, if the engine or its loop was left behind."""
        engine: Any = self._engine
        if not self._is_started or engine is None or engine.loop is None:
            return
        # Runs of this process are done by the parent, even if the loop rested and can run here.
        holds_runs = hasattr(engine, "left_behind")
        if leave_behind(engine.loop) or holds_runs:
            self._state = _State.LEFT_BEHIND
        if holds_runs:
            engine.left_behind()

    def _ensure_loaded(self) -> None:
        """Load what a first run needs, unless that is done.

        Raises:
            NotRunningError: The app was stopped, and must be started again.
            PluginRegistrationError: Faults of the installed plugins, all of them.
            SettingsError: Faults of the settings.
        """
        with self._lock:
            if self._state is _State.STOPPED:
                msg = (
                    f"app {self.name!r} was stopped, so its tasks do not run; start it again with"
                    " 'with app:' or 'async with app:'"
                )
                raise NotRunningError(msg)
            if not self._loaded:
                self._load_plugins()
                self._loaded = True
                # A first run outside of ``with app:``, which asks plugins all the same.
                self._warn_not_started()

    def _warn_not_started(self) -> None:
        """Log, once, each plugin that is asked without its ``qtasks_start`` having run."""
        hook: Any = self.plugins.hook.qtasks_start
        chain = hook.chain or NO_LINKS
        for link in (*chain.links, *chain.wrappers):
            name = link.plugin
            if name not in self._warned and not _is_default(link.impl.plugin):
                self._warned.add(name)
                _log.event(
                    "warning",
                    "plugin_not_started",
                    app=self.name,
                    plugin=name,
                    hint=self._start_hint,
                )

    def _load_plugins(self, *, skip_faulty: bool = False) -> list[str]:
        """Read the settings and load the installed plugins, as a start or a first run does.

        Args:
            skip_faulty: Whether to continue without the installed plugins that have faults.

        Returns:
            The faults of the skipped plugins.

        Raises:
            PluginRegistrationError: Faults of the installed plugins, all of them.
            SettingsError: Faults of the settings.
        """
        load = self.plugins.discover if self._discover else self.plugins.configure
        return load(skip_faulty=skip_faulty)

    async def _start(self, backend: Backend, *, in_worker: bool = False) -> None:
        with self._lock:
            self._refuse_if_started()
            before = self._state, self._loaded
            self._load_plugins()
            self._state, self._loaded = _State.STARTING, True
        self._entries = []
        hooks: Any = self.plugins.hook
        try:
            await hooks.qtasks_start.call(backend, {"app": self, "settings": {}})
            if self._engine is not None and not in_worker:
                await call_engine(self._engine, backend, "start", self, self._workers)
        except BaseException:
            self._state, self._loaded = before
            started = [one.link.plugin for one in self._entries if one.status in _STARTED]
            for name in reversed(started):
                # One by one: under strict, one that fails to stop must not keep the others running.
                with suppress(PluginError):
                    await hooks.qtasks_stop.call_only(backend, [name], {"app": self})
            raise
        self._state = _State.STARTED
        if in_worker or self._does_runs_itself:
            names = [one.name for one in self.plugins.list_plugin_info() if one.enabled]
            _log.event("info", "worker_asks_plugins", app=self.name, plugins=names)

    async def _stop(self, backend: Backend, *, in_worker: bool = False) -> None:
        try:
            is_left = self._state is _State.LEFT_BEHIND
            if self._engine is not None and not (in_worker or is_left):
                await call_engine(self._engine, backend, "stop")
        finally:
            await self._stop_plugins(backend)

    async def _stop_plugins(self, backend: Backend) -> None:
        try:
            hooks: Any = self.plugins.hook
            await hooks.qtasks_stop.call(backend, {"app": self})
        finally:
            self._state, self._loaded = _State.STOPPED, False


_everybody: Final = told_of_forks(methodcaller("_forked"))


def _is_default(plugin: Any) -> bool:
    """Return whether a plugin's start is that of ``BasePlugin``, which does nothing."""
    return getattr(type(original_plugin(plugin)), "start", None) is BasePlugin.start


class WorkerLifespan(_Lifespan):
    """An app's life in a worker process of its engine.

    Args:
        app: The app.
    """

    def __init__(self, app: Any) -> None:
        self._app = app

    async def start(self, backend: Backend) -> None:
        """Start the plugins."""
        await self._app._start(backend, in_worker=True)  # noqa: SLF001  # our own class

    async def stop(self, backend: Backend) -> None:
        """Stop the plugins."""
        await self._app._stop(backend, in_worker=True)  # noqa: SLF001  # our own class

    _start, _stop = start, stop
