"""``retry``: retries with exponential back-off and jitter, from the settings alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

from qtasks_hookspecs import Retry, RunningTask, hookimpl
from qtasks_hookspecs.exc import SettingsError, TaskPluginTriggerError
from qtasks_pluggy.builtin._errors import (
    matches,
    read_error_names,
    refuse_unknown_keys,
)

# The first delay, the growth and the jitter are tenacity's defaults; the bound is small, so that a
# run in place does not seem to hang.
_NUMBERS: dict[str, float] = {"delay": 1.0, "factor": 2.0, "max_delay": 30.0, "jitter": 1.0}
_KEYS = ("errors", "limit", *_NUMBERS)


class RetryPlugin:
    """Answers ``Retry`` for errors of the named classes, with growing delays.

    Its section::

        [tool.qtasks_pluggy.plugin.retry]
        errors = ["ConnectionError", "TimeoutError"]  # needed
        limit = 3         # retries of one run
        delay = 1.0       # seconds before the first one
        factor = 2.0      # each next one waits this much longer
        max_delay = 30.0  # seconds that no delay exceeds
        jitter = 1.0      # seconds, of which a random part is added

    The schedule is tenacity's ``wait_exponential`` and ``wait_random``, from the extra ``[retry]``.
    """

    name = "retry"

    def __init__(self) -> None:
        self.errors: tuple[str, ...] = ()
        self.limit: int = 3
        self._wait: Callable[[int], float] = lambda _: 0.0

    @hookimpl
    def qtasks_start(self, settings: Mapping[str, Any]) -> None:
        """Read the section.

        Args:
            settings: The plugin's section.

        Raises:
            ImportError: tenacity is not installed.
            SettingsError: The section has another key, or a value is malformed.
        """
        refuse_unknown_keys("plugin.retry", settings, _KEYS)
        if "errors" not in settings:
            msg = "plugin.retry needs errors, the names of the exception classes to retry"
            raise SettingsError(msg)
        self.errors = read_error_names(settings["errors"], "plugin.retry.errors")
        limit = settings.get("limit", 3)
        if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
            msg = "plugin.retry.limit takes a whole number, 1 or more"
            raise SettingsError(msg)
        self.limit = limit
        numbers = {key: _number(key, settings.get(key, own)) for key, own in _NUMBERS.items()}
        try:
            from tenacity.wait import wait_exponential, wait_random  # noqa: PLC0415  # an extra
        except ImportError as error:
            msg = "the built-in plugin 'retry' needs tenacity: pip install 'qtasks-pluggy[retry]'"
            raise ImportError(msg) from error
        growing = wait_exponential(multiplier=numbers["delay"], exp_base=numbers["factor"])
        schedule = growing + wait_random(0, numbers["jitter"])
        most = numbers["max_delay"]
        # The schedule reads only the attempt's number of a call's state.
        state: Any = SimpleNamespace
        self._wait = lambda attempt: min(most, schedule(state(attempt_number=attempt)))

    @hookimpl
    def task_executor_run_task_trigger_error(
        self, task_executor: RunningTask, e: TaskPluginTriggerError
    ) -> Retry | None:
        """Answer with a retry after the schedule's delay."""
        if not matches(e, self.errors):
            return None
        return Retry(self._wait(task_executor.attempt), self.limit)


def _number(key: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        msg = f"plugin.retry.{key} takes a number, got {type(value).__name__}"
        raise SettingsError(msg)
    least = 1 if key == "factor" else 0
    if value < least:
        msg = f"plugin.retry.{key} takes a number, {least} or more"
        raise SettingsError(msg)
    return float(value)
