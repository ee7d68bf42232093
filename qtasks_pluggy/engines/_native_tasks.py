"""How engines describe their tasks, and what they read from messages."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping
from pkgutil import resolve_name
from typing import Any

from qtasks_pluggy import TaskFunc


class Importable(Mapping[str, Any]):
    """The tasks of an engine that has no list of them: whatever can be imported by a dotted name.

    Args:
        is_task: Returns whether an imported object is a task.
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


def described(name: str, func: Any, options: Mapping[str, Any], intercept: Any) -> TaskFunc:
    """Describe a task by what it was declared with, which may be anything.

    Args:
        name: Its name.
        func: Its function.
        options: ``tags`` are its tags, if they are words; the rest is ``extra``.
        intercept: The exception classes that plugins are asked about.
    """
    extra = dict(options)
    tags: Any = extra.get("tags", ())
    tags = (tags,) if isinstance(tags, str) else tags
    if isinstance(tags, (tuple, list, set, frozenset)) and all(isinstance(t, str) for t in tags):
        extra.pop("tags", None)
    else:
        tags = ()
    return TaskFunc(name, func, intercept=intercept, tags=tuple(tags), extra=extra)


def declared(kind: type[Any], known: Container[str]) -> dict[str, Any]:
    """Return what a task was declared with, of the class that its engine made from it.

    Args:
        kind: The class.
        known: The names that are the engine's own.
    """
    return {
        name: value
        for name, value in vars(kind).items()
        if not (name.startswith("_") or name in known or hasattr(value, "__get__"))
    }


def header_of(given: Any) -> dict[str, Any]:
    """Read our header of a message, which anybody, or another version, may have written.

    Args:
        given: What the message has in its place.

    Returns:
        The header; without ``metadata`` unless that is a dictionary.
    """
    header = dict(given) if isinstance(given, dict) else {}
    if not isinstance(header.get("metadata"), dict):
        header.pop("metadata", None)
    return header


def attempt_of(header: Mapping[str, Any]) -> int:
    """Read a run's attempt from our header; what is no whole number from 1 is the first."""
    attempt = header.get("attempt")
    return attempt if type(attempt) is int and attempt > 1 else 1
