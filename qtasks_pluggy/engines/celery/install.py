"""Plugins for the tasks of a Celery app.

What is private in Celery, and used here, because there is no public way:

=========================================  =====================================================
``app._tasks``, ``app._pending``           counts tasks without finalizing the app
``vars(app)["annotations"]``               forgets what was made of the setting before
``trace.get_actual_ignore_result``         says whether Celery (5.6) asks the request
``FORKED_BY_MULTIPROCESSING``              says that a child was spawned
=========================================  =====================================================
"""

# Celery has no types, and its private registry is the only one that counts an app's own tasks.
# pyright: reportMissingTypeStubs=false, reportAttributeAccessIssue=false

from __future__ import annotations

import copyreg
import os
import signal
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from itertools import count
from pkgutil import resolve_name
from traceback import format_exception
from types import MethodType, ModuleType
from typing import Any, ClassVar, Final, Self

from billiard import get_start_method
from billiard.process import current_process
from celery import VERSION, Celery, Task, current_app, signals, states
from celery.app import trace
from celery.app.task import Context
from celery.backends.base import DisabledBackend
from celery.concurrency import get_implementation
from celery.concurrency.prefork import TaskPool
from celery.exceptions import Ignore, Reject, Retry, WorkerShutdown, WorkerTerminate
from celery.utils.functional import lazy
from kombu import serialization

from qtasks_pluggy import TaskMessage
from qtasks_pluggy.engines import Attempt, Capabilities
from qtasks_pluggy.engines._installed import INSTALLED
from qtasks_pluggy.engines.celery.settings import has_dead_letters, has_results, itself
from qtasks_pluggy.engines.native import Native, declared, header_of, text_of
from qtasks_pluggy.exc import EngineError, TaskDeadLetteredError

# What ``task_annotations`` names: importable, because spawned children get the setting alone.
_NAME: Final = "qtasks_pluggy.engines.celery:Plugins"
# The setting that has what ``install`` was given, the mark of a ``__call__`` of ours, and the
# header of a message that has what is ours.
OURS: Final = "qtasks_pluggy"
# By which the native tasks of an app of ours are known.
FORWARD: Final = "qtasks_pluggy_task"
# What Celery sets in children that are no forks, and that import everything anew.
SPAWNED: Final = "FORKED_BY_MULTIPROCESSING"
# How Celery names its own headers, which no other can be called.
_HEADERS: Final = {*vars(Context), "lang", "task", "argsrepr", "kwargsrepr", "compression"}
# What every task has, and nobody gave it. Looking at these values would bind Celery's own class.
_TASK: Final = {*dir(Task), *dict(vars(Task)["from_config"])}
# Whether a worker asks the message, besides the task, if it is to store an attempt's end.
_HEEDS_REQUEST: Final = hasattr(trace, "get_actual_ignore_result")
# Whether a worker itself stores the end of a run that is rejected for good.
_STORES_REJECTED: Final = VERSION >= (5, 7)
_numbers: Final = count()
_in_child: Final[dict[str, Any]] = {}


class Plugins:
    """What Celery's setting ``task_annotations`` names to give plugins to every task.

    The setting alone, ``task_annotations = ["qtasks_pluggy.engines.celery:Plugins"]``, is as good
    as ``install(app)``; set it where the app is made.
    """

    def annotate(self, task: Any) -> dict[str, Any] | None:
        """Name what is to be changed of a task."""
        # For Celery's own tasks too: a worker where nobody asks about the others is to hear of it.
        one = CeleryNative.of_settings(task.app)
        if not is_covered(task):
            return None
        # Celery asks no other annotation about a task once one has answered.
        every = (
            given.evaluate() if isinstance(given, lazy) else given for given in one.annotations
        )
        others = (other for other in every if not isinstance(other, Plugins))
        changes = dict(next(filter(None, (other.annotate(task) for other in others)), {}))
        theirs = changes.pop("@__call__", None)
        # Not by Celery's "@": it drops what is around a call already.
        native_call = task.__call__ if theirs is None else theirs(task.__call__)
        return {**changes, "__call__": one.around(native_call)}

    def annotate_any(self) -> None:
        """Name nothing: what is said of all tasks is Celery's to apply."""


