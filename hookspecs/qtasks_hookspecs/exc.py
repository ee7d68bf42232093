"""The errors of qtasks-pluggy, one set of classes for plugins and apps.

QTasksError
├── TaskPluginTriggerError       raised by a task to ask the plugins
├── TaskCancelError              the run was cancelled on purpose
├── TaskDeadLetteredError        the run was dead-lettered
├── TaskTimeoutError             a time limit of the task (also a TimeoutError)
├── PluginError                  a plugin failed, under ``strict`` or while starting
│   └── PluginRegistrationError  plugins that cannot be registered (``.problems``)
├── SettingsError                a setting is unknown or has a wrong value
├── TaskNameError                a task name is unknown or taken twice
├── NotRunningError              the app was stopped, or was never started
├── QueueFullError               the engine's queue is full
└── EngineError                  the engine could not do its part
    └── CapabilityError          the engine cannot do this at all
"""

from __future__ import annotations

import sys
from typing import Any, Self

__all__ = [
    "CapabilityError",
    "EngineError",
    "NotRunningError",
    "PluginError",
    "PluginRegistrationError",
    "QTasksError",
    "QueueFullError",
    "SettingsError",
    "TaskCancelError",
    "TaskDeadLetteredError",
    "TaskNameError",
    "TaskPluginTriggerError",
    "TaskTimeoutError",
]


def safe_str(value: object) -> str:
    """Return ``str()`` of an error or another value, even if its ``__str__`` raises."""
    try:
        return str(value)
    except Exception as another:  # noqa: BLE001  # somebody else's __str__
        return f"(no text: its __str__ raised {type(another).__name__})"


def safe_repr(value: object) -> str:
    """Return ``repr()`` of a value, even if its ``__repr__`` raises."""
    try:
        return repr(value)
    except Exception as another:  # noqa: BLE001  # somebody else's __repr__
        return f"({type(value).__name__}: its __repr__ raised {type(another).__name__})"


class QTasksError(Exception):
    """The base class of all errors of qtasks-pluggy; wrong arguments raise Python's own."""


class TaskPluginTriggerError(QTasksError):
    """A task asks the plugins what to do.

    Raised by ``ctx.plugin_error(...)`` or directly. Plugins receive an ordinary exception that
    they may intercept wrapped in this class, with the original as ``cause``.

    Args:
        *args: Anything; the first one is the message without ``message=``.
        **kwargs: Anything; kept in ``kwargs``, ``message`` is shown by ``str()``.

    Attributes:
        args: The positional arguments.
        kwargs: The keyword arguments.
    """

    kwargs: dict[str, Any]
    # Whether it was made to show plugins its cause, the task's own error.
    _wraps_cause: bool = False

    def __new__(cls, /, *args: Any, **kwargs: Any) -> Self:
        """Keep the arguments here: a subclass may forget to hand them to ``__init__``."""
        error = super().__new__(cls, *args)
        error.kwargs = kwargs
        return error

    def __init__(self, /, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args)
        self.kwargs = kwargs

    @property
    def message(self) -> Any:
        """Keyword ``message``, else the first argument, else the cause's text, else ``""``."""
        if "message" in self.kwargs:
            return self.kwargs["message"]
        if self.args:
            return self.args[0]
        return "" if self.__cause__ is None else safe_str(self.__cause__)

    @property
    def cause(self) -> BaseException | None:
        """The error that caused this one: ``__cause__``."""
        return self.__cause__

    def __str__(self) -> str:
        """Show the message, passed by position or by keyword."""
        return safe_str(self.message)

    def __repr__(self) -> str:
        """Show both kinds of arguments."""
        shown = [safe_repr(value) for value in self.args]
        shown += [f"{name}={safe_repr(value)}" for name, value in self.kwargs.items()]
        return f"{type(self).__name__}({', '.join(shown)})"

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle and copy whole, with keywords and cause, without calling ``__init__``."""
        state = {name: value for name, value in self.__dict__.items() if name != "kwargs"}
        return _restore, (type(self), self.args, self.kwargs, _Cause(self.__cause__)), state

    def __setstate__(self, state: dict[str, Any] | None) -> None:
        """Restore attributes that a subclass set, and notes."""
        if state:
            self.__dict__.update(state)


def wrap_intercepted(error: Exception) -> TaskPluginTriggerError:
    """Wrap an ordinary error for the plugins."""
    wrapper = TaskPluginTriggerError()
    wrapper.__cause__ = error
    wrapper._wraps_cause = True  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  # of the class above
    return wrapper


def own_error(error: BaseException) -> BaseException:
    """Return the task's own error: what a trigger error wraps, else the error itself."""
    wrapped = error.__cause__ if getattr(error, "_wraps_cause", False) else None
    return error if wrapped is None else wrapped


