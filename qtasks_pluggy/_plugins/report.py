"""How a dispatch is told: to the log, on the task's error, and to everybody under ``strict``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

from qtasks_hookspecs.exc import PluginError
from qtasks_pluggy import _log
from qtasks_pluggy._plugins.chain import Entry, Hook, Link, record_of
from qtasks_pluggy._plugins.trail import short
from qtasks_pluggy._text import safe_str, switch_off
from qtasks_pluggy._waiting import LimitExceededError


def misuse(hook: Hook, values: Mapping[str, Any]) -> TypeError:
    """Say that a hook was called with the wrong parameters."""
    return TypeError(
        f"hook {hook.name!r} takes {sorted(hook.names)}, but was called with {sorted(values)}"
    )


def failed(
    hook: Hook,
    link: Link,
    failure: BaseException,
    values: Mapping[str, Any],
    entries: list[Entry],
    attempt: int,
    seconds: float,
    *,
    call: object,
) -> None:
    """Take down a hookimpl's failure, tell the log, and under ``strict`` everybody."""
    if frozenset(values) != hook.names:
        # Not the plugin's fault: the hook was called without what it has to hand on.
        link.breaker.abandoned(call)
        raise misuse(hook, values)
    event, status, shown = "plugin_failed", "raised", failure
    if isinstance(failure, LimitExceededError):
        event, status = "plugin_timed_out", "timed_out"
        shown = TimeoutError(f"no answer within its {link.limit} seconds{failure.left_behind}")
    kind = type(failure) if status == "raised" else None
    entries.append([link, attempt, status, kind, seconds, False])
    task = task_name(values)
    quarantined = link.breaker.failed(call)
    traceback = {"exc_info": failure} if shown is failure else {"timeout": link.limit}
    _log.event("error", event, **_place(link, task), error=type(shown).__name__, **traceback)
    if quarantined:
        _log.event("warning", "plugin_quarantined", **_place(link, task), **link.breaker.facts)
    starting = hook.name == "qtasks_start"
    if starting or (hook.manager.settings.strict and not link.observed):
        why = (
            "the app was not started; mend the plugin, or switch it off"
            if starting
            else "strict is on; mend the plugin, switch it off, or set QTASKS_PLUGGY_STRICT=false"
        )
        where = f"hook {link.hook!r}" if task is None else f"hook {link.hook!r} for task {task!r}"
        msg = (
            f"{link.who} failed in {where} with {type(shown).__name__}: {safe_str(shown)};"
            f" {why} ({switch_off(link.plugin)})"
        )
        raise PluginError(msg, task_error=values.get("e")) from shown


def blame(link: Link, failure: BaseException, values: Mapping[str, Any]) -> None:
    """Log a hookimpl's failure that comes on top of another error."""
    place = _place(link, task_name(values))
    _log.event("error", "plugin_failed", **place, error=type(failure).__name__, exc_info=failure)


def wait_for(link: Link, values: Mapping[str, Any], seconds: float, call: object) -> None:
    """Hold a call that came back against its time limit, and its quarantine against the call."""
    breaker = link.breaker
    place = _place(link, task_name(values))
    if seconds > link.overrun and not (link.is_async or link.blocking):
        # A plain call cannot be cut: its answer counts, and so does its overrun.
        quarantined = breaker.failed(call)
        _log.event("warning", "plugin_overran", **place, seconds=seconds, timeout=link.limit)
        if quarantined:
            _log.event("warning", "plugin_quarantined", **place, **breaker.facts)
    elif breaker.failures and breaker.succeeded(call):
        _log.event("warning", "plugin_released", **place)


def _place(link: Link, task: str | None) -> dict[str, Any]:
    return {
        "plugin": link.plugin,
        "distribution": link.distribution,
        "version": link.version,
        "hook": link.hook,
        "task": task,
    }


def task_name(values: Mapping[str, Any]) -> str | None:
    """Name the task that a hook is called for, if it is for one."""
    task_func = values.get("task_func") or getattr(values.get("task_executor"), "task_func", None)
    return getattr(task_func, "name", None)


def note(error: BaseException, text: str) -> None:
    """Note a text on an error, once, however often the same error comes by."""
    text = f"qtasks_pluggy: {text}"
    try:
        if text not in getattr(error, "__notes__", ()):
            error.add_note(text)
    except Exception:  # noqa: BLE001, S110  # an error class that refuses notes; the trail has it all
        pass


def tell(hook: Hook, values: Mapping[str, Any], entries: list[Entry], answer: Any) -> None:
    """Note a dispatch that went wrong on the error, and log it where somebody listens."""
    # A host's own hooks have an error perhaps, but no run.
    error, run = values["e"], values.get("task_executor")
    records = [record_of(entry) for entry in entries]
    if any(record.status in {"raised", "timed_out"} for record in records):
        note(error, f"{hook.name}: {short(records)}")
    if hook.lastresult and _log.debug_enabled():
        event = {
            "task": task_name(values),
            "uuid": str(getattr(values.get("task_broker"), "uuid", None)),
            "attempt": getattr(run, "attempt", None),
            "error": type(error if error.__cause__ is None else error.__cause__).__name__,
            "won": next((record.plugin for record in records if record.won), None),
            "trail": [attrs.asdict(record) for record in records],
        }
        if hook.manager.settings.log_values:
            args, kwargs = getattr(run, "args", None), dict(getattr(run, "kwargs", ()))
            shown = {"args": args, "kwargs": kwargs, "answer": answer}
            event |= {name: _shown(value) for name, value in shown.items()}
        _log.event("debug", "task_error_dispatched", **event)


def _shown(value: Any) -> str:
    try:
        return repr(value)
    except Exception as error:  # noqa: BLE001  # somebody else's __repr__
        return f"<{type(value).__name__}, whose repr raises {type(error).__name__}>"
