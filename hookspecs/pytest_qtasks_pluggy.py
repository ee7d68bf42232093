"""The pytest plugin of qtasks-pluggy: three fixtures for the tests of plugins.

pytest imports it in every project of the environment, so it imports nothing of the project before
a test asks for one of its fixtures, and it has no hooks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from qtasks_pluggy import QueueTasks
    from qtasks_pluggy.testing import Run

__all__ = ["qtasks_app", "qtasks_installed", "qtasks_run"]


@pytest.fixture(params=["def", "async def"])
def qtasks_run(request: pytest.FixtureRequest) -> Callable[..., Run]:
    """Run a function under one plugin, in a test for plain code and in one for async code.

    Returns:
        ``qtasks_pluggy.testing.run_with`` with a style, so a function may remember its last call.
    """
    from qtasks_pluggy.testing import run_with  # noqa: PLC0415  # not before a test asks for it

    def run(plugin: Any, function: Callable[..., Any], **options: Any) -> Run:
        __tracebackhide__ = True
        return run_with(plugin, function, **{"style": request.param, **options})

    return run


@pytest.fixture
def qtasks_app() -> Iterator[Callable[..., QueueTasks]]:
    """Make apps that have the plugins and settings of the test, and no others.

    Yields:
        ``qtasks_pluggy.testing.isolated_app``, whose apps start at once, and stop after the test.
    """
    from qtasks_pluggy.testing import isolated_app  # noqa: PLC0415  # not before a test asks for it

    with ExitStack() as stack:

        def make(*plugins: Any, **options: Any) -> QueueTasks:
            __tracebackhide__ = True
            return stack.enter_context(isolated_app(*plugins, **options))

        yield make


@pytest.fixture
def qtasks_installed() -> Iterator[Callable[..., QueueTasks]]:
    """Make apps that discover the plugins of one installed distribution, and no others.

    Yields:
        ``qtasks_pluggy.testing.installed_app``, whose apps start at once, and stop after the test.
    """
    from qtasks_pluggy.testing import installed_app  # noqa: PLC0415  # not before a test asks for it

    with ExitStack() as stack:

        def make(distribution: str, **options: Any) -> QueueTasks:
            __tracebackhide__ = True
            return stack.enter_context(installed_app(distribution, **options))

        yield make
