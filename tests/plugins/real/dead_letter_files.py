"""Keeps dead letters in a folder, one file for each run, until somebody replays them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import attrs

from qtasks_hookspecs import RunningApp, TaskMessage, blocking, hookimpl


@attrs.frozen
class Settings:
    """Where the letters are kept."""

    folder: Path = attrs.field(converter=Path)


class DeadLetterFiles:
    """The plugin: an app makes one for itself."""

    folder: Path

    def __init__(self) -> None:
        self._app: RunningApp | None = None

    @hookimpl
    def qtasks_start(self, app: RunningApp, settings: Settings) -> None:
        """Make the folder, if it is not there."""
        self._app, self.folder = app, settings.folder
        self.folder.mkdir(parents=True, exist_ok=True)

    @hookimpl
    @blocking
    def task_executor_dead_letter(
        self, task_broker: TaskMessage, e: Exception, reason: str
    ) -> bool:
        """Keep a run, once: a file has the name of its run, and is there whole or not at all."""
        letter = {
            "uuid": str(task_broker.uuid),
            "task": task_broker.name,
            "args": task_broker.args,
            "kwargs": task_broker.kwargs,
            "attempt": task_broker.attempt,
            "error": f"{type(e).__name__}: {e}",
            "reason": reason,
        }
        text = json.dumps(letter)  # what cannot be written this way is not kept
        path = self.folder / f"{letter['uuid']}.json"
        half = path.with_suffix(".half")
        with half.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        half.replace(path)
        return True

    def letters(self) -> Iterator[dict[str, object]]:
        """Read the letters that nobody has replayed."""
        for path in sorted(self.folder.glob("*.json")):
            yield json.loads(path.read_text("utf-8"))

    def replay(self, uuid: str) -> UUID | str:
        """Run a letter's task again, and return the new run's id.

        The letter is claimed first, so that two who press at the same moment replay it once.
        """
        if self._app is None:
            msg = "dead letters are replayed by an app that is started"
            raise RuntimeError(msg)
        path = self.folder / f"{uuid}.json"
        claimed = path.rename(path.with_suffix(".claimed"))
        letter = json.loads(claimed.read_text("utf-8"))
        message = TaskMessage(letter["task"], letter["args"], letter["kwargs"], uuid=uuid)
        try:
            new = self._app.replay(message)
        except BaseException:
            claimed.rename(path)
            raise
        claimed.unlink()
        return new
