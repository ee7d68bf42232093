"""A manager through its life against a plain list: who is asked after each change, and who wins."""

from __future__ import annotations

import asyncio
import importlib.metadata
import itertools
import os
from typing import Any, Final

import attrs
import pytest
import structlog
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    rule,
    run_state_machine_as_test,
)

from qtasks_hookspecs import Raise, Replace, Retry, TaskFunc, blocking, hookimpl
from qtasks_pluggy import PluginManager, TaskExecutor
from qtasks_pluggy.exc import TaskPluginTriggerError
from tests.runs import failing, registration_error

# Few, so that names are taken, blocked and ordered again and again.
NAMES: Final = ("a", "b", "c", "d", "e")
# What a wrapper answers that hands on what it was given; to anybody else a text like any other.
ON: Final = "on"


@attrs.frozen
class Spec:
    """A plugin in the model: its mark, its kind, what it answers and how it fails."""

    mark: str
    kind: str
    answer: Any
    fails: str

    @property
    def group(self) -> int:
        """Where its mark puts it."""
        return {"tryfirst": -1, "": 0, "trylast": 1}[self.mark]


SPECS = st.builds(
    Spec,
    mark=st.sampled_from(["", "", "tryfirst", "trylast"]),
    kind=st.sampled_from(["plain", "async", "blocking", "wrapper"]),
    answer=st.one_of(
        st.sampled_from([None, None, ON, 0, False, "", 7, "text", Replace(None), Replace(1)]),
        st.builds(list),
        st.builds(lambda: Raise(LookupError("clearer"))),
    ),
    fails=st.sampled_from(["", "", "", "raises", "cancels", "answers a class", "at once"]),
)


def fail(how: str) -> Any:
    """Fail in some way, or not at all."""
    if how in {"raises", "at once"}:
        raise ValueError(how)
    if how == "cancels":
        raise asyncio.CancelledError
    return Retry


class Plugin:
    """A plugin as the model says."""

    def __init__(self, name: str, spec: Spec) -> None:
        self.name = name

        def plain(e: Any) -> Any:
            return fail(spec.fails) if spec.fails else spec.answer

        async def waits(*, e: Any) -> Any:
            await asyncio.sleep(0)
            return plain(e)

        def around() -> Any:
            if spec.fails == "at once":
                fail(spec.fails)
            answer = yield
            if spec.fails:
                return fail(spec.fails)
            return answer if spec.answer is ON else spec.answer

        functions = {"plain": plain, "async": waits, "wrapper": around}
        function = blocking(plain) if spec.kind == "blocking" else functions[spec.kind]
        marks = {spec.mark: True} if spec.mark else {}
        mark = hookimpl(wrapper=spec.kind == "wrapper", **marks)
        self.task_executor_run_task_trigger_error = mark(function)


@attrs.define
class Model:
    """What a manager knows, in lists; ``plugins`` in order of registration."""

    plugins: dict[str, Spec] = attrs.field(factory=dict)
    blocked: set[str] = attrs.field(factory=set)
    order: list[str] = attrs.field(factory=list)
    observe: list[str] = attrs.field(factory=list)
    disable: list[str] = attrs.field(factory=list)

    def in_order(self, direction: int, *, wrappers: bool) -> list[tuple[str, Spec]]:
        """Put those who are asked in order."""

        def place(one: tuple[str, Spec]) -> tuple[int, int]:
            name, spec = one
            ordered = name in self.order
            return (2, self.order.index(name)) if ordered else (direction * spec.group, 0)

        asked = [one for one in self.plugins.items() if one[0] not in self.disable]
        return sorted((one for one in asked if (one[1].kind == "wrapper") is wrappers), key=place)

    def run(self) -> tuple[list[tuple[str, str, bool, bool]], Any]:
        """Say what the trail of a run is, and what the answer."""
        told: list[tuple[str, str]] = []
        answer: Any = None
        won = -1
        around = self.in_order(-1, wrappers=True)
        told += [(name, "raised") for name, one in reversed(around) if one.fails == "at once"]
        opened = [one for one in around if one[1].fails != "at once"]
        for name, spec in self.in_order(1, wrappers=False) + opened:
            hands_on = spec.kind == "wrapper" and spec.answer is ON
            reply = answer if hands_on else spec.answer
            if spec.fails:
                told.append((name, "raised"))
            elif reply is (answer if spec.kind == "wrapper" else None):
                told.append((name, "no_opinion"))
            else:
                told.append((name, "answered"))
                if name not in self.observe:
                    answer, won = reply, len(told) - 1
        trail = [(*one, one[0] in self.observe, place == won) for place, one in enumerate(told)]
        return trail, answer


