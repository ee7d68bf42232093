"""Plugins for the tasks of an existing Celery app: how they are covered, and one attempt.

This module uses these private parts of Celery, because there is no public way:

=============================  ======================================  ========================
what (5.3 to 5.7 alike)        why                                     the test that holds it
=============================  ======================================  ========================
``app._tasks``, ``._pending``  count tasks without finalizing the app  ``test_celery_install.py``
``vars(app)["annotations"]``   forget what the setting was before      ``test_celery_calls.py``
``FORKED_BY_MULTIPROCESSING``  says that a child was spawned           ``test_celery_servers.py``
``Proxy._get_current_object``  the app that ``current_app`` stands     ``test_celery.py``
                               for
=============================  ======================================  ========================
"""

# Celery has no types, and its private registry is the only one that counts an app's own tasks.
# pyright: reportMissingTypeStubs=false, reportAttributeAccessIssue=false

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pkgutil import resolve_name
from types import MethodType, ModuleType
from typing import Any, ClassVar, Final, Self

from billiard.einfo import ExceptionInfo
from celery import VERSION, Celery, Task, signals, states
from celery.app.task import Context
from celery.backends.base import DisabledBackend
from celery.exceptions import Ignore, Reject, Retry, WorkerShutdown, WorkerTerminate
from celery.utils.functional import lazy
from celery.utils.log import get_task_logger
from kombu import serialization

from qtasks_pluggy import TaskMessage
from qtasks_pluggy.engines import Attempt, Capabilities
from qtasks_pluggy.engines._installed import INSTALLED
from qtasks_pluggy.engines.celery.settings import has_dead_letters, has_results, itself
from qtasks_pluggy.engines.celery.worker import SPAWNED, WorkerLife
from qtasks_pluggy.engines.native import Native, declared, header_of, text_of
from qtasks_pluggy.exc import EngineError
from qtasks_pluggy.exc import TaskDeadLetteredError as DeadLetteredError

# Names ``Plugins`` in ``task_annotations``: importable, because spawned children get the settings
# alone.
_NAME: Final = "qtasks_pluggy.engines.celery:Plugins"
# Three things have this name: the setting that keeps the arguments of ``install``, the mark of a
# ``__call__`` that asks plugins, and the header that we add to messages.
OURS: Final = "qtasks_pluggy"
# Marks the Celery tasks of a ``QueueTasks`` app.
FORWARD: Final = "qtasks_pluggy_task"
# The names of Celery's own headers; no other header can have them.
_HEADERS: Final = {*vars(Context), "lang", "task", "argsrepr", "kwargsrepr", "compression"}
# The attributes of every task. Their values stay unread: reading would bind Celery's own class.
_TASK: Final = {*dir(Task), *dict(vars(Task)["from_config"])}
# Whether the worker itself ends a run whose message is rejected for good.
_ENDS_REJECTED: Final = VERSION >= (5, 7)
_log: Final = get_task_logger(__name__)
_in_child: Final[dict[str, Any]] = {}


class Plugins:
    """What Celery's setting ``task_annotations`` names to give plugins to every task.

    The setting alone, ``task_annotations = ["qtasks_pluggy.engines.celery:Plugins"]``, is as good
    as ``install(app)``; set it where the app is made.
    """

    def annotate(self, task: Any) -> dict[str, Any] | None:
        """Return the attributes that a task gets."""
        # For Celery's own tasks too: they are the first, and put ``Plugins`` first in the setting.
        one = CeleryNative.of_settings(task.app)
        if not is_covered(task):
            return None
        # Celery asks no other annotation about a task once one has answered.
        every = (
            given.evaluate() if isinstance(given, lazy) else given
            for given in one.native.annotations
        )
        others = (other for other in every if not isinstance(other, Plugins))
        changes = dict(next(filter(None, (other.annotate(task) for other in others)), {}))
        theirs = changes.pop("@__call__", None)
        # Not by Celery's "@": it drops what is around a call already.
        native_call = task.__call__ if theirs is None else theirs(task.__call__)
        return {**changes, "__call__": one.around(native_call)}

    def annotate_any(self) -> None:
        """Return nothing: Celery itself applies what holds for all tasks."""


