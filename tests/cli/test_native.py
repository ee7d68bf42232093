"""APP as an engine's own app: what ``install()`` gave it is shown, as that of a QueueTasks is."""

from __future__ import annotations

import json

import pytest

pytestmark = pytest.mark.engines

TRIGGER = "task_executor_run_task_trigger_error"
# What stands for an app where the engine has none.
CLASSES = {
    "django": ("django_tasks.backends.immediate", "ImmediateBackend"),
    "rq": ("rq.job", "Job"),
}
MADE = {
    "celery": "from celery import Celery\napp = Celery('own', set_as_current=False)\n",
    "dramatiq": "from dramatiq.brokers.stub import StubBroker\napp = StubBroker()\n",
    "huey": "from huey import MemoryHuey\napp = MemoryHuey('own')\n",
    "procrastinate": (
        "from procrastinate import App, testing\napp = App(connector=testing.InMemoryConnector())\n"
    ),
    "qtasks": "from qtasks import QueueTasks\napp = QueueTasks(name='own')\n",
    "taskiq": "from taskiq import InMemoryBroker\napp = InMemoryBroker()\n",
}
PLUGINS = """
    from types import SimpleNamespace
    from qtasks_hookspecs import hookimpl

    def answering(name):
        return SimpleNamespace(name=name, task_executor_run_task_trigger_error=hookimpl(lambda: 1))

    careful, bold = answering("careful"), answering("bold")
"""
INSTALL = (
    "import plugins_of_native as mine\n"
    "from qtasks_pluggy.engines.{engine} import install\n"
    "install(app, [mine.careful, mine.bold], discover=False)\n"
)


@pytest.fixture(params=sorted(MADE))
def engine(request, workplace):
    """An engine, with a module ``native`` that makes its app and calls ``install()`` on it."""
    workplace.write("plugins_of_native.py", PLUGINS)
    workplace.write("native.py", MADE[request.param] + INSTALL.format(engine=request.param))
    return request.param


@pytest.mark.usefixtures("engine")
def test_doctor_examines_what_install_gave_an_app(workplace, monkeypatch):
    """Order, limits and observe of a native app's plugins show in its chain."""
    monkeypatch.setenv("QTASKS_PLUGGY_ORDER", "bold,careful")
    monkeypatch.setenv("QTASKS_PLUGGY_OBSERVE", "bold")
    monkeypatch.setenv("QTASKS_PLUGGY_TIMEOUTS", '{"bold": 0.5}')

    result = workplace.run("doctor", "native", "--json")
    chain = json.loads(result.stdout)["hooks"][TRIGGER]

    assert 0 == result.exit_code, result.output
    told = [(link["plugin"], link["timeout"], link["observed"]) for link in chain]
    assert [("bold", 0.5, True), ("careful", 5.0, False)] == told


@pytest.mark.usefixtures("engine")
def test_doctor_finds_the_faults_of_a_native_app(workplace, monkeypatch):
    """A setting that names none of its plugins is a fault."""
    monkeypatch.setenv("QTASKS_PLUGGY_DISABLE", "carefull")

    result = workplace.run("doctor", "native", "--json")
    (fault,) = json.loads(result.stdout)["faults"]

    assert 1 == result.exit_code
    assert "did you mean 'careful'?" in fault


DECLARED = {
    "celery": ("@app.task", "shop.price"),
    "dramatiq": ("import dramatiq\n@dramatiq.actor(broker=app)", "price"),
    "huey": ("@app.task()", "price"),
    "procrastinate": ("@app.task", "shop.price"),
    "qtasks": ("@app.task", "price"),
    "taskiq": ("@app.task", "shop:price"),
}
FILTERING = """
from qtasks_hookspecs import on_error

class Named:
    name = "named"
    @on_error(KeyError, task="{name}")
    def answer(self): ...

class Lost:
    name = "lost"
    @on_error(KeyError, task="prize*")
    def answer(self): ...

app.qtasks_pluggy_app.app.add_plugin(Named())
app.qtasks_pluggy_app.app.add_plugin(Lost())
"""


