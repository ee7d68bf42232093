"""``failures``: the hooks. START HERE.

Each attempt that does not simply succeed becomes a ``Record``, made in the run's own thread: the
error, the arguments, who was asked and what was decided. The recorder does the rest.
"""

from __future__ import annotations

import inspect
import time
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakKeyDictionary

import attrs

from qtasks_hookspecs import (
    Outcome,
    OutcomeStatus,
    RunningApp,
    RunningTask,
    TaskFunc,
    TaskMessage,
    hookimpl,
    when,
)
from qtasks_hookspecs.exc import SettingsError, TaskPluginTriggerError
from qtasks_pluggy.failures.errors import tell
from qtasks_pluggy.failures.records import GOOD_REPLAY, OUTCOMES, TRIGGER, WAITING, Record
from qtasks_pluggy.failures.values import Arguments, Encoder, cut, storable

if TYPE_CHECKING:
    from qtasks_pluggy.failures.recorder import Recorder

_DROPPED: Final = Arguments(None, "its arguments are not kept: arguments = 'drop'")


def _at_least(least: float) -> Any:
    def check(_: object, attribute: attrs.Attribute[Any], value: float) -> None:
        if not value >= least:
            msg = f"{attribute.name!r} takes a number, {least} or more"
            raise SettingsError(msg)

    return check


def _above_zero(_: object, attribute: attrs.Attribute[Any], value: float) -> None:
    """Refuse 0, which many tools read as for ever: here it would delete a dead letter at once."""
    if not value > 0:
        msg = f"{attribute.name!r} takes a number above 0; 36500 is a hundred years"
        raise SettingsError(msg)


def _one_of(*words: str) -> Any:
    def check(_: object, attribute: attrs.Attribute[Any], value: str) -> None:
        if value not in words:
            msg = f"{attribute.name!r} takes {', '.join(words)}"
            raise SettingsError(msg)

    return check


@attrs.frozen
class FailuresSettings:
    """The plugin's section of the settings.

    Attributes:
        url: Where the store is: ``sqlite:///path``, or ``postgresql+psycopg://...``; without it a
            file in the user's state folder.
        keep_days: Days after which a run is deleted, dead letters too; a number above 0.
        keep_runs: The most runs that are kept.
        keep_recovered: The most recovered, and the most retried, runs of one group and hour that
            are kept; all are counted.
        arguments: ``keep`` them, ``hide`` them from people but keep them for replays, or ``drop``
            them.
        redact: Globs of names whose values are never stored.
        most_bytes: The most bytes of a run's arguments, of an error's text and of a traceback.
        token: The page's password; without it, only this machine reaches the page.
        dead_letters: Whether this store keeps dead letters; if not, other plugins or the engine
            keep them, and this store records them like any other end.
    """

    url: str | None = None
    keep_days: float = attrs.field(default=30.0, validator=_above_zero)
    keep_runs: int = attrs.field(default=1_000_000, validator=_at_least(1))
    keep_recovered: int = attrs.field(default=10, validator=_at_least(0))
    arguments: str = attrs.field(default="keep", validator=_one_of("keep", "hide", "drop"))
    redact: tuple[str, ...] = ("password", "*token*", "*secret*", "authorization", "api_key")
    most_bytes: int = attrs.field(default=65_536, validator=_at_least(1_024))
    # Of any type: a variable that holds digits is read as a number.
    token: Any = attrs.field(default=None, repr=False)
    dead_letters: bool = True