class CeleryNative(Native[Celery]):
    """Plugins for the tasks of a Celery app; ``autoretry_for`` comes before them."""

    name = "celery"
    kind = Celery
    control = (Ignore, Reject, Retry)
    ends_worker: ClassVar = (WorkerShutdown, WorkerTerminate, KeyboardInterrupt)
    hint = "name their modules in the setting 'imports', or import them where the app is"

    @classmethod
    def unwrap(cls, native: Any) -> Any:
        """Give the app that ``current_app``, say, stands for."""
        return itself(native)

    # --- install

    @classmethod
    def install(cls, native: Celery, plugins: Iterable[Any] = (), **options: Any) -> int:
        """Install, and have Celery apply it to tasks of every kind."""
        super().install(native, plugins, **options)
        native = itself(native)
        one = cls.found_in(native)
        one.annotate(native)
        return one.count()

    @classmethod
    def of_settings(cls, native: Celery) -> Self:
        """Give the one of an app; in a process that has the settings alone it is made of those."""
        one = cls.found_in(native)
        if INSTALLED not in vars(native):
            given: dict[str, Any] = {"plugins": (), "discover": True, "intercept": Exception}
            given |= native.conf.get(OURS) or {}
            one.take(given.pop("plugins"), **given)
            setattr(native, INSTALLED, one)
        return one

    @classmethod
    def found_in(cls, native: Any) -> Self:
        """Give the one of an app.

        A spawned child has two objects of one app, the one that it was given and the one that the
        app's module makes there. Both do runs, and the plugins are to be started once.
        """
        one = super().found_in(native)
        return _in_child.setdefault(one.app_name, one) if SPAWNED in os.environ else one

    def take(self, plugins: Iterable[Any], **options: Any) -> None:
        """Have these plugins; spawned children get their names with the other settings."""
        given = tuple(plugins)
        super().take(given, **options)
        self._names = [name_of(plugin) for plugin in given]
        names = [name for name in self._names if name is not None]
        self.native.conf[OURS] = {"plugins": names, **options}

    def annotate(self, native: Celery) -> None:
        """Name ``Plugins`` first in the settings, and cover the tasks that are made already."""
        setattr(native, INSTALLED, self)
        conf = native.conf
        given = conf.task_annotations or ()
        given = list(given) if isinstance(given, (list, tuple)) else [given]
        if _NAME in given[:1]:
            return
        conf.task_annotations = (_NAME, *(other for other in given if other != _NAME))
        vars(native).pop("annotations", None)
        # What else the setting says was applied to these when they were made.
        for kind in {type(task) for task in own_tasks(native) if task.app is native}:
            if not hasattr(kind.__call__, OURS):
                kind.__call__ = self.around(kind.__call__)

    def cover(self) -> None:
        """Hear of the app's workers; ``annotate`` covers its tasks."""
        # By itself Celery knows a receiver by a place in memory, which a later one can have.
        uid = f"qtasks_pluggy-{next(_numbers)}"
        for signal_, receiver in (
            (signals.worker_init, self._worker_begins),
            (signals.celeryd_after_setup, self._worker_is_set_up),
            (signals.worker_process_init, self._process_begins),
            (signals.worker_process_shutdown, self._ends),
            (signals.worker_shutdown, self._ends),
        ):
            signal_.connect(receiver, dispatch_uid=uid)

    @property
    def annotations(self) -> Iterable[Any]:
        """What Celery makes of the setting ``task_annotations``."""
        every: Iterable[Any] = self.native.annotations
        return every

    @property
    def app_name(self) -> str:
        """The app's own name."""
        return self.native.main or self.name

    def count(self) -> int:
        """Count the app's own tasks, those that nobody has looked at too."""
        native: Any = self.native
        waiting = 0 if native.finalized else len(native._pending)  # noqa: SLF001  # no public way
        return waiting + len(own_tasks(native))

    @property
    def tasks(self) -> Mapping[str, Any]:
        """The app's own tasks, also those of modules that a worker imports by itself."""
        # It imports them once.
        self.native.loader.import_default_modules()
        self.native.finalize(auto=True)
        return {task.name: task for task in own_tasks(self.native)}

    def function_of(self, name: str) -> Callable[..., Any]:
        """Give the function of one of them."""
        function: Callable[..., Any] = self.tasks[name].run
        return function

    def options(self, run: Any) -> Mapping[str, Any]:
        """Give what a task was declared with that Celery knows nothing of."""
        return {"tags": getattr(run, "tags", ()), **declared(type(run), _TASK)}

    # --- one attempt; a run is the task, which has its request

    def around(self, native_call: Callable[..., Any]) -> Callable[..., Any]:
        """Give a task another ``__call__``."""
        # Asked here: a worker replaces Celery's own one later, and the old one takes a run that
        # is called through it for a direct call.
        is_celery_s_own = native_call is Task.__call__

        def __call__(task: Any, /, *args: Any, **kwargs: Any) -> Any:  # noqa: N807  # Celery's
            request = task.request
            key = task.name, request.id, request.retries
            # A task that calls itself finds the request of its own run there.
            if request.called_directly or self.is_at_work(key):
                return native_call(task, *args, **kwargs)
            self.begin_for_run()
            # A method is equal to the one of the next run, and known by then.
            call = task.run if is_celery_s_own else MethodType(native_call, task)
            return self.work(task, call, args, kwargs, key)

        vars(__call__)[OURS] = self
        return __call__

    def message(self, run: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> TaskMessage:
        """Make a message of a request; its headers are the metadata."""
        request = run.request
        info = request.delivery_info or {}
        headers = dict(request.headers or {})
        header = header_of(headers.pop(OURS, None))
        # The next attempt's number is made of this one, which bounds the retries.
        request.retries = max(request.retries, 0)
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
            metadata={**headers, **header.get("metadata", {})},
        )

    def can(self, run: Any) -> Capabilities:
        """Say what Celery can do for a task, or for a replay."""
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
        """Say whether the task has asked Celery for another attempt."""
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
        """Store ``RETRY``, and then send the next attempt, which may have ended before this one.

        Whatever Celery's own limit is: it would end the run in another error.
        """
        request, told = run.request, "".join(format_exception(attempt.error))
        if not (request.is_eager or ignores_result(run)):
            # It tells how far the run is, and nothing depends on it.
            with suppress(Exception):
                run.backend.mark_as_retry(request.id, attempt.error, told, request=request)
        try:
            again = run.retry(
                exc=attempt.error,
                countdown=attempt.delay or 0,
                max_retries=number - 1,
                throw=False,
                **self.resend(run, number),
            )
        except Reject as unsent:
            reason: Any = unsent.reason
            raise reason from attempt.error
        finally:
            # Where Celery would keep it for the task's next run.
            vars(run).pop("override_max_retries", None)
        if request.is_eager:
            return again
        if not _HEEDS_REQUEST:
            _tell(run, "task-retried", exception=text_of(attempt.error), traceback=told)
            return Ignore()
        # Celery would store the retry now, again.
        request.ignore_result = True
        return again

    def resend(self, run: Any, number: int) -> dict[str, Any]:  # noqa: ARG002  # a subclass's
        """Give Celery's own options for another attempt."""
        return {}

    def cancel(self, run: Any, attempt: Attempt) -> Any:
        """Store ``REVOKED``, and tell monitors and receivers what Celery tells of a revoked run."""
        request = run.request
        if request.is_eager:
            return attempt.error
        self._store(run, attempt.error, states.REVOKED)
        told = {"terminated": False, "signum": None, "expired": False}
        _tell(run, "task-revoked", **told)
        signals.task_revoked.send(sender=run, request=request, **told)
        return Ignore()

    def dead_letter(self, run: Any, attempt: Attempt) -> Any:
        """Reject the message into its queue's dead-letter exchange, unless a plugin has it."""
        if attempt.kept or run.request.is_eager or not has_dead_letters(run):
            return attempt.error
        if not _STORES_REJECTED:
            self._store(run, attempt.error, states.FAILURE)
        return _DeadLettered(attempt.reason)

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

    # --- the plugins' life in the processes of a worker

    def check(self) -> None:
        """Refuse a worker that would do without plugins."""
        who = f"engine 'celery', {self.app_name}"
        if _NAME not in (self.native.conf.task_annotations or ()):
            msg = (
                f"{who}: the settings were replaced after install(), so no task asks plugins; call"
                " it after config_from_object()"
            )
            raise EngineError(msg)
        super().check()
        bare = [
            task.name for task in own_tasks(self.native) if not hasattr(type(task).__call__, OURS)
        ]
        if bare:
            msg = (
                f"{who}: task {bare[0]!r} asks no plugin, because another of the setting"
                f" 'task_annotations' answers for it; put {_NAME!r} first there"
            )
            raise EngineError(msg)

    def _worker_begins(self, sender: Any, **_: Any) -> None:
        """Refuse, in a worker's main process, what would fail in all of its children."""
        if sender.app is not self.native:
            return
        try:
            self.native.finalize()
            self.check()
            if has_children(sender):
                self._check_names(sender)
            elif not hasattr(sender, "setup_logging"):
                self.begin()
        except Exception as error:
            raise self.refusal(error) from error

    def _check_names(self, worker: Any) -> None:
        start = getattr(worker, "pool_start_method", None) or get_start_method()
        if start != "fork" and None in self._names:
            nameless = self.plugins[self._names.index(None)]
            msg = (
                f"engine 'celery', {self.app_name}: this worker's children are made by {start!r},"
                f" and plugin {nameless!r} cannot be imported there by name; give install() a"
                " module, a BasePlugin class, or a name, 'module:attribute'"
            )
            raise EngineError(msg)

    def _worker_is_set_up(self, instance: Any, **_: Any) -> None:
        """Begin, in a command whose main process does the runs: only now has it a log."""
        if instance.app is not self.native or has_children(instance):
            return
        try:
            self.begin()
        except Exception as error:
            raise self.refusal(error) from error

    def _process_begins(self, **_: Any) -> None:
        spawned = SPAWNED in os.environ and current_app.main == self.native.main
        # Equal is the same: this one is a proxy.
        if current_app != self.native and not spawned:
            return
        try:
            self.begin()
        except Exception as error:
            if current_process().name != "MainProcess":
                # The pool would replace this child for ever.
                os.kill(os.getppid(), signal.SIGTERM)
            raise self.refusal(error) from error

    def _ends(self, **_: Any) -> None:
        self.end()