@pytest.mark.parametrize("engine", sorted(MADE))
def test_doctor_notes_a_filter_that_no_task_matches(workplace, engine):
    """It names a task's whole name, as the guide has it; a note is no fault."""
    declared, name = DECLARED[engine]
    install = INSTALL.format(engine=engine).replace("mine.careful, mine.bold", "")
    task = f"{declared}\ndef price(): ...\n"
    workplace.write("plugins_of_native.py", PLUGINS)
    workplace.write("shop.py", MADE[engine] + install + task + FILTERING.format(name=name))

    result = workplace.run("doctor", "shop")
    (note,) = result.stderr.splitlines()

    assert 0 == result.exit_code, result.output
    assert note.startswith("plugin 'lost', handler 'answer': no task of app ")
    assert note.endswith(f"matches task='prize*'; it has 1, such as {name!r}")


@pytest.mark.usefixtures("engine")
def test_plugins_lists_what_install_gave_an_app(workplace):
    """They are listed in the order in which they were given."""
    listed = json.loads(workplace.run("plugins", "native:app", "--json").stdout)
    given = [one for one in listed if not one["builtin"]]

    assert ["careful", "bold"] == [one["name"] for one in given]
    assert [[TRIGGER]] * 2 == [one["hooks"] for one in given]


@pytest.mark.parametrize("command", ["doctor", "plugins"])
@pytest.mark.parametrize("engine", sorted(MADE))
def test_an_app_without_install_is_told_what_to_do(workplace, engine, command):
    """One sentence says that ``install()`` was not called, and which one to call where."""
    workplace.write("bare.py", MADE[engine])

    result = workplace.run(command, "bare")
    (line,) = result.stderr.splitlines()

    assert 2 == result.exit_code
    assert line.endswith(
        f"; install() was not called on it: call qtasks_pluggy.engines.{engine}.install() where"
        " you create the app"
    )


def test_the_app_that_install_was_called_on_is_named(workplace):
    """Where a name is wrong, or another app was meant, the nearest right one is told."""
    workplace.write("plugins_of_native.py", PLUGINS)
    bare = MADE["celery"].replace("app =", "other =")
    workplace.write("native.py", MADE["celery"] + bare + INSTALL.format(engine="celery"))
    workplace.write("package.py", "from native import app as celery_app\n")

    assert "or name native:app" in workplace.run("doctor", "native:other").stderr
    assert "did you mean package:celery_app?" in workplace.run("doctor", "package").stderr


def test_celery_s_setting_is_as_good_as_install(workplace, monkeypatch):
    """What ``task_annotations`` gives to every task is found too."""
    monkeypatch.setenv("QTASKS_PLUGGY_ENABLE", "fallback")
    setting = "app.conf.task_annotations = ['qtasks_pluggy.engines.celery:Plugins']\n"
    workplace.write("by_setting.py", MADE["celery"] + setting)

    result = workplace.run("doctor", "by_setting", "--json")

    assert 0 == result.exit_code, result.output
    assert "fallback" in [one["name"] for one in json.loads(result.stdout)["plugins"]]


@pytest.mark.usefixtures("engine")
def test_run_leaves_a_native_app_s_tasks_to_its_worker(workplace):
    """A native app, installed or not, is nothing that ``run`` can run."""
    result = workplace.run("run", "native", "price")

    assert 2 == result.exit_code
    assert "its own worker runs its tasks; give a QueueTasks" in result.stderr


@pytest.mark.parametrize("engine", sorted(CLASSES))
def test_plugins_lists_what_install_gave_a_class(workplace, engine):
    """Where ``install()`` makes a class of the engine's, APP names that class."""
    module, kind = CLASSES[engine]
    workplace.write("plugins_of_native.py", PLUGINS)
    given = "" if engine == "rq" else f"{kind}, "
    workplace.write(
        "native.py",
        f"import plugins_of_native as mine\nfrom {module} import {kind}\n"
        f"from qtasks_pluggy.engines.{engine} import install\n"
        f"Made = install({given}[mine.careful], discover=False)\n",
    )
    listed = json.loads(workplace.run("plugins", "native:Made", "--json").stdout)
    assert ["careful"] == [one["name"] for one in listed if not one["builtin"]]
