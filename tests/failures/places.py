"""A store in a folder of the test, and records made by hand."""

from __future__ import annotations

import time
from itertools import count
from pathlib import Path
from typing import Any

from qtasks_pluggy.failures.connection import read_url
from qtasks_pluggy.failures.errors import tell
from qtasks_pluggy.failures.queries import Reader
from qtasks_pluggy.failures.records import Filters, Record
from qtasks_pluggy.failures.store import Keep, Store
from qtasks_pluggy.failures.values import Encoder

ENCODER = Encoder(["password", "*token*"], 65_536)


class Place:
    """A store in a folder.

    Args:
        folder: The folder.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "state" / "failures.db"
        self.text = f"sqlite:///{self.path}"
        self.url = read_url(self.text)
        self._numbers = count(1)

    def record(self, error: BaseException | None = None, **values: Any) -> Record:
        """Make a record of a failed run; what is not given is as usual."""
        args, kwargs = values.pop("args", ()), values.pop("kwargs", {})
        usual: dict[str, Any] = {
            "uuid": f"run-{next(self._numbers)}",
            "app": "shop",
            "engine": "",
            "attempt": 1,
            "task": "price",
            "queue": None,
            "status": "failed",
            "group": "a-group",
            "told": tell(error or KeyError("EUR"), 65_536),
            "at": time.time(),
            "seconds": 0.25,
            "decided_by": None,
            "decision": None,
            "reason": "",
            "trail": (),
            "arguments": ENCODER.encode(args, kwargs),
            "error_arguments": None,
            "replay_of": None,
        }
        return Record(**usual | values)

    def store(self, **keep: Any) -> Store:
        """Open the writing side."""
        return Store(self.url, Keep(**keep))

    def reader(self) -> Reader:
        """Open the reading side."""
        return Reader(self.url)

    def counts(self, group: str = "a-group") -> dict[str, int]:
        """Return how many runs of a group ended how."""
        (found,) = self.reader().groups(Filters(group=group))
        return found.counts
