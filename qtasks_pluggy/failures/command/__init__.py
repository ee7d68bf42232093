"""``qtasks-pluggy failures``: shows what failed and why, and resolves or replays it.

==============  ==============================================================================
``options.py``  the commands' options, and opening the store
``asking.py``   the runs or groups of an act, and asking for confirmation
``read.py``     ``groups``, ``list``, ``show``
``replay.py``   ``replay``, also with ``--dry-run``
``acts.py``     ``resolve``, ``ignore``, ``reopen``, ``upgrade``
``web.py``      ``web``: the page
==============  ==============================================================================
"""

from __future__ import annotations

from importlib.util import find_spec

import click

from qtasks_pluggy._console.load import Trouble
from qtasks_pluggy.failures.command.acts import ignore, reopen, resolve, upgrade
from qtasks_pluggy.failures.command.read import groups, list_runs, show
from qtasks_pluggy.failures.command.replay import replay
from qtasks_pluggy.failures.command.web import web


@click.group(name="failures")
@click.pass_context
def failures(ctx: click.Context) -> None:
    """Show what failed and why, and resolve or replay it.

    The plugin that records failures is off until the setting enable names it, as in
    QTASKS_PLUGGY_ENABLE=failures. The variable replaces a file's list, so name all in it.

    \b
    Exit codes:
      0  success
      1  a run or group does not exist, or you declined
      2  wrong usage or settings, or the store cannot be used
    """  # noqa: D301  # \b is click's own mark, not an escape
    extra = "web" if ctx.invoked_subcommand == "web" else "failures"
    if find_spec("sqlalchemy") is None:
        msg = (
            "this command needs sqlalchemy, which is not installed; run: python -m pip install"
            f" 'qtasks-pluggy[{extra}]'"
        )
        raise Trouble(msg)


for _one in (groups, list_runs, show, replay, resolve, ignore, reopen, upgrade, web):
    failures.add_command(_one)