class Failures:
    """Records what fails, and what plugins decide."""

    name = "failures"

    def __init__(self) -> None:
        self._app = ""
        self._settings = FailuresSettings()
        self._encoder: Encoder | None = None
        self._recorder: Recorder | None = None
        self._names: WeakKeyDictionary[TaskFunc, tuple[str, ...]] = WeakKeyDictionary()

    @hookimpl
    def qtasks_start(self, app: RunningApp, settings: FailuresSettings) -> None:
        """Begin to record; the first record opens the store.

        Args:
            app: The app.
            settings: The plugin's section.

        Raises:
            SettingsError: The store's URL is wrong, or a package is missing for it.
        """
        self._app, self._settings = storable(app.name), settings
        if settings.arguments != "drop":
            hide = settings.arguments == "hide"
            self._encoder = Encoder(settings.redact, settings.most_bytes, hide=hide)
        self._recorder = _recorder(settings)

    @hookimpl
    def qtasks_stop(self) -> None:
        """Write the waiting records."""
        recorder, self._recorder = self._recorder, None
        if recorder is not None:
            recorder.close()

    @hookimpl
    def task_executor_dead_letter(
        self,
        task_executor: RunningTask,
        task_func: TaskFunc,
        task_broker: TaskMessage,
        e: Exception,
        reason: str,
    ) -> bool | None:
        """Keep a dead letter, on the disk before the run ends.

        The record of the attempt's end follows and replaces it, because run, attempt and group
        are the same.

        Raises:
            StoreError: It is not kept.
        """
        recorder = self._recorder  # read once: the app may stop at any moment
        if recorder is None or not self._settings.dead_letters:
            return None
        decided = (one.plugin for one in task_executor.trail if one.won and one.hook == TRIGGER)
        outcome = Outcome(
            status=OutcomeStatus.dead_lettered,
            error=e,
            decided_by=next(decided, None),
            reason=reason,
            attempt=task_executor.attempt,
        )
        group = task_executor.fingerprint or ""
        record = self._record(task_executor, task_func, task_broker, outcome, group)
        recorder.keep(record)
        return True

    @hookimpl
    @when(outcome=OUTCOMES)
    @when(outcome="succeeded", replay=True)
    @when(outcome="succeeded", retry=True)
    def task_executor_attempt_ended(
        self,
        task_executor: RunningTask,
        task_func: TaskFunc,
        task_broker: TaskMessage,
        outcome: Outcome,
    ) -> None:
        """Record an attempt that did not simply succeed, and a replay or a retry that did.

        A cancelled attempt is recorded if a plugin decided that about an error.
        """
        is_wanted = outcome.status != "cancelled" or (
            outcome.decided_by is not None and outcome.error is not None
        )
        recorder = self._recorder
        if recorder is not None and is_wanted:
            group = outcome.fingerprint or ""
            record = self._record(task_executor, task_func, task_broker, outcome, group)
            recorder.add(record)

    @hookimpl
    @when(outcome=("cancelled", "failed"))
    def task_executor_task_close(
        self,
        task_executor: RunningTask,
        task_func: TaskFunc,
        task_broker: TaskMessage,
        outcome: Outcome,
    ) -> None:
        """Record the end of a run that waited for an attempt, and did not get or not finish it.

        The store ignores it unless the run is waiting. Other ends that nobody decided about are
        recorded with their attempts.
        """
        is_cut = not isinstance(outcome.error, Exception) or not outcome.seconds
        is_wanted = outcome.decided_by is None and (outcome.status == "cancelled" or is_cut)
        recorder = self._recorder
        if recorder is not None and is_wanted:
            reason = outcome.reason or self._reason(outcome.error)
            end = Outcome(status=outcome.status, attempt=outcome.attempt, reason=reason)
            recorder.add(self._record(task_executor, task_func, task_broker, end, ""))

    def _record(
        self, run: RunningTask, func: TaskFunc, message: TaskMessage, outcome: Outcome, group: str
    ) -> Record:
        error = outcome.error
        trail = tuple(one for one in run.trail if one.attempt == outcome.attempt)
        original = message.metadata.get("replay_of")  # as app.replay writes it
        return Record(
            uuid=storable(str(message.uuid)),
            app=self._app,
            engine=storable(message.engine or ""),
            attempt=outcome.attempt,
            task=storable(func.name),
            queue=message.queue and storable(message.queue),
            status=_status(outcome, message),
            group=group,
            told=None if error is None else tell(error, self._settings.most_bytes),
            at=time.time(),
            seconds=outcome.seconds,
            decided_by=outcome.decided_by and storable(outcome.decided_by),
            decision=next((one.kind for one in trail if one.won and one.hook == TRIGGER), None),
            reason=storable(cut(outcome.reason, self._settings.most_bytes)),
            trail=trail,
            arguments=self._arguments(func, message),
            error_arguments=self._error_arguments(error),
            replay_of=storable(original) if isinstance(original, str) else None,
            delay=outcome.delay,
        )

    def _reason(self, error: BaseException | None) -> str:
        """Write the error that kept a run from its next attempt."""
        if error is None:
            return ""
        told = tell(error, self._settings.most_bytes)
        return f"{told.error}: {told.message}" if told.message else told.error

    def _arguments(self, func: TaskFunc, message: TaskMessage) -> Arguments:
        if self._encoder is None:
            return _DROPPED
        names = self._names.get(func)
        if names is None:
            names = self._names[func] = _positional_names(func)
        return self._encoder.encode(message.args, message.kwargs, names)

    def _error_arguments(self, error: BaseException | None) -> str | None:
        """Write what an error was made of, so that plugins can be asked about its like again."""
        if self._encoder is None or error is None:
            return None
        kwargs = getattr(error, "kwargs", None) if isinstance(error, TaskPluginTriggerError) else {}
        if type(kwargs) is not dict:
            return None
        # The real ones: a class may have given the name another meaning.
        args: tuple[Any, ...] = vars(BaseException)["args"].__get__(error)
        kept = self._encoder.encode(args, kwargs)
        return kept.text if kept.not_replayable is None else None


def _status(outcome: Outcome, message: TaskMessage) -> str:
    """Return the status of a run after an attempt."""
    if outcome.status == "retried":
        return WAITING
    if outcome.status == "succeeded":
        return GOOD_REPLAY if "replay_of" in message.metadata else "retried"
    return str(outcome.status)


def _recorder(settings: FailuresSettings) -> Recorder:
    try:
        # Slow to import, and only there with the extra.
        from qtasks_pluggy.failures import connection, store  # noqa: PLC0415  # see above
        from qtasks_pluggy.failures.recorder import Recorder  # noqa: PLC0415  # see above
    except ModuleNotFoundError as error:
        msg = (
            f"the built-in plugin 'failures' needs {error.name}, which is not installed; run:"
            " python -m pip install 'qtasks-pluggy[failures]'"
        )
        raise ImportError(msg) from error
    url = connection.read_url(settings.url or connection.default_url())
    keep = store.Keep(settings.keep_days, settings.keep_runs, settings.keep_recovered)
    return Recorder(lambda: store.Store(url, keep), connection.shown(url))


def _positional_names(func: TaskFunc) -> tuple[str, ...]:
    """Name the parameters that a call's positional arguments are for."""
    try:
        parameters = list(inspect.signature(func.func).parameters.values())
    except (TypeError, ValueError):
        return ()
    names = [one.name for one in parameters if one.kind <= inspect.Parameter.POSITIONAL_OR_KEYWORD]
    is_given = func.echo or names[:1] in (["self"], ["cls"])
    return tuple(names[is_given:])
