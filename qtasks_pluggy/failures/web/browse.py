"""The pages' queries. Each uses an index, and none reads more rows as the store grows.

The next page starts after the key of the last row, never at an offset. The database cuts long
texts, so that ten megabytes are never loaded to be shown in one line.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, TypeAlias

import attrs
from sqlalchemy import BigInteger, Connection, Select, and_, case, cast, func, or_, select
from sqlalchemy.sql.elements import ColumnElement

from qtasks_pluggy.failures.queries import Reader
from qtasks_pluggy.failures.records import FAILED_ONCE, hour_of
from qtasks_pluggy.failures.schema import ALTOGETHER, ATTEMPTS, COUNTS, GROUPS, RUNS
from qtasks_pluggy.failures.web.show import HOURS

PAGE: Final = 50
"""The rows of a page."""
LOOK: Final = 2_000
"""How many runs one search looks at; a link continues further back."""
MOST_LINE: Final = 400
"""Characters of a text in a list."""
MOST_TEXT: Final = 16_000
"""Characters of a message, and of a traceback, on a run's page; the middle is cut."""
TRAILS: Final = 1_000
"""How many of the newest attempts the summary of plugins reads the trails of."""
SORTS: Final = {"last": "last_seen", "first": "first_seen", "runs": "runs"}

Found: TypeAlias = Any
"""A row, with the columns of its query."""
Key: TypeAlias = tuple[float, str]


class KeyFaultError(ValueError):
    """A page's key that ``key_text`` did not write."""


def key_text(value: float, name: str) -> str:
    """Write a row's key, for the link to the next page."""
    return f"{float(value)!r}~{name}"


def read_key(text: str) -> Key | None:
    """Read such a key; an empty text means the first page.

    Raises:
        KeyFaultError: The text is not a key.
    """
    if not text:
        return None
    value, tilde, name = text.partition("~")
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not tilde or not math.isfinite(number):
        raise KeyFaultError(text)
    return number, name


@attrs.frozen(kw_only=True)
class GroupsWanted:
    """Which groups a page shows.

    Attributes:
        states: Their states.
        text: A part of the task's name, of the error's class or of its last text.
        status: How one of their runs ended.
        plugin: Who decided about one of their runs.
        sort: One of ``SORTS``.
        after: The key of the last group on the previous page.
    """

    states: Sequence[str]
    text: str = ""
    status: str = ""
    plugin: str = ""
    sort: str = "last"
    after: Key | None = None


@attrs.frozen(kw_only=True)
class RunsWanted:
    """Which runs a page shows.

    Attributes:
        group: Their group.
        text: A part of the last attempt's text, or the start of the run's id.
        status: How they ended.
        plugin: Who decided.
        after: The key of the last run on the previous page, or of the last one searched.
    """

    group: str = ""
    text: str = ""
    status: str = ""
    plugin: str = ""
    after: Key | None = None


@attrs.frozen
class Listed:
    """Rows of a page.

    Attributes:
        rows: The rows.
        after: The key after which the next page starts; None if there is none.
        looked: How many rows were searched, if that limit ended the page; otherwise 0.
    """

    rows: Sequence[Any]
    after: str | None = None
    looked: int = 0


