"""Huey: plugins for a Huey's own tasks, or an app's runs on Huey.

===============  =================================================================================
``install.py``   ``install(huey)``: plugins for the tasks of a Huey
``forward.py``   ``QueueTasks("shop", engine="huey+sqlite:///file.db")``, or a Huey: its runs
``ledger.py``    what keeps a run that a killed worker was doing
===============  =================================================================================

The worker is Huey's own command, ``huey_consumer module.huey``, where ``huey`` is the app's
``app.engine.native``.
"""

from __future__ import annotations

from qtasks_pluggy.engines._versions import require

require("huey", "3.0")

from qtasks_pluggy.engines.huey.forward import HueyEngine
from qtasks_pluggy.engines.huey.install import at_least_once, install

__all__ = ["HueyEngine", "at_least_once", "install"]
