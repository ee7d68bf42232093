"""What is installed and left out: damaged distributions, and faulty plugins if that is set."""

from __future__ import annotations

import json

import pytest
import structlog
from click.testing import CliRunner

from qtasks_hookspecs import hookimpl
from qtasks_pluggy import PluginManager, QueueTasks
from qtasks_pluggy.cli._command import command
from qtasks_pluggy.exc import PluginError, PluginRegistrationError, TaskPluginTriggerError
from tests.runs import answering, plugin

SILENT = """
    from qtasks_hookspecs import hookimpl

    @hookimpl
    def task_executor_run_task_trigger_error():
        return None
    """


def fail():
    """Do what a task does that asks plugins."""
    raise TaskPluginTriggerError("no")


def started(app=None):
    """Start an app and run a failing task; return the answer, and warnings and errors."""
    app = app or QueueTasks("shop")
    with structlog.testing.capture_logs() as events, app:
        answer = app.task(name=f"task {len(app.tasks)}")(fail)()
    return answer, [dict(event) for event in events if event["log_level"] not in {"debug", "info"}]


def doctor(name):
    """Run doctor; return its exit code, its faults, and what it says of a plugin."""
    result = CliRunner().invoke(command, ["doctor", "--json"])
    found = json.loads(result.stdout)
    reasons = [one["reason"] for one in found["plugins"] if one["name"] == name]
    return result.exit_code, "\n".join(found["faults"]), reasons


# --- R18: distributions are told apart as pip does -----------------------------------------------

LEFT_OVERS = {
    "the same entry point": {"prices": "prices_plugin"},
    "another entry point": {"old-name": "prices_gone"},
    "no entry point": {},
}


@pytest.mark.parametrize("points", LEFT_OVERS.values(), ids=LEFT_OVERS)
@pytest.mark.parametrize("folder", ["~rices-1.0.dist-info", "-rices-1.0.dist-info"])
@pytest.mark.parametrize("site", ["site", "in_front"])
def test_r18_what_an_interrupted_pip_left_over_hides_no_plugin(points, folder, site, distributions):
    """The folder that pip renamed is no distribution, whatever its files say."""
    distributions.answering("prices", version="2.0")
    distributions.add("qtasks-prices", points, version="1.0", site=site)
    info = distributions.site(site) / "qtasks_prices-1.0.dist-info"
    info.rename(info.with_name(folder))

    answer, events = started()

    assert "saved" == answer
    left = {(event["event"], event["plugin"], event["distribution"]) for event in events}
    assert {("distribution_left_out", name, folder[:-10]) for name in points} == left
    code, faults, _ = doctor("prices")
    assert (bool(points), bool(points)) == (code == 1, folder[:-10] in faults)


def test_r18_two_distributions_without_metadata_are_two(distributions):
    """Each is named after its folder, and neither hides the other's plugin."""
    for name in ("a", "b"):
        distributions.answering(name)
        (distributions.site() / f"qtasks_{name}-1.0.dist-info" / "METADATA").unlink()

    infos = {one.name: one for one in PluginManager(discover=True).list_plugin_info()}

    assert ("qtasks_a", "1.0") == (infos["a"].distribution, infos["a"].version)
    assert ("qtasks_b", "1.0") == (infos["b"].distribution, infos["b"].version)


def test_r18_an_older_version_on_the_path_keeps_what_it_alone_claims(distributions, monkeypatch):
    """It is the claim that counts once: a fault of the older one's can be switched off alone."""
    distributions.add("qtasks-prices", {"old-name": "prices_gone"}, version="1.0")
    distributions.answering("prices", version="2.0", site="behind")

    with pytest.raises(PluginRegistrationError) as caught:
        started()
    assert "'old-name' (qtasks-prices 1.0)" in str(caught.value)
    assert "QTASKS_PLUGGY_DISABLE=old-name" in str(caught.value)

    monkeypatch.setenv("QTASKS_PLUGGY_DISABLE", "old-name")
    assert "saved" == started()[0]


def test_r18_of_two_versions_the_first_on_the_path_counts_and_the_other_is_named(distributions):
    """As for Python itself, where their claims differ."""
    distributions.add("qtasks-prices", {"prices": "prices_gone"}, version="1.0", site="behind")
    distributions.answering("prices", version="2.0", site="in_front")

    answer, events = started()

    assert "saved" == answer
    (event,) = events
    assert ("distribution_left_out", "1.0") == (event["event"], event["version"])
    assert "qtasks-prices 2.0 comes first" in event["reason"]


