"""What a Redis stream needs in its workers: that runs of killed ones are looked for at all.

Taskiq looks for them behind a new message only; so where some are waiting one is sent that says
nothing. Messages that are done stay in a stream, until they are trimmed here.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncGenerator, Callable
from typing import Any, Final

from taskiq import NoResultError, TaskiqEvents, TaskiqMessage

from qtasks_pluggy.engines import log_event

# The native task that says nothing, and how it is known to be ours.
TICK: Final = "qtasks_pluggy.tick"
# Seconds between two looks, at the most.
_PAUSE: Final = 5.0


class Reclaim:
    """Tends a stream while its broker is that of a worker.

    Args:
        broker: A ``RedisStreamBroker``.
    """

    def __init__(self, broker: Any) -> None:
        self._broker = broker
        self._tending: asyncio.Task[None] | None = None
        broker.add_event_handler(TaskiqEvents.WORKER_STARTUP, self._begin)
        broker.add_event_handler(TaskiqEvents.WORKER_SHUTDOWN, self._end)

        async def tick() -> None:
            raise NoResultError

        vars(tick)["qtasks_pluggy_task"] = True
        broker.register_task(tick, task_name=TICK)
        if sys.version_info < (3, 12):
            broker.listen = _stoppable(broker.listen)

    async def _begin(self, _: Any) -> None:
        await self._end(_)
        self._tending = asyncio.create_task(self._tend())

    async def _end(self, _: Any) -> None:
        if self._tending is not None:
            self._tending.cancel()
            await asyncio.wait({self._tending})
            self._tending = None

    async def _tend(self) -> None:
        pause = min(self._broker.idle_timeout / 2000, _PAUSE)
        while True:
            await asyncio.sleep(pause)
            try:
                await self._look()
            except Exception as error:  # noqa: BLE001  # the server's trouble passes, this goes on
                log_event("warning", "taskiq_stream_not_tended", exc_info=error)

    async def _look(self) -> None:
        from redis.asyncio import Redis  # noqa: PLC0415  # a broker of this kind has brought it

        broker = self._broker
        async with Redis(connection_pool=broker.connection_pool) as redis:
            for stream in (broker.queue_name, *broker.additional_streams):
                group = broker.consumer_group_name
                lost: list[Any] = await redis.xpending_range(
                    stream, group, min="-", max="+", count=1, idle=broker.idle_timeout
                )
                if lost:
                    tick = TaskiqMessage(
                        task_id=TICK, task_name=TICK, labels={}, args=[], kwargs={}
                    )
                    await broker.kick(broker.formatter.dumps(tick))
                if broker.maxlen is None:
                    await _trim(redis, stream)


def _stoppable(
    listen: Callable[[], AsyncGenerator[Any]],
) -> Callable[[], AsyncGenerator[Any]]:
    """Let a worker end that listens to a stream.

    Up to CPython 3.11 ``asyncio.wait_for``, by which the client of Redis sends, forgets a
    cancellation that comes when it is about to return; and a worker cancels once.
    """

    async def listen_until_cancelled() -> AsyncGenerator[Any]:
        source = listen()
        try:
            while True:
                reading = asyncio.ensure_future(anext(source))
                try:
                    await asyncio.wait({reading})
                finally:
                    while not reading.done():
                        reading.cancel()
                        await asyncio.wait({reading}, timeout=0.1)
                yield reading.result()
        finally:
            await source.aclose()

    return listen_until_cancelled


async def _trim(redis: Any, stream: str) -> None:
    """Delete what every group of a stream has done."""
    oldest: list[str] = []
    for group in await redis.xinfo_groups(stream):
        pending = await redis.xpending(stream, group["name"])
        first = pending["min"] if pending["pending"] else group["last-delivered-id"]
        oldest.append(first.decode() if isinstance(first, bytes) else first)
    if oldest:
        first = min(oldest, key=lambda one: tuple(map(int, one.split("-"))))
        await redis.xtrim(stream, minid=first, approximate=False)
