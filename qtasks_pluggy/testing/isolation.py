"""Apps without environment, files and installed plugins."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from typing import Any, Final

from qtasks_pluggy import PluginManager, QueueTasks
from qtasks_pluggy.testing.given import find_plugin, names_of

_PREFIX: Final = "QTASKS_PLUGGY_"
_FILE: Final = f"{_PREFIX}FILE"


@contextmanager
def isolated_settings() -> Generator[None]:
    """Read no settings from the environment or from a file.

    For apps that a test does not make itself: what they start in this ``with`` has the settings
    of their own code alone. The environment of the whole process is changed until the end.
    """
    before = _settings_in_environment()
    for name in before:
        del os.environ[name]
    os.environ[_FILE] = os.devnull  # an empty file, so that none is looked for
    try:
        yield
    finally:
        for name in _settings_in_environment():
            del os.environ[name]
        os.environ.update(before)


def _settings_in_environment() -> dict[str, str]:
    return {name: text for name, text in os.environ.items() if name.startswith(_PREFIX)}


class _IsolatedManager(PluginManager):
    """Plugins whose settings are those of the test alone."""

    _reads_environment = False


def isolated_app(
    *plugins: Any,
    name: str = "test",
    discover: bool = False,
    settings: Mapping[str, Any] | None = None,
    clock: Callable[[], float] = time.monotonic,
    **options: Any,
) -> QueueTasks:
    """Make an app that has the plugins and settings of a test, and no others.

    Neither the environment nor a file is read, and installed plugins are not looked for. Plugins
    are asked about every ``Exception``, and one that fails raises ``PluginError`` at once, because
    ``strict`` is on; ``settings`` and ``intercept=`` may say otherwise.

    Args:
        *plugins: Each the name of an entry point, a module or where to import it from, an object,
            or a class or factory, of which the app makes one for itself.
        name: The app's name.
        discover: Whether the installed plugins are loaded.
        settings: Keys of the settings, ``{"timeout": 0.2, "plugin": {"mine": {...}}}``.
        clock: Monotonic seconds, for the quarantine; a ``FakeClock`` for example.
        **options: As for ``QueueTasks``: ``engine``, ``intercept``, ``max_retries``.

    Returns:
        The app, not started.

    Raises:
        PluginRegistrationError: Faults of a plugin, all of them.
        SettingsError: Faults of the settings.
    """
    keys = {"strict": True, **(settings or {})}
    options.setdefault("intercept", Exception)
    app = QueueTasks(name, discover=discover, **options)
    app.plugins = _IsolatedManager(settings=keys, clock=clock)
    for plugin in plugins:
        given = find_plugin(plugin)
        made = given.make()
        app.plugins.register(made, given.name_of(made))
    return app


def installed_app(
    distribution: str, *, settings: Mapping[str, Any] | None = None, **options: Any
) -> QueueTasks:
    """Make an app that discovers the plugins of one installed distribution, and no others.

    Args:
        distribution: Its name, as pip lists it.
        settings: Keys of the settings.
        **options: As for ``isolated_app``.

    Returns:
        The app, not started.

    Raises:
        PluginRegistrationError: It is not installed, or has no plugin.
        SettingsError: Faults of the settings.
    """
    keys = {"allow": names_of(distribution), **(settings or {})}
    return isolated_app(discover=True, settings=keys, **options)
