"""``failures``: what failed, why, who decided, and how often. A plugin, off until it is enabled.

==================  ==========================================================================
``plugin.py``       the hooks and the settings: START HERE
``records.py``      what is recorded, and what is read again
``errors.py``       an error, taken down without keeping anything of the program alive
``values.py``       arguments as text that reads back as the same values; redaction; bounds
``buffer.py``       what waits to be written
``recorder.py``     the thread that writes it; forks, stops and exits
``store.py``        what becomes of a batch: groups, counts, runs, attempts; retention
``schema.py``       the tables
``connection.py``   how a store is reached: its URL, its file, its version
``queries.py``      groups, runs, and one run with all that is kept of it
``acts.py``         what people do with groups and runs
``claims.py``       which runs a replay takes, so that none is taken twice
``replay.py``       runs that are sent again, one after another
``ask.py``          what today's plugins would make of recorded errors
``command/``        the command ``qtasks-pluggy failures``
``web/``            the page, with the extra ``web``
==================  ==========================================================================

The plugin uses what every plugin may use, and nothing else; its command prints as others do.
"""

from __future__ import annotations

from qtasks_pluggy.failures.plugin import Failures, FailuresSettings

__all__ = ["Failures", "FailuresSettings"]