def test_r18_two_versions_in_one_folder_that_claim_different_things(distributions):
    """Nobody can say which one is meant: both are named."""
    distributions.add("qtasks-prices", {"prices": "prices_gone"}, version="1.0")
    distributions.answering("prices", version="2.0")

    with pytest.raises(PluginRegistrationError) as caught:
        started()

    assert "qtasks-prices 1.0 and qtasks-prices 2.0 both claim this name" in str(caught.value)


# --- R18: files that cannot be read --------------------------------------------------------------


def damage(distributions, file):
    """Install a plugin beside a good one, and spoil one of its files with Latin-1."""
    distributions.answering("good")
    distributions.add("qtasks-old", {"old": "old_plugin"}, old_plugin=SILENT)
    path = distributions.site() / "qtasks_old-1.0.dist-info" / file
    path.write_bytes(path.read_bytes() + b"\n# Andr\xe9: \xe9\n")


@pytest.mark.parametrize("file", ["METADATA", "entry_points.txt"])
def test_r18_unreadable_files_of_a_distribution_stop_no_app(file, distributions):
    """It is left out; one warning names it and the file, however often the app starts."""
    damage(distributions, file)
    app = QueueTasks("shop")

    answer, events = started(app)

    assert "saved" == answer
    (event,) = events + started(app)[1]
    assert ("distribution_left_out", "warning") == (event["event"], event["log_level"])
    assert event["distribution"] in {"qtasks-old", "qtasks_old"}
    assert f"its {file} cannot be read: UnicodeDecodeError" in event["reason"]


@pytest.mark.parametrize(
    ("file", "name"), [("METADATA", "old"), ("entry_points.txt", "qtasks-old")]
)
def test_r18_doctor_and_plugins_show_unreadable_files(file, name, distributions):
    """As a fault, with exit code 1, and among what is not asked."""
    damage(distributions, file)

    code, faults, (reason,) = doctor(name)
    listed = CliRunner().invoke(command, ["plugins"])

    assert 1 == code == listed.exit_code
    assert f"its {file} cannot be read" in reason
    assert f"plugin {name!r}" in faults
    assert f"its {file} cannot be read" in listed.stdout


@pytest.mark.parametrize("file", ["METADATA", "entry_points.txt"])
def test_r18_unreadable_files_of_a_distribution_without_plugins(file, distributions):
    """Other people's damage is not our matter."""
    distributions.answering("good")
    distributions.add("old", "[console_scripts]\nold = old\n")
    path = distributions.site() / "old-1.0.dist-info" / file
    path.write_bytes(path.read_bytes() + b"\n# Andr\xe9: \xe9\n")

    assert ("saved", []) == started()


def test_r18_a_plugin_with_unreadable_files_that_is_switched_off(distributions, monkeypatch):
    """The operator's word ends the warning."""
    damage(distributions, "METADATA")
    monkeypatch.setenv("QTASKS_PLUGGY_DISABLE", "old")

    assert ("saved", []) == started()


# --- R18: going on without a faulty plugin -------------------------------------------------------

FAULTS = {
    "an import that fails": "raise OSError('gone')",
    "an unknown hook": "from qtasks_hookspecs import hookimpl\n@hookimpl\ndef nonsense(): ...\n",
    "one hookimpl of two": f"{SILENT}\n    @hookimpl\n    def qtasks_strat(): ...\n",
    "no hookimpl": "",
}
faulty = pytest.mark.parametrize("source", FAULTS.values(), ids=FAULTS)


@faulty
def test_r18_on_fault_skip_leaves_a_faulty_installed_plugin_out(source, distributions, monkeypatch):
    """As a whole and loudly: one error event tells its faults; the others do their work."""
    distributions.answering("good")
    distributions.add("qtasks-bad", {"bad": "bad_plugin"}, version="1.2", bad_plugin=source)
    monkeypatch.setenv("QTASKS_PLUGGY_ON_FAULT", "skip")
    app = QueueTasks("shop")

    answer, events = started(app)

    assert "saved" == answer
    (event,) = events + started(app)[1]
    assert ("plugin_left_out", "error") == (event["event"], event["log_level"])
    assert ("bad", "qtasks-bad", "1.2") == tuple(
        event[key] for key in ("plugin", "distribution", "version")
    )
    assert all("plugin 'bad' (qtasks-bad 1.2)" in fault for fault in event["faults"])
    assert not app.plugins.has_plugin("bad")
    (info,) = [one for one in app.plugins.list_plugin_info() if one.name == "bad"]
    assert (False, "faulty") == (info.enabled, info.reason)


@faulty
@pytest.mark.parametrize("on_fault", ["stop", None])
def test_r18_a_faulty_installed_plugin_stops_the_app_by_default(source, on_fault, distributions):
    """Nothing is registered, and the error is the app's."""
    distributions.add("qtasks-bad", {"bad": "bad_plugin"}, bad_plugin=source)
    settings = {} if on_fault is None else {"on_fault": on_fault}

    with pytest.raises(PluginRegistrationError, match="plugin 'bad'"):
        QueueTasks("shop", settings=settings).__enter__()


