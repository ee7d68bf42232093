"""The call convention against a plain list: order, last answer, failures, wrappers, callers."""

from __future__ import annotations

import asyncio
from typing import Any

import attrs
import structlog
from hypothesis import given
from hypothesis import strategies as st

from qtasks_hookspecs import Replace, Retry, TaskFunc, TaskMessage, blocking, hookimpl
from qtasks_pluggy import PluginManager
from qtasks_pluggy.exc import TaskPluginTriggerError

ANSWERS = st.sampled_from(
    [None, 0, False, "", [], {}, 7, "text", Replace(None), Replace(1), Retry()]
)


@attrs.frozen
class Spec:
    """A plugin in the model: its mark, its kind, and what it does."""

    mark: str
    kind: str
    answer: Any
    fails: bool
    wrapper: bool

    @property
    def group(self) -> int:
        """Where its mark puts it."""
        return {"tryfirst": -1, "": 0, "trylast": 1}[self.mark]


SPECS = st.lists(
    st.builds(
        Spec,
        mark=st.sampled_from(["", "", "tryfirst", "trylast"]),
        kind=st.sampled_from(["plain", "async", "blocking"]),
        answer=ANSWERS,
        fails=st.booleans(),
        wrapper=st.sampled_from([False, False, False, True]),
    ),
    max_size=7,
)


class Plugin:
    """A plugin as the model says; ``calls`` takes down who was called."""

    def __init__(self, name: str, spec: Spec, calls: list[str]) -> None:
        self.name = name

        def plain(e: Any) -> Any:
            calls.append(name)
            if spec.fails:
                raise ValueError(name)
            return spec.answer

        async def waits(e: Any) -> Any:
            await asyncio.sleep(0)
            return plain(e)

        def around() -> Any:
            calls.append(f"{name} begins")
            answer = yield
            calls.append(f"{name} ends")
            if spec.fails:
                raise ValueError(name)
            return answer if spec.answer is None else spec.answer

        marks = {spec.mark: True} if spec.mark else {}
        if spec.wrapper:
            function = hookimpl(wrapper=True, **marks)(around)
        elif spec.kind == "async":
            function = hookimpl(**marks)(waits)
        else:
            function = hookimpl(**marks)(blocking(plain) if spec.kind == "blocking" else plain)
        self.task_executor_run_task_trigger_error = function


def model(specs: list[Spec], order: list[str]) -> tuple[list[str], Any]:
    """Say who is called in which order, and what the answer is, with lists alone."""
    named = [(f"p{number}", spec) for number, spec in enumerate(specs)]

    def place(entry: tuple[str, Spec], direction: int) -> Any:
        name, spec = entry
        return (2, order.index(name)) if name in order else (direction * spec.group, 0)

    links = sorted((one for one in named if not one[1].wrapper), key=lambda one: place(one, 1))
    around = sorted((one for one in named if one[1].wrapper), key=lambda one: place(one, -1))
    calls = [f"{name} begins" for name, _ in reversed(around)]
    answer = None
    for name, spec in links:
        calls.append(name)
        if not spec.fails and spec.answer is not None:
            answer = spec.answer
    for name, spec in around:
        calls.append(f"{name} ends")
        if not spec.fails and spec.answer is not None:
            answer = spec.answer
    return calls, answer


@given(specs=SPECS, data=st.data())
def test_r4_r5_r7_r8_the_chain_is_a_plain_list(specs, data):
    """Whatever the marks, kinds, failures and order: calls and answer are those of a plain list."""
    names = [f"p{number}" for number in range(len(specs))]
    order = data.draw(st.lists(st.sampled_from(names), unique=True)) if names else []
    calls: list[str] = []
    plugins = [Plugin(name, spec, calls) for name, spec in zip(names, specs, strict=True)]
    manager = PluginManager(plugins, settings={"order": order, "quarantine_after": 1000})
    hook = manager.hook.task_executor_run_task_trigger_error
    given_values = {
        "task_executor": None,
        "task_func": TaskFunc("modelled", len),
        "task_broker": TaskMessage("modelled"),
        "e": TaskPluginTriggerError("asked"),
    }
    expected = model(specs, order)

    with structlog.testing.capture_logs():
        plainly = hook(**given_values)
        in_plain_code, calls[:] = list(calls), []
        awaited = asyncio.run(hook.call_async(**given_values))

    assert expected == (in_plain_code, plainly)
    assert expected == (calls, awaited)
    assert type(expected[1]) is type(plainly) is type(awaited)