class Browser(Reader):
    """Reads a store for the pages."""

    def list_groups(self, wanted: GroupsWanted) -> Listed:
        """Find the groups of a page."""
        ended = _counts_of(GROUPS.c.id).where(COUNTS.c.runs > 0)
        if wanted.status:
            ended = ended.where(COUNTS.c.status == wanted.status)
        if wanted.plugin:
            ended = ended.where(COUNTS.c.plugin == wanted.plugin)
        groups = (
            select(
                *(one for one in GROUPS.c if one.name != "message"),
                func.substr(GROUPS.c.message, 1, MOST_LINE).label("message"),
                ended.scalar_subquery().label("runs"),
            )
            .where(GROUPS.c.state.in_(wanted.states))
            .where(*_has_text(wanted.text, GROUPS.c.task, GROUPS.c.error, GROUPS.c.message))
            .subquery()
        )
        by = groups.c[SORTS[wanted.sort]]
        found = select(groups).where(groups.c.runs > 0, *_after(by, groups.c.id, wanted.after))
        with self._engine.connect() as connection:
            rows = connection.execute(
                found.order_by(by.desc(), groups.c.id.desc()).limit(PAGE + 1)
            ).all()
        column = SORTS[wanted.sort]
        return _listed(rows, lambda row: key_text(getattr(row, column), row.id))

    def states(self) -> dict[str, int]:
        """Count the groups by their state."""
        number = func.count().label("number")
        wanted = select(GROUPS.c.state, number).group_by(GROUPS.c.state)
        with self._engine.connect() as connection:
            return {row.state: row.number for row in connection.execute(wanted)}

    def group(self, group: str) -> Found | None:
        """Find one group, with its text cut."""
        wanted = select(
            *(one for one in GROUPS.c if one.name != "message"), *_cut(GROUPS.c.message)
        ).where(GROUPS.c.id == group)
        with self._engine.connect() as connection:
            return connection.execute(wanted).first()

    def hours(self, groups: Iterable[str], now: float) -> dict[str, dict[tuple[int, str], int]]:
        """Count the runs of groups by hour and by how they ended, in the last day."""
        runs = func.sum(COUNTS.c.runs)
        by = (COUNTS.c.group_id, COUNTS.c.hour, COUNTS.c.status)
        wanted = (
            select(*by, runs)
            .where(COUNTS.c.group_id.in_(list(groups)), COUNTS.c.hour > hour_of(now) - HOURS)
            .group_by(*by)
        )
        found: dict[str, dict[tuple[int, str], int]] = {}
        with self._engine.connect() as connection:
            for group, hour, status, number in connection.execute(wanted):
                found.setdefault(group, {})[hour, status] = int(number)
        return found

    def all_hours(self, now: float) -> dict[tuple[int, str], int]:
        """Count all runs by hour and by how they ended, in the last day."""
        first = hour_of(now) - HOURS + 1
        by = (COUNTS.c.hour, COUNTS.c.status)
        recent = select(GROUPS.c.id).where(
            GROUPS.c.last_seen >= first * 3600.0, GROUPS.c.state != "ignored"
        )
        wanted = (
            select(*by, func.sum(COUNTS.c.runs))
            .where(COUNTS.c.group_id.in_(recent), COUNTS.c.hour >= first)
            .group_by(*by)
        )
        with self._engine.connect() as connection:
            return {(hour, status): int(n) for hour, status, n in connection.execute(wanted)}

    def deciders(self, group: str) -> Sequence[Found]:
        """Count the runs of a group by how they ended and by who decided."""
        runs = cast(func.sum(COUNTS.c.runs), BigInteger)
        wanted = (
            select(COUNTS.c.plugin, COUNTS.c.status, runs.label("runs"))
            .where(COUNTS.c.group_id == group, COUNTS.c.hour == ALTOGETHER)
            .group_by(COUNTS.c.plugin, COUNTS.c.status)
            .having(runs > 0)
            .order_by(runs.desc())
        )
        with self._engine.connect() as connection:
            return connection.execute(wanted).all()

    def list_runs(self, wanted: RunsWanted) -> Listed:
        """Find the runs of a page, the newest first.

        Filters that no index covers are applied to the newest ``LOOK`` runs after the page's key.
        """
        window = _window(wanted)
        narrows = bool(wanted.text or wanted.plugin or (wanted.status and not wanted.group))
        window = window.limit(LOOK if narrows else PAGE + 1)
        looked_at = window.subquery()
        same = [ATTEMPTS.c[name] == looked_at.c[name] for name in _KEY]
        newest = looked_at.outerjoin(
            ATTEMPTS, and_(*same, ATTEMPTS.c.attempt == looked_at.c.attempts)
        )
        found = select(
            looked_at,
            ATTEMPTS.c.error,
            func.substr(ATTEMPTS.c.message, 1, MOST_LINE).label("message"),
        ).select_from(newest)
        if wanted.status:
            found = found.where(looked_at.c.status == wanted.status)
        if wanted.plugin:
            found = found.where(looked_at.c.decided_by == wanted.plugin)
        if wanted.text:
            by_id = looked_at.c.uuid.startswith(wanted.text, autoescape=True)
            by_text = _has_text(wanted.text, looked_at.c.task, ATTEMPTS.c.error, ATTEMPTS.c.message)
            found = found.where(or_(by_id, *by_text))
        with self._engine.connect() as connection:
            rows = connection.execute(
                found.order_by(looked_at.c.at.desc(), looked_at.c.uuid.desc()).limit(PAGE + 1)
            ).all()
            listed = _listed(rows, _run_key)
            if listed.after is None and narrows:
                return _bounded(connection, window, rows)
        return listed

    def newest_failed(self, group: str) -> Found | None:
        """Find the newest run of a group that failed at least once; a replay may have succeeded."""
        with self._engine.connect() as connection:
            newest = [
                connection.execute(_window(RunsWanted(group=group, status=status)).limit(1)).first()
                for status in FAILED_ONCE
            ]
        return max((one for one in newest if one is not None), key=lambda one: one.at, default=None)

    def one_run(self, uuid: str) -> Found | None:
        """Find one run without its attempts; if two have the same id, the newer one."""
        wanted = select(RUNS).where(RUNS.c.uuid == uuid).order_by(RUNS.c.at.desc()).limit(1)
        with self._engine.connect() as connection:
            return connection.execute(wanted).first()

    def attempts(self, run: Found, before: int | None = None) -> Listed:
        """Find the newest attempts of a run, or those before an attempt, oldest first."""
        wanted = select(
            *(ATTEMPTS.c[name] for name in ("attempt", "error", "seconds", "trail")),
            *_cut(ATTEMPTS.c.message),
            *_cut(ATTEMPTS.c.traceback),
        ).where(*_attempts_of(run))
        if before is not None:
            wanted = wanted.where(ATTEMPTS.c.attempt < before)
        with self._engine.connect() as connection:
            rows = connection.execute(
                wanted.order_by(ATTEMPTS.c.attempt.desc()).limit(PAGE + 1)
            ).all()
        after = str(rows[PAGE - 1].attempt) if len(rows) > PAGE else None
        return Listed(list(reversed(rows[:PAGE])), after)

    def attempt(self, run: Found, number: int) -> Found | None:
        """Find one attempt, with its whole text."""
        wanted = select(ATTEMPTS).where(*_attempts_of(run), ATTEMPTS.c.attempt == number)
        with self._engine.connect() as connection:
            return connection.execute(wanted).first()

    def replays(self, uuid: str) -> Sequence[Found]:
        """Find the newest stored replays of a run."""
        wanted = (
            select(RUNS.c.uuid, RUNS.c.status, RUNS.c.at, RUNS.c.group_id)
            .where(RUNS.c.replay_of == uuid)
            .order_by(RUNS.c.at.desc())
            .limit(PAGE)
        )
        with self._engine.connect() as connection:
            return connection.execute(wanted).all()

    def waiting_by_status(self, group: str, app: str, most: int) -> dict[str, tuple[int, int]]:
        """Count the runs of a group that wait for a replay, and those that are replays.

        Returns:
            Both numbers, up to ``most``, by how the runs ended.
        """
        found = {}
        with self._engine.connect() as connection:
            for status in FAILED_ONCE:
                waiting = _waiting(group, app, status).limit(most).subquery()
                numbers = func.count(), func.count(waiting.c.replay_of)
                runs, replays = connection.execute(select(*numbers).select_from(waiting)).one()
                if runs:
                    found[status] = (runs, replays)
        return found

    def waiting(self, group: str, app: str, status: str, most: int) -> list[str]:
        """Find the newest runs of a group that wait for a replay."""
        with self._engine.connect() as connection:
            return list(connection.scalars(_waiting(group, app, status).limit(most)))

    def deciding(self, since: int = ALTOGETHER) -> dict[str, dict[str, int]]:
        """Count runs by the plugin that decided, and by how they ended.

        Args:
            since: The first hour, counted from the epoch; by default, count all runs.
        """
        hours = COUNTS.c.hour >= since if since else COUNTS.c.hour == ALTOGETHER
        seen = GROUPS.c.last_seen >= since * 3600.0
        runs = func.sum(COUNTS.c.runs)
        wanted = (
            select(COUNTS.c.plugin, COUNTS.c.status, runs)
            .where(COUNTS.c.group_id.in_(select(GROUPS.c.id).where(seen)), hours)
            .where(COUNTS.c.plugin != "")
            .group_by(COUNTS.c.plugin, COUNTS.c.status)
            .having(runs > 0)
        )
        found: dict[str, dict[str, int]] = {}
        with self._engine.connect() as connection:
            for plugin, status, number in connection.execute(wanted):
                found.setdefault(plugin, {})[status] = int(number)
        return found

    def trails(self) -> Iterator[Mapping[str, Any]]:
        """Read the trails of the newest attempts."""
        newest = select(*(RUNS.c[name] for name in _KEY)).order_by(RUNS.c.at.desc())
        newest_runs = newest.limit(TRAILS).subquery()
        same = [ATTEMPTS.c[name] == newest_runs.c[name] for name in _KEY]
        wanted = (
            select(ATTEMPTS.c.trail)
            .select_from(newest_runs.join(ATTEMPTS, and_(*same)))
            .limit(TRAILS)
        )
        with self._engine.connect() as connection:
            for text in connection.scalars(wanted):
                yield from json.loads(text)


