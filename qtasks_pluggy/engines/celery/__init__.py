"""Celery: plugins for a Celery app's own tasks, or an app's runs on Celery.

===============  =================================================================================
``install.py``   ``install(app)``: plugins for the tasks of a Celery app
``forward.py``   ``QueueTasks("shop", engine=app)``: its runs
===============  =================================================================================

The worker is Celery's own command, ``celery -A module worker``. Runs survive a killed worker on
RabbitMQ and on Redis.
"""

from __future__ import annotations

from qtasks_pluggy.engines._versions import require

require("celery", "5.3")

from qtasks_pluggy.engines.celery.forward import CeleryEngine
from qtasks_pluggy.engines.celery.install import Plugins, install
from qtasks_pluggy.engines.celery.settings import at_least_once

__all__ = ["CeleryEngine", "Plugins", "at_least_once", "install"]
