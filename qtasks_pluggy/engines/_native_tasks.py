"""How engines describe their tasks, and what they read from messages."""

from __future__ import annotations

from collections.abc import Callable, Container, Generator, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial, update_wrapper
from pkgutil import resolve_name
from types import MethodType
from typing import Any, Final


class Importable(Mapping[str, Any]):
    """The tasks of an engine that does not list them: any importable task, by its dotted name.

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


# The argument that the engine itself passes first in the current run.
_first: Final[ContextVar[Any]] = ContextVar("qtasks_pluggy_first")


@contextmanager
def passing(first: Any) -> Generator[None]:
    """Run a block in which functions of ``passes_first`` pass this argument."""
    outer = _first.set(first)
    try:
        yield
    finally:
        _first.reset(outer)


def passes_first(
    own: Callable[..., Any], call: Callable[..., Any] | None = None, *, hides: bool = True
) -> Callable[..., Any]:
    """Return one function for all runs of a task, with an argument that plugins do not see.

    Args:
        own: The task's function, which the returned one looks like.
        call: What to call with ``passing``'s argument before the others; by default ``own``.
        hides: Whether ``own`` has a first parameter that plugins must not see.
    """
    return update_wrapper(_PassesFirst(call or own), MethodType(own, own) if hides else own)


class _PassesFirst(partial[Any]):
    """A function with an argument of the run; async or a generator if the function is."""

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        """Call the function."""
        # Those of the task's own ``partial``, whose function this one calls.
        return self.func(*self.args, _first.get(), *args, **{**self.keywords, **kwargs})


def declared(kind: type[Any], known: Container[str]) -> dict[str, Any]:
    """Return a task's declared options, read from the class that its engine made for the task.

    Args:
        kind: The class.
        known: The engine's own names, which are left out.
    """
    return {
        name: value
        for name, value in vars(kind).items()
        if not (name.startswith("_") or name in known or hasattr(value, "__get__"))
    }


def header_of(given: Any) -> dict[str, Any]:
    """Read our header of a message; anybody, or another version, may have written it.

    Args:
        given: The value in the message.

    Returns:
        The header, without ``metadata`` if that is not a dictionary.
    """
    header = dict(given) if isinstance(given, dict) else {}
    if not isinstance(header.get("metadata"), dict):
        header.pop("metadata", None)
    return header


def attempt_of(header: Mapping[str, Any]) -> int:
    """Read a run's attempt from our header; anything but a positive int counts as 1."""
    attempt = header.get("attempt")
    return attempt if type(attempt) is int and attempt > 1 else 1