class CeleryNative(Native[Celery]):
    """Plugins for the tasks of a Celery app; ``autoretry_for`` comes before them.

    Attributes:
        names: The names by which other processes can import the plugins; None for those without.
    """

    name = "celery"
    kind = Celery
    control = (Ignore, Reject, Retry)
    ends_worker: ClassVar = (WorkerShutdown, WorkerTerminate, KeyboardInterrupt)
    hint = "name their modules in the setting 'imports', or import them where the app is"
    names: Sequence[str | None] = ()

    @classmethod
    def unwrap(cls, native: Any) -> Any:
        """Return the app itself, also for a proxy like ``current_app``."""
        return itself(native)

    # --- install

    @classmethod
    def install(cls, native: Celery, plugins: Iterable[Any] = (), **options: Any) -> int:
        """Install the plugins, and have Celery apply them to every kind of task."""
        super().install(native, plugins, **options)
        native = itself(native)
        one = cls.found_in(native)
        one.annotate(native)
        return one.count()

    @classmethod
    def of_settings(cls, native: Celery) -> Self:
        """Return the one of an app; a process with nothing but the settings makes it of these."""
        one = cls.found_in(native)
        if INSTALLED not in vars(native):
            given: dict[str, Any] = {"plugins": (), "discover": True, "intercept": Exception}
            given |= native.conf.get(OURS) or {}
            one.take(given.pop("plugins"), **given)
            one.annotate(native)
        return one

    @classmethod
    def found_in(cls, native: Any) -> Self:
        """Return the one of an app.

        A spawned child has two objects for one app: the unpickled one, and the one that the app's
        module makes there. Both do runs, and the plugins are to start once.
        """
        one = super().found_in(native)
        return _in_child.setdefault(one.app_name, one) if SPAWNED in os.environ else one

    def take(self, plugins: Iterable[Any], **options: Any) -> None:
        """Use these plugins; spawned children get their names with the other settings."""
        given = tuple(plugins)
        super().take(given, **options)
        self.names = [name_of(plugin) for plugin in given]
        self.native.conf[OURS] = {"plugins": list(filter(None, self.names)), **options}

    def annotate(self, native: Celery) -> None:
        """Put ``Plugins`` first in the setting, and cover the tasks that exist already."""
        setattr(native, INSTALLED, self)
        conf = native.conf
        given = conf.task_annotations or ()
        given = list(given) if isinstance(given, (list, tuple)) else [given]
        if _NAME in given[:1]:
            return
        conf.task_annotations = (_NAME, *(other for other in given if other != _NAME))
        vars(native).pop("annotations", None)
        # The other annotations were applied to these when they were made.
        for kind in {type(task) for task in own_tasks(native) if task.app is native}:
            if not hasattr(kind.__call__, OURS):
                kind.__call__ = self.around(kind.__call__)

    def cover(self) -> None:
        """Follow the app's workers; ``annotate`` covers its tasks."""
        # Celery holds its receivers weakly.
        self._in_workers = WorkerLife(self)

    @property
    def app_name(self) -> str:
        """The name of the Celery app."""
        return self.native.main or self.name

    def count(self) -> int:
        """Count the app's own tasks, also those that Celery has not made yet."""
        native: Any = self.native
        waiting = 0 if native.finalized else len(native._pending)  # noqa: SLF001  # no public way
        return waiting + len(own_tasks(native))

    @property
    def tasks(self) -> Mapping[str, Any]:
        """The app's own tasks, also those of the modules that a worker imports."""
        # Celery imports each module once.
        self.native.loader.import_default_modules()
        self.native.finalize(auto=True)
        return {task.name: task for task in own_tasks(self.native)}

    def function_of(self, name: str) -> Callable[..., Any]:
        """Return the function of one of them."""
        function: Callable[..., Any] = self.tasks[name].run
        return function

    def options(self, run: Any) -> Mapping[str, Any]:
        """Return the options of a task's declaration that are not Celery's."""
        return {"tags": getattr(run, "tags", ()), **declared(type(run), _TASK)}

    # --- one attempt; a run is the task, whose ``request`` is the current one

    def around(self, native_call: Callable[..., Any]) -> Callable[..., Any]:
        """Make the ``__call__`` of a task that asks plugins."""
        # Compared here: a worker replaces Celery's own one later, and the old one takes a run that
        # comes through it for a direct call.
        is_celery_s_own = native_call is Task.__call__

        def __call__(task: Any, /, *args: Any, **kwargs: Any) -> Any:  # noqa: N807  # Celery's
            request = task.request
            key = task.name, request.id, request.retries
            # A task that calls itself finds the request of its own run there.
            if request.called_directly or self.is_at_work(key):
                return native_call(task, *args, **kwargs)
            self.begin_for_run()
            # Two methods of one function are equal, so the next run is of the same definition.
            call = task.run if is_celery_s_own else MethodType(native_call, task)
            return self.work(task, call, args, kwargs, key)

        vars(__call__)[OURS] = self
        return __call__

    def message(self, run: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> TaskMessage:
        """Make a message of a request; its headers are the metadata."""
        request = run.request
        # Anybody may have written the message, and below 0 no limit would hold.
        request.retries = max(request.retries, 0)
        info = request.delivery_info or {}
        headers = dict(request.headers or {})
        headers.pop(OURS, None)
        hidden = our_header(request).get("metadata", {})
        return TaskMessage(
            # Not the request's: the first of Celery 5.3 has none there in eager mode.
            run.name,
            args,
            kwargs,
            uuid=request.id,
            priority=info.get("priority"),
            attempt=request.retries + 1,
            queue=info.get("routing_key"),
            engine=self.name,
            redelivered=None if request.is_eager else bool(info.get("redelivered")),
            metadata={**headers, **hidden},
        )

    def can(self, run: Any) -> Capabilities:
        """Return what Celery can do for a task, or for a replay."""
        if run is None:
            is_eager = bool(self.native.conf.task_always_eager)
            results = has_results(self.native)
            return Capabilities(delay=not is_eager, results=results, metadata=True)
        return Capabilities(
            delay=not run.request.is_eager,
            results=True,
            at_least_once=bool(run.acks_late),
            dead_letter=has_dead_letters(run),
        )

    def will_retry(self, run: Any, error: BaseException) -> bool:  # noqa: ARG002  # as of all
        """Return whether the task has asked Celery for another attempt."""
        return isinstance(error, Retry)

    def encode(self, run: Any, value: Any) -> object:
        """Encode an answer as Celery's backend does, or an argument as its serializer."""
        if run is None:
            return serialization.dumps(value, self.native.conf.task_serializer)  # type: ignore[no-untyped-call]  # kombu's
        backend = self.native.backend
        if ignores_result(run) or isinstance(backend, DisabledBackend):
            return None
        encoded: object = backend.encode(value)
        return encoded

    def retry(self, run: Any, attempt: Attempt, number: int) -> Any:
        """Store ``RETRY``, send the next attempt, and report what Celery reports of its own retry.

        In this order, because the next attempt may end before this one. Celery's own limit does not
        count here: it would end the run in another error.
        """
        request, error, delay = run.request, attempt.error, attempt.delay or 0
        again = run.signature_from_request(
            request, countdown=delay, retries=request.retries + 1, **self.resend(run, number)
        )
        reason = Retry(exc=error, when=delay, is_eager=request.is_eager, sig=again)
        if request.is_eager:
            return reason
        info = ExceptionInfo((type(error), error, error.__traceback__))  # type: ignore[union-attr]  # a retry has one
        if not ignores_result(run):
            # It tells how far the run is, and nothing depends on it.
            with suppress(Exception):
                run.backend.mark_as_retry(request.id, error, info.traceback, request=request)
        again.apply_async()
        try:
            run.on_retry(error, request.id, request.args, request.kwargs, info)
        except Exception:  # noqa: BLE001  # the user's own; the next attempt is on its way
            _log.exception("Task %s[%s]: on_retry failed", run.name, request.id)
        signals.task_retry.send(sender=run, request=request, reason=reason, einfo=info)
        _notify(run, "task-retried", exception=text_of(error), traceback=info.traceback)
        # Celery would store the retry now, again.
        return Ignore()

    def resend(self, run: Any, number: int) -> dict[str, Any]:  # noqa: ARG002  # a subclass's
        """Return Celery's own options for another attempt."""
        return {}

    def cancel(self, run: Any, attempt: Attempt) -> Any:
        """Store ``REVOKED``, and report what Celery reports of a revoked run."""
        request = run.request
        if request.is_eager:
            return attempt.error
        self._store(run, attempt.error, states.REVOKED)
        facts = {"terminated": False, "signum": None, "expired": False}
        _notify(run, "task-revoked", **facts)
        signals.task_revoked.send(sender=run, request=request, **facts)
        return Ignore()

    def dead_letter(self, run: Any, attempt: Attempt) -> Any:
        """Reject the message into its queue's dead-letter exchange, unless a plugin keeps it."""
        request, error = run.request, attempt.error
        if attempt.kept or request.is_eager or not has_dead_letters(run):
            return error
        if not _ENDS_REJECTED:
            self._store(run, error, states.FAILURE)
            info = ExceptionInfo((type(error), error, error.__cause__.__traceback__))  # type: ignore[union-attr]  # both are there
            about = {"task_id": request.id, "args": request.args, "kwargs": request.kwargs}
            signals.task_failure.send(
                sender=run, exception=error, traceback=info.traceback, einfo=info, **about
            )
            _notify(run, "task-failed", exception=repr(error), traceback=info.traceback)
        return TaskDeadLetteredError(attempt.reason)

    def _store(self, run: Any, error: BaseException | None, state: str) -> None:
        """Store an end that Celery would store in another way, or not at all; for chords too."""
        request = run.request
        run.backend.mark_as_failure(
            request.id,
            error,
            request=request,
            store_result=not ignores_result(run),
            call_errbacks=state == states.FAILURE,
            state=state,
        )

    def send(self, message: TaskMessage, delay: float | None) -> Any:
        """Send a run to the queue to which the app itself sends this task."""
        metadata = message.metadata
        hidden = {name: value for name, value in metadata.items() if name in _HEADERS}
        headers = {name: value for name, value in metadata.items() if name not in _HEADERS}
        headers |= {OURS: {"metadata": hidden}} if hidden else {}
        return self.tasks[message.name].apply_async(
            message.args,
            message.kwargs,
            task_id=str(message.uuid),
            countdown=delay or None,
            headers=headers,
            **({"priority": message.priority} if message.priority else {}),
        )

    # --- a worker

    def check(self) -> None:
        """Refuse a worker that would run without plugins."""
        if _NAME not in (self.native.conf.task_annotations or ()):
            msg = (
                f"engine 'celery', {self.app_name}: the settings were replaced after install(), so"
                " no task asks plugins; call it after config_from_object()"
            )
            raise EngineError(msg)
        super().check()


class TaskDeadLetteredError(DeadLetteredError, Reject):  # type: ignore[misc]  # it has no types
    """A dead letter, by which Celery rejects the message."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        # Without Celery's ``requeue``: it is pickled and stored by its arguments.
        self.args = (reason,)

    def __repr__(self) -> str:
        """Show the class and the reason, for logs and events."""
        return f"TaskDeadLetteredError({self.reason!r})"


def is_covered(task: Any) -> bool:
    """Return whether a task is neither Celery's own nor one of a ``QueueTasks`` app."""
    return not (task.name.startswith("celery.") or getattr(task, FORWARD, False))


def our_header(request: Any) -> dict[str, Any]:
    """Return our header of a message, which anybody may have written."""
    return header_of((request.headers or {}).get(OURS))


def _notify(task: Any, event: str, **fields: Any) -> None:
    """Send the event that Celery would send; the run goes on if that fails."""
    with suppress(Exception):
        task.send_event(event, retry=False, **fields)


def own_tasks(native: Celery) -> list[Any]:
    """Find an app's own tasks among those that Celery has made."""
    return [task for task in list(vars(native)["_tasks"].values()) if is_covered(task)]


def ignores_result(task: Any) -> bool:
    """Return whether the result of this attempt is to be ignored; the message overrides the task.

    The request's class has a default of Celery's own, which does not count.
    """
    wish: bool | None = vars(task.request).get("ignore_result")
    return bool(task.ignore_result if wish is None else wish)


def name_of(plugin: Any) -> str | None:
    """Return the name by which another process can import a plugin; None if there is none."""
    if isinstance(plugin, str):
        return plugin
    name = (
        plugin.__name__
        if isinstance(plugin, ModuleType)
        else f"{getattr(plugin, '__module__', '')}:{getattr(plugin, '__qualname__', '')}"
    )
    try:
        return name if resolve_name(name) is plugin else None
    except (ImportError, AttributeError, ValueError):
        return None


install: Final = CeleryNative.install
