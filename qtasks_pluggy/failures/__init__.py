"""``failures``: records what failed, why, and who decided. A built-in plugin, off until enabled.

==================  ==========================================================================
``plugin.py``       the hooks and the settings: START HERE
``records.py``      what is recorded, and what is read again
``errors.py``       an error, captured without keeping its objects alive
``values.py``       arguments as text that reads back as the same values; redaction; bounds
``buffer.py``       records that wait to be written
``recorder.py``     the thread that writes it; forks, stops and exits
``store.py``        writes batches: groups, counts, runs, attempts; retention
``schema.py``       the tables
``connection.py``   how a store is reached: its URL, its file, its version
``queries.py``      groups, runs, and one run with all that is kept of it
``acts.py``         what people do with groups and runs
``claims.py``       marks the runs that a replay takes, so that none is taken twice
``replay.py``       sends recorded runs again, one after another
``ask.py``          asks today's plugins about recorded errors
``command/``        the command ``qtasks-pluggy failures``
``web/``            the page, with the extra ``web``
==================  ==========================================================================

The plugin uses only what every plugin may use; its command prints like the others.
"""

from __future__ import annotations

from qtasks_pluggy.failures.plugin import Failures, FailuresSettings

__all__ = ["Failures", "FailuresSettings"]
