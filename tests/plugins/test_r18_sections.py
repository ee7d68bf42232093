"""R18: a plugin declares its section of the settings by an attrs class, and gets it as one."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date, timedelta
from decimal import Decimal
from enum import Enum
from pathlib import Path
from textwrap import dedent
from types import SimpleNamespace
from typing import Any, Literal

import attrs
import pytest

from qtasks_hookspecs import hookimpl
from qtasks_pluggy import PluginManager, QueueTasks
from qtasks_pluggy._plugins.sections import section_for, section_problems
from qtasks_pluggy._settings import Settings
from qtasks_pluggy.engines import load_plugins
from tests.runs import registration_error

HIDDEN = "do-not-show"


@attrs.frozen
class Section:
    """What the plugin of these tests may be told."""

    url: str
    retries: int = 3
    wait: float = 0.5
    loud: bool = False
    hosts: list[str] = attrs.field(factory=list)
    ports: tuple[int, ...] = ()
    limits: dict[str, float] = attrs.field(factory=dict)
    note: str | None = None
    folder: Path = attrs.field(default=Path(), converter=Path)
    most: int = attrs.field(default=1, validator=attrs.validators.ge(1))
    anything: Any = None


def declaring(name: str = "p") -> tuple[Any, list[Any]]:
    """Make a plugin that keeps what it gets as its settings."""
    got: list[Any] = []

    @hookimpl
    def qtasks_start(settings: Section) -> None:
        got.append(settings)

    return SimpleNamespace(name=name, qtasks_start=qtasks_start), got


def started(section: dict[str, Any]) -> Any:
    """Start an app whose plugin has this section; return what the plugin got."""
    plugin, got = declaring()
    with QueueTasks("shop", plugins=[plugin], discover=False, settings={"plugin": {"p": section}}):
        return got[0]


def test_r18_the_hook_gets_the_object():
    """With the class's defaults, and with what TOML has turned into what the class has."""
    full = {
        "url": "u",
        "retries": 4,
        "wait": 1,
        "loud": True,
        "hosts": ["a"],
        "ports": [1, 2],
        "limits": {"x": 1},
        "note": "n",
        "folder": "here",
        "most": 2,
        "anything": [{}],
    }
    expected = Section("u", 4, 1.0, True, ["a"], (1, 2), {"x": 1.0}, "n", "here", 2, [{}])

    assert Section("u") == started({"url": "u"})
    assert expected == started(full)


WRONG = [
    ({}, ["'url' is missing", "takes str"]),
    ({"url": 5}, ["'url' takes str, got int"]),
    ({"retries": True}, ["'retries' takes int, got bool"]),
    ({"retries": 1.5}, ["'retries' takes int, got float"]),
    ({"wait": HIDDEN}, ["'wait' takes float, got str"]),
    ({"wait": 10**400}, ["'wait' takes float, got int"]),
    ({"loud": 1}, ["'loud' takes bool, got int"]),
    ({"hosts": HIDDEN}, ["'hosts' takes list[str], got str"]),
    ({"hosts": [1]}, ["'hosts' takes list[str], got list"]),
    ({"ports": ["1"]}, ["'ports' takes tuple[int, ...], got list"]),
    ({"limits": {"x": HIDDEN}}, ["'limits' takes dict[str, float], got dict"]),
    ({"note": 1}, ["'note' takes str or None, got int"]),
    ({"urll": HIDDEN}, ["unknown key 'urll'; did you mean 'url'?"]),
    ({5: HIDDEN}, ["unknown key 5"]),
    ({"folder": 7}, ["the plugin refuses the section with TypeError"]),
    ({"most": -7770}, ["the plugin refuses 'most' with ValueError"]),
]


@pytest.mark.parametrize(("section", "says"), WRONG)
def test_r18_a_wrong_section_stops_the_start(section, says):
    """The error names plugin and key and what the key takes, and never the value."""
    whole = section if section == {} else {"url": "u", **section}

    error = registration_error(started, whole)

    (problem,) = error.problems
    assert problem.startswith("plugin 'p': settings: ")
    assert all(part in problem for part in says)
    assert HIDDEN not in problem
    assert "-7770" not in problem


