"""The errors that the contract asks a plugin about: odd ones, for each of its handlers."""

from __future__ import annotations

import builtins
import fnmatch
import re
import threading
from collections.abc import Callable, Iterator
from types import FunctionType
from typing import Any, Final

import attrs

from qtasks_pluggy import PluginManager, QueueTasks
from qtasks_pluggy.exc import TaskPluginTriggerError

_UNMADE: Final = "qtasks_pluggy_unmade"
"""The attribute of a class of odd errors whose own constructor was not called."""


@attrs.frozen
class Question:
    """A task that fails so that a certain handler is asked.

    Attributes:
        task: The task's name, one that the handler's filter lets through.
        tags: The task's tags, for the same reason.
        errors: The classes of errors that the handler is asked about.
    """

    task: str = "task"
    tags: tuple[str, ...] = ()
    errors: tuple[type[Exception], ...] = (Exception, TaskPluginTriggerError)

    def task_of(self, app: QueueTasks, function: Callable[..., Any]) -> Any:
        """Make the function such a task of an app."""
        return app.task(name=self.task, tags=self.tags)(function)


def questions(manager: PluginManager) -> list[Question]:
    """Return a question for each handler of errors, and one that no filter is made for."""
    hooks: Any = manager.hook
    chain = hooks.task_executor_run_task_trigger_error.chain
    links: tuple[Any, ...] = () if chain is None else (*chain.links, *chain.wrappers)
    found = [Question()]
    for link in links:
        for when in link.when or ():
            named: tuple[type[Exception], ...] = tuple(map(_class, when.error or ()))
            found.append(
                Question(
                    task=_name_like(when.task or "task"),
                    tags=() if when.tag is None else (when.tag,),
                    errors=named or Question().errors,
                )
            )
    return list(dict.fromkeys(found))


def _class(named: Any) -> type[Exception]:
    """Return the class itself; of a dotted name one that is called so, and imports nothing."""
    if isinstance(named, type):
        return named
    module, _, name = named.rpartition(".")
    own = getattr(builtins, name, None) if module in {"", "builtins"} else None
    return own or type(name, (Exception,), {"__module__": module})


def _name_like(pattern: str) -> str:
    """Return a name that a glob matches."""
    name = re.sub(r"\[!?(.)[^]]*\]", r"\1", pattern).replace("*", "").replace("?", "x")
    return name if name and fnmatch.fnmatchcase(name, pattern) else "task"


def odd_errors(cls: type[Exception]) -> Iterator[tuple[str, Exception]]:
    """Yield odd errors of a class, each with a text that says what is odd about it."""
    for what, change in _ODD.items():
        try:
            error = change(cls)
        except Exception:  # noqa: BLE001, S112  # a class that allows no such error
            continue
        yield f"{cls.__name__} {what}", error


def plain_error(cls: type[Exception]) -> Exception:
    """Make an error of a class, whatever its constructor wants."""
    try:
        return cls("odd")
    except Exception:  # noqa: BLE001  # it wants other arguments
        return _bare(cls)


def _bare(cls: type[Exception], **members: Any) -> Exception:
    """Make an error of a subclass without calling a constructor of the class's own."""
    members = {"__init__": lambda *_: None, _UNMADE: _has_constructor(cls), **members}
    kind: Any = type(f"Odd{cls.__name__}", (cls,), members)
    error: Exception = kind.__new__(kind)
    return error


def _has_constructor(cls: type[Exception]) -> bool:
    """Return whether a class, or a base that is not ours, has a constructor written in Python."""
    return any(
        isinstance(vars(base).get("__init__"), FunctionType)
        for base in cls.__mro__
        if base.__module__.partition(".")[0] != "qtasks_hookspecs"
    )


def is_unmade(error: BaseException | None) -> bool:
    """Return whether somebody read what only the constructor of an odd error's class sets."""
    return isinstance(error, AttributeError) and getattr(type(error.obj), _UNMADE, False)


def _with_args(cls: type[Exception], *args: Any) -> Exception:
    error = _bare(cls)
    error.args = args
    return error


def _called(cls: Any, **kwargs: Any) -> Exception:
    error: Exception = cls(**kwargs)
    return error


def _raise(*_: Any, **__: Any) -> Any:
    msg = "an odd error's own"
    raise RuntimeError(msg)


def _group(cls: type[Exception]) -> Exception:
    if not issubclass(ExceptionGroup, cls):
        raise TypeError  # there is no such error
    return ExceptionGroup("a group", [ValueError("odd"), KeyError("odd")])


def _in_a_circle(cls: type[Exception]) -> Exception:
    error, other = plain_error(cls), ValueError("its cause")
    error.__cause__, other.__cause__ = other, error
    return error


def _in_a_long_chain(cls: type[Exception]) -> Exception:
    error = last = plain_error(cls)
    for number in range(500):
        last.__cause__ = cause = ValueError(f"cause {number}")
        last = cause
    return error


def _unpicklable(cls: type[Exception]) -> Exception:
    error = _bare(cls, __reduce_ex__=_raise, __deepcopy__=_raise)
    error.lock = threading.Lock()  # type: ignore[attr-defined]  # errors take attributes
    return error


_ODD: Final[dict[str, Callable[[type[Exception]], Exception]]] = {
    "with a text": plain_error,
    "without arguments": _bare,
    "whose texts raise": lambda cls: _bare(cls, __str__=_raise, __repr__=_raise),
    "that is false, and raises when compared": lambda cls: _bare(
        cls, __bool__=lambda _: False, __eq__=_raise, __hash__=BaseException.__hash__
    ),
    "that refuses attributes": lambda cls: _bare(cls, __setattr__=_raise),
    "with arguments that are no text": lambda cls: _with_args(cls, object(), b"\xff", None, {}),
    "with a text of a million letters": lambda cls: _with_args(cls, "x" * 1_000_000),
    "with letters that no file takes": lambda cls: _with_args(cls, "\ud800\x1b[2J\x00\u202e"),
    "that is its own cause's cause": _in_a_circle,
    "at the end of 500 causes": _in_a_long_chain,
    "that cannot be pickled or copied": _unpicklable,
    "that is a group": _group,
    "with keywords": lambda cls: _called(cls, kind="odd", value=object()),
}
