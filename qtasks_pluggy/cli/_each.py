"""START HERE: many runs, a bounded number at a time.

All of it is one asyncio program. ``_main`` is its story: the app starts, a task group does a run
for each record while a semaphore has room, and the app stops. ``execute()`` runs the functions of
plain tasks in threads. One more thread reads input that may take a while, such as a terminal's, and
another ends the process if it hangs after a signal.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from queue import Empty, SimpleQueue
from typing import Any, Final

import attrs

from qtasks_pluggy import QueueTasks
from qtasks_pluggy._console.load import Faults, Task, cannot_start
from qtasks_pluggy._console.say import say
from qtasks_pluggy._text import describe_error
from qtasks_pluggy.cli._records import Record
from qtasks_pluggy.cli._runs import Run
from qtasks_pluggy.engines import worker_lifespan

GRACE_SECONDS: Final = 10.0
"""How long runs in flight may take to end after a signal, before they are left behind."""
LEAVE_SECONDS: Final = 5.0
"""How long cancelled runs may take to end before they are left behind."""

_WORDS: Final = {signal.SIGINT: "Interrupted", signal.SIGTERM: "Terminated"}
_NO_BOUND: Final = sys.maxsize


@attrs.define(eq=False)
class Batch:
    """Many runs of one task; the batch starts and stops the app.

    Attributes:
        records: What to call it with, read as there is room for more.
        take_down: Called with each run that has ended, on the event loop.
        give_up: Called, from a thread, before a program that hangs after a signal is ended.
        may_wait: Says whether reading the next record may take a while.
        seconds: The most that one run may take; None for no limit.
        grace: Seconds for the runs in flight after a signal.
        ended_by: The first signal that asked for the end.
        trouble: What went wrong besides the runs.
        running: The runs in flight; in the end, those left behind.
        left_threads: Whether threads may still go on, and hold up an exit.
    """

    app: QueueTasks
    task: Task
    records: Iterable[Record]
    take_down: Callable[[Run], None]
    give_up: Callable[[], None]
    size: int = 1
    may_wait: Callable[[], bool] = lambda: False
    by_engine: bool = False
    seconds: float | None = None
    grace: float = attrs.field(factory=lambda: GRACE_SECONDS)
    started: bool = False
    ended_by: signal.Signals | None = None
    trouble: str | None = None
    running: set[Run] = attrs.field(factory=set)
    left_threads: bool = False
    _beginning: asyncio.Task[None] = attrs.field(init=False)
    _limit: asyncio.Timeout | None = attrs.field(init=False, default=None)
    # A signal's handler may use no other kind of queue.
    _deadlines: SimpleQueue[float | None] = attrs.field(init=False, factory=SimpleQueue)

    def run(self) -> None:
        """Do all runs.

        Raises:
            Trouble: The app does not start, because of its engine, a plugin or its settings.
        """
        runner = asyncio.Runner()
        loop = runner.get_loop()
        # A semaphore bounds the runs; one that was left behind must not take another's thread.
        loop.set_default_executor(ThreadPoolExecutor(_NO_BOUND, "qtasks-pluggy-run"))
        main = loop.create_task(self._main())
        with self._hearing_signals(loop, main):
            try:
                while not main.done():
                    # A task that stops the loop must not stop other runs.
                    with suppress(RuntimeError, asyncio.CancelledError):
                        loop.run_until_complete(main)
                if not main.cancelled():
                    main.result()
                elif self.ended_by is None:
                    self.trouble = "a task cancelled all runs; a task may only cancel its own run"
            except Faults as error:
                if not self.started:
                    raise cannot_start(self.app, error) from None
                fault = f"app {self.app.name!r} did not stop cleanly: {error}"
                self.trouble = fault if self.trouble is None else f"{self.trouble}; {fault}"
            finally:
                # Closing would wait for what was left behind.
                if not (self.running or self.left_threads):
                    runner.close()

    def stop(self, trouble: str | None = None) -> None:
        """Begin no further run."""
        self.trouble = self.trouble or trouble
        self._beginning.cancel()

    async def _main(self) -> None:
        life: Any = self.app if self.by_engine else worker_lifespan(self.app)
        async with life:
            self.started = True
            with suppress(TimeoutError):
                async with asyncio.timeout(None) as self._limit, asyncio.TaskGroup() as runs:
                    self._beginning = runs.create_task(self._begin_all(runs))
            self._limit = None
            stop_seconds = 0 if self.running else self.app.plugins.settings.start_timeout
            self._watch(stop_seconds + LEAVE_SECONDS)

    async def _begin_all(self, runs: asyncio.TaskGroup) -> None:
        room, records = asyncio.Semaphore(self.size), iter(self.records)
        while True:
            await room.acquire()
            try:
                record = await self._next(records)
            except Exception as error:  # noqa: BLE001  # told when the runs have ended
                self.trouble = f"the records cannot be read further: {describe_error(error)}"
                return
            if record is None:
                return
            # Only a run that is written down no longer takes room.
            runs.create_task(self._one(record)).add_done_callback(lambda _: room.release())

    async def _next(self, records: Iterator[Record]) -> Record | None:
        if not self.may_wait():
            return next(records, None)
        try:
            return await asyncio.get_running_loop().run_in_executor(None, next, records, None)
        except asyncio.CancelledError:
            self.left_threads = True
            raise

    async def _one(self, record: Record) -> None:
        run = Run(record)
        self.running.add(run)
        await run.do(self.app, self.task, by_engine=self.by_engine, seconds=self.seconds)
        self.running.discard(run)
        self.left_threads |= run.is_cut
        self.take_down(run)

    @contextmanager
    def _hearing_signals(
        self, loop: asyncio.AbstractEventLoop, main: asyncio.Task[None]
    ) -> Generator[None]:
        """Handle Ctrl-C and SIGTERM: the first one stops the batch, the second ends it at once.

        The event loop handles the first one. The second has a handler outside of the loop, because
        a task may block the loop.
        """
        usual: dict[signal.Signals, Any] = {one: signal.getsignal(one) for one in _WORDS}
        # An ignored signal is ignored on purpose, as shells do for background jobs.
        heard = [one for one, handler in usual.items() if handler is not signal.SIG_IGN]
        for one in heard:
            loop.add_signal_handler(one, self._stop_for_signal, main)
            signal.signal(one, self._on_signal)
        threading.Thread(target=self._await_deadline, daemon=True).start()
        try:
            yield
        finally:
            for one in heard:
                if not loop.is_closed():
                    loop.remove_signal_handler(one)
                signal.signal(one, usual[one])
            self._deadlines.put(None)

    def _on_signal(self, number: int, _: object) -> None:
        if self.ended_by is not None:
            self._end_at_once()
        self.ended_by = signal.Signals(number)
        self._watch(self.grace + LEAVE_SECONDS)

    def _stop_for_signal(self, main: asyncio.Task[None]) -> None:
        if not self.started:
            main.cancel()
        elif self._limit is not None:
            self.stop()
            self._limit.reschedule(asyncio.get_running_loop().time() + self.grace)
            if self.running and self.grace:
                say(
                    f"{self.word}: waiting up to {self.grace:g} seconds for"
                    f" {count_runs(len(self.running))} in flight; a second signal ends at once.",
                    err=True,
                )

    def _end_at_once(self) -> None:
        """List the runs that are left behind, and end the process.

        Runs in a signal handler, so it takes no buffer or lock that the interrupted code may hold.
        """
        lines = "".join(f"  {one.name}\n" for one in [*self.running])
        left = f"these runs were left behind:\n{lines}" if lines else "no run was in flight.\n"
        # The cursor, which a progress bar hides.
        begin = "\r\x1b[K\x1b[?25h" if os.isatty(2) else ""
        with suppress(OSError):
            os.write(2, f"{begin}{self.word} twice: {left}".encode("ascii", "backslashreplace"))
        os._exit(self.exit_code)

    def _watch(self, seconds: float) -> None:
        """After a signal, give up if nothing has ended within the time allowed."""
        if self.ended_by is not None:
            self._deadlines.put(seconds)

    def _await_deadline(self) -> None:
        # A signal handler must not start a thread, so this one always waits.
        seconds = self._deadlines.get()
        while seconds is not None:
            try:
                seconds = self._deadlines.get(timeout=seconds)
            except Empty:
                try:
                    self.give_up()
                finally:
                    os._exit(self.exit_code)

    @property
    def word(self) -> str:
        """What the signal did."""
        return _WORDS[self.ended_by] if self.ended_by is not None else ""

    @property
    def exit_code(self) -> int:
        """The code that shells expect after the signal; 0 without one."""
        return 0 if self.ended_by is None else 128 + self.ended_by


def count_runs(runs: int) -> str:
    """Return a number of runs in words: ``1 run``, ``2 runs``."""
    return "1 run" if runs == 1 else f"{runs:,} runs"
