"""The trail of a run: who was asked, what each answered, how long it took, what won."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Final, Literal, TypeAlias, overload

import attrs

from qtasks_pluggy._text import describe_plugin

Status: TypeAlias = Literal[
    "answered", "no_opinion", "raised", "timed_out", "filtered", "quarantined", "reentered"
]

_WORDS: Final = {
    "answered": "answered",
    "no_opinion": "no opinion",
    "raised": "raised",
    "timed_out": "timed out",
    "filtered": "not asked (filter)",
    "quarantined": "not asked (quarantine)",
    "reentered": "not asked (already running)",
}


@attrs.frozen
class TrailRecord:
    """What one hookimpl did in one call of its hook.

    Attributes:
        plugin: The plugin's name.
        distribution: The distribution that installed it; None for one that the app added.
        version: That distribution's version.
        hook: The hook's name.
        attempt: The attempt of the run, from 1.
        status: ``answered``, ``no_opinion``, ``raised``, ``timed_out``, ``filtered``,
            ``quarantined`` or ``reentered``.
        kind: What it answered: the name of the decision, or ``value`` for a plain one. With
            ``no_opinion`` an answer that did not count: a retry past its bound, the same error.
            With ``raised`` the name of the error's class.
        seconds: How long it took.
        observed: Whether it was only observed, its answer not used.
        won: Whether its answer was the one used.
        handler: The function's own name.
    """

    plugin: str
    distribution: str | None
    version: str | None
    hook: str
    attempt: int
    status: Status
    kind: str | None = None
    seconds: float = 0.0
    observed: bool = False
    won: bool = False
    handler: str | None = None

    @property
    def who(self) -> str:
        """The plugin with its distribution and version, as far as they are known."""
        return describe_plugin(self.plugin, self.distribution, self.version)

    @property
    def did(self) -> str:
        """What it did, in words."""
        words = _WORDS[self.status]
        if self.status == "no_opinion" and self.kind:
            words = f"{words} ({self.kind} did not count)"
        elif self.kind:
            words = f"{words} {self.kind}"
        return f"{words}, observed only" if self.observed else words


class Trail(Sequence[TrailRecord]):
    """The records of a run, in order; ``str()`` of it reads well to a person.

    Args:
        records: The records.
    """

    __slots__ = ("_records",)

    def __init__(self, records: Iterable[TrailRecord] = ()) -> None:
        self._records = tuple(records)

    @overload
    def __getitem__(self, index: int) -> TrailRecord: ...
    @overload
    def __getitem__(self, index: slice) -> Trail: ...
    def __getitem__(self, index: int | slice) -> TrailRecord | Trail:
        """Return one record, or a part of the trail."""
        if isinstance(index, slice):
            return Trail(self._records[index])
        return self._records[index]

    def __len__(self) -> int:
        """Count the records."""
        return len(self._records)

    def __eq__(self, other: object) -> bool:
        """Two trails with the same records are equal."""
        return self._records == other._records if isinstance(other, Trail) else NotImplemented

    def __hash__(self) -> int:
        """Agree with ``==``."""
        return hash(self._records)

    def __repr__(self) -> str:
        """Show the records."""
        return f"Trail({list(self._records)!r})"

    def __str__(self) -> str:
        """Format as text: a line for each call of a hook, and below it one for each hookimpl."""
        lines: list[str] = []
        for (hook, attempt), group in groupby(
            self._records, key=lambda record: (record.hook, record.attempt)
        ):
            records = list(group)
            lines.append(f"{hook}, attempt {attempt}")
            names = max(len(record.who) for record in records)
            words = max(len(record.did) for record in records)
            lines += [
                f"  {record.who:{names}}  {record.did:{words}}  {record.seconds * 1000:8.2f} ms"
                f"{'  won' if record.won else ''}"
                for record in records
            ]
        return "\n".join(lines) or "no plugin was asked"


def short(records: Iterable[TrailRecord]) -> str:
    """Format records in one line, without times, so that equal trails give equal text."""
    return "; ".join(f"{record.who} {record.did}" for record in records)
