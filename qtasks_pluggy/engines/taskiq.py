"""Taskiq: an app's runs on a broker that is Taskiq's own, or plugins for that one's own tasks.

The worker is Taskiq's own command, ``taskiq worker module:broker``. Runs survive a killed worker
on RabbitMQ and on Redis streams.
"""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from typing import Any, Final

from qtasks_pluggy.engines._versions import require

require("taskiq", "0.11.20")

from taskiq import AsyncBroker, NoResultError
from taskiq.kicker import AsyncKicker
from taskiq.result_backends.dummy import DummyResultBackend

from qtasks_hookspecs import RunningTask
from qtasks_pluggy import QueueTasks, TaskFunc, TaskMessage, TaskStatus, Trail, TrailRecord
from qtasks_pluggy.engines import Attempt, Capabilities, RunResult, executor_for, run_in_place
from qtasks_pluggy.engines._taskiq_brokers import (
    PATIENCE,
    can_delay,
    does_runs_here,
    gives_back,
    is_safe,
    longest,
    make_safe,
    most_priority,
    native_priority,
    routing,
    unsent_retry,
    why,
)
from qtasks_pluggy.engines._taskiq_ends import (
    HEADER,
    check_storable,
    ended_of,
    records_of,
    unserializable,
)
from qtasks_pluggy.engines._taskiq_reverse import (
    CONTROL,
    CancelledRunError,
    at_least_once,
    install,
)
from qtasks_pluggy.engines._taskiq_runs import (
    OURS,
    Run,
    Ticket,
    WorkerLife,
    message_of,
    runs_of,
    say_what_is_unknown,
    send_again,
    take,
)
from qtasks_pluggy.engines.servers import HANDS_OVER, POLL, attempt_of, cut_by, named, refuse_url
from qtasks_pluggy.exc import CapabilityError, EngineError

__all__ = ["CancelledRunError", "TaskiqEngine", "at_least_once", "install"]

# So many looks at a time, of however many that wait.
_LOOKS: Final = 10


