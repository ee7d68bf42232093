"""Engines: what carries submitted runs to whoever does them.

===================  ===========================================================================
``memory.py``        ``memory://``: in this process, gone with it
``celery.py``        Celery, on RabbitMQ or Redis
``dramatiq.py``      Dramatiq, on RabbitMQ or Redis
``huey.py``          Huey; on SQLite, ``huey+sqlite:///file.db``, the durable one with no server
``taskiq.py``        Taskiq, on RabbitMQ or Redis
``reverse.py``       what every ``install`` shares: plugins for an engine's own tasks
``servers.py``       what adapters over message servers share
===================  ===========================================================================

An adapter for another engine is a class that is called with what the app was given, a URL or the
engine's own object, and has all that ``Engine`` names. It is found by an entry point of the group
``qtasks_pluggy.engines``, whose name is the scheme of its URLs, or the package that the engine's
own object comes from. This module has what an adapter needs besides ``qtasks_pluggy`` itself.
"""

from __future__ import annotations

from qtasks_pluggy._fork import lock_of
from qtasks_pluggy._log import event as log_event
from qtasks_pluggy._submit.lookup import url_options
from qtasks_pluggy._submit.outcome import Attempt, Ended, status_of
from qtasks_pluggy._submit.outcome import Attempt as Outcome
from qtasks_pluggy._submit.protocol import Capabilities, Engine, Host, NoRoomError
from qtasks_pluggy._waiting import background
from qtasks_pluggy.engines._installed import installed_in

__all__ = [
    "Attempt",
    "Capabilities",
    "Ended",
    "Engine",
    "Host",
    "NoRoomError",
    "Outcome",
    "background",
    "installed_in",
    "lock_of",
    "log_event",
    "status_of",
    "url_options",
]
