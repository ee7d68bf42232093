"""``fallback``: results for failing tasks, from the settings alone."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

import attrs

from qtasks_hookspecs import Replace, TaskFunc, hookimpl
from qtasks_hookspecs.exc import SettingsError, TaskPluginTriggerError
from qtasks_pluggy.builtin._errors import (
    matches,
    read_error_names,
    refuse_unknown_keys,
)

_KEYS = ("task", "tag", "error", "result")


@attrs.frozen
class Rule:
    """One rule: which errors it answers, and with what.

    Attributes:
        result: The result.
        task: A glob for the task's name; None for any task.
        tag: A tag that the task must have; None for any.
        error: Names of error classes; None for any error that plugins are asked about.
    """

    result: Any
    task: str | None = None
    tag: str | None = None
    error: tuple[str, ...] | None = None

    def fits(self, task_func: TaskFunc, error: BaseException) -> bool:
        """Return whether the rule answers this error of this task."""
        return (
            (self.task is None or fnmatchcase(task_func.name, self.task))
            and (self.tag is None or self.tag in task_func.tags)
            and (self.error is None or matches(error, self.error))
        )


class Fallback:
    """Answers with the result of the first rule that fits; without one it has no opinion.

    Its section has ``rules``, a list of tables. Each has ``result``, and at least one of ``task``
    (a glob), ``tag`` and ``error`` (a class name or several)::

        [[tool.qtasks_pluggy.plugin.fallback.rules]]
        task = "price_*"
        error = ["ConnectionError", "shop.errors.NoPrice"]
        result = 0
    """

    name = "fallback"

    def __init__(self) -> None:
        self.rules: tuple[Rule, ...] = ()

    @hookimpl
    def qtasks_start(self, settings: Mapping[str, Any]) -> None:
        """Read the rules.

        Args:
            settings: The plugin's section.

        Raises:
            SettingsError: The section has another key, or a rule is malformed.
        """
        refuse_unknown_keys("plugin.fallback", settings, ("rules",))
        rules = settings.get("rules", [])
        if not isinstance(rules, (list, tuple)):
            msg = f"plugin.fallback.rules takes a list of tables, got {type(rules).__name__}"
            raise SettingsError(msg)
        self.rules = tuple(_rule(number, one) for number, one in enumerate(rules, start=1))

    @hookimpl
    def task_executor_run_task_trigger_error(
        self, task_func: TaskFunc, e: TaskPluginTriggerError
    ) -> Replace | None:
        """Answer with the result of the first rule that fits."""
        for rule in self.rules:
            if rule.fits(task_func, e):
                return Replace(rule.result)
        return None


def _rule(number: int, table: Any) -> Rule:
    where = f"plugin.fallback.rules, rule {number}"
    if not isinstance(table, Mapping):
        msg = f"{where}: expected a table, got {type(table).__name__}"
        raise SettingsError(msg)
    refuse_unknown_keys(where, table, _KEYS)
    if "result" not in table or len(table) == 1:
        msg = f"{where}: needs result and at least one of task, tag and error, got {sorted(table)}"
        raise SettingsError(msg)
    for key in ("task", "tag"):
        if key in table and not (isinstance(table[key], str) and table[key]):
            msg = f"{where}: {key} takes a text, got {type(table[key]).__name__}"
            raise SettingsError(msg)
    error = read_error_names(table["error"], f"{where}: error") if "error" in table else None
    return Rule(table["result"], table.get("task"), table.get("tag"), error)
