"""``qtasks-pluggy failures``: what failed, why, who decided; and what to do about it.

==============  ==============================================================================
``options.py``  what the commands take, which store they open, and what may be wrong with it
``asking.py``   acts: what they are about, how many that are, and whether to go on
``read.py``     ``groups``, ``list``, ``show``
``replay.py``   ``replay``, and what plugins would decide
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


class _Group(click.Group):
    def invoke(self, ctx: click.Context) -> object:
        """Run a command, or say what to install for it."""
        if find_spec("sqlalchemy") is None:
            msg = (
                "failures needs sqlalchemy, which is not installed; install the extra that brings"
                " it: python -m pip install 'qtasks-pluggy[failures]'"
            )
            raise Trouble(msg)
        return super().invoke(ctx)


@click.group(name="failures", cls=_Group)
def failures() -> None:
    """See what failed, why, who decided, and how often; and act on it.

    The plugin that records it is off until you enable it: QTASKS_PLUGGY_ENABLE=failures.

    \b
    Exit codes:
      0  all is well
      1  a run or a group is not there, or you said no
      2  usage, settings, or a store that cannot be used
    """  # noqa: D301  # \b is click's own mark, not an escape


for _one in (groups, list_runs, show, replay, resolve, ignore, reopen, upgrade, web):
    failures.add_command(_one)
