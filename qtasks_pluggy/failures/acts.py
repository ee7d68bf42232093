"""What people do with groups and runs. An act is one transaction, and leaves one row."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Final

import attrs
from sqlalchemy import URL, Connection, update

from qtasks_pluggy.failures.connection import check, connect, engine_for, must_be_there
from qtasks_pluggy.failures.schema import ACTS, GROUPS

ACT_SECONDS: Final = 30.0
"""How long an act waits for those who write."""


@attrs.frozen
class Change:
    """A change of a group's state.

    Attributes:
        to: The new state.
        of: The states that it changes.
    """

    to: str
    of: tuple[str, ...]


CHANGES: Final[Mapping[str, Change]] = {
    "resolve": Change("resolved", ("open", "regressed", "ignored")),
    "ignore": Change("ignored", ("open", "regressed", "resolved")),
    "reopen": Change("open", ("resolved", "ignored")),
}
"""The acts that give groups another state."""


def change_groups(url: URL, act: str, groups: Iterable[str], *, who: str, scope: str) -> list[str]:
    """Set the state of groups.

    Args:
        url: Where the store is.
        act: One of ``CHANGES``.
        groups: Their ids.
        who: The person who does it.
        scope: What was asked for, for people.

    Returns:
        The ids of the groups that changed; somebody else may have changed some meanwhile.

    Raises:
        StoreError: There is no store, or it is not of this version.
        sqlalchemy.exc.SQLAlchemyError: It cannot be written.
    """
    change, now = CHANGES[act], time.time()
    must_be_there(url)
    engine = engine_for(url, seconds=ACT_SECONDS, writes=True)
    with connect(engine) as connection, connection.begin():
        check(connection)
        # In one order in every process, so that none waits for another that waits for it.
        changed = [
            group
            for group in sorted(groups)
            if connection.execute(
                update(GROUPS)
                .where(GROUPS.c.id == group, GROUPS.c.state.in_(change.of))
                .values(state=change.to, state_since=now)
            ).rowcount
        ]
        if changed:
            note(connection, act, len(changed), who=who, scope=scope)
    return changed


def note(connection: Connection, act: str, number: int, *, who: str, scope: str) -> int:
    """Write down an act; return its id.

    Args:
        connection: The store, in a transaction.
        act: What was done: the command's name.
        number: With how many groups or runs.
        who: The person who did it.
        scope: What was asked for, for people.
    """
    row = {"at": time.time(), "who": who, "act": act, "scope": scope, "number": number}
    key = connection.execute(ACTS.insert(), row).inserted_primary_key
    assert key is not None  # noqa: S101  # an insert of one row has one
    return int(key[0])
