"""What EUR 100 were worth on each day of 2022, by the reference rates of the European Central Bank.

Run as a script it prints one record for each day and each currency, 11,680 in all. The command
runs the task once for each record:

    python rates.py | qtasks-pluggy run rates.py eur_100 --each -

No rates are published on weekends and holidays (``KeyError``), and the rouble is ``N/A`` from
2 March on (``ValueError``). What to answer then is policy, and the task has none: it is left to a
plugin such as ``qtasks-last-rate``, which names these two errors. Without one, those runs fail.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from datetime import date, timedelta
from pathlib import Path

from qtasks_pluggy import QueueTasks

with (Path(__file__).parent / "ecb-2022.csv").open(newline="", encoding="utf-8") as file:
    RATES = {row.pop("Date"): row for row in csv.DictReader(file)}

app = QueueTasks("rates")


@app.task(description="what EUR 100 were worth in a currency on a day")
def eur_100(day: str, currency: str) -> float:
    """Convert EUR 100 at the day's reference rate."""
    return round(100 * float(RATES[day][currency]), 2)


def calls() -> Iterator[dict[str, str]]:
    """Give the arguments of every run: each day of 2022 with each currency."""
    for number in range(365):
        day = date(2022, 1, 1) + timedelta(days=number)
        for currency in RATES["2022-01-03"]:
            yield {"day": str(day), "currency": currency}


if __name__ == "__main__":
    for call in calls():
        print(json.dumps(call))
