"""START HERE: many runs, a bounded number at a time, until all have ended.

Three kinds of threads share the work, and what they hold of it is bounded by the batch's size:
one reads records and hands them to the crew, the crew does the runs, and the main thread takes
down how each ended. It alone writes the output, and it never waits for a lock that a run holds.
"""

from __future__ import annotations

import queue
import signal
import threading
import time
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from types import FrameType
from typing import Any, Final, Protocol, TypeAlias

import attrs

from qtasks_pluggy import QueueTasks
from qtasks_pluggy._console.load import Task
from qtasks_pluggy.cli._crews import Crew, Died, Event, EventLoop, Threads, Work
from qtasks_pluggy.cli._ended import Ended, not_a_call
from qtasks_pluggy.cli._output import Output, as_line
from qtasks_pluggy.cli._records import Record
from qtasks_pluggy.cli._screen import count_runs
from qtasks_pluggy.cli._tally import Tally

GRACE_SECONDS: Final = 10.0
"""How long runs in flight may take to end after Ctrl-C, before they are left behind."""

SHOW_SECONDS: Final = 0.1
"""How often the watcher is told."""

HEAR_SECONDS: Final = 0.5
"""How long a wait may be: Python notes a signal that comes just before one, and lets it wait."""


class Watcher(Protocol):
    """Who is told how far the batch is."""

    def show(self, tally: Tally) -> None:
        """Runs have ended since the last time."""

    def say(self, text: str) -> None:
        """Something that people should know now."""

    def end_at_once(self, running: list[tuple[int, str]]) -> None:
        """Name the runs that are left behind, and end the process."""


@attrs.frozen
class _AllRead:
    """There are no more records, or no more that can be read."""

    error: BaseException | None = None


@attrs.frozen
class _Interrupted:
    """Somebody pressed Ctrl-C."""


_Heard: TypeAlias = "Event | _AllRead | _Interrupted"


