"""Apps on Celery, for the tests of its adapter."""

from __future__ import annotations

import contextlib
import gc
import threading
import warnings

import kombu.pools
from celery import Celery, signals
from celery.contrib.testing.worker import start_worker


def celery_app(name="shop", **settings):
    """Make a Celery app with no server behind it."""
    native = Celery(name, broker="memory://", backend="cache+memory://", set_as_current=False)
    native.conf.update(settings)
    return native


def forget_connections():
    """Close what Celery keeps open for the next message, and what its clients leave to be found."""
    kombu.pools.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


@signals.setup_logging.connect
def leave_logging_alone(**_):
    """Keep workers in this process from setting up its logging: it is pytest's."""


@contextlib.contextmanager
def working(native, **options):
    """Run a worker of a Celery app in this process, as its command would."""
    options = {"pool": "threads", "concurrency": 2} | options
    native.conf.broker_transport_options = {
        **native.conf.broker_transport_options,
        "polling_interval": 0.01,
    }
    down = threading.Event()

    def knock():
        # A worker looks whether it is to end after each message, and else every two seconds.
        while not down.wait(0.02):
            native.control.broadcast("ping")

    knocking = threading.Thread(target=knock)
    try:
        with start_worker(native, perform_ping_check=False, shutdown_timeout=30, **options):
            try:
                yield
            finally:
                knocking.start()
    finally:
        down.set()
        if knocking.ident:
            knocking.join()
            signals.worker_shutdown.send(sender=None)
