"""A FastAPI service: a task in place, a task in the background, and its result by an id.

Two processes serve, and a third does what was submitted. They share one SQLite file:

    pip install 'qtasks-pluggy[huey]' fastapi uvicorn  # from a checkout: '/path/to/checkout[huey]'
    uvicorn fastapi_app:api --workers 2
    huey_consumer fastapi_app.huey

Then ``curl -X POST localhost:8000/orders/tea`` answers with an id, and
``curl localhost:8000/orders/THE-ID`` with the result.
"""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any
from uuid import UUID, uuid4

from fastapi import FastAPI, Header, HTTPException

from qtasks_hookspecs import RunningTask, TaskMessage
from qtasks_pluggy import QueueTasks, TaskStatus

tasks = QueueTasks("shop", engine=os.environ.get("SHOP_QUEUE", "huey+sqlite:///shop.db"))
huey = tasks.engine.native  # what huey_consumer works for

PRICES = {"tea": 3.5, "coffee": 4.25}
log = logging.getLogger("shop")


@tasks.task(max_time=2.0)  # seconds
async def price(item: str) -> float:
    """Look a price up."""
    return PRICES[item]


@tasks.on_error(KeyError)
def use_zero(run: RunningTask, task_broker: TaskMessage) -> float:
    """What has no price is free; say for which request."""
    request = task_broker.metadata.get("request", "none")
    log.warning("no price for %s, request %s", run.args[0], request)
    return 0.0


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    """Start and stop the plugins with the service."""
    async with tasks:
        yield


api = FastAPI(lifespan=lifespan)


@api.get("/prices/{item}")
async def read_price(item: str) -> dict[str, float]:
    """Run the task here and now."""
    return {"price": await price(item)}


@api.post("/orders/{item}", status_code=202)
async def order(item: str, x_request_id: Annotated[str | None, Header()] = None) -> dict[str, str]:
    """Submit a run, and answer with its id at once; the request's id travels with it."""
    request = x_request_id or str(uuid4())
    handle = await price.with_options(metadata={"request": request}).submit(item)
    return {"id": str(handle.uuid)}


@api.get("/orders/{order_id}")
def read_order(order_id: UUID) -> dict[str, Any]:
    """Say how far a run is; whichever process is asked, it need not be the one that submitted."""
    handle = tasks.handle(order_id)
    if handle.status in (None, TaskStatus.queued, TaskStatus.running):
        return {"status": "not yet"}
    try:
        return {"status": "done", "price": handle.result(timeout=1)}
    except Exception as error:
        raise HTTPException(502, f"the run failed: {type(error).__name__}") from error
