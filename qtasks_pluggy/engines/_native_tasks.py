"""What engines know of their tasks and messages, read alike."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping
from pkgutil import resolve_name
from typing import Any


class Importable(Mapping[str, Any]):
    """The tasks of an engine that has no list of them: what can be imported, by dotted names.

    Args:
        is_task: Says whether what was imported is a task.
    """

    def __init__(self, is_task: Callable[[Any], bool]) -> None:
        self._is_task = is_task

    def __getitem__(self, name: str) -> Any:
        """Import a task."""
        try:
            task = resolve_name(name)
        except (AttributeError, ImportError, ValueError) as error:
            raise KeyError(name) from error
        if not self._is_task(task):
            raise KeyError(name)
        return task

    def __iter__(self) -> Iterator[str]:
        """List nothing."""
        return iter(())

    def __len__(self) -> int:
        """Count nothing."""
        return 0


def declared(kind: type[Any], known: Container[str]) -> dict[str, Any]:
    """Find what a class that an engine made of a task has of the task's own declaration.

    Args:
        kind: The class.
        known: The names that are the engine's own.
    """
    return {
        name: value
        for name, value in vars(kind).items()
        if not (name.startswith("_") or name in known or hasattr(value, "__get__"))
    }


def attempt_of(header: Mapping[str, Any]) -> int:
    """Read a run's attempt from what travels with its message, which anybody may have written."""
    attempt = header.get("attempt")
    return attempt if type(attempt) is int and attempt > 1 else 1
