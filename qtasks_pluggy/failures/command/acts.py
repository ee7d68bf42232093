"""``resolve``, ``ignore``, ``reopen`` and ``upgrade``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs
import click

from qtasks_pluggy._console.say import say, say_json
from qtasks_pluggy.failures.command.asking import (
    SELECTION,
    Selection,
    ask,
    counted,
    read_selection,
    refuse_missing,
    who,
)
from qtasks_pluggy.failures.command.options import (
    STORE,
    open_reader,
    store_url,
    takes,
    using_store,
)
from qtasks_pluggy.failures.records import Filters, Group

if TYPE_CHECKING:
    from qtasks_pluggy.failures.queries import Reader


@click.command(name="resolve")
@takes(*SELECTION, *STORE)
def resolve(**given: Any) -> None:
    """Say that failures are mended; one that comes again is told as regressed.

    Give the ids of runs, for their groups, or filters. It asks first; without a terminal it needs
    --yes.
    """
    _change("resolve", **given)


@click.command(name="ignore")
@takes(*SELECTION, *STORE)
def ignore(**given: Any) -> None:
    """Say that failures are of no interest; they are counted, and neither listed nor told.

    Give the ids of runs, for their groups, or filters. It asks first; without a terminal it needs
    --yes.
    """
    _change("ignore", **given)


@click.command(name="reopen")
@takes(*SELECTION, *STORE)
def reopen(**given: Any) -> None:
    """Take it back that failures are resolved or ignored.

    Give the ids of runs, for their groups, or filters. It asks first; without a terminal it needs
    --yes.
    """
    _change("reopen", **given)


def _change(
    act: str,
    uuids: tuple[str, ...],
    url: str | None,
    app_spec: str | None,
    *,
    yes: bool,
    as_json: bool,
    **given: Any,
) -> None:
    from qtasks_pluggy.failures.acts import CHANGES, change_groups  # noqa: PLC0415  # an extra

    selection = read_selection(uuids, given)
    where, change = store_url(url, app_spec), CHANGES[act]
    reader = open_reader(where)
    with using_store("read"):
        found = _groups(reader, selection)
    wanted = {one.id: one for one in found if one.state in change.of}
    changed = []
    if wanted:
        ask(f"{act} {counted(len(wanted), 'group')} ({selection.scope})", yes=yes)
        with using_store("written"):
            ids = change_groups(where, act, wanted, who=who(), scope=selection.scope)
        changed = [attrs.evolve(wanted[one], state=change.to) for one in ids]
    if as_json:
        say_json([attrs.asdict(one) for one in changed])
    elif changed:
        say(f"{counted(len(changed), 'group')} ({selection.scope}): {change.to} now")
    else:
        none = f"none of {counted(len(found), 'group')} ({selection.scope})"
        say(f"Nothing was to be done: {none} is {' or '.join(change.of)}.")


def _groups(reader: Reader, selection: Selection) -> list[Group]:
    if selection.uuids:
        groups = reader.groups_of(selection.uuids)
        refuse_missing("run", [one for one in selection.uuids if one not in groups])
        ids = dict.fromkeys(groups.values())
        return [one for group in ids for one in reader.groups(Filters(group=group))]
    found = reader.groups(selection.filters)
    if not found and selection.filters.group is not None:
        refuse_missing("group", [selection.filters.group])
    return found


@click.command(name="upgrade")
@takes(*STORE)
def upgrade(url: str | None, app_spec: str | None, *, as_json: bool) -> None:
    """Upgrade a store that an older qtasks-pluggy has made, in place."""
    from qtasks_pluggy.failures import connection, schema  # noqa: PLC0415  # an extra

    where = store_url(url, app_spec)
    with using_store("written"):
        before = connection.upgrade(where)
    store = connection.shown(where)
    if as_json:
        say_json({"store": store, "from": before, "to": schema.VERSION})
    elif before == schema.VERSION:
        say(f"{store} is of version {before} already; nothing was to be done.")
    else:
        say(f"{store} was of version {before}, and is of version {schema.VERSION} now.")
