"""Which answers count, and what they do in a pipeline."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from qtasks_hookspecs import Raise, Replace, Retry
from qtasks_pluggy._plugins.chain import DECISIONS, Hook

TRIGGER: Final = "task_executor_run_task_trigger_error"
ARGUMENTS: Final = "args, kwargs"


def accept(hook: Hook, values: dict[str, Any], reply: Any) -> bool:
    """Say whether an answer counts; in a pipeline, hand it on to the links that follow."""
    if reply is None:
        return False
    kind = type(reply)
    if kind not in DECISIONS:
        if kind is type and reply in DECISIONS:
            msg = f"answered the class {reply.__name__}; answer an instance, {reply.__name__}(...)"
            raise TypeError(msg)
    elif hook.lastresult:
        run = values.get("task_executor")
        if kind is Retry and not _may_retry(run, reply):
            return False
        refuse = getattr(run, "refuse", None)
        if refuse is not None:
            refuse(reply)
        error = values.get("e")
        return not (
            kind is Raise
            and (reply.error is error or reply.error is getattr(error, "__cause__", None))
        )
    elif kind is not Replace:
        msg = (
            f"answered {kind.__name__}, which is a decision of {TRIGGER} only;"
            f" {hook.name} takes a plain value or Replace(value)"
        )
        raise TypeError(msg)
    else:
        reply = reply.value
    if hook.pipeline == ARGUMENTS:
        values["args"], values["kwargs"] = _arguments(reply)
    elif hook.pipeline is not None:
        values[hook.pipeline] = reply
    return True


def _may_retry(run: Any, retry: Retry) -> bool:
    attempt: int = getattr(run, "attempt", 1)
    most: int | None = getattr(run, "max_attempts", None)
    return attempt <= retry.limit and (most is None or attempt < most)


def _arguments(reply: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    # The arguments themselves are not shown: they may hold secrets.
    if not (isinstance(reply, (tuple, list)) and len(reply) == 2):  # noqa: PLR2004  # a pair
        msg = f"answered {type(reply).__name__}; answer a pair (args, kwargs), or None"
        raise TypeError(msg)
    args, kwargs = reply
    if not (isinstance(args, (tuple, list)) and isinstance(kwargs, Mapping)):
        msg = (
            f"answered ({type(args).__name__}, {type(kwargs).__name__});"
            " answer a pair of a tuple and a dict, (args, kwargs)"
        )
        raise TypeError(msg)
    return tuple(args), dict(kwargs)


def left(pipeline: str, values: dict[str, Any]) -> Any:
    """Return what a pipeline has come to."""
    return (values["args"], values["kwargs"]) if pipeline == ARGUMENTS else values[pipeline]
