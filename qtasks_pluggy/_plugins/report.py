"""Reporting a dispatch: log events, the note on the task's error, and ``strict``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

from qtasks_hookspecs.exc import PluginError, own_error, safe_repr
from qtasks_pluggy import _log
from qtasks_pluggy._plugins.call import Call
from qtasks_pluggy._plugins.chain import DECISIONS, Asked, Link, decided_by
from qtasks_pluggy._plugins.trail import short
from qtasks_pluggy._text import describe_error, disable_hint
from qtasks_pluggy._waiting import LimitExceededError


def report_failure(link: Link, call: Call, failure: BaseException, seconds: float) -> None:
    """Record and log a hookimpl's failure, and count it for the quarantine.

    Raises:
        PluginError: It failed under ``strict``, or while starting.
    """
    call.has_failures = True
    fields = _event_fields(link, call.values)
    begins_quarantine = link.breaker.record_failure()
    if isinstance(failure, LimitExceededError):
        text = f"no answer within its {link.limit} seconds{failure.left_behind}"
        error: BaseException = TimeoutError(text)
        call.record(Asked(link, call.attempt, "timed_out", None, seconds))
        _log.event("error", "plugin_timed_out", **fields, error="TimeoutError", timeout=link.limit)
    else:
        error = failure
        call.record(Asked(link, call.attempt, "raised", type(failure), seconds))
        name = type(failure).__name__
        _log.event("error", "plugin_failed", **fields, error=name, exc_info=failure)
    if begins_quarantine:
        _log.event("warning", "plugin_quarantined", **fields, **link.breaker.event_fields)
    starting = call.hook.name == "qtasks_start"
    if starting or (call.hook.manager.settings.strict and not link.observed):
        raise _plugin_error(link, call, error, starting=starting) from error


def _plugin_error(link: Link, call: Call, error: BaseException, *, starting: bool) -> PluginError:
    """Return an error that names the plugin, the hook and what to do."""
    why = "strict is on; fix the plugin, disable it, or set QTASKS_PLUGGY_STRICT=false"
    if starting:
        why = "the app was not started; fix the plugin, or disable it"
    task = task_name(call.values)
    where = f"hook {link.hook!r}" if task is None else f"hook {link.hook!r} for task {task!r}"
    msg = (
        f"{link.who} failed in {where} with {describe_error(error)};"
        f" {why} ({disable_hint(link.plugin)})"
    )
    task_error = own_error(call.values["e"]) if call.hook.has_error else None
    return PluginError(msg, task_error=task_error)


def report_teardown_failure(link: Link, values: Mapping[str, Any], failure: BaseException) -> None:
    """Log a hookimpl's failure that happens during another error."""
    fields = _event_fields(link, values)
    _log.event("error", "plugin_failed", **fields, error=type(failure).__name__, exc_info=failure)


def report_clean_up(link: Link, values: Mapping[str, Any], cut: BaseException) -> None:
    """Log the failure of a hookimpl's clean-up, if it had one when the run was cancelled."""
    if isinstance(cut.__cause__, Exception):
        report_teardown_failure(link, values, cut.__cause__)


def report_return(link: Link, values: Mapping[str, Any], seconds: float) -> None:
    """Check a returned call against its time limit, and count it for the quarantine."""
    breaker = link.breaker
    fields = _event_fields(link, values)
    if seconds > link.overrun:
        # The call could not be cancelled: its answer counts, and so does its overrun.
        begins_quarantine = breaker.record_failure()
        _log.event("warning", "plugin_overran", **fields, seconds=seconds, timeout=link.limit)
        if begins_quarantine:
            _log.event("warning", "plugin_quarantined", **fields, **breaker.event_fields)
    elif breaker.failures and breaker.record_success():
        _log.event("warning", "plugin_released", **fields)


def _event_fields(link: Link, values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "plugin": link.plugin,
        "handler": link.handler,
        "distribution": link.distribution,
        "version": link.version,
        "hook": link.hook,
        "task": task_name(values),
    }


def task_name(values: Mapping[str, Any]) -> str | None:
    """Return the name of the task that a hook is called for, or None."""
    return getattr(values.get("task_func"), "name", None)


def add_note_once(error: BaseException, text: str) -> None:
    """Add a note to an error unless it has that note."""
    text = f"qtasks_pluggy: {text}"
    try:
        if text not in getattr(error, "__notes__", ()):
            error.add_note(text)
    except Exception:  # noqa: BLE001, S110  # an error class that refuses notes; the trail has everything
        pass


def report_dispatch(call: Call) -> None:
    """Note failures on the task's error, and log who decided."""
    if call.has_failures:
        records = [entry.to_record() for entry in call.entries[call.first :]]
        add_note_once(own_error(call.values["e"]), f"{call.hook.name}: {short(records)}")
    if call.hook.lastresult and _log.info_enabled():
        entries = call.entries[call.first :]
        _report_decisions(call, entries)
        if _log.debug_enabled():
            _report_trail(call, entries)


def _report_decisions(call: Call, entries: list[Asked]) -> None:
    """Log the decision that is used, and the observed ones."""
    for entry in entries:
        if not (entry.won or (entry.link.observed and entry.status == "answered")):
            continue
        link, kind = entry.link, entry.kind
        _log.event(
            "info",
            "task_error_decided",
            **_error_fields(call),
            plugin=link.plugin,
            handler=link.handler,
            distribution=link.distribution,
            version=link.version,
            decision=kind.__name__ if kind in DECISIONS else "value",
            observed=link.observed,
        )


def _report_trail(call: Call, entries: list[Asked]) -> None:
    """Log the whole trail, with values if ``log_values`` is on."""
    fields = _error_fields(call)
    fields["won"] = decided_by(entries)
    fields["trail"] = [attrs.asdict(entry.to_record()) for entry in entries]
    if call.hook.manager.settings.log_values:
        run = call.values["task_executor"]
        args, kwargs = getattr(run, "args", None), dict(getattr(run, "kwargs", ()))
        shown = {"args": args, "kwargs": kwargs, "answer": call.answer}
        fields |= {name: safe_repr(value) for name, value in shown.items()}
    _log.event("debug", "task_error_dispatched", **fields)


def _error_fields(call: Call) -> dict[str, Any]:
    values = call.values
    return {
        "task": task_name(values),
        "uuid": str(getattr(values["task_broker"], "uuid", None)),
        "attempt": call.attempt,
        "error": type(own_error(values["e"])).__name__,
    }