def test_r18_all_faults_of_all_sections_come_together(distributions):
    """Those of plugins of the app and of installed ones, beside the other faults of R18."""
    source = """
    from __future__ import annotations

    import attrs
    from qtasks_hookspecs import hookimpl

    @attrs.define
    class Config:
        path: str

    @hookimpl
    def qtasks_start(settings: Config, app: NotImported):
        pass
    """
    distributions.add("qtasks-x", {"x": "mod_x"}, mod_x=source)
    distributions.add("qtasks-y", {"y": "mod_y"}, mod_y="")
    settings = {"plugin": {"p": {"urll": 1, "retries": "a"}, "x": {"pth": 1}}}

    def app() -> QueueTasks:
        return QueueTasks("shop", plugins=[declaring()[0]], settings=settings)

    for start in (app().__enter__, lambda: app().task(name="t")(len)("")):
        told = [problem.split(":")[0] for problem in registration_error(start).problems]
        assert [
            *["plugin 'p'"] * 3,
            *["plugin 'x' (qtasks-x 1.0)"] * 2,
            "plugin 'y' (qtasks-y 1.0)",
        ] == sorted(told)


def test_r18_a_plugin_that_is_switched_off_may_have_a_wrong_section(monkeypatch):
    """Switching it off is the remedy that the error names."""
    monkeypatch.setenv("QTASKS_PLUGGY_DISABLE", "p")

    with pytest.raises(IndexError):
        started({})


def test_r18_what_declares_no_class_gets_a_dict():
    """Whatever else ``settings`` is annotated with, and whether it can be read or not."""
    got = []

    def annotated(annotation):
        def qtasks_start(settings):
            got.append(settings)

        qtasks_start.__annotations__["settings"] = annotation
        return SimpleNamespace(name="p", qtasks_start=hookimpl(qtasks_start))

    for annotation in (dict, "Mapping[str, Any]", "no.such.Name", "dict", Any, None):
        app = QueueTasks("shop", plugins=[annotated(annotation)], discover=False)
        app.plugins.configure()
        with app:
            pass

    assert [{}] * 6 == got


def test_r18_a_class_whose_annotations_cannot_be_read_is_a_fault():
    """What a key takes is not guessed."""

    @attrs.define
    class Broken:
        path: "NoSuchType"  # noqa: F821, UP037  # the very name that nothing resolves

    def qtasks_start(settings):
        pass

    qtasks_start.__annotations__["settings"] = Broken
    plugin = SimpleNamespace(name="p", qtasks_start=hookimpl(qtasks_start))

    error = registration_error(QueueTasks("s", plugins=[plugin], discover=False).__enter__)

    assert "the annotations of" in str(error)
    assert "NameError" in str(error)


def test_r18_the_keys_are_listed():
    """``list_plugin_info`` has the keys that a plugin declares, and so has ``doctor --json``."""
    (info,) = PluginManager([declaring()[0]]).list_plugin_info()

    assert ("url", "retries", "wait", "loud", "hosts") == info.keys[:5]


def test_r18_doctor_goes_on_past_wrong_sections():
    """Faults of sections are returned where somebody wants all of them instead of an error."""
    app = QueueTasks("shop", plugins=[declaring()[0]], discover=False)

    assert ["settings: 'url' is missing"] == [
        problem.partition(": ")[2].partition(";")[0]
        for problem in load_plugins(app, skip_faulty=True)
    ]


@pytest.mark.parametrize("where", ["file", "environment"])
def test_r18_a_section_from_outside(where, distributions, monkeypatch):
    """What an operator writes is checked and handed over like what the app gives."""
    if where == "file":
        Path("qtasks_pluggy.toml").write_text(
            dedent("""
            [plugin.p]
            url = "u"
            ports = [1, 2]
            """),
            "utf-8",
        )
    else:
        monkeypatch.setenv("QTASKS_PLUGGY_PLUGIN", '{"p": {"url": "u", "ports": [1, 2]}}')

    assert Section("u", ports=(1, 2)) == started_from_outside()


