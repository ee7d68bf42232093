"""Tracebacks that begin in the user's own code."""

from __future__ import annotations

import asyncio
import concurrent.futures
import importlib
import threading
import traceback
from pathlib import Path
from typing import Final

_MACHINERY: Final = (
    *(f"{Path(str(one.__file__)).parent}/" for one in (asyncio, concurrent.futures, importlib)),
    f"{Path(__file__).parent.parent}/",
    str(threading.__file__),
    "<frozen importlib",
)


def own_traceback(error: BaseException) -> str:
    """Format an error's traceback without the frames that led from the command to it."""
    told = traceback.TracebackException.from_exception(error)
    one: traceback.TracebackException | None = told
    while one is not None:
        while one.stack and one.stack[0].filename.startswith(_MACHINERY):
            del one.stack[0]
        one = one.__cause__ or one.__context__
    return "".join(told.format())
