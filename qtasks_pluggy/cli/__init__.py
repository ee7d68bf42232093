"""The command ``qtasks-pluggy``, in the extra ``cli``.

==================  ==========================================================================
``_command.py``     the command itself, and what all its parts share
``run.py``          ``run``: one run, or one for each record
``plugins.py``      ``plugins``: what is installed, and what of it is asked
``doctor.py``       ``doctor``: each hook's chain, the settings, and what is wrong
``hooks.py``        ``hooks``: the reference of the hooks
``_records.py``     from a file's records and the command's arguments to the arguments of runs
``_each.py``        START HERE: many runs, a bounded number at a time, until all have ended
``_runs.py``        one run: how it is done, and how it ended
``_output.py``      files of JSON lines that are whole at any moment
``_summary.py``     how all runs ended, counted and shown; the progress bar
==================  ==========================================================================

From APP to objects, and printing: ``_console``. ``failures`` lives with what it is about.
"""

from __future__ import annotations

import errno
import logging
import os
import sys
from contextlib import suppress

__all__ = ["main"]

_NEEDED = frozenset({"click", "rich"})


def main() -> None:
    """Run the command, or say what to install for it."""
    for stream in (1, 2):
        try:
            os.fstat(stream)
        except OSError:
            # It is closed: the next file that is opened would get what is printed.
            os.dup2(os.open(os.devnull, os.O_RDWR), stream)
    try:
        from qtasks_pluggy._console.say import SayingHandler  # noqa: PLC0415  # needs the extra
        from qtasks_pluggy.cli._command import command  # noqa: PLC0415  # likewise
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in _NEEDED:
            raise
        print(  # noqa: T201  # click, which would print it, is what may be missing
            f"Error: the command qtasks-pluggy needs {missing}, which is not installed;"
            " install the extra that brings it: python -m pip install 'qtasks-pluggy[cli]'",
            file=sys.stderr,
        )
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    logging.lastResort = SayingHandler(logging.WARNING)
    try:
        command(prog_name="qtasks-pluggy")
    except OSError as error:
        if error.errno not in {errno.ENOSPC, errno.EDQUOT, errno.EIO}:
            raise
        with suppress(OSError):
            os.write(2, f"Error: the output cannot be written: {error.strerror}\n".encode())
        # Past the buffers, which would be written once more.
        os._exit(1)
