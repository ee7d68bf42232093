"""The errors, the very classes of ``qtasks_hookspecs.exc``, for apps to import from here."""

from __future__ import annotations

from qtasks_hookspecs.exc import (
    CapabilityError,
    EngineError,
    NotRunningError,
    PluginError,
    PluginRegistrationError,
    QTasksError,
    QueueFullError,
    SettingsError,
    TaskCancelError,
    TaskDeadLetteredError,
    TaskNameError,
    TaskPluginTriggerError,
    TaskTimeoutError,
)

__all__ = [
    "CapabilityError",
    "EngineError",
    "NotRunningError",
    "PluginError",
    "PluginRegistrationError",
    "QTasksError",
    "QueueFullError",
    "SettingsError",
    "TaskCancelError",
    "TaskDeadLetteredError",
    "TaskNameError",
    "TaskPluginTriggerError",
    "TaskTimeoutError",
]