class ChainMachine(RuleBasedStateMachine):
    """Changes a manager and its model alike, and runs a task after every change."""

    def __init__(self) -> None:
        super().__init__()
        self.environment = pytest.MonkeyPatch()
        self.loop = asyncio.Runner()
        self.kinds = itertools.cycle(("function", "coroutine"))
        self.model = Model()
        # So many that nobody is ever quarantined: that is another model's matter.
        self.manager = PluginManager(settings={"quarantine_after": 1_000_000})

    def teardown(self) -> None:
        """Leave neither a loop nor a variable behind."""
        self.loop.close()
        self.environment.undo()

    @rule(name=st.sampled_from(NAMES), spec=SPECS, by_argument=st.booleans())
    def register(self, name: str, spec: Spec, by_argument: bool) -> None:
        """A name that is free takes a plugin; one that is taken is an error, one blocked is not."""
        plugin = Plugin("another" if by_argument else name, spec)
        given = {"name": name} if by_argument else {}
        if name in self.model.plugins and name not in self.model.disable:
            assert name in str(registration_error(self.manager.register, plugin, **given))
            return
        # To disable a plugin is the remedy that the error names, so then there is no error.
        free = name not in self.model.blocked and name not in self.model.plugins
        assert (name if free else None) == self.manager.register(plugin, **given)
        if free:
            self.model.plugins[name] = spec

    @rule(name=st.sampled_from(NAMES))
    def register_twice(self, name: str) -> None:
        """A plugin that is registered cannot be registered once more under another name."""
        if name in self.model.plugins:
            plugin = self.manager.get_plugin(name)
            registration_error(self.manager.register, plugin, name="another")

    @rule(name=st.sampled_from(NAMES), by_name=st.booleans())
    def unregister(self, name: str, by_name: bool) -> None:
        """A plugin goes by itself or by its name; a name that nobody has gives None."""
        plugin = self.manager.get_plugin(name)
        assert (plugin is not None) == (name in self.model.plugins)
        by_plugin = {"plugin": plugin} if plugin is not None else {"name": name}
        assert self.manager.unregister(**({"name": name} if by_name else by_plugin)) is plugin
        self.model.plugins.pop(name, None)

    @rule(name=st.sampled_from(NAMES))
    def block(self, name: str) -> None:
        """A name that is blocked has no plugin, and gets none."""
        self.manager.set_blocked(name)
        self.model.blocked.add(name)
        self.model.plugins.pop(name, None)

    @rule(name=st.sampled_from(NAMES))
    def unblock(self, name: str) -> None:
        """A name is free again, and its plugin does not come back by itself."""
        assert (name in self.model.blocked) == self.manager.unblock(name)
        self.model.blocked.discard(name)

    @rule(
        key=st.sampled_from(["order", "order", "observe", "disable"]),
        names=st.lists(st.sampled_from(NAMES), unique=True, max_size=3),
    )
    def configure(self, key: str, names: list[str]) -> None:
        """The operator sets who is last, who is on trial, or who is not asked."""
        self.environment.setenv(f"QTASKS_PLUGGY_{key.upper()}", ",".join(names))
        self.manager.configure()
        setattr(self.model, key, names)

    @invariant()
    def runs_are_what_the_model_says(self) -> None:
        """Result or error, and the trail: the same in plain and in async code."""
        trail, answer = self.model.run()
        kind = next(self.kinds)
        for run in (TaskExecutor.execute_sync, lambda executor: self.loop.run(executor.execute())):
            own = TaskPluginTriggerError("own")
            executor = TaskExecutor(TaskFunc("modelled", failing(kind, own)), plugins=self.manager)
            with structlog.testing.capture_logs():
                try:
                    result = run(executor)
                except (TaskPluginTriggerError, LookupError) as error:
                    assert error is (own if answer is None else answer.error)
                else:
                    assert answer is not None
                    assert result is (answer.value if type(answer) is Replace else answer)
            assert trail == [
                (one.plugin, one.status, one.observed, one.won) for one in executor.trail
            ]

    @invariant()
    def the_list_is_what_the_model_says(self) -> None:
        """Plugins are listed in order of registration, and those who are not asked as such."""
        registered = [
            (info.name, info.enabled)
            for info in self.manager.list_plugin_info()
            if info.reason != "disabled, and faulty"
        ]
        asked = [(name, name not in self.model.disable) for name in self.model.plugins]
        assert asked == registered


def test_r4_r5_r7_r8_a_manager_through_its_life_is_a_plain_list(tmp_path, monkeypatch):
    """Whatever is registered, blocked and set, in any order: runs are those of a plain list."""
    for variable in [one for one in os.environ if one.startswith("QTASKS_PLUGGY_")]:
        monkeypatch.delenv(variable)
    monkeypatch.chdir(tmp_path)
    # Whatever is installed here is looked through for each name that is set.
    monkeypatch.setattr(importlib.metadata, "distributions", list)

    run_state_machine_as_test(ChainMachine)
