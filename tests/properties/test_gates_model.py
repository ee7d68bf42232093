"""What stands before a plugin's answer, against a plain model: filters, quarantine, observation."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import Any, Final

import attrs
import pytest
import structlog
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from qtasks_hookspecs import Retry, TaskFunc, hookimpl, when
from qtasks_pluggy import PluginManager, TaskExecutor
from qtasks_pluggy.exc import TaskPluginTriggerError
from tests.runs import failing

TRIGGER: Final = "task_executor_run_task_trigger_error"
FAILED: Final = "task_executor_task_failed"


class OwnError(TaskPluginTriggerError):
    """An error of the tasks' own."""


def caused() -> OwnError:
    """Make an error that has a cause."""
    error = OwnError("own")
    error.__cause__ = KeyError("why")
    return error


ERRORS: Final[list[Callable[[], Exception]]] = [
    lambda: TaskPluginTriggerError("own"),
    lambda: OwnError("own"),
    caused,
    lambda: KeyError("key"),
    lambda: ConnectionResetError("reset"),
    lambda: ZeroDivisionError("zero"),
]

# What ``@when`` is given, and what the model makes of it without looking at names.
ERROR_GATES: Final[list[tuple[Any, Any]]] = [
    (None, object),
    (KeyError, KeyError),
    ("LookupError", LookupError),
    (("ConnectionError", "elsewhere.LaterError"), ConnectionError),
    ((ValueError, "builtins.ArithmeticError"), (ValueError, ArithmeticError)),
    (f"{OwnError.__module__}.OwnError", OwnError),
    (TaskPluginTriggerError, TaskPluginTriggerError),
]
TASKS: Final = ("price_tea", "price_cup", "stock_tea")
TASK_GATES: Final[list[tuple[str | None, set[str]]]] = [
    (None, set(TASKS)),
    ("price_*", {"price_tea", "price_cup"}),
    ("*_te?", {"price_tea", "stock_tea"}),
]
TAGS: Final = ("slow", "dear")


@attrs.frozen
class Gate:
    """One ``@when``, and the model's idea of it."""

    error: tuple[Any, Any]
    task: tuple[str | None, set[str]]
    tag: str | None

    @property
    def given(self) -> dict[str, Any]:
        """What ``@when`` is given."""
        given = {"error": self.error[0], "task": self.task[0], "tag": self.tag}
        return {name: value for name, value in given.items() if value is not None}

    def opens(self, errors: tuple[Any, ...], task: str, tags: tuple[str, ...]) -> bool:
        """Say whether all of it holds."""
        return (
            any(isinstance(error, self.error[1]) for error in errors)
            and task in self.task[1]
            and (self.tag is None or self.tag in tags)
        )


@attrs.frozen
class Spec:
    """A plugin in the model: its gates, what its hookimpls are, and whether it hears failures."""

    gates: list[Gate]
    kind: str
    hears: bool


GATES = st.builds(
    Gate,
    error=st.sampled_from(ERROR_GATES),
    task=st.sampled_from(TASK_GATES),
    tag=st.sampled_from([None, None, *TAGS]),
).filter(lambda gate: gate.given)
SPECS = st.builds(
    Spec,
    gates=st.one_of(st.just([]), st.lists(GATES, max_size=2)),
    kind=st.sampled_from(["plain", "async", "wrapper"]),
    hears=st.booleans(),
)
MOODS: Final = ("fails", "fails", "answers", "is silent", "retries")


class Moody:
    """A plugin that does what it is told to."""

    def __init__(self, name: str, spec: Spec) -> None:
        self.name = name
        self.mood = MOODS[0]

        def plain() -> Any:
            return self.act()

        async def waits() -> Any:
            await asyncio.sleep(0)
            return self.act()

        def around() -> Any:
            answer = yield
            reply = self.act()
            return answer if reply is None else reply

        def hears() -> Any:
            return self.act()

        asked = {"plain": plain, "async": waits, "wrapper": around}[spec.kind]
        for gate in spec.gates:
            asked, hears = when(**gate.given)(asked), when(**gate.given)(hears)
        self.task_executor_run_task_trigger_error = hookimpl(wrapper=spec.kind == "wrapper")(asked)
        if spec.hears:
            self.task_executor_task_failed = hookimpl(hears)

    def act(self) -> Any:
        """Do what the mood says."""
        if self.mood == "fails":
            raise ValueError(self.name)
        return {"answers": self.name, "retries": Retry(limit=1)}.get(self.mood)


