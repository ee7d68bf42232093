"""Plugins for the tasks of a Celery app that is there already."""

# Celery has no types, and its private registry is the only one that counts an app's own tasks.
# pyright: reportMissingTypeStubs=false, reportAttributeAccessIssue=false

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from types import MethodType
from typing import Any, Final

import attrs
from billiard import get_start_method
from celery import Celery, Task
from celery.utils.functional import lazy

from qtasks_pluggy.engines._celery_attempt import OURS, CeleryHost, message_of, settle
from qtasks_pluggy.engines._celery_names import name_of, resolved
from qtasks_pluggy.engines._celery_send import CelerySender, own_tasks
from qtasks_pluggy.engines._celery_settings import broker_of, itself
from qtasks_pluggy.engines._celery_worker import SPAWNED, WorkerLife, has_children
from qtasks_pluggy.engines.reverse import Plugged, refuse_other
from qtasks_pluggy.engines.servers import HANDS_OVER, settled
from qtasks_pluggy.exc import EngineError

# What ``task_annotations`` names: importable, because spawned children get the setting alone.
_NAME: Final = "qtasks_pluggy.engines.celery:Plugins"
_CONF: Final = "qtasks_pluggy"
# By which an annotation gives a task another ``__call__``.
_CALL: Final = "@__call__"
# The attempts at work here that plugins see to. Not kept with the request: what Celery does not
# know there goes with a retry's message, and the next attempt would be taken for this one.
_taken: Final[ContextVar[frozenset[tuple[Any, ...]]]] = ContextVar(
    "qtasks_pluggy_celery_taken", default=frozenset()
)


def install(
    native: Celery,
    plugins: Iterable[Any] = (),
    *,
    discover: bool = True,
    intercept: type[BaseException] | Iterable[type[BaseException]] = Exception,
) -> int:
    """Let plugins decide about the errors of a Celery app's own tasks, those declared later too.

    Args:
        native: The Celery app.
        plugins: As for ``QueueTasks``, or names, ``"module"`` or ``"module:attribute"``.
        discover: As for ``QueueTasks``.
        intercept: The exception classes that plugins are asked about, after ``autoretry_for``.

    Returns:
        How many tasks are covered now.

    Raises:
        PluginRegistrationError: Faults of ``plugins``.
        TypeError: It is no Celery app.
    """
    native = itself(native)
    refuse_other("celery", native, Celery)
    one: _Native = vars(native).get(_INSTALLED) or _Native(native)
    one.take_plugins(tuple(plugins), discover=discover, intercept=intercept)
    one = _known(native, one)
    conf = native.conf
    given = conf.task_annotations or ()
    given = list(given) if isinstance(given, (list, tuple)) else [given]
    if _NAME not in given[:1]:
        conf.task_annotations = (_NAME, *(other for other in given if other != _NAME))
        # What Celery has made of the setting.
        vars(native).pop("annotations", None)
        # What else the setting says was applied to these when they were made.
        for kind in {type(task) for task in own_tasks(native) if task.app is native}:
            if not hasattr(kind.__call__, _CONF):
                kind.__call__ = one.around(kind.__call__)
    return one.covered


class Plugins:
    """What Celery's setting ``task_annotations`` names to give plugins to every task.

    The setting alone, ``task_annotations = ["qtasks_pluggy.engines.celery:Plugins"]``, is as good
    as ``install(app)``; set it where the app is made.
    """

    def __init__(self) -> None:
        # What the next question about all tasks is answered with, in this thread.
        self._every = threading.local()

    def annotate(self, task: Any) -> dict[str, Any] | None:
        """Name what is to be changed of a task."""
        native = task.app
        self._every.changes = None
        # For Celery's own tasks too: a worker where nobody asks about the others is to hear of it.
        one = vars(native).get(_INSTALLED) or _known(native, _Native.of_settings(native))
        if task.name.startswith("celery.") or getattr(task, OURS, False):
            return None
        # Celery asks no other annotation about a task once one has answered; and of two that give
        # it another ``__call__`` the last one alone holds.
        others = [
            given.evaluate() if isinstance(given, lazy) else given for given in native.annotations
        ]
        others = [other for other in others if not isinstance(other, Plugins)]
        changes = dict(next(filter(None, (other.annotate(task) for other in others)), {}))
        every = dict(next(filter(None, (other.annotate_any() for other in others)), {}))
        theirs = every.pop(_CALL, changes.pop(_CALL, None))
        self._every.changes = every
        # Not by Celery's "@": it drops what is around a call already.
        native_call = task.__call__ if theirs is None else theirs(task.__call__)
        return {**changes, "__call__": one.around(native_call)}

    def annotate_any(self) -> dict[str, Any] | None:
        """Name what is to be changed of all tasks; asked right after the question about one."""
        changes: dict[str, Any] | None = getattr(self._every, "changes", None)
        return changes


