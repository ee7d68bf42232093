"""Huey: plugins for the tasks of a Huey app, or Huey as the engine of a ``QueueTasks`` app.

===============  =================================================================================
``install.py``   ``install(huey)``: plugins for the tasks of an existing Huey app
``forward.py``   ``QueueTasks("shop", engine="huey+sqlite:///file.db")``, or ``engine=huey``
``ledger.py``    keeps the runs that a killed worker was executing
``lock.py``      allows only one consumer for each file
``storage.py``   opens the file, and explains what is wrong with it
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