@attrs.define
class Quarantine:
    """One hookimpl's failures in a row, and when it may be tried again."""

    failures: int = 0
    until: float | None = None


Told = tuple[str, str, int, str, bool]


@attrs.define
class Model:
    """Who is registered, in which state; time and settings."""

    specs: dict[str, Spec]
    moods: dict[str, str]
    quarantines: dict[tuple[str, str], Quarantine] = attrs.field(factory=dict)
    now: float = 0.0
    after: int = 2
    seconds: float = 10.0
    observe: list[str] = attrs.field(factory=list)

    def quarantine(self, name: str, hook: str) -> Quarantine:
        """Return a hookimpl's state."""
        return self.quarantines.setdefault((name, hook), Quarantine())

    def run(self, error: Exception, task: str, tags: tuple[str, ...]) -> tuple[list[Told], Any]:
        """Say what the trail of a run is, and what its result; None where it fails."""
        told: list[Told] = []
        own = isinstance(error, TaskPluginTriggerError)
        seen = (error, error.__cause__) if own else (TaskPluginTriggerError(), error)
        for attempt in (1, 2):
            answer = self.ask(told, TRIGGER, attempt, (seen, task, tags))
            if answer != "retries":
                break
        if answer is None:
            self.ask(told, FAILED, attempt, ((error, error.__cause__), task, tags))
        return told, answer

    def ask(self, told: list[Told], hook: str, attempt: int, facts: Any) -> Any:
        """Ask everybody once; return the answer that wins."""

        def tell(name: str, status: str) -> None:
            told.append((name, hook, attempt, status, name in self.observe))

        here = {name: one for name, one in self.specs.items() if hook == TRIGGER or one.hears}
        kept_out = [
            name
            for name, one in here.items()
            if one.gates and not any(gate.opens(*facts) for gate in one.gates)
        ]
        around = [name for name in here if hook == TRIGGER and here[name].kind == "wrapper"]
        shut = [
            name
            for name in here
            if name not in kept_out
            and (until := self.quarantine(name, hook).until) is not None
            and self.now < until
        ]
        # Wrappers begin from the outside, and end from the inside when all others were asked.
        for name in reversed(around):
            if name in kept_out:
                tell(name, "filtered")
            elif name in shut:
                tell(name, "quarantined")
        answer = None
        for name in [one for one in here if one not in around] + around:
            if name in around and name in kept_out + shut:
                continue
            if name in kept_out:
                tell(name, "filtered")
            elif name in shut:
                tell(name, "quarantined")
            else:
                status = self.call(name, hook, attempt)
                tell(name, status)
                if status == "answered" and name not in self.observe:
                    answer = "retries" if self.moods[name] == "retries" else name
        return answer

    def call(self, name: str, hook: str, attempt: int) -> str:
        """Call one hookimpl, and say what came of it."""
        mood, quarantine = self.moods[name], self.quarantine(name, hook)
        # Only the trigger takes decisions.
        if mood == "fails" or (mood == "retries" and hook == FAILED):
            quarantine.failures += 1
            if quarantine.until is not None or quarantine.failures >= self.after:
                quarantine.until = self.now + self.seconds
            return "raised"
        quarantine.failures, quarantine.until = 0, None
        counts = mood == "answers" or (mood == "retries" and attempt == 1)
        return "answered" if counts else "no_opinion"


