"""The plugins that come with qtasks-pluggy, off until ``enable`` names them.

==================  ==========================================================
``fallback.py``     results for failing tasks, by task, tag and error class
``retry.py``        retries with exponential back-off, by error class
``_errors.py``      error classes by their names, for both
==================  ==========================================================

They use only what every plugin may use.
"""

from __future__ import annotations

from qtasks_pluggy.builtin.fallback import Fallback
from qtasks_pluggy.builtin.retry import RetryPlugin

__all__ = ["Fallback", "RetryPlugin"]
