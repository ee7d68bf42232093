"""What failures of one cause have in common."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import textwrap

import pytest

from qtasks_hookspecs import Outcome, OutcomeStatus, Raise
from qtasks_pluggy import QueueTasks, TaskExecutor, TaskFunc
from tests.runs import plugin


def outcomes_of(*functions, name="price", answer=None, run=TaskExecutor.execute_sync):
    """Run functions as a task of one name, and return how they ended."""
    heard = []
    listens = plugin(
        "listens",
        task_executor_attempt_ended=lambda outcome: heard.append(outcome),
        task_executor_run_task_trigger_error=lambda: answer,
    )
    for function in functions:
        try:
            run(TaskExecutor(TaskFunc(name, function, intercept=Exception), plugins=[listens]))
        except Exception:  # noqa: S110  # the outcome says it  # only its traceback is wanted
            pass
    return heard


def prints_of(*functions, **options):
    """Run functions as ``outcomes_of`` does, and return the fingerprints."""
    return [outcome.fingerprint for outcome in outcomes_of(*functions, **options)]


def look_up(key):
    """Fail at one place."""
    message = f"no {key}"
    raise LookupError(message)


def look_up_elsewhere(key):
    """Fail at another place."""
    raise LookupError(key)


def recurse(depth):
    """Fail some calls deep."""
    if depth:
        recurse(depth - 1)
    raise LookupError(depth)


def one():
    """Fail by way of one function."""
    look_up("EUR")


def two():
    """Fail by way of another function."""
    look_up("USD")


def test_values_texts_and_lines_are_not_in_it():
    """Two runs of one cause have one fingerprint, whatever the values, the texts and the line."""

    def price(key):
        if key == "EUR":
            look_up(key)
        look_up(key * 2)

    first, second = prints_of(lambda: price("EUR"), lambda: price("USD"))
    assert first == second
    assert isinstance(first, str)
    assert len(first) == 16


def test_how_deep_a_function_calls_itself_is_a_value():
    """Recursion has one fingerprint at every depth."""
    first, second = prints_of(lambda: recurse(1), lambda: recurse(7))
    assert first == second


@pytest.mark.parametrize(
    "other",
    [
        lambda: look_up_elsewhere("EUR"),
        lambda: recurse(0),
        lambda: int("x"),
        lambda: look_up_with_cause(),
    ],
    ids=["function", "place", "class", "cause"],
)
def test_another_cause_has_another(other):
    """Another function, another class or another cause is another fingerprint."""
    first, second = prints_of(lambda: look_up("EUR"), other)
    assert first != second


def look_up_with_cause():
    """Fail of something else."""
    try:
        {}["EUR"]
    except KeyError as error:
        message = "no"
        raise LookupError(message) from error


def test_another_task_has_another():
    """The same error in another task is another failure."""
    assert prints_of(one) != prints_of(one, name="tax")
    assert prints_of(one) != prints_of(two)


async def _later():
    look_up("EUR")


def _now():
    look_up("EUR")


@pytest.mark.parametrize("max_time", [None, 60])
@pytest.mark.parametrize("function", [_now, _later])
def test_the_style_of_the_run_is_not_in_it(function, max_time):
    """In place, by an app, in a thread, on a loop: the app's own frames are the same."""
    found = set()
    hears = plugin(
        "p", task_executor_attempt_ended=lambda outcome: found.add(outcome.fingerprint) and None
    )
    app = QueueTasks("shop", plugins=[hears], discover=False, engine="memory://")
    task = app.task(name="price", max_time=max_time)(function)
    with pytest.raises(LookupError):
        TaskExecutor(task).execute_sync()
    with app, pytest.raises(LookupError):
        task.submit_sync().result(timeout=30)
    with pytest.raises(LookupError):
        TaskExecutor(TaskFunc("price", function), plugins=[hears]).execute_sync()
    assert len(found) == 1


def test_it_is_of_the_tasks_own_error():
    """What a plugin raises instead changes the outcome's error, not its fingerprint."""
    (raised,) = outcomes_of(one, answer=Raise(KeyError("other")))
    assert type(raised.error) is KeyError
    assert [raised.fingerprint] == prints_of(one)


def test_it_stays_the_same_on_the_errors_way_to_the_caller():
    """The frames of callers are not in it, however late it is read."""
    (first,) = outcomes_of(one)
    early = prints_of(one)

    def a_caller_of_ours():
        try:
            raise first.error
        except LookupError:
            return first.fingerprint

    assert early == [a_caller_of_ours()]


class FalsyError(Exception):
    def __len__(self):
        return 0

    def __eq__(self, other):
        raise TypeError

    __hash__ = None

    def __str__(self):
        raise RuntimeError


@dataclasses.dataclass(frozen=True)
class FrozenError(Exception):
    code: int


def _circle():
    first, second = ValueError(), KeyError()
    first.__cause__, second.__cause__ = second, first
    return first


@pytest.mark.parametrize("make", [FalsyError, lambda: FrozenError(3), _circle, SystemExit])
def test_odd_errors_have_one(make):
    """No truth, equality, text or attribute of an error is relied on, and circles end."""
    outcome = Outcome(status=OutcomeStatus.failed, error=make())
    assert outcome.fingerprint == Outcome(status=OutcomeStatus.failed, error=make()).fingerprint


def test_a_cut_traceback_is_no_trouble():
    """What is left of an error makes its fingerprint."""

    def cut():
        raise LookupError from None

    (whole,) = outcomes_of(cut)
    bare = Outcome(status=OutcomeStatus.failed, error=LookupError())
    assert isinstance(bare.fingerprint, str)
    assert bare.fingerprint != whole.fingerprint
    assert Outcome(status=OutcomeStatus.succeeded).fingerprint is None


PROGRAM = """
from qtasks_hookspecs import TaskFunc, hookimpl
from qtasks_pluggy import TaskExecutor

class PriceError(Exception):
    pass

def price():
    raise PriceError

class Prints:
    name = "prints"

    @hookimpl
    def task_executor_attempt_ended(self, outcome):
        print(outcome.fingerprint)

def main():
    try:
        TaskExecutor(TaskFunc("price", price), plugins=[Prints()]).execute_sync()
    except PriceError:
        pass

if __name__ == "__main__":
    main()
"""


def test_two_hosts_agree(tmp_path):
    """Where the app's files are, and whether one of them is the program, is not in it."""
    found = set()
    for folder in ("here", "there"):
        (tmp_path / folder).mkdir()
        file = tmp_path / folder / "shop.py"
        file.write_text(textwrap.dedent(PROGRAM), "utf-8")
        for arguments in (["shop.py"], ["-m", "shop"], ["-c", "import shop; shop.main()"]):
            ended = subprocess.run(
                [sys.executable, *arguments],
                cwd=file.parent,
                capture_output=True,
                text=True,
                check=True,
                env={"PYTHONPATH": "."},
            )
            found.add(ended.stdout)
    assert len(found) == 1
