"""{{ title }}: tries a task again when its connection is lost.

Change the handler to what your plugin is for. It imports ``qtasks_hookspecs`` and nothing else of
qtasks-pluggy, so it works in every app and on every engine.
"""

from __future__ import annotations

import attrs

from qtasks_hookspecs import Retry, hookimpl, on_error


@attrs.frozen
class Settings:
    """What an operator may set; a wrong key or type stops the start of an app."""

    # Seconds before the next attempt.
    delay: float = attrs.field(default=1.0, validator=attrs.validators.ge(0))
    # The most retries of one run.
    limit: int = attrs.field(default=3, validator=attrs.validators.ge(1))


class Plugin:
    """The plugin; each app makes one for itself."""

    def __init__(self) -> None:
        self.settings: Settings = Settings()

    @hookimpl
    def qtasks_start(self, settings: Settings) -> None:
        """Take the plugin's section of the settings."""
        self.settings = settings

    @on_error(ConnectionError)
    def try_again(self) -> Retry | None:
        """Decide about a task's error; None is no opinion, and the error goes on."""
        return Retry(delay=self.settings.delay, limit=self.settings.limit)
