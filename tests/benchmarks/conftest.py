"""The programs that measure, and what their tests load of them."""

from __future__ import annotations

import importlib.util
from pathlib import Path

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
BROKEN = sorted((BENCHMARKS / "broken_sources").glob("*.py"))


def load(name):
    """Import a program by its path."""
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", BENCHMARKS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