_KEY: Final = ("uuid", "app", "engine")


def _counts_of(group: ColumnElement[str]) -> Select[Any]:
    """Select the number of a group's runs of all time."""
    return select(cast(func.sum(COUNTS.c.runs), BigInteger)).where(
        COUNTS.c.group_id == group, COUNTS.c.hour == ALTOGETHER
    )


def _has_text(text: str, *columns: ColumnElement[str]) -> list[ColumnElement[bool]]:
    if not text:
        return []
    return [or_(*(column.icontains(text, autoescape=True) for column in columns))]


def _after(
    by: ColumnElement[Any], name: ColumnElement[str], key: Key | None
) -> list[ColumnElement[bool]]:
    """Select the rows that follow a key in descending order."""
    if key is None:
        return []
    value, last = key
    return [by <= value, or_(by < value, name < last)]


def _cut(column: Any) -> list[ColumnElement[Any]]:
    """Select the start and the end of a text, and its length."""
    half, length = MOST_TEXT // 2, func.length(column)
    parts = func.substr(column, 1, half) + "\n[...]\n" + func.substr(column, length - half + 1)
    whole = case((length <= MOST_TEXT, column), else_=parts)
    return [whole.label(column.name), length.label(f"{column.name}_length")]


def _window(wanted: RunsWanted) -> Select[Any]:
    """Select the newest runs after a key, in the order of an index."""
    names = ("group_id", "task", "status", "attempts", "decided_by", "decision", "reason", "at")
    replays = ("replay_of", "sent_as")
    window = select(*(RUNS.c[name] for name in (*_KEY, *names, *replays))).where(
        *_after(RUNS.c.at, RUNS.c.uuid, wanted.after)
    )
    if wanted.group:
        window = window.where(RUNS.c.group_id == wanted.group)
        if wanted.status:
            window = window.where(RUNS.c.status == wanted.status)
    return window.order_by(RUNS.c.at.desc(), RUNS.c.uuid.desc())


