"""The Celery app, and the one line that asks plugins about its failing tasks."""

from __future__ import annotations

import os

from celery import Celery
from celery.schedules import crontab

from qtasks_pluggy.engines.celery import install

app = Celery(
    "proj",
    broker=os.environ.get("INVOICES_BROKER", "amqp://localhost"),
    backend=os.environ.get("INVOICES_RESULTS", "redis://localhost"),
    include=["proj.tasks"],
)
app.conf.task_default_queue = os.environ.get("INVOICES_QUEUE", "invoices")
app.conf.beat_schedule = {
    "month end": {
        "task": "proj.tasks.close_month",
        # INVOICES_EVERY, in seconds, is for those who do not want to wait for a month.
        "schedule": float(os.environ.get("INVOICES_EVERY", "0"))
        or crontab(day_of_month="1", hour="6", minute="0"),
    }
}
install(app)
