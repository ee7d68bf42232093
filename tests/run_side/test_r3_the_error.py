"""R3: the error that asks plugins, what it carries, and that it travels whole."""

from __future__ import annotations

import copy
import pickle

import pytest

from qtasks_hookspecs import TaskFunc
from qtasks_pluggy import TaskExecutor
from qtasks_pluggy.exc import QTasksError, TaskPluginTriggerError
from tests.runs import Listener, both_ways, every_kind, function_of

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)
TRAVELS = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    **{
        f"pickle {number}": lambda error, number=number: pickle.loads(pickle.dumps(error, number))
        for number in PROTOCOLS
    },
}
every_travel = pytest.mark.parametrize("travel", TRAVELS.values(), ids=TRAVELS)
every_pickle = pytest.mark.parametrize("protocol", PROTOCOLS)


def error_from(cause: BaseException | None, *args, **kwargs) -> TaskPluginTriggerError:
    """Make an error that was raised from a cause."""
    error = TaskPluginTriggerError(*args, **kwargs)
    error.__cause__ = cause
    return error


@both_ways
@every_kind
def test_r3_plugin_error_raises_with_its_arguments(kind, run):
    """``ctx.plugin_error(*args, **kwargs)`` raises the error with both kinds of arguments."""
    listener = Listener()
    func = function_of(kind, lambda self: self.ctx.plugin_error("low", 3, message="m", shelf="A"))

    with pytest.raises(TaskPluginTriggerError) as caught:
        run(TaskExecutor(TaskFunc("t", func, echo=True), plugins=[listener]))

    assert type(caught.value) is TaskPluginTriggerError
    assert ("low", 3) == caught.value.args
    assert {"message": "m", "shelf": "A"} == caught.value.kwargs
    assert caught.value.__cause__ is None


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (TaskPluginTriggerError(), ""),
        (TaskPluginTriggerError("first", "second"), "first"),
        (TaskPluginTriggerError("first", message="keyword"), "keyword"),
        (TaskPluginTriggerError(message="keyword"), "keyword"),
        (TaskPluginTriggerError("first", message=""), ""),
        (TaskPluginTriggerError(kind="price"), ""),
        (error_from(ValueError("cause")), "cause"),
        (error_from(ValueError("cause"), kind="price"), "cause"),
        (error_from(ValueError("cause"), "first"), "first"),
        (error_from(ValueError("cause"), message="keyword"), "keyword"),
        (error_from(error_from(ValueError("deepest"))), "deepest"),
        (TaskPluginTriggerError(""), ""),
        (TaskPluginTriggerError(404), 404),
    ],
)
def test_r3_message(error, message):
    """The keyword ``message``, else the first argument, else the cause's text, else nothing."""
    assert error.message == message
    assert str(error) == str(message)


class SilentError(Exception):
    """An error that can neither travel nor tell what it is."""

    def __reduce__(self):
        raise RuntimeError("no")

    def __str__(self) -> str:
        raise RuntimeError("not even this")


@pytest.mark.parametrize(
    "error",
    [
        error_from(SilentError()),
        TaskPluginTriggerError(SilentError()),
        TaskPluginTriggerError(message=SilentError()),
        error_from(error_from(SilentError())),
    ],
)
def test_r3_an_error_whose_text_cannot_be_had_can_be_read(error):
    """What a task's error makes of ``str()`` is no failure of the plugin that reads it."""
    assert str(error) == "(no text: its __str__ raised RuntimeError)"
    assert error.message in {str(error), *error.args, *error.kwargs.values()}
    assert "TaskPluginTriggerError(" in repr(error)


def test_r3_repr_of_arguments_that_have_none():
    """An argument without a ``repr`` is named by its class."""

    class MuteError(Exception):
        def __repr__(self):
            raise LookupError

    error = TaskPluginTriggerError(MuteError(), shelf=MuteError())

    mute = "(MuteError: its __repr__ raised LookupError)"
    assert repr(error) == f"TaskPluginTriggerError({mute}, shelf={mute})"


