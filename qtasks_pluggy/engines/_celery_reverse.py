"""Plugins for the tasks of a Celery app that is there already."""

# Celery has no types, and its private registry is the only one that counts an app's own tasks.
# pyright: reportMissingTypeStubs=false, reportAttributeAccessIssue=false

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from contextvars import ContextVar
from traceback import format_exception
from types import MethodType
from typing import Any, Final
from weakref import WeakKeyDictionary

import attrs
from billiard import get_start_method
from celery import Celery, Task, states
from celery.app import trace
from celery.backends.base import DisabledBackend
from celery.exceptions import Ignore, Reject, Retry
from celery.utils.functional import lazy

from qtasks_hookspecs import RunningTask
from qtasks_pluggy import TaskMessage
from qtasks_pluggy.engines import Capabilities, Outcome
from qtasks_pluggy.engines._celery_names import name_of, resolved
from qtasks_pluggy.engines._celery_settings import broker_of, has_dead_letters, itself
from qtasks_pluggy.engines._celery_worker import SPAWNED, WorkerLife, has_children
from qtasks_pluggy.engines.reverse import Plugged, refuse_other
from qtasks_pluggy.engines.servers import PLAIN, carried_out, unstorable
from qtasks_pluggy.exc import EngineError

CONTROL: Final = (Ignore, Reject, Retry)
# By which our own native tasks are known.
OURS: Final = "qtasks_pluggy_task"

