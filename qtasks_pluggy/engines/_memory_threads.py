"""The threads of ``memory://``, in which plain runs are done."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Final, TypeAlias

from qtasks_pluggy.engines._memory_queue import MemoryRun

# Does a run, and gives the one to go on with in the same thread.
Work: TypeAlias = Callable[[MemoryRun], "MemoryRun | None"]


class Threads:
    """Daemon threads, made when they are needed and kept for the next run until they are let go.

    Args:
        work: What they do with a run.
    """

    def __init__(self, work: Work) -> None:
        self._work: Final = work
        self._lock = threading.Lock()
        self._hand_over: queue.SimpleQueue[MemoryRun | None] = queue.SimpleQueue()
        self._parked = 0
        self._over = False

    def give(self, run: MemoryRun) -> None:
        """Let a thread do a run.

        Raises:
            RuntimeError: The system has no more threads.
        """
        with self._lock:
            parked = self._parked > 0
            self._parked -= parked
        if not parked:
            name = "qtasks-pluggy-memory"
            threading.Thread(target=self._go_on, name=name, daemon=True).start()
        # Not by the thread's arguments, which it keeps for as long as it lives.
        self._hand_over.put(run)

    def let_go(self) -> None:
        """Let the threads end, each after the run that it is doing."""
        with self._lock:
            self._over = True
            for _ in range(self._parked):
                self._hand_over.put(None)
            self._parked = 0

    def _go_on(self) -> None:
        while (run := self._hand_over.get()) is not None:
            while run is not None:
                run = self._work(run)
            with self._lock:
                if self._over:
                    return
                self._parked += 1
