"""A census of Python source files: real work for benchmarks, thousands of inputs on any machine.

Run as a script it prints a record for every file that it finds: the interpreter's standard
library, the installed packages, and the broken files beside this one. The command runs the task
once for each record:

    python benchmarks/census.py | qtasks-pluggy run benchmarks/census.py census --each -

Some of those files cannot be decoded or parsed; a plugin of the app answers for them. With
``QTASKS_PLUGGY_DISABLE=census-fallback`` those runs fail.
"""

from __future__ import annotations

import ast
import asyncio
import io
import json
import os
import re
import sys
import sysconfig
import threading
import tokenize
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from qtasks_hookspecs import Replace, blocking, hookimpl
from qtasks_hookspecs.exc import TaskPluginTriggerError
from qtasks_pluggy import AsyncTask, QueueTasks, SyncTask

BROKEN = Path(__file__).resolve().parent / "broken_sources"

_FUNCTION = re.compile(rb"^[ \t]*(?:async[ \t]+)?def[ \t]", re.MULTILINE)
_CLASS = re.compile(rb"^[ \t]*class[ \t]", re.MULTILINE)

# Filters for warnings belong to the whole process, so one thread at a time may change them.
# Parsing holds the interpreter's lock anyway.
_parsing = threading.Lock()


class Fallback:
    """The plugin: approximate counts for what cannot be decoded or parsed."""

    name = "census-fallback"

    @hookimpl
    @blocking  # it reads a file, which an event loop should not wait for
    def task_executor_run_task_trigger_error(self, e: TaskPluginTriggerError) -> Replace:
        """Count the lines that look like a function's or a class's first."""
        source = Path(e.kwargs["path"]).read_bytes()
        counts = {
            "functions": len(_FUNCTION.findall(source)),
            "classes": len(_CLASS.findall(source)),
            "lines": len(source.splitlines()),
        }
        return Replace({"path": e.kwargs["path"], **counts, "approximate": True})


app = QueueTasks("census", plugins=[Fallback()])


@app.task(echo=True, description="count what is in one Python source file")
def census(self: SyncTask, path: str) -> dict[str, Any]:
    """Count the functions, classes and lines of a file."""
    return count(self, path)


@app.task(echo=True, description="the same, leaving the event loop while it reads and parses")
async def census_async(self: AsyncTask, path: str) -> dict[str, Any]:
    """Count the functions, classes and lines of a file, from async code."""
    return await asyncio.to_thread(count, self, path)


def count(task: SyncTask | AsyncTask, path: str) -> dict[str, Any]:
    """Count what is in a file; an unreadable one is an ordinary ``OSError``."""

    def give_up(kind: str, error: object) -> NoReturn:
        where, why = path, error
        if isinstance(error, SyntaxError) and error.lineno:
            where, why = f"{path}, line {error.lineno}", error.msg
        task.ctx.plugin_error(message=f"{where}: {why}", path=path, kind=kind)

    source = Path(path).read_bytes()
    try:
        encoding, _ = tokenize.detect_encoding(io.BytesIO(source).readline)
        text = source.decode(encoding)
    except (LookupError, SyntaxError, ValueError) as error:
        give_up("decode", error)
    if "\0" in text:
        give_up("null bytes", "the source contains null bytes")
    try:
        with _parsing, warnings.catch_warnings():
            # What the compiler thinks of other people's files is not ours to tell.
            warnings.simplefilter("ignore")
            tree = ast.parse(text)
    except (SyntaxError, ValueError) as error:
        give_up("syntax", error)
    except (MemoryError, RecursionError):
        give_up("nesting", "the source is nested too deeply for the parser")
    functions = classes = 0
    for node in ast.walk(tree):
        functions += isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        classes += isinstance(node, ast.ClassDef)
    return {
        "path": path,
        "functions": functions,
        "classes": classes,
        "lines": len(source.splitlines()),
    }


def sources() -> Iterator[Path]:
    """Find every Python file of the standard library, the installed packages and ``BROKEN``."""
    paths = sysconfig.get_paths()
    yield from _files(Path(paths["stdlib"]), without={"site-packages", "dist-packages"})
    for folder in sorted({Path(paths["purelib"]).resolve(), Path(paths["platlib"]).resolve()}):
        yield from _files(folder)
    yield from _files(BROKEN)


def _files(folder: Path, without: frozenset[str] | set[str] = frozenset()) -> Iterator[Path]:
    for where, folders, names in os.walk(folder):
        folders[:] = sorted(set(folders) - without)
        yield from (Path(where, name) for name in sorted(names) if name.endswith(".py"))


def main() -> None:
    """Print one record a file, and stop quietly when nobody listens any more."""
    try:
        for path in sources():
            print(json.dumps({"path": str(path)}))
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
