"""The tasks, as they were before plugins came: nothing here knows of any."""

from __future__ import annotations

import csv
import json
import os
import urllib.request
from pathlib import Path
from typing import Any

from celery import Task, chain, chord, shared_task
from celery.utils.log import get_task_logger

log = get_task_logger(__name__)

RATES_FILE = Path(__file__).parents[2] / "rates" / "ecb-2022.csv"
with RATES_FILE.open(newline="", encoding="utf-8") as file:
    RATES = {row.pop("Date"): row for row in csv.DictReader(file)}

# The month's invoices: day, currency, amount. The second day is a Sunday and has no rate.
INVOICES = [
    ("2022-06-03", "USD", 250.0),
    ("2022-06-05", "USD", 80.0),
    ("2022-06-07", "JPY", 9000.0),
]


class Reported(Task):  # type: ignore[misc]  # Celery has no types
    """What the accountants hear of."""

    def on_failure(self, error: Exception, *_: Any) -> None:
        """Say which run failed; a run that a plugin recovers has not failed."""
        log.warning("for the accountants: %s failed (%s)", self.name, type(error).__name__)


@shared_task(base=Reported)
def eur_100(day: str, currency: str) -> float:
    """Say what 100 euros were worth; without a rate for that day it fails."""
    return round(100 * float(RATES[day][currency]), 2)


@shared_task(base=Reported)
def in_euros(worth_of_100: float, amount: float) -> float:
    """Convert an amount by what 100 euros were worth."""
    return round(100 * amount / worth_of_100, 2)


@shared_task
def add_up(amounts: list[float]) -> float:
    """Add the month's invoices up."""
    return round(sum(amounts), 2)


@shared_task(autoretry_for=(OSError,), max_retries=5, default_retry_delay=1)
def send(total: float) -> float:
    """Send the total to the books, over HTTP; Celery itself retries while they are away."""
    if url := os.environ.get("INVOICES_BOOKS"):
        body = json.dumps({"total": total}).encode()
        urllib.request.urlopen(url, body, timeout=5).close()  # noqa: S310  # the operator's own URL
    return total


@shared_task(bind=True)
def close_month(self: Task) -> str:
    """Convert every invoice, add them up, send the total; return the id of the last step."""
    amounts = [chain(eur_100.s(day, money), in_euros.s(amount)) for day, money, amount in INVOICES]
    log.info("%s closes the month: %d invoices", self.request.id, len(amounts))
    result = chord(amounts)(add_up.s() | send.s())
    return str(result.id)
