"""Runs within a time limit, and findings."""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable, Iterable
from concurrent.futures import Future, wait
from typing import Any, Final, TypeVar

import attrs

from qtasks_hookspecs.exc import safe_str
from qtasks_pluggy import TaskExecutor
from qtasks_pluggy.exc import PluginError
from qtasks_pluggy.testing.run import Style, in_loop

T = TypeVar("T")
CHECK_THREAD: Final = "qtasks-pluggy-check"
_MOST: Final = 200


@attrs.frozen
class Finding:
    """What is wrong with a plugin.

    Attributes:
        text: What it did, and when.
        remedy: What to do.
    """

    text: str
    remedy: str

    def __str__(self) -> str:
        """Show both."""
        return f"{self.text}\n  -> {self.remedy}"


class ContractError(AssertionError):
    """A plugin does not keep the contract.

    Attributes:
        findings: All that is wrong by this one check.
    """

    def __init__(self, findings: Iterable[Finding]) -> None:
        self.findings: tuple[Finding, ...] = tuple(findings)
        super().__init__("\n".join(map(str, self.findings)))


class HangError(ContractError):
    """A plugin does not end, so whatever else it is asked would not either."""


def within(seconds: float, call: Callable[[], T], when: str) -> T:
    """Call something in a new thread, and wait for it.

    Raises:
        HangError: It does not end in time; its thread keeps running.
    """
    ended: Future[T] = Future()

    def work() -> None:
        try:
            ended.set_result(call())
        except BaseException as error:  # noqa: BLE001  # raised again in the waiting thread
            ended.set_exception(error)

    threading.Thread(target=work, name=CHECK_THREAD, daemon=True).start()
    if not wait({ended}, seconds).done:
        text = f"the plugin hangs {when}: it did not end within {seconds:g} seconds"
        remedy = (
            "give what it waits for a timeout of its own, mark what blocks with @blocking, and let"
            " asyncio.CancelledError pass"
        )
        raise HangError([Finding(text, remedy)])
    return ended.result()


def try_run(executor: TaskExecutor, style: Style = "def") -> tuple[Any, BaseException | None]:
    """Run a task.

    Returns:
        The result, and the error that is the run's own.

    Raises:
        PluginError: The plugin failed.
    """
    try:
        if style == "def":
            return executor.execute_sync(), None
        return in_loop(executor.execute), None
    except PluginError:
        raise
    except Exception as error:  # noqa: BLE001  # the task's own, or what was decided
        return None, error


def failure(error: BaseException, when: str) -> Finding:
    """Describe how a plugin failed."""
    own = error
    if isinstance(error, PluginError) and error.__cause__ is not None:
        own = error.__cause__
    frames = traceback.extract_tb(own.__traceback__)
    where = f", at {frames[-1].filename}:{frames[-1].lineno}" if frames else ""
    if isinstance(own, TimeoutError):
        return Finding(
            f"the plugin took too long {when}: {own}",
            "give what it waits for a shorter timeout of its own",
        )
    return Finding(
        f"the plugin raised {type(own).__name__} {when}: {_text(own)}{where}",
        "catch it there, and answer None where the plugin has no opinion",
    )


def _text(error: BaseException) -> str:
    """Show the beginning of an error's text, with nothing in it that a terminal obeys."""
    text = safe_str(error)
    return ascii(text if len(text) <= _MOST else f"{text[:_MOST]}...")
