"""Celery: plugins for the tasks of a Celery app, or the engine of a ``QueueTasks`` app.

===============  =================================================================================
``install.py``   START HERE: ``install(app)``, plugins for the tasks of a Celery app
``worker.py``    starts and stops the plugins in the processes of a worker
``forward.py``   ``QueueTasks("shop", engine=app)``: Celery as its engine
``losses.py``    what Celery below 5.7 lacks: a limit for runs that kill their process
``settings.py``  ``at_least_once``, and what the broker and the result backend can do
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
