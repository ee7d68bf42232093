"""Tracebacks that begin in the user's own code."""

from __future__ import annotations

import asyncio
import importlib
import threading
import traceback
from pathlib import Path
from typing import Final

_OURS: Final = tuple(
    [f"{Path(str(one.__file__)).parent}/" for one in (asyncio, importlib)]
    + [f"{Path(__file__).parent.parent}/", str(threading.__file__), "<frozen importlib"]
)


def own_traceback(error: BaseException) -> str:
    """Format an error's traceback without the frames that led from the command to it.

    Args:
        error: The error.

    Returns:
        The text, in the usual form.
    """
    told = traceback.TracebackException.from_exception(error)
    seen: set[int] = set()
    one: traceback.TracebackException | None = told
    while one is not None and id(one) not in seen:
        seen.add(id(one))
        frames = list(one.stack)
        while frames and frames[0].filename.startswith(_OURS):
            del frames[0]
        one.stack = traceback.StackSummary.from_list(frames)
        one = one.__cause__ or one.__context__
    return "".join(told.format())
