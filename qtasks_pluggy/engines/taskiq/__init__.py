"""Taskiq: plugins for the tasks of a broker, or the engine of a ``QueueTasks`` app.

===============  =================================================================================
``install.py``   ``install(broker)``: plugins for the tasks of a broker
``forward.py``   ``QueueTasks("shop", engine=broker)``: Taskiq as its engine
``brokers.py``   what a broker can do, whether it is open, and the runs that it hands over
===============  =================================================================================

The worker is Taskiq's own command, ``taskiq worker module:broker``. Runs survive a killed worker
on RabbitMQ, and on a Redis stream if further messages arrive.
"""

from __future__ import annotations

from qtasks_pluggy.engines._versions import require

require("taskiq", "0.11.20")

from qtasks_pluggy.engines.taskiq.brokers import at_least_once
from qtasks_pluggy.engines.taskiq.forward import TaskiqEngine
from qtasks_pluggy.engines.taskiq.install import install

__all__ = ["TaskiqEngine", "at_least_once", "install"]
