"""The runs or groups of an act, and asking for confirmation.

An act takes ids of runs, or filters. It says how many it is about before it does anything: on a
terminal it asks, elsewhere it needs ``--yes``.
"""

from __future__ import annotations

import getpass
import shlex
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import attrs
import click

from qtasks_pluggy._console.load import Trouble
from qtasks_pluggy._console.say import one_line, say
from qtasks_pluggy.failures.command.options import (
    MOST_NAMED,
    Option,
    filters,
    read_filters,
    whole_ids,
)
from qtasks_pluggy.failures.records import Filters

if TYPE_CHECKING:
    from qtasks_pluggy.failures.queries import Reader

SELECTION: Final[list[Option]] = [
    click.argument("uuids", metavar="[UUID]...", nargs=-1),
    *filters(limit=None),
    click.option("--yes", is_flag=True, help="Do not ask for confirmation."),
]


@attrs.frozen
class Selection:
    """What an act is about.

    Attributes:
        uuids: The ids of runs; none where filters say it.
        filters: The filters.
        scope: The same as text, for people.
    """

    uuids: Sequence[str]
    filters: Filters
    scope: str


def read_selection(uuids: Sequence[str], given: dict[str, Any], everything: str = "") -> Selection:
    """Read what an act is about.

    Args:
        uuids: The ids that were given.
        given: The options of ``filters``.
        everything: What the act is about without ids and filters, for people; empty where it takes
            one of them.

    Raises:
        Trouble: Neither ids nor filters were given, or both; or a filter is wrong.
    """
    wanted = read_filters(given)
    narrowing = {name: value for name, value in given.items() if value is not None}
    if uuids and narrowing:
        msg = f"give ids of runs or filters, not both: {uuids[0]} and --{next(iter(narrowing))}"
        raise Trouble(msg)
    if not uuids and not narrowing.keys() - {"limit"} and not everything:
        msg = "give ids of runs, --group ID, or a filter; --state open selects all open groups"
        raise Trouble(msg)
    scope = shlex.join(
        word for name, value in narrowing.items() for word in (f"--{name}", str(value))
    )
    return Selection(uuids, wanted, scope or everything)


def find_runs(reader: Reader, selection: Selection) -> Selection:
    """Complete the ids of a selection, if it has any.

    Raises:
        NotThereError: No run has one of them, or several have.
    """
    if not selection.uuids:
        return selection
    uuids = whole_ids(reader, selection.uuids)
    more = len(uuids) - MOST_NAMED
    named = ", ".join(uuids[:MOST_NAMED]) + (f" and {more:,} more" if more > 0 else "")
    scope = f"{'runs' if len(uuids) > 1 else 'run'} {named}"
    return attrs.evolve(selection, uuids=uuids, scope=scope)


def ask(what: str, *, yes: bool) -> None:
    """Ask whether to go on; without a terminal refuse, unless ``--yes`` was given.

    Args:
        what: What the command will do, with how many and which: ``resolve 3 groups (--since 2h)``.
        yes: Whether ``--yes`` was given.

    Raises:
        Trouble: Nobody can be asked.
        click.exceptions.Exit: The answer is no; code 1.
    """
    if yes:
        return
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        msg = f"this would {what}; there is no terminal to ask on, so add --yes to do it"
        raise Trouble(msg)
    if not click.confirm(one_line(f"{what[:1].upper()}{what[1:]}?", sys.stderr), err=True):
        say("Nothing was done.", err=True)
        raise click.exceptions.Exit(1)


def counted(number: int, thing: str) -> str:
    """Count things: ``1 group``, ``1,203 runs``."""
    return f"{number:,} {thing}" if number == 1 else f"{number:,} {thing}s"


def who() -> str:
    """Return the login name of the user; empty if the system has none."""
    try:
        return getpass.getuser()
    except (ImportError, KeyError, OSError):
        return ""