class GatesMachine(RuleBasedStateMachine):
    """Lets time, moods and settings change, and runs failing tasks in between."""

    def __init__(self) -> None:
        super().__init__()
        self.environment = pytest.MonkeyPatch()
        self.loop = asyncio.Runner()

    def teardown(self) -> None:
        """Leave neither a loop nor a variable behind."""
        self.loop.close()
        self.environment.undo()

    @initialize(specs=st.lists(SPECS, min_size=1, max_size=4))
    def begin(self, specs: list[Spec]) -> None:
        """Register some plugins, all of which fail at first."""
        named = {f"p{number}": spec for number, spec in enumerate(specs)}
        self.model = Model(specs=named, moods=dict.fromkeys(named, MOODS[0]))
        self.manager = PluginManager(
            [Moody(*one) for one in named.items()],
            settings={
                "quarantine_after": self.model.after,
                "quarantine_seconds": self.model.seconds,
            },
            clock=lambda: self.model.now,
        )

    @rule(data=st.data())
    def observe(self, data: st.DataObject) -> None:
        """The operator puts some plugins on trial, and takes others off."""
        names = st.lists(st.sampled_from(list(self.model.specs)), unique=True)
        self.model.observe = data.draw(names)
        self.environment.setenv("QTASKS_PLUGGY_OBSERVE", ",".join(self.model.observe))
        self.manager.configure()

    @rule(after=st.integers(1, 3), seconds=st.sampled_from([4.0, 10.0]))
    def bound(self, after: int, seconds: float) -> None:
        """The operator sets when a quarantine begins and how long it lasts, from now on."""
        self.model.after, self.model.seconds = after, seconds
        self.environment.setenv("QTASKS_PLUGGY_QUARANTINE_AFTER", str(after))
        self.environment.setenv("QTASKS_PLUGGY_QUARANTINE_SECONDS", str(seconds))
        self.manager.configure()

    @rule(data=st.data())
    def register_anew(self, data: st.DataObject) -> None:
        """A plugin that goes and comes back is the last one, and its failures are forgotten."""
        name = data.draw(st.sampled_from(list(self.model.specs)))
        self.manager.register(self.manager.unregister(name=name))
        self.model.specs[name] = self.model.specs.pop(name)
        for hook in (TRIGGER, FAILED):
            self.model.quarantines.pop((name, hook), None)

    @rule(
        changed=st.dictionaries(st.integers(0, 3), st.sampled_from(MOODS), max_size=2),
        waits=st.lists(st.sampled_from([0.0, 0.0, 4.0, 9.5, 10.0]), min_size=1, max_size=4),
        fails=st.sampled_from(ERRORS),
        task=st.sampled_from(TASKS),
        tags=st.sampled_from([(), TAGS[:1], TAGS]),
        kind=st.sampled_from(["function", "coroutine"]),
        is_async=st.booleans(),
    )
    def run(
        self,
        changed: dict[int, str],
        waits: list[float],
        fails: Any,
        kind: str,
        is_async: bool,
        **options: Any,
    ) -> None:
        """Moods change, time goes by: statuses, attempts and the result are those of the model."""
        for place, name in enumerate(self.model.specs):
            mood = changed.get(place, self.model.moods[name])
            self.manager.get_plugin(name).mood = self.model.moods[name] = mood
        for seconds in waits:
            self.model.now += seconds
            error = fails()
            func = TaskFunc(
                options["task"], failing(kind, error), tags=options["tags"], intercept=Exception
            )
            executor = TaskExecutor(func, plugins=self.manager)
            told, answer = self.model.run(error, **options)

            with structlog.testing.capture_logs():
                try:
                    run = self.loop.run(executor.execute()) if is_async else executor.execute_sync()
                except (TaskPluginTriggerError, LookupError, OSError, ArithmeticError) as raised:
                    assert raised is error
                    run = None

            assert answer == run
            assert told == [
                (one.plugin, one.hook, one.attempt, one.status, one.observed)
                for one in executor.trail
            ]

    @invariant()
    def quarantines_are_listed(self) -> None:
        """The list of plugins shows who is in quarantine, by hook."""
        if hasattr(self, "model"):
            wanted = {
                (name, hook)
                for (name, hook), one in self.model.quarantines.items()
                if one.until is not None
            }
            listed = self.manager.list_plugin_info()
            assert wanted == {(info.name, hook) for info in listed for hook in info.quarantined}


def test_r10_r13_who_is_asked_is_what_a_plain_model_says(tmp_path, monkeypatch):
    """Filters, observation and quarantine together, over time: the trail is the model's."""
    for variable in [one for one in os.environ if one.startswith("QTASKS_PLUGGY_")]:
        monkeypatch.delenv(variable)
    monkeypatch.chdir(tmp_path)

    run_state_machine_as_test(GatesMachine)
