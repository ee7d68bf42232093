"""Taskiq: plugins for a broker's own tasks, or an app's runs on a broker.

===============  =================================================================================
``install.py``   ``install(broker)``: plugins for the tasks of a broker
``forward.py``   ``QueueTasks("shop", engine=broker)``: its runs
``brokers.py``   what each kind of broker can do
===============  =================================================================================

The worker is Taskiq's own command, ``taskiq worker module:broker``. Runs survive a killed worker
on RabbitMQ, and on a Redis stream that gets further messages.
"""

from __future__ import annotations

from qtasks_pluggy.engines._versions import require

require("taskiq", "0.11.20")

from qtasks_pluggy.engines.taskiq.forward import TaskiqEngine
from qtasks_pluggy.engines.taskiq.install import at_least_once, install

__all__ = ["TaskiqEngine", "at_least_once", "install"]
