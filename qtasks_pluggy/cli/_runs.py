"""One run: how it is done, and how it ended."""

from __future__ import annotations

import asyncio
import json
import reprlib
from contextlib import suppress
from typing import Any, Final

import attrs

from qtasks_pluggy import QueueTasks, TaskExecutor, Trail, TrailRecord
from qtasks_pluggy._console.load import Task
from qtasks_pluggy._text import safe_str
from qtasks_pluggy.cli._records import Record
from qtasks_pluggy.engines import status_from
from qtasks_pluggy.exc import QTasksError

_TRIGGER: Final = "task_executor_run_task_trigger_error"


@attrs.define(eq=False)
class Run:
    """One run, from its record to its end.

    Attributes:
        uuid: Its id; None until it has started, and for a record that is not a call.
        status: How it ended; None before.
        result: What it returned, or what a plugin made of its error.
        error: The error that it ended in, or why the record is not a call.
        attempt: The last attempt, from 1.
        is_cut: Whether it took longer than it may; its function may go on in its thread.
    """

    record: Record
    uuid: str | None = None
    status: str | None = None
    result: Any = None
    error: BaseException | str | None = None
    trail: Trail = attrs.field(factory=Trail)
    attempt: int = 1
    is_cut: bool = False

    async def do(
        self, app: QueueTasks, task: Task, *, by_engine: bool, seconds: float | None
    ) -> None:
        """Run the task; no outcome of it is raised.

        Raises:
            CancelledError: The caller was cancelled; the run has not ended.
        """
        if self.record.problem is not None:
            self.status, self.error = "failed", self.record.problem
            return
        limit = asyncio.timeout(seconds)
        try:
            async with limit:
                await (self._by_engine(task) if by_engine else self._in_place(app, task))
            self.status = "succeeded"
        except BaseException as error:  # a task that calls sys.exit() ends itself alone
            me = asyncio.current_task()
            if me is not None and me.cancelling():
                raise
            self.is_cut = limit.expired() and isinstance(error, TimeoutError)
            self.error = (
                TimeoutError(f"it took longer than {seconds:g} s") if self.is_cut else error
            )
            is_cancelled = isinstance(error, asyncio.CancelledError)
            self.status = "cancelled" if is_cancelled else status_from(error).value

    async def _in_place(self, app: QueueTasks, task: Task) -> None:
        args, kwargs = self.record.args, self.record.kwargs
        executor = TaskExecutor(task, args=args, kwargs=kwargs, plugins=app.plugins)
        self.uuid = str(executor.task_broker.uuid)
        try:
            self.result = await executor.execute()
        finally:
            self.trail, self.attempt = executor.trail, executor.attempt

    async def _by_engine(self, task: Task) -> None:
        handle = await task.submit_async(*self.record.args, **self.record.kwargs)
        self.uuid = str(handle.uuid)
        try:
            self.result = await handle
        except asyncio.CancelledError:
            with suppress(QTasksError):
                handle.cancel("the caller no longer waits for it")
            raise
        finally:
            # Not every engine carries it.
            self.trail = handle.trail or self.trail
            attempts = [one.attempt for one in self.trail if one.hook == _TRIGGER]
            self.attempt = max(attempts, default=1)

    @property
    def name(self) -> str:
        """Its line, if it has one, and its id."""
        line = self.record.line
        return f"run {self.uuid}" if line is None else f"line {line}, run {self.uuid}"

    @property
    def decided(self) -> TrailRecord | None:
        """The trail's record of the plugin that decided about its error, if one did."""
        won = [one for one in self.trail if one.won and one.hook == _TRIGGER]
        # Of a failed one in the last attempt: it may have been retried before.
        if not won or (self.error is not None and won[-1].attempt != self.attempt):
            return None
        return won[-1]

    @property
    def decided_by(self) -> str | None:
        """The name of the plugin that decided about its error, if one did."""
        return None if self.decided is None else self.decided.plugin

    @property
    def outcome(self) -> str:
        """How it ended: the status, or ``recovered`` or ``retried`` if a plugin helped."""
        if self.status != "succeeded" or self.decided is None:
            return str(self.status)
        return "retried" if self.decided.kind == "Retry" else "recovered"

    @property
    def kind(self) -> str:
        """The error in one word; empty without one."""
        if self.error is None:
            return ""
        return "not a record" if isinstance(self.error, str) else type(self.error).__name__

    @property
    def why(self) -> str:
        """The error's own text."""
        return self.error if isinstance(self.error, str) else safe_str(self.error)

    def as_line(self) -> tuple[str, str | None]:
        """Write how it ended as one line of JSON."""
        fault = None
        try:
            result = json.dumps(self.result, allow_nan=False)
        except Exception as error:  # noqa: BLE001  # anything can come from a foreign container
            result = "null"
            fault = (
                f"the result is of type {type(self.result).__qualname__}, which JSON cannot hold"
                f" ({safe_str(error).partition(';')[0]}): {_shown(self.result)}; return text,"
                " numbers, True, False, None, or lists and dicts of them"
            )
        fields = {"line": self.record.line, "uuid": self.uuid, "status": self.status}
        rest = {"plugin": self.decided_by, "error": fault}
        if self.error is not None:
            rest["error"] = f"{self.kind}: {self.why}"
        if self.record.line is not None:
            rest["input"] = self.record.digest
        return f'{json.dumps(fields)[:-1]}, "result": {result}, {json.dumps(rest)[1:]}', fault


def _shown(value: object) -> str:
    try:
        return reprlib.repr(value)
    except Exception as error:  # noqa: BLE001  # anything can come from a foreign __repr__
        return f"(not shown: its __repr__ raised {type(error).__name__})"