class Batch:
    """Many runs of one task.

    Args:
        app: The app; the batch starts and stops it.
        task: Its task.
        records: What to call it with, read as there is room for more.
        size: How many runs at a time.
        output: Where to write how each ended.
        watcher: Who is told how far it is.
        by_engine: Whether the app's engine does the runs.
    """

    def __init__(
        self,
        app: QueueTasks,
        task: Task,
        records: Iterable[Record],
        *,
        size: int,
        output: Output | None,
        watcher: Watcher,
        by_engine: bool = False,
    ) -> None:
        self.tally = Tally()
        self.trouble: str | None = None
        self.unheard = False
        self.started = False
        self._records = records
        self._output = output
        self._output_error: OSError | None = None
        self._watcher = watcher
        self._heard: queue.SimpleQueue[_Heard] = queue.SimpleQueue()
        self._work = Work(app, task, size, self._heard.put, by_engine)
        self._crew: Crew = (EventLoop if task.task_func.is_async else Threads)(self._work)
        # As many again as run, so that no run waits for a record to be read.
        self._room = threading.Semaphore(2 * size)
        self._gate = threading.Lock()
        self._submitted = 0
        self._all_read = False
        self._interrupts = 0
        self._deadline: float | None = None
        self._shown = 0
        self._last_shown = 0.0

    def run(self) -> None:
        """Do all runs; ``tally`` says how they ended, ``trouble`` what stopped them early.

        ``started`` says whether the app did start, and ``unheard`` that nobody reads the output
        any more.

        Raises:
            EngineError: The app does not start, because of its engine.
            PluginError: The app does not start or does not stop, because of a plugin.
            SettingsError: The app does not start, because of its settings.
        """
        with self._crew:
            self.started = True
            with self._listening():
                name = "qtasks-pluggy-records"
                threading.Thread(target=self._read, name=name, daemon=True).start()
                self._watch()
            self.tally.unfinished = list(self._work.running.copy().items())
        while not self._heard.empty():
            # A crew that dies takes its runs with it: there may be nothing else to wait for.
            heard = self._heard.get()
            if isinstance(heard, Died):
                self._stop_because(_of_death(heard))

    def _read(self) -> None:
        """Hand records to the crew, as there is room; in a thread of its own."""
        try:
            for record in self._records:
                self._room.acquire()
                with self._gate:
                    if self._work.stopping.is_set():
                        return
                    self._submitted += 1
                if record.problem is None:
                    self._crew.submit(record)
                else:
                    self._heard.put(not_a_call(record))
        except Exception as error:  # noqa: BLE001  # told by the main thread
            self._heard.put(_AllRead(error))
        else:
            self._heard.put(_AllRead())

    def _watch(self) -> None:
        """Take down how each run ends, until nothing is left to wait for."""
        settled = 0
        while settled < self._submitted or not (self._all_read or self._work.stopping.is_set()):
            try:
                heard = self._heard.get(timeout=self._patience())
            except queue.Empty:
                if self._deadline is not None and time.monotonic() >= self._deadline:
                    return
                self._show()
                continue
            if isinstance(heard, _AllRead):
                self._all_read = True
                if heard.error is not None:
                    self._stop_because(
                        f"the records cannot be read further: {_told(heard.error)};"
                        " the runs for those before are done"
                    )
            elif isinstance(heard, _Interrupted):
                self._stop()
                self.tally.interrupted = True
                self._deadline = time.monotonic() + GRACE_SECONDS
                self._tell_interrupted()
            elif isinstance(heard, Died):
                self._stop_because(_of_death(heard))
                return
            else:
                settled += 1
                if isinstance(heard, Ended):
                    self._take_down(heard)
                # Only a run that is written down no longer takes room.
                self._room.release()
                if isinstance(heard, Ended) and time.monotonic() - self._last_shown >= SHOW_SECONDS:
                    self._show()
        self._show()

    def _patience(self) -> float:
        if self._deadline is not None:
            return max(0.0, min(SHOW_SECONDS, self._deadline - time.monotonic()))
        # What has been counted is shown soon, even if nothing more happens.
        return HEAR_SECONDS if self._shown == self.tally.runs else SHOW_SECONDS

    def _show(self) -> None:
        self._last_shown = time.monotonic()
        self._shown = self.tally.runs
        self._watcher.show(self.tally)

    def _take_down(self, ended: Ended) -> None:
        self.tally.add(ended)
        if self._output is None:
            return
        line, unwritable = as_line(ended)
        if unwritable is not None:
            self.tally.add_unwritten(ended, unwritable.kind, str(unwritable))
        if self._output_error is None:
            try:
                self._output.write(line)
            except OSError as error:
                self._output_error = error
                self.unheard = isinstance(error, BrokenPipeError)
                self._stop_because(
                    f"{self._output.name} cannot be written: {_told(error)};"
                    " what it holds are whole lines; mend that, and run the others again"
                )
        if self._output_error is not None:
            self.tally.add_unwritten(ended, "output", _told(self._output_error))

    def _stop(self) -> None:
        """Begin no further run; from here on ``_submitted`` stays as it is."""
        with self._gate:
            self._work.stopping.set()

    def _stop_because(self, trouble: str) -> None:
        self._stop()
        self.trouble = self.trouble or trouble

    def _tell_interrupted(self) -> None:
        running = len(self._work.running)
        if running:
            self._watcher.say(
                f"Interrupted: {count_runs(running)} in flight may take {GRACE_SECONDS:g} seconds"
                " to end; Ctrl-C again ends at once."
            )

    @contextmanager
    def _listening(self) -> Generator[None]:
        """Hear Ctrl-C as an event, so that it tears nothing in two; the second one ends it all."""
        usual: Any = signal.getsignal(signal.SIGINT)
        if usual is signal.SIG_IGN or threading.current_thread() is not threading.main_thread():
            # It is ignored on purpose, as a shell does for jobs in the background.
            yield
            return
        signal.signal(signal.SIGINT, self._interrupt)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, usual)

    def _interrupt(self, _: int, __: FrameType | None) -> None:
        self._interrupts += 1
        if self._interrupts == 1:
            self._heard.put(_Interrupted())
        else:
            self._watcher.end_at_once(list(self._work.running.copy().items()))


def _of_death(crew: Died) -> str:
    return (
        f"a run has stopped the event loop of all of them: {_told(crew.error)};"
        " a task may not stop the loop that it runs on"
    )


def _told(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return f"{type(error).__name__}: {error}"
