"""Dramatiq: plugins for the actors of a broker, or the engine of a ``QueueTasks`` app.

===============  =================================================================================
``install.py``   ``install(broker)``: plugins for the actors of a Dramatiq broker
``forward.py``   ``QueueTasks("shop", engine=broker)``: Dramatiq as its engine
===============  =================================================================================

The worker is Dramatiq's own command, ``dramatiq module``. Runs survive a killed worker on
RabbitMQ and on Redis.
"""

from __future__ import annotations

from qtasks_pluggy.engines._versions import require

require("dramatiq", "1.17")

from qtasks_pluggy.engines.dramatiq.forward import DramatiqEngine
from qtasks_pluggy.engines.dramatiq.install import at_least_once, install

__all__ = ["DramatiqEngine", "at_least_once", "install"]