def is_named(error: type[BaseException], name: str) -> bool:
    """Return whether a name means an error's class or one of its bases, even by another path."""
    for cls in error.__mro__:
        if name == f"{cls.__module__}.{cls.__qualname__}":
            return True
        if name == cls.__qualname__ and cls.__module__ == "builtins":
            return True
    meant = loaded_class(name)
    return meant is not None and issubclass(error, meant)


def loaded_class(name: str) -> type | None:
    """Look up a dotted name in the loaded modules; nothing is imported."""
    path, parts = name, list[str]()
    while "." in path:
        path, _, part = path.rpartition(".")
        parts.insert(0, part)
        found: Any = sys.modules.get(path)
        if found is not None:
            for one in parts:
                # Not getattr: a module's __getattr__ may import.
                found = getattr(found, "__dict__", {}).get(one)
            return found if isinstance(found, type) else None
    return None


class _Cause:
    """A cause on its way through pickle: itself, or its text if it cannot be pickled."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error

    def __reduce__(self) -> tuple[Any, ...]:
        # Imported here: a plugin that never pickles an error need not load pickle.
        import pickle  # noqa: PLC0415  # see above

        error = self.error
        try:
            if _is_its_own_cause(error):
                raise ValueError  # noqa: TRY301  # as good as any other that cannot be pickled
            data = pickle.dumps(error)
            pickle.loads(data)  # noqa: S301  # our own bytes, made one line up
        except Exception:  # noqa: BLE001  # whatever a foreign error's pickling raises
            data = pickle.dumps(_stand_in(error))
        # The bytes that were tried, not the error: else each link of a chain doubles the work.
        return _load_cause, (data,)

    def __deepcopy__(self, memo: dict[int, Any]) -> _Cause:
        return self


def _is_its_own_cause(error: BaseException | None) -> bool:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        error = error.__cause__
    return error is not None


def _stand_in(error: BaseException | None) -> QTasksError:
    stand_in = QTasksError(safe_str(error))
    stand_in.add_note(f"stands for a {type(error).__qualname__} that cannot be pickled")
    return stand_in


def _load_cause(data: bytes) -> _Cause:
    import pickle  # noqa: PLC0415  # as above

    return _Cause(pickle.loads(data))  # noqa: S301  # part of what is being unpickled anyway


def _restore(
    cls: type[TaskPluginTriggerError], args: tuple[Any, ...], kwargs: dict[str, Any], cause: _Cause
) -> TaskPluginTriggerError:
    # Not cls(*args, **kwargs), nor its own __new__: a subclass may have a signature of its own.
    error = TaskPluginTriggerError.__new__(cls, *args)
    error.args = args
    error.kwargs = dict(kwargs)
    error.__cause__ = cause.error
    return error


class TaskCancelError(QTasksError):
    """The run was cancelled, by ``ctx.cancel(reason)`` or by a plugin's ``Cancel(reason)``.

    Attributes:
        reason: Why; may be empty.
    """

    def __init__(self, reason: str = "") -> None:
        super().__init__(reason)
        self.reason = reason


class TaskDeadLetteredError(QTasksError):
    """The run was dead-lettered by a plugin's ``DeadLetter(reason)``.

    The task's own error is the ``__cause__``.

    Attributes:
        reason: Why; may be empty.
    """

    def __init__(self, reason: str = "") -> None:
        super().__init__(reason)
        self.reason = reason


class TaskTimeoutError(QTasksError, TimeoutError):
    """An attempt took longer than the task's ``max_time`` seconds."""


class PluginError(QTasksError):
    """A plugin failed under ``strict``, or while starting.

    The plugin's own error is the ``__cause__``.

    Attributes:
        task_error: The task's error that the plugin was asked about, if there was one.
    """

    def __init__(self, message: str = "", *, task_error: BaseException | None = None) -> None:
        super().__init__(message)
        self.task_error = task_error


class PluginRegistrationError(PluginError):
    """One or more plugins cannot be registered; none of them was.

    Attributes:
        problems: One text for each fault, all of them.
    """

    def __init__(self, problems: list[str] | tuple[str, ...] | str = ()) -> None:
        self.problems: tuple[str, ...] = (
            (problems,) if isinstance(problems, str) else tuple(problems)
        )
        if len(self.problems) == 1:
            text = self.problems[0]
        else:
            text = "\n".join(
                [f"{len(self.problems)} problems:", *(f"- {problem}" for problem in self.problems)]
            )
        super().__init__(text)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle by the problems: the text is made from them."""
        return type(self), (self.problems,)


class SettingsError(QTasksError):
    """A setting is unknown, or its value is not what the key takes."""


class TaskNameError(QTasksError):
    """A task name is unknown, or two tasks claim one."""


class NotRunningError(QTasksError):
    """The app was stopped, or has not been started."""


class QueueFullError(QTasksError):
    """The engine's queue is full."""


class EngineError(QTasksError):
    """The app's engine could not do its part."""


class CapabilityError(EngineError):
    """The engine cannot do what was asked of it, now or ever."""
