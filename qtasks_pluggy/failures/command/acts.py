"""``resolve``, ``ignore``, ``reopen`` and ``upgrade``."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Final

import attrs
import click

from qtasks_pluggy._console.say import say, say_json
from qtasks_pluggy.failures.command.asking import (
    SELECTION,
    Selection,
    ask,
    counted,
    find_runs,
    read_selection,
    who,
)
from qtasks_pluggy.failures.command.options import (
    STORE,
    hint_at_names,
    reading,
    refuse_missing,
    store_url,
    takes,
    using_store,
)
from qtasks_pluggy.failures.records import STATES, Filters, Group

if TYPE_CHECKING:
    from qtasks_pluggy.failures.queries import Reader


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
    if act == "reopen" and given["state"] is None:
        # What filters leave out by default is what it is for.
        selection = attrs.evolve(selection, filters=attrs.evolve(selection.filters, states=STATES))
    where, change = store_url(url, app_spec), CHANGES[act]
    with reading(where) as reader:
        selection = find_runs(reader, selection)
        found = _groups(reader, selection)
        hint = "" if found else hint_at_names(reader, selection.filters)
    wanted = {one.id: one for one in found if one.state in change.of}
    changed = []
    if wanted:
        ask(f"{act} {counted(len(wanted), 'group')} ({selection.scope})", yes=yes)
        with using_store(where):
            ids = change_groups(where, act, wanted, who=who(), scope=selection.scope)
        changed = [attrs.evolve(wanted[one], state=change.to) for one in ids]
    if as_json:
        say_json([attrs.asdict(one) for one in changed])
    elif changed:
        say(f"{counted(len(changed), 'group')} ({selection.scope}): {change.to} now")
    else:
        none = f"none of {counted(len(found), 'group')} ({selection.scope})"
        say(f"Nothing to do: {none} is {' or '.join(change.of)}.{hint}")


def _groups(reader: Reader, selection: Selection) -> list[Group]:
    if selection.uuids:
        ids = dict.fromkeys(reader.groups_of(selection.uuids).values())
        return [one for group in ids for one in reader.groups(Filters(group=group))]
    found = reader.groups(selection.filters)
    if not found and selection.filters.group is not None:
        refuse_missing("group", [selection.filters.group])
    return found


_HOW: Final = (
    "Give ids of runs to select their groups, or filters; the first characters of an id are enough."
    " The command asks first; without a terminal it needs --yes."
)


def _command(act: str, does: str, then: str) -> click.Command:
    help_text = f"{does}\n\n{then} {_HOW}"
    return click.command(name=act, help=help_text)(takes(*SELECTION, *STORE)(partial(_change, act)))


resolve: Final = _command(
    "resolve", "Mark failures as resolved.", "A group that fails again is marked as regressed."
)
ignore: Final = _command(
    "ignore", "Mark failures as ignored.", "Ignored groups are counted, but not listed or logged."
)
reopen: Final = _command(
    "reopen",
    "Mark failures as open again.",
    "This is for resolved and ignored groups; filters select both, unless --state names one.",
)


@click.command(name="upgrade")
@takes(*STORE)
def upgrade(url: str | None, app_spec: str | None, *, as_json: bool) -> None:
    """Upgrade a store made by an older qtasks-pluggy, in place."""
    from qtasks_pluggy.failures import connection, schema  # noqa: PLC0415  # an extra

    where = store_url(url, app_spec)
    with using_store(where):
        before = connection.upgrade(where)
    store = connection.shown(where)
    if as_json:
        say_json({"store": store, "from": before, "to": schema.VERSION})
    elif before == schema.VERSION:
        say(f"{store} is of version {before} already; there is nothing to do.")
    else:
        say(f"{store} is upgraded from version {before} to version {schema.VERSION}.")
