"""START HERE: many runs, a bounded number at a time, until all have ended.

All of it is one asyncio program. ``_main`` is its story: the app starts, a task group does a run
for each record while a semaphore has room, and the app stops. ``execute()`` sends the functions of
plain tasks to threads. One more thread reads the records, because somebody may be typing them, and
one waits for the moment at which a signal has had its time.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any, Final

import attrs

from qtasks_pluggy import QueueTasks
from qtasks_pluggy._console.load import Task
from qtasks_pluggy._text import describe_error
from qtasks_pluggy.cli._records import Record
from qtasks_pluggy.cli._runs import Run
from qtasks_pluggy.engines import worker_lifespan

GRACE_SECONDS: Final = 10.0
"""How long runs in flight may take to end after a signal, before they are left behind."""
LEAVE_SECONDS: Final = 5.0
"""How long what was left behind may take to hear that it is cancelled."""

_WORDS: Final = {signal.SIGINT: "Interrupted", signal.SIGTERM: "Terminated"}
_NO_BOUND: Final = sys.maxsize
_LOOK_SECONDS: Final = 0.1


@attrs.define(eq=False)
class Batch:
    """Many runs of one task.

    Attributes:
        app: The app; the batch starts and stops it.
        task: Its task.
        records: What to call it with, read as there is room for more.
        take_down: Called with each run that has ended, on the event loop.
        hear: Called with what people should know at once.
        give_up: Called, from a thread, before a program that hangs after a signal is ended.
        size: How many runs at a time.
        by_engine: Whether the app's engine does them.
        seconds: The most that one run may take; None for no limit.
        grace: Seconds for the runs in flight after a signal.
        started: Whether the app did start.
        ended_by: The first signal that asked for the end.
        trouble: What stopped it early, but for a signal.
        running: The runs that have begun and not ended; in the end, those left behind.
        left_threads: Whether functions of plain tasks may still go on, and hold up an exit.
    """

    app: QueueTasks
    task: Task
    records: Iterable[Record]
    take_down: Callable[[Run], None]
    hear: Callable[[str], None]
    give_up: Callable[[], None]
    size: int = 1
    by_engine: bool = False
    seconds: float | None = None
    grace: float = attrs.field(factory=lambda: GRACE_SECONDS)
    started: bool = False
    ended_by: signal.Signals | None = None
    trouble: str | None = None
    running: set[Run] = attrs.field(factory=set)
    left_threads: bool = False
    _deadline: float | None = attrs.field(init=False, default=None)
    _stopping: bool = attrs.field(init=False, default=False)
    _over: bool = attrs.field(init=False, default=False)
    _limit: asyncio.Timeout | None = attrs.field(init=False, default=None)
    _read: asyncio.Queue[Record | None] = attrs.field(init=False, factory=asyncio.Queue)
    _room: asyncio.Semaphore = attrs.field(init=False)
    _ahead: threading.Semaphore = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        """Make room."""
        self._room = asyncio.Semaphore(self.size)
        # As many again as run, so that no run waits for a record to be read.
        self._ahead = threading.Semaphore(2 * self.size)

    def run(self) -> None:
        """Do all runs.

        Raises:
            EngineError: The app does not start, or does not stop, because of its engine.
            PluginError: The same because of a plugin.
            SettingsError: The same because of its settings.
        """
        runner = asyncio.Runner()
        loop = runner.get_loop()
        # A semaphore bounds the runs; one that was left behind must not take another's thread.
        loop.set_default_executor(ThreadPoolExecutor(_NO_BOUND, "qtasks-pluggy-run"))
        main = loop.create_task(self._main())
        with self._hearing_signals(loop, main):
            try:
                while not main.done():
                    # A task that stops the loop stops nobody else.
                    with suppress(RuntimeError, asyncio.CancelledError):
                        loop.run_until_complete(main)
                if not main.cancelled():
                    main.result()
                elif self.ended_by is None:
                    self.trouble = "a task has cancelled all runs; a task may cancel its own only"
            finally:
                # Closing would wait for what was left behind.
                if not (self.running or self.left_threads):
                    runner.close()
                self._over = True

    def stop(self, trouble: str | None = None) -> None:
        """Begin no further run."""
        self._stopping = True
        self.trouble = self.trouble or trouble
        self._read.put_nowait(None)

    async def _main(self) -> None:
        life: Any = self.app if self.by_engine else worker_lifespan(self.app)
        async with life:
            self.started = True
            with suppress(TimeoutError):
                async with asyncio.timeout(None) as self._limit, asyncio.TaskGroup() as runs:
                    await self._begin_all(runs)
            self._limit = None
            stop_seconds = 0 if self.running else self.app.plugins.settings.start_timeout
            self._watch(stop_seconds + LEAVE_SECONDS)

    async def _begin_all(self, runs: asyncio.TaskGroup) -> None:
        loop = asyncio.get_running_loop()
        name = "qtasks-pluggy-records"
        threading.Thread(target=self._read_all, args=(loop,), name=name, daemon=True).start()
        while True:
            await self._room.acquire()
            record = await self._read.get()
            if record is None or self._stopping:
                return
            runs.create_task(self._one(record))

    async def _one(self, record: Record) -> None:
        run = Run(record)
        self.running.add(run)
        try:
            await run.do(self.app, self.task, by_engine=self.by_engine, seconds=self.seconds)
            self.running.discard(run)
            self.left_threads |= run.is_cut
            self.take_down(run)
        finally:
            # Only a run that is written down no longer takes room.
            self._ahead.release()
            self._room.release()

    def _read_all(self, loop: asyncio.AbstractEventLoop) -> None:
        """Read records as there is room; in a thread of its own."""
        trouble = None
        with suppress(RuntimeError):  # the loop is closed: nobody wants more
            try:
                for record in self.records:
                    self._ahead.acquire()
                    loop.call_soon_threadsafe(self._read.put_nowait, record)
            except Exception as error:  # noqa: BLE001  # told when the runs have ended
                trouble = f"the records cannot be read further: {describe_error(error)}"
            loop.call_soon_threadsafe(self._read_to_its_end, trouble)

    def _read_to_its_end(self, trouble: str | None) -> None:
        self.trouble = self.trouble or trouble
        self._read.put_nowait(None)

    @contextmanager
    def _hearing_signals(
        self, loop: asyncio.AbstractEventLoop, main: asyncio.Task[None]
    ) -> Generator[None]:
        """Hear Ctrl-C and SIGTERM, so that they tear nothing in two; the second ends it at once.

        The event loop hears the first one. The second has a handler of its own, because what runs
        on the loop may never let go of it.
        """
        usual: dict[signal.Signals, Any] = {one: signal.getsignal(one) for one in _WORDS}
        # One that is ignored is so on purpose, as a shell does for jobs in the background.
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
                self.hear(
                    f"{self.word}: {count_runs(len(self.running))} in flight may take"
                    f" {self.grace:g} seconds to end; once more ends at once."
                )

    def _end_at_once(self) -> None:
        """Name the runs that are left behind, and end the process.

        In a signal's handler, so past every buffer and lock that whoever was interrupted holds.
        """
        lines = "".join(f"  {one.name}\n" for one in [*self.running])
        left = f"these runs were left behind:\n{lines}" if lines else "no run was in flight.\n"
        # The cursor, which a progress bar hides.
        begin = "\r\x1b[K\x1b[?25h" if os.isatty(2) else ""
        with suppress(OSError):
            os.write(2, f"{begin}{self.word} twice: {left}".encode("ascii", "backslashreplace"))
        os._exit(self.exit_code)

    def _watch(self, seconds: float) -> None:
        """After a signal, give up if nothing has ended in so many seconds."""
        if self.ended_by is not None:
            self._deadline = time.monotonic() + seconds

    def _await_deadline(self) -> None:
        # A signal's handler may start no thread, so this one looks at the clock all the time.
        while not self._over:
            time.sleep(_LOOK_SECONDS)
            if self._deadline is not None and time.monotonic() >= self._deadline and not self._over:
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
    """Say how many runs, as people do."""
    return "1 run" if runs == 1 else f"{runs:,} runs"
