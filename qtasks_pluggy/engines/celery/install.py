"""Plugins for the tasks of an existing Celery app: how they are covered, and one attempt.

This module uses these private parts of Celery, because there is no public way:

=============================  ======================================  ========================
what (5.3 to 5.7 alike)        why                                     the test that holds it
=============================  ======================================  ========================
``app._tasks``, ``._pending``  count tasks without finalizing the app  ``test_celery_install.py``
``vars(app)["annotations"]``   forget what the setting was before      ``test_celery_calls.py``
``Proxy._get_current_object``  the app that ``current_app`` stands     ``test_celery.py``
                               for
=============================  ======================================  ========================
"""

# Celery has no types, and its private registry is the only one that counts an app's own tasks.
# pyright: reportMissingTypeStubs=false, reportAttributeAccessIssue=false, reportPrivateUsage=false

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable, Mapping
from types import MethodType, ModuleType
from typing import Any, ClassVar, Final, Self

from billiard.einfo import ExceptionInfo
from celery import VERSION, Celery, Task, signals, states
from celery.app.annotations import prepare
from celery.app.task import Context
from celery.backends.base import DisabledBackend
from celery.exceptions import Ignore, Reject, Retry, WorkerShutdown, WorkerTerminate
from celery.local import Proxy
from celery.utils.log import get_task_logger
from kombu import serialization
from kombu.utils.functional import maybe_evaluate

from qtasks_pluggy import TaskMessage
from qtasks_pluggy.engines import Attempt, Capabilities
from qtasks_pluggy.engines._installed import INSTALLED
from qtasks_pluggy.engines.celery.settings import has_dead_letters, has_results
from qtasks_pluggy.engines.celery.worker import InCeleryWorkers
from qtasks_pluggy.engines.native import declared, header_of, text_of
from qtasks_pluggy.exc import EngineError
from qtasks_pluggy.exc import TaskDeadLetteredError as DeadLetteredError

# Marks a ``__call__`` that asks plugins.
_ASKS: Final = "asks_plugins_of"
# Marks the Celery tasks of a ``QueueTasks`` app.
FORWARD: Final = "qtasks_pluggy_task"
# The header of a message with the metadata that cannot have headers of their own, because Celery
# uses these names itself.
_HEADER: Final = "qtasks_pluggy"
_CELERY_S: Final = {*vars(Context), "lang", "task", "argsrepr", "kwargsrepr", "compression"}
# The attributes of every task. Their values stay unread: reading would bind Celery's own class.
_TASK: Final = {*dir(Task), *dict(vars(Task)["from_config"])}
# Whether the worker itself ends a run whose message is rejected for good.
_ENDS_REJECTED: Final = VERSION >= (5, 7)
_log: Final = get_task_logger(__name__)


class Plugins:
    """What Celery's setting ``task_annotations`` holds to give plugins to every task.

    The setting alone, ``task_annotations = ["qtasks_pluggy.engines.celery:Plugins"]``, is as good
    as ``install(app)``; set it where the app is made.

    Args:
        plugins: As for ``install``.
        discover: As for ``install``.
        intercept: As for ``install``.
    """

    def __init__(
        self, plugins: Iterable[Any] = (), *, discover: bool = True, intercept: Any = Exception
    ) -> None:
        # Spawned children get the settings pickled, and no module can be.
        self._plugins = [one.__name__ if isinstance(one, ModuleType) else one for one in plugins]
        self._options = {"discover": discover, "intercept": intercept}

    def __copy__(self, _: object = None) -> Self:
        """Return the object itself, which does not change."""
        return self

    __deepcopy__ = __copy__

    def __getstate__(self) -> object:
        """Return what a spawned child gets.

        Raises:
            EngineError: A plugin cannot be pickled.
        """
        for one in self._plugins:
            try:
                pickle.dumps(one)
            except Exception as error:
                msg = (
                    f"engine 'celery': plugin {one!r} cannot be pickled for a spawned child"
                    f" ({text_of(error)}); pass its name, 'module:attribute', instead"
                )
                raise EngineError(msg) from error
        return vars(self)

    def annotate(self, task: Any) -> None:
        """Cover a task's class; Celery asks the other annotations too, as there is no answer."""
        own = task.on_bound.__func__
        # For Celery's own tasks too: they are the first, and put ``Plugins`` first in the setting.
        if INSTALLED not in vars(task.app):
            CeleryNative.found_in(task.app).take(self._plugins, **self._options)

        def on_bound(kind: Any, app: Any) -> None:
            own(kind, app)
            # A base class may have tasks of several apps.
            if (its := vars(app).get(INSTALLED)) is not None:
                its.cover_kind(kind)

        # Comes after all annotations, which may replace ``__call__``.
        task.on_bound = classmethod(on_bound)