def started_from_outside() -> Any:
    """Start an app that says nothing of its plugin's section itself."""
    plugin, got = declaring()
    with QueueTasks("shop", plugins=[plugin], discover=False):
        return got[0]


class Speed(Enum):
    """How fast, by the words of operators."""

    slow = "slow"
    fast = "at-once"


@attrs.frozen
class Choosing:
    """A section whose values are chosen from a few."""

    mode: Literal["fast", "slow", 1] = "fast"
    speed: Speed | None = None
    anything: object = None
    many: list[Literal["a", "b"]] = attrs.field(factory=list)


@attrs.frozen
class Unsupported:
    """A section of types that no setting can be."""

    names: set[str] = attrs.field(factory=set)
    price: Decimal = Decimal(0)
    pause: timedelta | None = None
    nested: Choosing = attrs.field(factory=Choosing)
    prices: dict[str, Decimal] = attrs.field(factory=dict)
    fine: str | Path = ""
    parsed: Decimal = attrs.field(default=Decimal(0), converter=Decimal)
    since: date | None = None
    items: Sequence[str] = ()


def problems_of(cls: type, section: dict[str, Any]) -> tuple[Any, list[str]]:
    """Return what a plugin with this class gets, and what is wrong."""

    def qtasks_start(settings: Any) -> None: ...

    qtasks_start.__annotations__["settings"] = cls
    settings = Settings(plugin={"p": section})
    made = section_for(qtasks_start, "p", settings)
    return made, section_problems(qtasks_start, "p", settings)


def test_r18_a_literal_and_an_enum_take_their_words():
    """R18: the plugin gets an enum's member; a wrong word is told with the right ones."""
    given = {"mode": "slow", "speed": "at-once", "anything": True, "many": ["b", "a"]}
    assert (Choosing("slow", Speed.fast, True, ["b", "a"]), []) == problems_of(Choosing, given)
    assert (Choosing(1, Speed.slow), []) == problems_of(Choosing, {"mode": 1, "speed": Speed.slow})

    _, (mode,) = problems_of(Choosing, {"mode": True})
    _, (speed,) = problems_of(Choosing, {"speed": "fast"})
    assert "'mode' takes 'fast' or 'slow' or 1, got bool" in mode
    assert "'speed' takes 'slow' or 'at-once' or None, got str" in speed


def test_r18_a_value_for_a_type_that_no_file_can_give_is_told_with_what_can_be_declared():
    """R18: so it is for a plugin's author; code can still give such a value, or leave it out."""
    good = {"names": {"a"}, "pause": timedelta(1), "fine": "a", "parsed": "1"}
    assert (Unsupported(**good), []) == problems_of(Unsupported, good)
    bad = {"names": ["a"], "price": 1, "pause": 1, "nested": {}, "prices": {"a": 1}, "since": "x"}
    _, problems = problems_of(Unsupported, bad)

    assert [repr(key) for key in bad] == [one.split()[1] for one in problems]
    assert "'names' takes set[str], got list, and no file can give one" in problems[0]
    assert all("Literal, an Enum or Any, or give the field a" in one for one in problems[:-1])
    assert "'since' takes date or None, got str" in problems[-1]


def test_r18_a_fault_of_a_section_says_where_its_value_came_from(tmp_path, monkeypatch):
    """R18: the file or the variable; of the app's own settings nothing is said."""
    (tmp_path / "qtasks_pluggy.toml").write_text('[plugin.p]\nurl = 1\nurll = "u"\n', "utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("QTASKS_PLUGGY_PLUGIN_P_RETRIES", "many")
    plugin, _ = declaring()

    error = registration_error(lambda: PluginManager([plugin]).configure())

    unknown, url, retries = error.problems
    file = str(tmp_path / "qtasks_pluggy.toml")
    assert f"unknown key 'urll', from {file}; did you mean 'url'?" in unknown
    assert f"'url' takes str, got int, from {file}" in url
    assert "'retries' takes int, got str, from QTASKS_PLUGGY_PLUGIN_P_RETRIES" in retries
