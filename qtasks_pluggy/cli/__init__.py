"""The command ``qtasks-pluggy``, in the extra ``cli``.

==================  ==========================================================================
``_command.py``     the command group
``run.py``          ``run``: one run, or one for each record
``plugins.py``      ``plugins``: the plugins, and which are enabled
``doctor.py``       ``doctor``: each hook's chain, the settings, and what is wrong
``hooks.py``        ``hooks``: the reference of the hooks
``_records.py``     reads the arguments of runs from a file or the command line
``_each.py``        START HERE: many runs, a bounded number at a time
``_runs.py``        one run: how it is done, and how it ended
``_output.py``      output files of JSON lines, each written whole
``_summary.py``     counts and shows how the runs ended; the progress bar
==================  ==========================================================================

Finding APP and printing are in ``_console``, the command ``failures`` in ``failures/command/``.
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
            # The stream is closed: the next opened file would get its number, and the output.
            os.dup2(os.open(os.devnull, os.O_RDWR), stream)
    try:
        from qtasks_pluggy._console.say import SayingHandler  # noqa: PLC0415  # needs the extra
        from qtasks_pluggy.cli._command import command  # noqa: PLC0415  # likewise
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in _NEEDED:
            raise
        print(  # noqa: T201  # click, which would print it, is what may be missing
            f"Error: the command qtasks-pluggy needs {missing}, which is not installed; run:"
            " python -m pip install 'qtasks-pluggy[cli]'",
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
        # Skips flushing the buffers, which would fail again.
        os._exit(1)
