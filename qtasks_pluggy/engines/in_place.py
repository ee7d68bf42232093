"""Retries for engines without retries: the same worker makes all attempts of a run."""

from __future__ import annotations

import asyncio
from typing import Any

from qtasks_pluggy import TaskExecutor
from qtasks_pluggy.engines import Attempt, Backend, Host
from qtasks_pluggy.engines.native import Native
from qtasks_pluggy.exc import TaskCancelError


class InPlace(Native[Any]):
    """An engine that calls a task only once: a run keeps its worker until its last attempt ends."""

    async def execute(self, executor: TaskExecutor, host: Host, backend: Backend) -> Attempt:
        """Make attempts, in plain or async code, until one ends the run."""
        attempt = await executor.execute_attempt(host, backend)
        while attempt.will_retry:
            try:
                await backend.sleep(attempt.delay or 0)
            except asyncio.CancelledError:
                # Plugins saw an earlier attempt, so they see the end as well (R16).
                await executor.give_up(TaskCancelError("the task was cancelled"), backend)
                raise
            attempt = await executor.execute_attempt(host, backend)
        return attempt
