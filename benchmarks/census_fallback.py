"""Approximate counts for Python files that the census cannot decode or parse.

Where the task ``census`` gives up on a file, this plugin counts what looks like a function or a
class in whatever text the file holds, and that becomes the result of the run. The count is marked
as approximate.

The task may ask by ``ctx.plugin_error(path=...)``, or just let the parser's error out, as tasks do
that were there before any plugin; then the path is the run's own argument.
"""

from __future__ import annotations

import io
import re
import tokenize
from pathlib import Path
from typing import Any

from qtasks_hookspecs import Replace, TaskFunc, TaskMessage, blocking, hookimpl
from qtasks_hookspecs.exc import TaskPluginTriggerError

TASKS = frozenset({"census", "census_async"})

# What decoding and parsing raise; a UnicodeDecodeError is a ValueError.
UNREADABLE = (SyntaxError, ValueError, MemoryError, RecursionError)

# What may hold the words "def" and "class" without being one: comments and strings. One that never
# ends goes on to the end of its line, or of the file. Nothing here backtracks (``*+``, ``?+``), so
# that no file, however broken, takes more than one pass.
_PROSE = re.compile(
    r"""
    \#[^\n]*+
    | \"{3} (?: [^"\\] | \\.?+ | "{1,2}(?!") )*+ (?: \"{3} )?+
    | '{3} (?: [^'\\] | \\.?+ | '{1,2}(?!') )*+ (?: '{3} )?+
    | " (?: [^"\\\n] | \\.?+ )*+ "?+
    | ' (?: [^'\\\n] | \\.?+ )*+ '?+
    """,
    re.DOTALL | re.VERBOSE,
)
_FUNCTION = re.compile(r"^[ \t]*(?:async[ \t]+)?def[ \t]+\w+[ \t]*[(\[]", re.MULTILINE)
_CLASS = re.compile(r"^[ \t]*class[ \t]+\w+[ \t]*[(:\[]", re.MULTILINE)


@hookimpl
@blocking  # it reads a file, which an event loop should not wait for
def task_executor_run_task_trigger_error(
    task_func: TaskFunc, task_broker: TaskMessage, e: TaskPluginTriggerError
) -> Replace | None:
    """Answer the census with approximate counts, and nobody else."""
    path = e.kwargs.get("path")
    if isinstance(e.cause, UNREADABLE):
        (first, *_) = (*task_broker.args, None)
        path = task_broker.kwargs.get("path", first)
    # Celery and Taskiq put the module's name in front of the function's.
    if re.split("[.:]", task_func.name)[-1] not in TASKS or not isinstance(path, str):
        return None
    try:
        source = Path(path).read_bytes()
    except OSError:
        # It was there a moment ago. What is gone cannot be counted: no opinion.
        return None
    return Replace({"path": path, **counts(source), "approximate": True})


def counts(source: bytes) -> dict[str, Any]:
    """Count what looks like a function, a class and a line.

    Args:
        source: The bytes of a file that claims to be Python.

    Returns:
        The counts by name.
    """
    code = _PROSE.sub(" ", text_of(source))
    return {
        "functions": len(_FUNCTION.findall(code)),
        "classes": len(_CLASS.findall(code)),
        "lines": len(source.splitlines()),
    }


def text_of(source: bytes) -> str:
    """Decode as well as it goes: the file's own encoding if it works, else UTF-8 with gaps.

    Args:
        source: The bytes of a file that claims to be Python.

    Returns:
        Text without null bytes.
    """
    try:
        encoding, _ = tokenize.detect_encoding(io.BytesIO(source).readline)
        text = source.decode(encoding)
    except (LookupError, SyntaxError, ValueError):
        text = source.decode("utf-8", errors="replace")
    return text.replace("\0", "").replace("\r\n", "\n").replace("\r", "\n")
