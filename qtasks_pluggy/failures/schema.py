"""The tables of a store.

====================  ==========================================================================
``failures_meta``     numbers: the schema's version, how many runs there are, how many were lost
``failures_groups``   failures of one cause
``failures_counts``   how many runs of a group ended how, by whom: for each hour, and altogether
``failures_runs``     runs that failed at least once
``failures_attempts`` their attempts
``failures_acts``     what people did with groups and runs
====================  ==========================================================================

Times are seconds since the epoch. No column is a foreign key: retention deletes in small steps.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import (
    BigInteger,
    Column,
    Double,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    and_,
    bindparam,
    literal_column,
    select,
)

VERSION: Final = 2
"""The version of these tables; a store of another version is not used."""

ALTOGETHER: Final = 0
"""Stands for the hour in the counts of all time."""

TABLES: Final = MetaData()

META: Final = Table(
    "failures_meta",
    TABLES,
    Column("name", String, primary_key=True),
    Column("value", BigInteger, nullable=False),
)

GROUPS: Final = Table(
    "failures_groups",
    TABLES,
    Column("id", String, primary_key=True),
    Column("task", Text, nullable=False),
    Column("error", Text, nullable=False),
    Column("message", Text, nullable=False),
    Column("state", String, nullable=False),
    Column("first_seen", Double, nullable=False),
    Column("last_seen", Double, nullable=False),
    # When its state was set: a failure from before then is not news, even if written later.
    Column("state_since", Double),
    Index("failures_groups_by_time", "last_seen"),
)

IS_IGNORED: Final = GROUPS.c.state == literal_column("'ignored'")
"""A condition in the very words of the index below, which only those find."""
Index(
    "failures_groups_ignored", GROUPS.c.state, sqlite_where=IS_IGNORED, postgresql_where=IS_IGNORED
)

COUNTS: Final = Table(
    "failures_counts",
    TABLES,
    Column("group_id", String, primary_key=True),
    Column("hour", Integer, primary_key=True, autoincrement=False),
    Column("status", String, primary_key=True),
    Column("plugin", String, primary_key=True),
    Column("runs", BigInteger, nullable=False),
    Index("failures_counts_by_hour", "hour"),
)

RUNS: Final = Table(
    "failures_runs",
    TABLES,
    Column("uuid", String, primary_key=True),
    Column("app", String, primary_key=True),
    Column("engine", String, primary_key=True),
    Column("group_id", String, nullable=False),
    Column("task", Text, nullable=False),
    Column("queue", Text),
    Column("status", String, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("decided_by", Text),
    Column("decision", String),
    Column("reason", Text, nullable=False),
    Column("at", Double, nullable=False),
    Column("arguments", Text),
    Column("not_replayable", Text),
    Column("replay_of", String),
    # A replay claims the run, sends it, and marks it as sent, with the id of the new run.
    Column("claimed_at", Double),
    Column("sent_at", Double),
    Column("sent_as", String),
    Index("failures_runs_by_time", "at"),
    Index("failures_runs_by_group", "group_id", "at"),
    Index("failures_runs_by_status", "group_id", "status", "at"),
)
Index(
    "failures_runs_by_original",
    RUNS.c.replay_of,
    RUNS.c.at,
    sqlite_where=RUNS.c.replay_of.is_not(None),
    postgresql_where=RUNS.c.replay_of.is_not(None),
)

ATTEMPTS: Final = Table(
    "failures_attempts",
    TABLES,
    Column("uuid", String, primary_key=True),
    Column("app", String, primary_key=True),
    Column("engine", String, primary_key=True),
    Column("attempt", Integer, primary_key=True, autoincrement=False),
    Column("error", Text, nullable=False),
    Column("message", Text, nullable=False),
    Column("traceback", Text, nullable=False),
    Column("seconds", Double, nullable=False),
    Column("trail", Text, nullable=False),
    # JSON with tags; empty if the error's arguments cannot be read back.
    Column("error_arguments", Text),
)

ACTS: Final = Table(
    "failures_acts",
    TABLES,
    Column("id", Integer, primary_key=True),
    Column("at", Double, nullable=False),
    Column("who", Text, nullable=False),
    Column("act", String, nullable=False),
    Column("scope", Text, nullable=False),
    # Groups, or runs: the act says which.
    Column("number", Integer, nullable=False),
    Index("failures_acts_by_time", "at"),
)

KEY: Final = ("uuid", "app", "engine")
"""What tells one run from another."""
NEWEST: Final = RUNS.outerjoin(
    ATTEMPTS,
    and_(
        *(ATTEMPTS.c[name] == RUNS.c[name] for name in KEY), ATTEMPTS.c.attempt == RUNS.c.attempts
    ),
)
"""Runs with their newest attempts."""
GROUPS_OF: Final = (
    select(RUNS.c.uuid, RUNS.c.group_id)
    .where(RUNS.c.uuid.in_(bindparam("uuids", expanding=True)))
    .order_by(RUNS.c.at)
)
"""Finds the groups of the runs with some ids."""