def test_r3_cause():
    """``cause`` is ``__cause__``, whoever set it."""
    error = TaskPluginTriggerError("no")

    assert error.cause is None

    for cause in (ValueError("one"), KeyboardInterrupt()):
        with pytest.raises(TaskPluginTriggerError) as caught:
            raise error from cause

        assert caught.value.cause is cause is error.__cause__


def test_r3_repr_shows_all_arguments():
    """A person sees both kinds of arguments, and the class of a subclass."""

    class SpecialError(TaskPluginTriggerError):
        pass

    assert repr(SpecialError("low", shelf="A")) == "SpecialError('low', shelf='A')"


def test_r3_a_subclass_may_forget_its_base():
    """Without a call of the base's ``__init__`` there are no keywords, and all else works."""
    error = HastyError(7)

    assert ((7,), {}, 7, "7") == (error.args, error.kwargs, error.message, str(error))


# --- travelling --------------------------------------------------------------------------------


class CodeError(TaskPluginTriggerError):
    """A subclass with parameters of its own."""

    def __init__(self, code: int, *, shelf: str) -> None:
        super().__init__(f"code {code}", message=f"{code} on {shelf}", shelf=shelf)
        self.code = code


class BareError(TaskPluginTriggerError):
    """A subclass whose parameters are neither arguments nor keywords of the error."""

    def __init__(self, code: int) -> None:
        super().__init__()
        self.code = code


class HastyError(TaskPluginTriggerError):
    """A subclass that does not call the ``__init__`` of its base."""

    def __init__(self, code: int) -> None:
        self.code = code


class MixedError(TaskPluginTriggerError, KeyError):
    """A subclass of a built-in error as well."""


class UnhappyError(Exception):
    """An error that pickles, but cannot be made again from what was pickled."""

    def __init__(self, one: str, two: str) -> None:
        super().__init__(f"{one} and {two}")


class StubbornError(Exception):
    """An error that refuses to be pickled."""

    def __reduce__(self):
        raise RuntimeError("no")


class CountedError(TaskPluginTriggerError):
    """An error that counts how often it is pickled, and that has had enough after a while."""

    times = 0

    def __reduce__(self):
        type(self).times += 1
        if self.times > 5_000:
            raise RuntimeError("enough")
        return super().__reduce__()


@every_travel
def test_r3_travels_whole(travel):
    """A copy has the arguments, the keywords, the message and the cause."""
    error = error_from(ValueError("cause", 1), "first", 2, message="m", rows=[1, {"a": 2}])

    other = travel(error)

    assert type(other) is TaskPluginTriggerError
    assert (error.args, error.kwargs) == (other.args, other.kwargs)
    assert (error.message, str(error), repr(error)) == (other.message, str(other), repr(other))
    assert type(other.cause) is ValueError
    assert other.cause.args == ("cause", 1)


@every_travel
def test_r3_travels_without_a_cause(travel):
    """No cause stays no cause."""
    other = travel(TaskPluginTriggerError())

    assert other.cause is None
    assert ((), {}, "") == (other.args, other.kwargs, other.message)


@every_travel
def test_r3_notes_and_attributes_travel(travel):
    """So does what somebody left on the error."""
    error = TaskPluginTriggerError("no")
    error.add_note("seen by two plugins")
    error.shelf = "A"

    other = travel(error)

    assert (["seen by two plugins"], "A") == (other.__notes__, other.shelf)


@every_travel
@pytest.mark.parametrize(
    "error",
    [
        CodeError(7, shelf="A"),
        BareError(7),
        HastyError(7),
        MixedError("k", shelf="A"),
        MixedError(shelf=None),
    ],
    ids=lambda error: type(error).__name__ + str(len(error.args)),
)
def test_r3_subclasses_travel(error, travel):
    """A subclass keeps its class, its attributes and its arguments, whatever its ``__init__``."""
    other = travel(error)

    assert type(other) is type(error)
    assert (error.args, error.kwargs, str(error)) == (other.args, other.kwargs, str(other))
    assert vars(error) == vars(other)


