"""An error, captured where it happened and written out later.

The capture keeps no frame and no value alive, only file and function names, line numbers and texts.
The source lines are read when it is written out.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from traceback import FrameSummary, format_list
from typing import Final, TypeAlias

import attrs

from qtasks_hookspecs.exc import safe_str
from qtasks_pluggy.failures.values import cut, storable

MOST_LINKED: Final = 20
MOST_FRAMES: Final = 100
MOST_NOTES: Final = 20

Frame: TypeAlias = tuple[str, int, str]

_OURS: Final = str(Path(__file__).parents[1])
_CAUSE: Final = "The above exception was the direct cause of the following exception:"
_CONTEXT: Final = "During handling of the above exception, another exception occurred:"


@attrs.frozen
class _Link:
    """One error of a chain, and how it led to the next."""

    frames: tuple[Frame, ...]
    error: str
    message: str
    notes: tuple[str, ...]
    then: str

    @property
    def text(self) -> str:
        """Write it as Python does."""
        last = f"{self.error}: {self.message}" if self.message else self.error
        return "\n".join((f"{_stack(self.frames)}{last}", *self.notes, self.then))


@attrs.frozen
class Told:
    """A captured error.

    Attributes:
        error: Its class with the module; a built-in one bare.
        message: Its text.
    """

    error: str
    message: str
    _links: tuple[_Link, ...] = attrs.field(repr=False, alias="links")
    _most: int = attrs.field(repr=False, alias="most")

    @property
    def size(self) -> int:
        """About how many bytes its texts are."""
        return sum(len(one.message) + sum(map(len, one.notes)) for one in self._links)

    @property
    def traceback(self) -> str:
        """Write the traceback, with those of the errors that led to this one."""
        return storable(cut("".join(one.text for one in self._links), self._most))


def tell(error: BaseException, most: int) -> Told:
    """Capture an error."""
    links, own = [], None
    for one, then in _causes_first(error):
        message = storable(cut(safe_str(one), most))
        link = _Link(_frames(one), class_name(type(one)), message, _notes(one, most), then)
        links.append(link)
        own = link if one is error else own
    assert own is not None  # noqa: S101  # it is one of them
    return Told(own.error, own.message, tuple(links), most)


def class_name(cls: type) -> str:
    """Name a class with its module; a built-in one bare."""
    module = cls.__module__
    return storable(cls.__qualname__ if module == "builtins" else f"{module}.{cls.__qualname__}")


def _notes(error: BaseException, most: int) -> tuple[str, ...]:
    notes = getattr(error, "__notes__", None)
    if not isinstance(notes, list):
        return ()
    return tuple(cut(one, most) for one in notes[:MOST_NOTES] if isinstance(one, str))


def _causes_first(error: BaseException) -> list[tuple[BaseException, str]]:
    """Find the errors that led to one, and it; each with what stands before the next."""
    chain: list[tuple[BaseException, str]] = [(error, "")]
    known = {id(error)}
    while len(chain) < MOST_LINKED:
        last = chain[-1][0]
        cause, then = last.__cause__, f"\n{_CAUSE}\n\n"
        if cause is None and not last.__suppress_context__:
            cause, then = last.__context__, f"\n{_CONTEXT}\n\n"
        if cause is None or id(cause) in known:
            break
        known.add(id(cause))
        chain.append((cause, then))
    chain.reverse()
    if isinstance(error, BaseExceptionGroup):
        of = f"of the group's {len(error.exceptions)}"
        parts = error.exceptions[: MOST_LINKED - len(chain)]
        chain += [(part, f"\n(which is {n} {of})\n\n") for n, part in enumerate(parts, start=1)]
    return chain


def _frames(error: BaseException) -> tuple[Frame, ...]:
    """Name the frames of an error's traceback, without our own frames at its start."""
    found: list[Frame] = []
    step = error.__traceback__
    while step is not None:
        code = step.tb_frame.f_code
        if found or not code.co_filename.startswith(_OURS):
            found.append((code.co_filename, step.tb_lineno, code.co_name))
        step = step.tb_next
    half = MOST_FRAMES // 2
    if len(found) <= MOST_FRAMES:
        return tuple(found)
    return (*found[:half], ("", len(found) - 2 * half, ""), *found[-half:])


@lru_cache(maxsize=512)
def _stack(frames: tuple[Frame, ...]) -> str:
    """Write frames as Python does; failures of one cause have the same ones."""
    if not frames:
        return ""
    lines = ["Traceback (most recent call last):\n"]
    for file, line, name in frames:
        if not file:
            lines.append(f"  ({line:,} frames are left out)\n")
            continue
        lines += format_list([FrameSummary(file, line, name)])
    return "".join(lines)
