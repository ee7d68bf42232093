"""The executor's view of an engine during one attempt."""

from __future__ import annotations

from typing import Any

from qtasks_hookspecs import RunningTask
from qtasks_pluggy.engines import Capabilities
from qtasks_pluggy.engines._errors import check_storable


class Host:
    """Answers the executor's questions about one run by calling ``Native``."""

    __slots__ = ("_native", "_run", "control", "name")

    def __init__(self, native: Any, run: Any) -> None:
        self._native, self._run = native, run
        self.name: str = native.name
        self.control: tuple[type[Exception], ...] = native.control

    @property
    def capabilities(self) -> Capabilities:
        """What the engine can do for this run."""
        can: Capabilities = self._native.can(self._run)
        return can

    def will_retry(self, error: BaseException) -> bool:
        """Return whether the engine itself will repeat the run."""
        return bool(self._native.will_retry(self._run, error))

    def failure(self, error: BaseException) -> BaseException | None:
        """Return the run's error after its task raised one that is not an ``Exception``."""
        failure: BaseException | None = self._native.failure(error)
        return failure

    def check_answer(self, value: Any) -> None:
        """Refuse an answer that cannot be stored.

        Raises:
            EngineError: The answer cannot be encoded.
        """
        check_storable(self._native, self._run, "the answer", value)

    def check_result(self, run: RunningTask) -> None:
        """Refuse a result that cannot be stored.

        Raises:
            EngineError: The result cannot be encoded.
        """
        self._native.check_result(run.task_func.name, run.result)