def test_r3_copies_share_nothing_that_can_change():
    """A copy's keywords are its own; a deep copy's values are, too."""
    error = TaskPluginTriggerError(rows=[1])

    shallow, deep = copy.copy(error), copy.deepcopy(error)
    shallow.kwargs["more"] = 1
    deep.kwargs["rows"].append(2)

    assert error.kwargs == {"rows": [1]}


@every_pickle
@pytest.mark.parametrize("cls", [UnhappyError, StubbornError])
def test_r3_a_cause_that_cannot_travel_goes_as_its_text(cls, protocol):
    """The error arrives all the same, and says what its cause said."""
    cause = cls("one", "two")
    error = error_from(cause)

    other = pickle.loads(pickle.dumps(error, protocol))

    assert isinstance(other.cause, QTasksError)
    assert str(other.cause) == other.message == str(error) == str(cause)
    assert cls.__name__ in "\n".join(other.cause.__notes__)


@every_pickle
def test_r3_a_local_cause_goes_as_its_text(protocol):
    """A class that no other process can import is such a cause."""

    class LocalError(Exception):
        pass

    other = pickle.loads(pickle.dumps(error_from(LocalError("here only")), protocol))

    assert (str(other.cause), other.message) == ("here only", "here only")


@every_pickle
def test_r3_a_cause_without_a_text_does_not_keep_the_error_from_travelling(protocol):
    """Where even the text fails, the error still arrives with all that is its own."""
    other = pickle.loads(pickle.dumps(error_from(SilentError(), "first", shelf="A"), protocol))

    assert (("first",), {"shelf": "A"}) == (other.args, other.kwargs)
    assert isinstance(other.cause, Exception)


@pytest.mark.parametrize("travel", [copy.copy, copy.deepcopy])
@pytest.mark.parametrize("cls", [UnhappyError, StubbornError])
def test_r3_copies_keep_even_such_a_cause(cls, travel):
    """Within one process there is nothing to lose: a copy has the very cause."""
    cause = cls("one", "two")

    assert travel(error_from(cause)).cause is cause


@every_travel
@pytest.mark.parametrize(
    "cause",
    [KeyboardInterrupt("k"), ExceptionGroup("g", [ValueError("a"), CodeError(7, shelf="A")])],
    ids=repr,
)
def test_r3_odd_causes_travel(cause, travel):
    """A cause may be any exception: an interrupt, a group."""
    other = travel(error_from(cause))

    assert repr(other.cause) == repr(cause)


@every_travel
def test_r3_causes_of_causes_travel(travel):
    """A cause that is such an error has its own cause with it."""
    error = error_from(error_from(error_from(ValueError("deepest"), "deeper"), "deep", n=1))

    other = travel(error)

    assert (("deep",), {"n": 1}) == (other.cause.args, other.cause.kwargs)
    assert ("deeper",) == other.cause.cause.args
    assert str(other.cause.cause.cause) == "deepest"


@every_pickle
def test_r3_a_long_chain_of_causes_travels_in_time(protocol):
    """The work grows with the length of the chain, and does not double with each link."""
    CountedError.times = 0
    error = CountedError("0")
    for number in range(1, 15):
        error = error_from(error, str(number))

    other = pickle.loads(pickle.dumps(error, protocol))

    deepest = other
    while deepest.cause is not None:
        deepest = deepest.cause
    assert ("14", "0") == (str(other), str(deepest))
    assert CountedError.times < 100


@every_pickle
def test_r3_an_error_that_is_its_own_cause_travels_in_time(protocol):
    """``raise error from error`` makes a loop; the error goes out of it."""
    CountedError.times = 0
    error = CountedError("no", shelf="A")
    error.__cause__ = error

    other = pickle.loads(pickle.dumps(error, protocol))

    assert (("no",), {"shelf": "A"}) == (other.args, other.kwargs)
    assert CountedError.times < 1_000
