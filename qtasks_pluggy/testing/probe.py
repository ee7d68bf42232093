"""What importing a module does: run by its path, in a new Python process, with one JSON argument.

``name``, ``file`` and ``path`` say what to import; ``report`` is the file that takes what it did.
It imports nothing of the project itself, because what the module imports is a part of the answer.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import logging
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any


def main(order: dict[str, Any]) -> None:
    """Import the module, and write down what has changed since."""
    sys.path[:] = order["path"]
    before = _state()
    found: dict[str, Any] = {}
    try:
        load_module(order["name"], order["file"])
    except SystemExit as end:
        found["exits"] = str(end.code)
    except BaseException as error:  # noqa: BLE001  # whatever a module raises
        found["raises"] = f"{type(error).__name__}: {error}"
    else:
        after = _state()
        found["changes"] = [what for what, state in before.items() if after[what] != state]
        found["imports_app"] = "qtasks_pluggy" in sys.modules
    Path(order["report"]).write_text(json.dumps(found), "utf-8")


def load_module(name: str, file: str | None) -> Any:
    """Import a module by its name, or from its file if it has no importable name."""
    if name in sys.modules:
        return sys.modules[name]
    if file is None or _is_importable(name):
        return importlib.import_module(name)
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        msg = f"{file} is not a Python file"
        raise ImportError(msg)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _is_importable(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ImportError:  # of the package that it would be in
        return False


def _state() -> dict[str, Any]:
    """Describe what importing a module should leave alone."""
    handled = {one: repr(signal.getsignal(one)) for one in (signal.SIGINT, signal.SIGTERM)}
    return {
        "the environment": dict(os.environ),
        "the current folder": str(Path.cwd()),
        "the running threads": sorted(one.name for one in threading.enumerate()),
        "the handlers of signals": handled,
        "the root logger": (logging.root.level, len(logging.root.handlers)),
    }


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