class _Native:
    """A Celery app with plugins for its own tasks."""

    def __init__(self, native: Celery) -> None:
        self.native = native
        self.life = WorkerLife(native, lambda: self._plugged.app, self._check)

    def take_plugins(self, plugins: tuple[Any, ...], **options: Any) -> None:
        """Have these from now on, for all tasks."""
        native = self.native
        # Others, that were started for runs in this very process.
        self.life.end()
        self._plugged = Plugged(
            native,
            native.main or "celery",
            map(resolved, plugins),
            sender=CelerySender(native),
            **options,
        )
        self._names = [name_of(plugin) for plugin in plugins]
        self._given = plugins
        # Spawned children get it with the other settings.
        native.conf[_CONF] = {
            "plugins": [name for name in self._names if name is not None],
            **options,
        }

    @classmethod
    def of_settings(cls, native: Celery) -> _Native:
        """Make it in a process that has the settings alone."""
        given: dict[str, Any] = {"plugins": (), "discover": True, "intercept": Exception}
        given |= native.conf.get(_CONF) or {}
        one = cls(native)
        one.take_plugins(tuple(given.pop("plugins")), **given)
        return one

    @property
    def covered(self) -> int:
        """How many tasks are the app's own."""
        native: Any = self.native
        waiting = 0 if native.finalized else len(native._pending)  # noqa: SLF001  # no public way
        return waiting + sum(1 for _ in own_tasks(native))

    def around(self, native_call: Callable[..., Any]) -> Callable[..., Any]:
        """Give a task another ``__call__``."""
        # Asked here: a worker replaces Celery's own one later, and the old one takes a run that
        # is called through it for a direct call.
        is_celery_s_own = native_call is Task.__call__

        def __call__(task: Any, /, *args: Any, **kwargs: Any) -> Any:  # noqa: N807  # Celery's
            request, others = task.request, _taken.get()
            attempt = task.name, request.id, request.retries
            # A task that calls itself finds the request of its own run there.
            if request.called_directly or attempt in others:
                return native_call(task, *args, **kwargs)
            # A method is equal to the one of the next run, and known by then.
            call = task.run if is_celery_s_own else MethodType(native_call, task)
            token = _taken.set(others | {attempt})
            try:
                with HANDS_OVER:
                    return self._work(task, call, args, kwargs)
            finally:
                _taken.reset(token)

        vars(__call__)[_CONF] = self
        return __call__

    def _work(self, task: Any, call: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self.life.begin()
        request = task.request
        message = message_of(task, args, kwargs)
        priority = message.priority or 0
        if priority and broker_of(self.native) == "redis":
            # There lower ones run first, and 0, which it is by itself, before all others.
            priority = -priority
        message = attrs.evolve(message, attempt=max(request.retries, 0) + 1, priority=priority)
        executor = self._plugged.executor_for(message, call)
        outcome = executor.execute_attempt_sync(CeleryHost(task))
        return settled(executor, outcome, lambda end: settle(end, task))

    def _check(self, worker: Any) -> None:
        """Refuse a worker that would do without plugins."""
        native = self.native
        native.finalize()
        who = f"engine 'celery', {native.main}"
        if _NAME not in (native.conf.task_annotations or ()):
            msg = (
                f"{who}: the settings were replaced behind install(), so no task asks plugins; call"
                " it after config_from_object()"
            )
            raise EngineError(msg)
        if not self.covered:
            msg = (
                f"{who}: install() covers no task; name the modules that declare them in the"
                " setting 'imports', or import them where the app is"
            )
            raise EngineError(msg)
        bare = [one.name for one in own_tasks(native) if not hasattr(type(one).__call__, _CONF)]
        if bare:
            msg = (
                f"{who}: task {bare[0]!r} asks no plugin, because another of the setting"
                f" 'task_annotations' answers for it; put {_NAME!r} first there"
            )
            raise EngineError(msg)
        start = getattr(worker, "pool_start_method", None) or get_start_method()
        if has_children(worker) and start != "fork" and None in self._names:
            nameless = self._given[self._names.index(None)]
            msg = (
                f"{who}: this worker's children are made by {start!r}, and plugin"
                f" {nameless!r} cannot be imported there by name; give install() a module, a"
                " BasePlugin class, or a name, 'module:attribute'"
            )
            raise EngineError(msg)


def _known(native: Celery, one: _Native) -> _Native:
    """Take down whose plugins an app has.

    A spawned child has two objects of one app, the one that it was given and the one that the
    app's module makes there. Both do runs, and the plugins are to be started once.
    """
    if SPAWNED in os.environ:
        for theirs in _in_child:
            other = theirs.native
            if other.main == native.main and other.conf.get(_CONF) == native.conf.get(_CONF):
                if theirs is not one:
                    one.life.retire()
                one = theirs
                break
        _in_child.add(one)
    # There, and nowhere else: it goes with the app.
    vars(native)[_INSTALLED] = one
    return one


_INSTALLED: Final = "qtasks_pluggy_installed"
_in_child: Final[set[_Native]] = set()
