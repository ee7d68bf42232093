"""Which answers count, and what they are in a pipeline."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from qtasks_hookspecs import Raise, Replace, Retry
from qtasks_hookspecs._on_error import TRIGGER
from qtasks_pluggy._plugins.chain import DECISIONS, Hook, Values

ARGUMENTS = ("args", "kwargs")
# Answers of these classes need no checks; most answers are of one.
PLAIN_KINDS: Final[frozenset[type]] = frozenset(
    {bool, int, float, str, bytes, dict, list, tuple, Replace}
)


def does_count(hook: Hook, values: Values, answer: Any) -> bool:
    """Return whether a hookimpl's answer counts (R5).

    Raises:
        CapabilityError: The run's engine cannot carry it out.
        EngineError: The run's engine cannot store it.
        TypeError: It is not an answer that this hook takes.
    """
    kind = type(answer)
    if kind in PLAIN_KINDS and hook.lastresult:
        return hook.subject is None or _can_be_stored(values, answer)
    if answer is None:
        return False
    if issubclass(kind, (type, BaseException)):
        _refuse_slips(answer)
    if not hook.lastresult or hook.subject is None:
        if kind in DECISIONS and kind is not Replace:
            msg = (
                f"answered {kind.__name__}, which is a decision of {TRIGGER} only;"
                f" {hook.name} takes a plain value or Replace(value)"
            )
            raise TypeError(msg)
        if hook.pipeline:
            pipeline_values(hook, answer)
        # The engine stores the final value of this pipeline.
        return hook.name != "task_executor_run_task" or _can_be_stored(values, answer)
    run: Any = values.get("task_executor")
    if kind is Retry and not _may_retry(run, answer):
        return False
    if kind is Raise and _raises_the_same(answer.error, values["e"]):
        return False
    return _can_be_stored(values, answer)


def _can_be_stored(values: Values, answer: Any) -> bool:
    """Return True, unless the run's engine refuses the answer."""
    run: Any = values.get("task_executor")
    if getattr(run, "engine", None) is not None:
        run.refuse(answer)
    return True


def pipeline_values(hook: Hook, answer: Any) -> dict[str, Any]:
    """Return the parameters that an answer replaces for the next hookimpls.

    Raises:
        TypeError: The arguments of a task are not answered as a pair.
    """
    value = answer.value if type(answer) is Replace else answer
    if hook.pipeline == ARGUMENTS:
        value = _arguments(value)
        return dict(zip(ARGUMENTS, value, strict=True))
    return dict.fromkeys(hook.pipeline, value)


def _refuse_slips(answer: Any) -> None:
    """Refuse the answers that are common mistakes."""
    kind = answer if isinstance(answer, type) else type(answer)
    if issubclass(kind, BaseException):
        msg = (
            f"answered the exception {kind.__name__} as a plain value;"
            " say Raise(e), or Replace(e) if you mean it as the result"
        )
        raise TypeError(msg)
    if any(answer is decision for decision in DECISIONS):
        msg = f"answered the class {answer.__name__}; answer an instance, {answer.__name__}(...)"
        raise TypeError(msg)


def _raises_the_same(error: BaseException, asked: Any) -> bool:
    """Return whether ``Raise`` holds the very error that the plugin was asked about."""
    return error is asked or error is getattr(asked, "__cause__", None)


def _may_retry(run: Any, retry: Retry) -> bool:
    attempt: int = getattr(run, "attempt", 1)
    most: int | None = getattr(run, "max_attempts", None)
    return attempt <= retry.limit and (most is None or attempt < most)


def _arguments(answer: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    # The arguments themselves are not shown: they may hold secrets.
    if not (isinstance(answer, (tuple, list)) and len(answer) == len(ARGUMENTS)):
        msg = f"answered {type(answer).__name__}; answer a pair (args, kwargs), or None"
        raise TypeError(msg)
    args, kwargs = answer
    if not (isinstance(args, (tuple, list)) and isinstance(kwargs, Mapping)):
        msg = (
            f"answered ({type(args).__name__}, {type(kwargs).__name__});"
            " answer a pair of a tuple and a dict, (args, kwargs)"
        )
        raise TypeError(msg)
    return tuple(args), dict(kwargs)