class CeleryNative(InCeleryWorkers):
    """Plugins for the tasks of a Celery app; ``autoretry_for`` comes before them."""

    name = "celery"
    kind = Celery
    control = (Ignore, Reject, Retry)
    ends_worker: ClassVar = (WorkerShutdown, WorkerTerminate, KeyboardInterrupt)
    hint = (
        "call it after config_from_object(), and import the modules that declare tasks where the"
        " app is, or name them in the setting 'imports'"
    )

    @classmethod
    def unwrap(cls, native: Any) -> Any:
        """Return the app itself, also for a proxy like ``current_app``."""
        return native._get_current_object() if isinstance(native, Proxy) else native  # noqa: SLF001  # no public way

    # --- install

    def take(self, plugins: Iterable[Any], **options: Any) -> None:
        """Use these plugins for all tasks of the app; its settings carry them to spawned children.

        ``Plugins`` goes first, because Celery asks no further annotation after an answer.
        """
        super().take(plugins, **options)
        native: Any = self.native
        before = map(maybe_evaluate, prepare(native.conf.task_annotations))
        others = (one for one in before if not isinstance(one, Plugins))
        native.conf.task_annotations = (Plugins(self.plugins, **options), *others)
        vars(native).pop("annotations", None)
        # The annotations were applied to these when they were made.
        for task in own_tasks(native):
            self.cover_kind(type(task))

    @property
    def app_name(self) -> str:
        """The name of the Celery app."""
        return self.native.main or self.name

    def count(self) -> int:
        """Count the app's own tasks, also those that Celery has not made yet.

        If ``config_from_object`` has replaced the settings since, none asks plugins.
        """
        native: Any = self.native
        if not any(isinstance(one, Plugins) for one in native.conf.task_annotations or ()):
            return 0
        pending = (one for one in native._pending if not one.__evaluated__())  # noqa: SLF001  # no public way
        return len([*pending, *own_tasks(native)])

    @property
    def tasks(self) -> Mapping[str, Any]:
        """The app's own tasks, also those of the modules that a worker imports."""
        # Celery imports each module once.
        self.native.loader.import_default_modules()
        self.native.finalize(auto=True)
        return {task.name: task for task in own_tasks(self.native)}

    def function_of(self, name: str) -> Any:
        """Return the function of one of them."""
        return self.tasks[name].run

    def options(self, run: Any) -> Mapping[str, Any]:
        """Return the options of a task's declaration that are not Celery's."""
        return {"tags": getattr(run, "tags", ()), **declared(type(run), _TASK)}

    # --- one attempt; a run is the task, whose ``request`` is the current one

    def cover_kind(self, kind: Any) -> None:
        """Give the class of one of the app's own tasks a ``__call__`` that asks plugins."""
        native_call = kind.__call__
        if not is_covered(kind) or getattr(native_call, _ASKS, None) is self:
            return
        # Compared here: a worker replaces Celery's own one later, and the old one takes a run that
        # comes through it for a direct call.
        is_celery_s_own = native_call is Task.__call__

        def __call__(task: Any, /, *args: Any, **kwargs: Any) -> Any:  # noqa: N807  # Celery's
            request = task.request
            key = task.name, request.id, request.retries
            # Two methods of one function are equal, so the next run is of the same definition.
            call = task.run if is_celery_s_own else MethodType(native_call, task)
            # A base class may have tasks of several apps, and ``task.app`` is its latest.
            is_strange = task.app != self.native and task not in own_tasks(self.native)
            if is_strange and not request.called_directly:
                return call(*args, **kwargs)
            # A task that calls itself finds the request of its own run there.
            if request.called_directly or self.is_at_work(key):
                return native_call(task, *args, **kwargs)
            self.begin_for_run()
            return self.work(task, call, args, kwargs, key)

        vars(__call__)[_ASKS] = self
        kind.__call__ = __call__

    def message(self, run: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> TaskMessage:
        """Make a message of a request; its headers are the metadata."""
        request = run.request
        # Anybody may have written the message, and below 0 no limit would hold.
        request.retries = max(request.retries, 0)
        info = request.delivery_info or {}
        headers = dict(request.headers or {})
        hidden = header_of(headers.pop(_HEADER, None)).get("metadata", {})
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
        native = self.native
        is_eager = native.conf.task_always_eager if run is None else run.request.is_eager
        return Capabilities(
            delay=not is_eager,
            dead_letter=run is not None and has_dead_letters(run),
            results=has_results(native),
            metadata=True,
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
        return backend.encode(value)

    def retry(self, run: Any, attempt: Attempt, number: int) -> Any:  # noqa: ARG002  # Celery counts
        """Store ``RETRY``, send the next attempt, and report what Celery reports of its own retry.

        In this order, because the next attempt may end before this one. Celery's own limit does not
        count here: it would end the run in another error.
        """
        request, error, delay = run.request, attempt.error, attempt.delay or 0
        again = run.signature_from_request(request, countdown=delay, retries=request.retries + 1)
        reason = Retry(exc=error, when=delay, is_eager=request.is_eager, sig=again)
        if request.is_eager:
            return reason
        info = ExceptionInfo((type(error), error, error.__traceback__))  # type: ignore[union-attr]  # a retry has one
        if not ignores_result(run):
            tell(run.backend.mark_as_retry, request.id, error, info.traceback, request=request)
        again.apply_async()
        tell(run.on_retry, error, request.id, request.args, request.kwargs, info)
        signals.task_retry.send(sender=run, request=request, reason=reason, einfo=info)
        about = {"exception": text_of(error), "traceback": info.traceback}
        tell(run.send_event, "task-retried", retry=False, **about)
        # Celery would store the retry now, again.
        return Ignore()

    def cancel(self, run: Any, attempt: Attempt) -> Any:
        """Store ``REVOKED``, and report what Celery reports of a revoked run."""
        request = run.request
        if request.is_eager:
            return attempt.error
        store_failure(run, attempt.error, states.REVOKED)
        facts = {"terminated": False, "signum": None, "expired": False}
        tell(run.send_event, "task-revoked", retry=False, **facts)
        signals.task_revoked.send(sender=run, request=request, **facts)
        return Ignore()

    def dead_letter(self, run: Any, attempt: Attempt) -> Any:
        """Reject the message into its queue's dead-letter exchange, unless a plugin keeps it."""
        request, error = run.request, attempt.error
        if attempt.kept:
            return error
        if not _ENDS_REJECTED:
            store_failure(run, error, states.FAILURE)
            info = ExceptionInfo((type(error), error, error.__cause__.__traceback__))  # type: ignore[union-attr]  # both are there
            about = {"task_id": request.id, "args": request.args, "kwargs": request.kwargs}
            signals.task_failure.send(
                sender=run, exception=error, traceback=info.traceback, einfo=info, **about
            )
            about = {"exception": repr(error), "traceback": info.traceback}
            tell(run.send_event, "task-failed", retry=False, **about)
        return TaskDeadLetteredError(attempt.reason)

    def send(self, message: TaskMessage, delay: float | None) -> Any:
        """Send a run to the queue to which the app itself sends this task."""
        headers = dict(message.metadata)
        hidden = {name: headers.pop(name) for name in _CELERY_S & headers.keys()}
        headers |= {_HEADER: {"metadata": hidden}} if hidden else {}
        return self.tasks[message.name].apply_async(
            message.args,
            message.kwargs,
            task_id=str(message.uuid),
            countdown=delay or None,
            headers=headers,
            **({"priority": message.priority} if message.priority else {}),
        )


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
    # The class of a task may have no name; its one object then has.
    return not (str(task.name).startswith("celery.") or getattr(task, FORWARD, False))


def own_tasks(native: Celery) -> list[Any]:
    """Find an app's own tasks among those that Celery has made."""
    return [task for task in list(vars(native)["_tasks"].values()) if is_covered(task)]


def ignores_result(task: Any) -> bool:
    """Return whether the result of this attempt is to be ignored; the message overrides the task.

    The request's class has a default of Celery's own, which does not count.
    """
    wish: bool | None = vars(task.request).get("ignore_result")
    return bool(task.ignore_result if wish is None else wish)


def store_failure(task: Any, error: BaseException | None, state: str) -> None:
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


def tell(hears: Callable[..., object], *args: Any, **kwargs: Any) -> None:
    """Call what only hears of what happens to a run; if it fails, the run goes on."""
    try:
        hears(*args, **kwargs)
    except Exception:  # noqa: BLE001  # a callback of the user's, or a server
        _log.exception("%r failed", hears)


install: Final = CeleryNative.install