class TaskiqEngine:
    """Taskiq behind an app.

    Args:
        native: The broker.
    """

    name = "taskiq"
    blocking = False

    def __init__(self, native: AsyncBroker) -> None:
        refuse_url(native, self.name, "a Taskiq broker")
        self.control: tuple[type[Exception], ...] = CONTROL
        self.native: Any = native
        self._app: QueueTasks | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._here = does_runs_here(native)
        self._runs = runs_of(native)
        self._looks = asyncio.Semaphore(_LOOKS)
        if gives_back(native):
            make_safe(native)

    @property
    def loop(self) -> asyncio.AbstractEventLoop | None:
        """The event loop that has the broker's connections: the client's, or the worker's."""
        if self._loop is not None:
            return self._loop
        return None if self._app is None else self._life.loop

    @property
    def capabilities(self) -> Capabilities:
        """What it can do with this broker and these results."""
        # Not before it is asked for: results can come behind the app.
        native = self.native
        return Capabilities(
            delay=can_delay(native),
            dead_letter=True,
            results=self._has_results,
            at_least_once=is_safe(native),
            priority=most_priority(native) is not None,
            metadata=True,
        )

    def will_retry(self, error: BaseException) -> bool:  # noqa: ARG002  # the seam's name
        """Say no: whoever retries is a plugin."""
        return False

    def failure(self, error: BaseException) -> BaseException | None:
        """Name what ends the task's own run: a task that calls sys.exit() ends itself alone."""
        # How Taskiq ends a worker in the midst of a run.
        return None if isinstance(error, KeyboardInterrupt) else named(error, self.name)

    def check_answer(self, value: Any) -> None:
        """Refuse an answer that cannot be stored.

        Raises:
            EngineError: It has no form in JSON.
        """
        check_storable("the answer", value)

    def check_result(self, run: RunningTask) -> None:
        """Refuse a result that cannot be stored.

        Raises:
            EngineError: It has no form in JSON.
        """
        check_storable(f"the result of task {run.task_func.name!r}", run.result)

    def register(self, app: QueueTasks, task_func: TaskFunc) -> None:
        """Make the task known to the broker, under its own name.

        Raises:
            EngineError: The broker has a task of this name, or this is behind another app.
        """
        native, name = self.native, task_func.name
        if self._app is not None and self._app is not app:
            msg = f"engine 'taskiq' is behind app {self._app.name!r} already; make one for each app"
            raise EngineError(msg)
        if name in native.get_all_tasks():
            msg = (
                f"engine 'taskiq': the broker has a task {name!r} already; give app {app.name!r}'s"
                " another name="
            )
            raise EngineError(msg)
        if self._app is None:
            self._app = app
            self._life = WorkerLife(native, lambda: self._checked(app), app.name, submits=True)
            say_what_is_unknown(native)

        async def body(*args: Any, **kwargs: Any) -> Any:
            """Do the run that this is called for, or call the task here."""
            run = take(name)
            if run is None:
                # Somebody called it here and now.
                return await run_in_place(app, name, args, kwargs)
            with HANDS_OVER:
                return await self._work(app, run)

        vars(body)[OURS] = True
        # What plugins decide is not for middlewares to decide again.
        native.register_task(body, task_name=name, retry_on_error=False, ack_type="when_saved")

    async def start(self, app: QueueTasks, workers: int | None) -> None:
        """Connect to broker and results."""
        if workers:
            msg = (
                f"engine 'taskiq': app {app.name!r} is to do {workers} runs at a time in this"
                " process, and Taskiq's own command does them: taskiq worker MODULE:BROKER"
            )
            raise EngineError(msg)
        self._checked(app)
        self._looks = asyncio.Semaphore(_LOOKS)
        await self._runs.open(app.name)
        self._loop = asyncio.get_running_loop()

    async def stop(self) -> None:
        """Let go of broker and results; runs that this process does are finished first."""
        try:
            if self._here:
                with suppress(Exception):
                    await self.native.wait_all()
            await self._runs.close(self._loop)
        finally:
            self._loop = None

    async def submit(self, message: TaskMessage, delay: float | None) -> Ticket:
        """Send a native message."""
        native, name, task_id = self.native, message.name, str(message.uuid)
        header: dict[str, Any] = {"created_at": message.created_at, "attempt": 1}
        if message.metadata:
            header["metadata"] = message.metadata
        if message.priority:
            header["priority"] = message.priority
        labels: dict[str, Any] = {
            **native.local_task_registry[name].labels,
            **routing(native),
            **native_priority(native, message.priority or 0, name),
            HEADER: json.dumps(header),
        }
        if delay:
            labels["delay"] = delay
        ticket = Ticket(task_id, name, native)
        if self._here:
            self._runs.tickets[task_id] = ticket
        kicker: AsyncKicker[Any, Any] = AsyncKicker(name, native, labels)
        try:
            # Some that do runs here do them before they return.
            async with asyncio.timeout(None if self._here else PATIENCE):
                await kicker.with_task_id(task_id).kiq(*message.args, **message.kwargs)
        except Exception as error:
            what = unserializable(native, message)
            msg = (
                f"engine 'taskiq', task {name!r}: the broker failed: {why(error)}; look whether it"
                " runs"
            )
            if what is not None:
                msg = (
                    f"engine 'taskiq' cannot take task {name!r}: {what} cannot be serialized"
                    f" ({why(error)}); give it something that JSON can say, an id or a path"
                )
            raise EngineError(msg) from error
        return ticket

    def ticket_for(self, uuid: str) -> Ticket:
        """Make the ticket of a run that was sent from anywhere."""
        return self._runs.tickets.get(uuid) or Ticket(uuid, "", self.native)

    async def result(self, ticket: Ticket, timeout: float | None) -> RunResult | None:  # noqa: ASYNC109  # the seam's
        """Wait for the stored end."""
        if not self._has_results:
            msg = (
                "engine 'taskiq': this broker keeps no results; give it one that does,"
                " broker.with_result_backend(...)"
            )
            raise CapabilityError(msg)
        clock = asyncio.get_running_loop().time
        end = None if timeout is None else clock() + timeout
        pause, most = POLL
        while (ended := await self._look(ticket)) is None:
            left = most if end is None else end - clock()
            if left <= 0:
                return None
            if self._here and ticket.is_known:
                with suppress(TimeoutError):
                    await asyncio.wait_for(ticket.is_over.wait(), None if end is None else left)
            else:
                await asyncio.sleep(min(pause, left))
                pause = min(pause * 1.5, most)
        return ended

    def status(self, ticket: Ticket) -> TaskStatus | None:
        """Tell how a run ended; nothing of one that waits or is at work."""
        if ticket.ended is None and ticket.native is not None:
            ticket.ended = ended_of(ticket.native, ticket.result_backend)
        loop = self.loop
        if ticket.ended is None and loop is not None and not self._here and self._has_results:
            with suppress(RuntimeError):
                asyncio.get_running_loop()
                # Waiting here would hold up an event loop, perhaps this very one.
                return None
            future = asyncio.run_coroutine_threadsafe(self._look(ticket), loop)
            try:
                future.result(PATIENCE)
            except TimeoutError:
                future.cancel()
        return None if ticket.ended is None else ticket.ended.status

    def trail(self, ticket: Ticket) -> Trail | None:  # noqa: ARG002  # the seam's name
        """Say nothing: the trail comes with the end."""
        return None

    def revoke(self, ticket: Ticket, reason: str) -> bool:  # noqa: ARG002  # the seam's names
        """Refuse: brokers take nothing back.

        Raises:
            CapabilityError: Always.
        """
        msg = (
            f"engine 'taskiq' cannot cancel: a broker takes no message back, so run"
            f" {ticket.task_id} of task {ticket.task_name!r} goes on"
        )
        raise CapabilityError(msg)

    def message(self, native: Run) -> TaskMessage:
        """Make a message of a run at work."""
        header = _header(native)
        return message_of(
            self.native,
            native.message,
            priority=header.get("priority", 0),
            created_at=header.get("created_at"),
            attempt=attempt_of(header),
            metadata=header.get("metadata", {}),
        )

    async def settle(self, outcome: Attempt, native: Run) -> Any:
        """Return what Taskiq is to store, or raise what makes it do what the plugins decided."""
        if outcome.action == "pass":
            if isinstance(outcome.error, NoResultError):
                # By itself Taskiq stores nothing, and whoever waits would wait for ever.
                return None
            raise NoResultError if outcome.error is None else outcome.error
        if outcome.action == "retry":
            return await self._retry(outcome, native)
        trail = native.ended.trail if native.ended is not None else None
        status = outcome.status
        if outcome.error is None:
            native.ended = RunResult(status, trail=trail) if trail else None
            return outcome.result
        native.ended = RunResult(status, error=outcome.error, trail=trail)
        raise outcome.error

    async def _retry(self, outcome: Attempt, native: Run) -> None:
        header, ended = _header(native), native.ended
        attempt = attempt_of(header) + 1
        trail = records_of(() if ended is None else ended.trail)
        header = {**header, "attempt": attempt, "trail": trail}
        native.ended = None
        try:
            labels = {HEADER: json.dumps(header)}
            await send_again(self.native, native, outcome.delay, **labels)
        except Exception as failure:  # noqa: BLE001  # the cause is the task's own error
            native.ended = ended
            name = native.message.task_name
            raise unsent_retry(name, attempt, failure) from outcome.error
        raise NoResultError

    async def _work(self, app: QueueTasks, run: Run) -> Any:
        executor = executor_for(app, self.message(run))
        here = asyncio.current_task()
        met = 0 if here is None else here.cancelling()
        try:
            outcome = await executor.execute_attempt(self)
        except BaseException as error:
            asked_for = here is not None and here.cancelling() > met
            if isinstance(error, asyncio.CancelledError) and asked_for:
                raise
            outcome = cut_by(error, self)
        before = _header(run).get("trail", ())
        trail = Trail([*(TrailRecord(**record) for record in before), *executor.trail])
        run.ended = RunResult(TaskStatus.running, trail=trail)
        try:
            return await self.settle(outcome, run)
        except EngineError as unsent:
            if outcome.action != "retry":
                raise
            return await self.settle(await executor.give_up(unsent), run)

    async def _look(self, ticket: Ticket) -> RunResult | None:
        """Read a run's end, if it has one."""
        if ticket.ended is None and ticket.native is not None:
            ticket.ended = ended_of(ticket.native, ticket.result_backend)
        if ticket.ended is not None or (self._here and ticket.is_known):
            return ticket.ended
        try:
            async with self._looks:
                # Another who waits may have read it, and deleted it.
                if ticket.ended is None and await ticket.is_ready():
                    # Reading can delete it: who gives up waiting must not lose it for the others.
                    await asyncio.shield(ticket.read())
        except Exception as error:
            msg = (
                f"engine 'taskiq', task {ticket.task_name!r}: the result backend failed:"
                f" {why(error)}; look whether it runs"
            )
            raise EngineError(msg) from error
        return ticket.ended

    @property
    def _has_results(self) -> bool:
        return self._here or not isinstance(self.native.result_backend, DummyResultBackend)

    def _checked(self, app: QueueTasks) -> QueueTasks:
        """Refuse, in clients and workers, what would be done twice as a matter of course."""
        limit = longest(self.native)
        for task in app.tasks.values():
            func = task.task_func
            native_priority(self.native, func.priority, func.name)
            if limit is not None and (func.max_time or 0) >= limit:
                msg = (
                    f"engine 'taskiq', task {func.name!r}: with max_time={func.max_time} it would"
                    f" be done twice: the stream gives a message to another worker after {limit}"
                    " seconds; raise the broker's idle_timeout, in milliseconds"
                )
                raise EngineError(msg)
        return app


def _header(run: Run) -> dict[str, Any]:
    header: dict[str, Any] = json.loads(run.message.labels.get(HEADER, "{}"))
    return header
