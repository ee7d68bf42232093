"""What hookimpls may read of a run."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

from qtasks_hookspecs import DeadLetter, RunningApp, TaskFunc, TaskMessage
from qtasks_pluggy import _log
from qtasks_pluggy._plugins.chain import Asked
from qtasks_pluggy._plugins.trail import Trail
from qtasks_pluggy._run.decisions import check_answer_supported
from qtasks_pluggy._submit.protocol import Host
from qtasks_pluggy._task import Context

# The trail of all runs that ask nobody, which are most.
_NOBODY: Final = Trail()


class RunView:
    """One run as its plugins see it, read-only."""

    __slots__ = (
        "_args",
        "_attempt",
        "_engine",
        "_entries",
        "_fingerprint",
        "_kwargs",
        "_message",
        "_plugins",
        "_result",
        "_task",
        "_task_func",
        "_yielded",
    )
    _args: tuple[Any, ...]
    _attempt: int
    _engine: Host | None
    _entries: list[Asked]
    _fingerprint: str | None
    _kwargs: Mapping[str, Any]
    _message: TaskMessage | None
    _plugins: Any
    _result: Any
    _task: Any
    _task_func: TaskFunc
    _yielded: list[Any] | None

    @property
    def task_func(self) -> TaskFunc:
        """The task's definition."""
        return self._task_func

    @property
    def task_broker(self) -> TaskMessage:
        """The run's message."""
        if self._message is None:
            func = self._task_func
            self._message = TaskMessage(
                func.name, self._args, self._kwargs, priority=func.priority, attempt=self._attempt
            )
        return self._message

    @property
    def app(self) -> RunningApp | None:
        """The app whose task this is; None for a bare executor."""
        return getattr(self._task, "app", None)

    @property
    def args(self) -> tuple[Any, ...]:
        """The positional arguments of this attempt."""
        return self._args

    @property
    def kwargs(self) -> Mapping[str, Any]:
        """The keyword arguments of this attempt, as a read-only view."""
        return MappingProxyType(self._kwargs)

    @property
    def result(self) -> Any:
        """The result so far; None before there is one."""
        return self._result

    @property
    def yielded(self) -> list[Any]:
        """The items that a generator task has yielded in this attempt, as a new list."""
        return list(self._yielded or ())

    @property
    def attempt(self) -> int:
        """Which attempt this is, from 1."""
        return self._attempt

    @property
    def max_attempts(self) -> int | None:
        """The most attempts that the task and its app allow; None for no bound."""
        retries = self._task_func.max_retries
        return None if retries is None else retries + 1

    @property
    def fingerprint(self) -> str | None:
        """While a dead letter is kept, the fingerprint that its outcome will have; else None."""
        # Few runs have one, so that no other pays for setting it.
        return getattr(self, "_fingerprint", None)

    @property
    def trail(self) -> Trail:
        """Who was asked so far, what each answered, how long it took, and what won."""
        return Trail(entry.to_record() for entry in self._entries) if self._entries else _NOBODY

    @property
    def has_trail(self) -> bool:
        """Whether anybody was asked so far."""
        return bool(self._entries)

    @property
    def engine(self) -> Host | None:
        """What carries this run; None in place."""
        return self._engine

    def refuse(self, answer: Any) -> None:
        """Refuse an answer that the run's engine cannot carry out, or cannot store.

        Raises:
            CapabilityError: It cannot carry out the decision.
            EngineError: It cannot store the value.
        """
        keepers = self._plugins.hook.task_executor_dead_letter.chain
        if self._engine is None or (isinstance(answer, DeadLetter) and keepers is not None):
            return
        check_answer_supported(self._engine, answer)

    @property
    def log(self) -> Any:
        """A structlog logger that names the task, the run and the attempt."""
        return _log.logger().bind(
            task=self._task_func.name, uuid=str(self.task_broker.uuid), attempt=self._attempt
        )

    @property
    def ctx(self) -> Context:
        """What the task itself reaches as ``self.ctx``."""
        return Context(self)

    def __repr__(self) -> str:
        """Show the task and the attempt; no arguments, which may hold secrets."""
        return f"<{type(self).__name__} of {self._task_func.name!r}, attempt {self._attempt}>"