def test_r18_doctor_shows_what_on_fault_leaves_out(distributions, monkeypatch):
    """Its exit code is 1 all the same: a plugin is missing."""
    distributions.add("qtasks-bad", {"bad": "bad_plugin"}, bad_plugin="raise OSError('gone')")
    monkeypatch.setenv("QTASKS_PLUGGY_ON_FAULT", "skip")

    code, faults, reasons = doctor("bad")

    assert (1, ["faulty"]) == (code, reasons)
    assert "OSError: gone" in faults


def test_r18_on_fault_skip_is_never_about_a_plugin_of_the_app(monkeypatch, distributions):
    """Whoever wrote it into the app can mend it there."""
    monkeypatch.setenv("QTASKS_PLUGGY_ON_FAULT", "skip")
    bad = plugin("bad", qtasks_strat=lambda: None)

    with pytest.raises(PluginRegistrationError, match="plugin 'bad'"):
        QueueTasks("shop", plugins=[bad], settings={"on_fault": "skip"})
    with pytest.raises(PluginRegistrationError, match="plugin 'bad'"):
        QueueTasks("shop").add_plugin(bad)


def test_r18_on_fault_skip_leaves_out_whose_name_the_app_has_taken(distributions):
    """Of the two the installed one goes."""
    distributions.answering("prices", "installed")
    app = QueueTasks("shop", plugins=[answering("own", "prices")], settings={"on_fault": "skip"})

    answer, events = started(app)

    assert "own" == answer
    assert [("plugin_left_out", "qtasks-prices")] == [
        (event["event"], event["distribution"]) for event in events
    ]


def test_r18_on_fault_skip_does_not_go_past_a_failing_start(distributions):
    """A plugin that loads and cannot start is no fault of its form."""
    source = SILENT + "\n    @hookimpl\n    def qtasks_start():\n        raise OSError('no disk')\n"
    distributions.add("qtasks-bad", {"bad": "bad_plugin"}, bad_plugin=source)

    with pytest.raises(PluginError, match="no disk"):
        QueueTasks("shop", settings={"on_fault": "skip"}).__enter__()


# --- names that no plugin has --------------------------------------------------------------------


def test_unknown_plugin_names_are_told_without_discovery(distributions):
    """At the start or the first run, once; the nearest name is told."""
    distributions.answering("installed")
    settings = {
        "disable": ["prcies", "installed"],
        "order": ["stokc"],
        "observe": ["nobody"],
        "timeouts": {"pricse": 1},
        "plugin": {"sotck": {}},
        "enable": ["retri"],
    }
    app = QueueTasks(
        "shop",
        plugins=[answering(1, "prices"), answering(2, "stock")],
        discover=False,
        settings=settings,
    )
    with structlog.testing.capture_logs() as events:
        app.task(len)("")
        with app:
            pass

    told = [(one["setting"], one["name"], one["did_you_mean"]) for one in events]
    assert [
        ("enable", "retri", "retry"),
        ("disable", "prcies", "prices"),
        ("order", "stokc", "stock"),
        ("timeouts", "pricse", "prices"),
        ("plugin", "sotck", "stock"),
    ] == [one for one in told if one[1] != "nobody"]
    assert {("unknown_plugin_name", "warning")} == {(e["event"], e["log_level"]) for e in events}
    assert 6 == len(events)


# --- names that no list in the environment can have ----------------------------------------------


def test_r18_the_remedy_for_a_name_with_a_comma_works(tmp_path, distributions):
    """A list of the environment is separated by commas, so the file's list is recommended."""
    distributions.add("qtasks-x", {"a,b": "mod"}, mod="raise OSError('broken')")

    with pytest.raises(PluginRegistrationError) as caught:
        QueueTasks("shop").__enter__()
    told = str(caught.value)
    assert "QTASKS_PLUGGY_DISABLE" not in told
    remedy = told.partition("disable it: ")[2].partition(" in qtasks_pluggy.toml")[0]

    (tmp_path / "qtasks_pluggy.toml").write_text(remedy, "utf-8")
    with QueueTasks("shop") as app:
        assert not app.plugins.has_plugin("a,b")


def test_r18_a_failing_start_recommends_what_works_for_a_name_with_a_comma():
    """The same in the error of a start."""

    @hookimpl
    def qtasks_start():
        raise OSError("no disk")

    app = QueueTasks("shop", discover=False)
    app.add_plugin(plugin("any", qtasks_start=qtasks_start), name="a,b")

    with pytest.raises(PluginError, match=r'disable = \["a,b"\] in qtasks_pluggy.toml'):
        app.__enter__()