class _Alias(type):
    """The class of a class that goes by another one's name: by names Celery stores errors."""


class _DeadLettered(Reject, metaclass=_Alias):  # type: ignore[misc]  # it has no types
    """A rejection that is stored as a ``TaskDeadLetteredError``."""

    __module__ = TaskDeadLetteredError.__module__
    __qualname__ = TaskDeadLetteredError.__qualname__

    def __init__(self, reason: str) -> None:
        super().__init__(reason, requeue=False)
        self.args = (reason,)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle it by its reason, for the worker's main process."""
        return _rejected, (self.reason,)


def _rejected(*reason: str) -> Any:
    """Make the rejection; or give its class, which cannot be pickled by its name."""
    return _DeadLettered(*reason) if reason else _DeadLettered


_DeadLettered.__name__ = TaskDeadLetteredError.__name__
copyreg.pickle(_Alias, lambda _: (_rejected, ()))


def is_covered(task: Any) -> bool:
    """Say whether a task is neither Celery's own nor one of an app of ours."""
    return not (task.name.startswith("celery.") or getattr(task, FORWARD, False))


def _tell(task: Any, event: str, **fields: Any) -> None:
    """Tell monitors what Celery would; whether they can be told is no affair of the run's."""
    with suppress(Exception):
        task.send_event(event, retry=False, **fields)


def own_tasks(native: Celery) -> list[Any]:
    """Find an app's own tasks, of those that somebody has looked at."""
    return [task for task in list(vars(native)["_tasks"].values()) if is_covered(task)]


def has_children(worker: Any) -> bool:
    """Say whether a worker has processes that do its runs."""
    # A name, as yet, where it comes from the settings.
    pool: Any = get_implementation(worker.pool_cls)
    return issubclass(pool, TaskPool)


def ignores_result(task: Any) -> bool:
    """Say whether nobody wants the result of the attempt at work; its message overrides the task.

    What the request's class says is a default of Celery's own, and nobody's wish.
    """
    wish: bool | None = vars(task.request).get("ignore_result")
    return bool(task.ignore_result if wish is None else wish)


def name_of(plugin: Any) -> str | None:
    """Name a plugin so that another process can import it."""
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