# What ``task_annotations`` names: importable, because spawned children get the setting alone.
_NAME: Final = "qtasks_pluggy.engines.celery:Plugins"
_CONF: Final = "qtasks_pluggy"
# By which an annotation gives a task another ``__call__``.
_CALL: Final = "@__call__"
# Whether a worker asks the message, besides the task, if it is to store an attempt's end: as of
# Celery 5.6.
_HEEDS_REQUEST: Final = hasattr(trace, "get_actual_ignore_result")
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
    one = _natives.get(native) or _Native(native)
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
        for kind in {type(task) for task in _own_tasks(native) if task.app is native}:
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
        one = _natives.get(native) or _known(native, _Native.of_settings(native))
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
        self._native = native
        self.life = WorkerLife(native, lambda: self._plugged.app, self._check)

    def take_plugins(self, plugins: tuple[Any, ...], **options: Any) -> None:
        """Have these from now on, for all tasks."""
        native = self._native
        # Others, that were started for runs in this very process.
        self.life.end()
        self._plugged = Plugged(native, native.main or "celery", map(resolved, plugins), **options)
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
        native: Any = self._native
        waiting = 0 if native.finalized else len(native._pending)  # noqa: SLF001  # no public way
        return waiting + sum(1 for _ in _own_tasks(native))

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
                return self._work(task, call, args, kwargs)
            finally:
                _taken.reset(token)

        vars(__call__)[_CONF] = self
        return __call__

    def _work(self, task: Any, call: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self.life.begin()
        request = task.request
        message = message_of(request, args, kwargs)
        priority = message.priority or 0
        if priority and broker_of(self._native) == "redis":
            # There lower ones run first, and 0, which it is by itself, before all others.
            priority = -priority
        message = attrs.evolve(message, attempt=request.retries + 1, priority=priority)
        executor = self._plugged.executor_for(message, call)
        outcome = executor.attempt_on_sync(_Attempt(task))
        return carried_out(executor, outcome, lambda end: carry_out(end, task))

    def _check(self, worker: Any) -> None:
        """Refuse a worker that would do without plugins."""
        native = self._native
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
        bare = [one.name for one in _own_tasks(native) if not hasattr(type(one).__call__, _CONF)]
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


class _Attempt:
    """Celery as the executor of one attempt sees it."""

    name = "celery"
    control = CONTROL

    def __init__(self, task: Any) -> None:
        self._task = task

    def goes_on(self, error: BaseException) -> bool:
        """Say whether the task has asked Celery for another attempt."""
        return isinstance(error, Retry)

    def check_answer(self, value: Any) -> None:
        """Refuse an answer that cannot be stored.

        Raises:
            EngineError: It cannot be serialized.
        """
        if not ignores_result(self._task):
            check_storable(self._task.app, "the answer", value)

    def check_result(self, run: RunningTask) -> None:
        """Do nothing: what the task itself returns is Celery's affair."""

    @property
    def capabilities(self) -> Capabilities:
        """What Celery can do for this task."""
        return Capabilities(
            delay=True,
            results=True,
            at_least_once=bool(self._task.acks_late),
            dead_letter=has_dead_letters(self._task),
        )


def check_storable(native: Any, what: str, value: Any) -> None:
    """Refuse what Celery's backend cannot store.

    Args:
        native: The Celery app.
        what: Whose value it is, for people.
        value: A result, or an answer.

    Raises:
        EngineError: It cannot be serialized.
    """
    if type(value) in PLAIN or isinstance(native.backend, DisabledBackend):
        return
    try:
        native.backend.encode(value)
    except Exception as error:
        raise unstorable(what, value, error, engine="celery") from error


def message_of(request: Any, args: Any, kwargs: Any) -> TaskMessage:
    """Make a message of what Celery knows of a run; what it does not know is None."""
    info = request.delivery_info or {}
    return TaskMessage(
        request.task,
        tuple(args or ()),
        kwargs or {},
        uuid=request.id,
        priority=info.get("priority") or 0,
        created_at=None,
        attempt=None,
        queue=info.get("routing_key"),
        engine="celery",
        redelivered=None if request.is_eager else bool(info.get("redelivered")),
    )


def carry_out(outcome: Outcome, task: Any, **options: Any) -> Any:
    """Return what Celery is to store, or raise what makes it do what the plugins decided.

    Args:
        outcome: The attempt's outcome.
        task: The native task that is at work.
        options: Celery's own, for another attempt.
    """
    if outcome.action == "succeed":
        return outcome.result
    error, request = outcome.error, task.request
    if outcome.action == "retry":
        # The limit was looked at already; Celery's own would end the run in another error.
        most = request.retries + 1
        if not request.is_eager:
            _store_retry(task, error)
        try:
            again = task.retry(
                exc=error,
                countdown=outcome.delay or 0,
                max_retries=most,
                throw=False,
                **options,
            )
        except Reject as unsent:
            msg = (
                f"engine 'celery', task {request.task!r}: a retry was decided, and the broker did"
                f" not take it: {unsent.reason}; look whether it runs, and has room"
            )
            raise EngineError(msg) from error
        finally:
            # Where Celery would keep it for the task's next run.
            vars(task).pop("override_max_retries", None)
        if not request.is_eager:
            # Celery would store the retry now, and the next attempt may have stored the end.
            if not _HEEDS_REQUEST:
                raise Ignore
            request.ignore_result = True
        raise again
    if outcome.action == "cancel" and not request.is_eager:
        _store(task, error, states.REVOKED)
        raise Ignore
    if outcome.action == "dead_letter" and has_dead_letters(task) and not request.is_eager:
        _store(task, error, states.FAILURE)
        raise Reject(error, requeue=False)
    raise error or Ignore


def ignores_result(task: Any) -> bool:
    """Say whether nobody wants the result of the attempt at work; its message overrides the task.

    What the request's class says is a default of Celery's own, and nobody's wish.
    """
    wish: bool | None = vars(task.request).get("ignore_result")
    return bool(task.ignore_result if wish is None else wish)


def _store_retry(task: Any, error: Exception | None) -> None:
    """Store that there will be another attempt, before there can be."""
    if ignores_result(task):
        return
    # It tells how far the run is, and nothing depends on it.
    with suppress(Exception):
        told = "".join(format_exception(error))
        task.backend.mark_as_retry(task.request.id, error, told, request=task.request)


def _store(task: Any, error: Exception | None, state: str) -> None:
    """Store an end that Celery would store in another way, or not at all; for chords too."""
    request = task.request
    task.backend.mark_as_failure(
        request.id,
        error,
        request=request,
        store_result=not ignores_result(task),
        call_errbacks=state == states.FAILURE,
        state=state,
    )


def _known(native: Celery, one: _Native) -> _Native:
    """Take down whose plugins an app has.

    A spawned child has two objects of one app, the one that it was given and the one that the
    app's module makes there. Both do runs, and the plugins are to be started once.
    """
    if SPAWNED in os.environ:
        for other, theirs in _natives.items():
            if other.main == native.main and other.conf.get(_CONF) == native.conf.get(_CONF):
                if theirs is not one:
                    one.life.retire()
                one = theirs
                break
    _natives[native] = one
    return one


def _own_tasks(native: Celery) -> Iterator[Any]:
    for name, task in list(vars(native)["_tasks"].items()):
        if not name.startswith("celery.") and not getattr(task, OURS, False):
            yield task


_natives: Final[WeakKeyDictionary[Celery, _Native]] = WeakKeyDictionary()