def _waiting(group: str, app: str, status: str) -> Select[Any, Any]:
    """Select the runs of a group that can be replayed and were not yet."""
    return (
        select(*(RUNS.c[name] for name in ("uuid", "replay_of")))
        .where(RUNS.c.group_id == group, RUNS.c.status == status, RUNS.c.app == app)
        .where(RUNS.c.claimed_at.is_(None), RUNS.c.not_replayable.is_(None))
        .order_by(RUNS.c.at.desc())
    )


def _bounded(connection: Connection, window: Select[Any], rows: Sequence[Found]) -> Listed:
    """Return the rows, with a link to continue the search if it reached its limit."""
    seen = window.with_only_columns(RUNS.c.at, RUNS.c.uuid).subquery()
    last = connection.execute(
        select(seen, func.count().over().label("looked")).order_by(seen.c.at, seen.c.uuid).limit(1)
    ).first()
    if last is None or last.looked < LOOK:
        return Listed(rows)
    return Listed(rows, key_text(last.at, last.uuid), LOOK)


def _attempts_of(run: Found) -> list[ColumnElement[bool]]:
    return [ATTEMPTS.c[name] == getattr(run, name) for name in _KEY]


def _run_key(row: Found) -> str:
    return key_text(row.at, row.uuid)


def _listed(rows: Sequence[Found], key: Any) -> Listed:
    return Listed(rows[:PAGE], key(rows[PAGE - 1])) if len(rows) > PAGE else Listed(rows)
