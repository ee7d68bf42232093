"""Dramatiq's ``retry_when``, of which the answer has to be known before Dramatiq asks."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any


class AskedOnce:
    """A predicate that is asked once about an error, though two want to know: it may count.

    Args:
        wanted: Somebody's own, which says whether there is to be another attempt.
    """

    def __init__(self, wanted: Callable[[int, BaseException], Any]) -> None:
        self._wanted = wanted
        self._asked = threading.local()

    @classmethod
    def of(cls, actor: Any, retries: Any) -> AskedOnce | None:
        """Find the predicate for an actor, and have Dramatiq ask it by this.

        Args:
            actor: The actor, whose own comes first.
            retries: The middleware, which has one for all.
        """
        wanted = actor.options.get("retry_when", retries.retry_when)
        if wanted is None or isinstance(wanted, cls):
            return wanted
        one = cls(wanted)
        if "retry_when" in actor.options:
            actor.options["retry_when"] = one
        else:
            retries.retry_when = one
        return one

    def ahead(self, count: int, error: BaseException) -> bool:
        """Ask, and keep the answer for Dramatiq, which asks next, in this thread."""
        answer = bool(self._wanted(count, error))
        self._asked.known = error, answer
        return answer

    def __call__(self, count: int, error: BaseException) -> Any:
        """Answer Dramatiq."""
        known, answer = vars(self._asked).pop("known", (None, None))
        return answer if known is error else self._wanted(count, error)
