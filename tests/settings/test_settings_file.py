"""The settings' file: which one counts, whose it may be, and what happens to one that is broken."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import structlog

from qtasks_pluggy import QueueTasks
from qtasks_pluggy._settings import load
from qtasks_pluggy.exc import SettingsError

BOTH = pytest.mark.parametrize(
    ("name", "head"), [("qtasks_pluggy.toml", ""), ("pyproject.toml", "[tool.qtasks_pluggy]\n")]
)


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in a folder without settings, two levels below one that tests may fill."""
    for variable in [one for one in os.environ if one.startswith("QTASKS_PLUGGY_")]:
        monkeypatch.delenv(variable)
    folder = tmp_path / "project" / "deep"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)


def write(path: str, text: str | bytes) -> Path:
    """Write a file; return its full path."""
    file = Path(path)
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    return file.resolve()


def refused() -> str:
    """Load the settings; return the error's text."""
    with pytest.raises(SettingsError) as raised:
        load(read_environment=True)
    return str(raised.value)


def start_and_stop(app: QueueTasks) -> list[dict[str, object]]:
    """Start and stop an app; return what was logged."""
    with structlog.testing.capture_logs() as events, app:
        pass
    return [dict(event) for event in events]


# --- whose it may be -----------------------------------------------------------------------------


def make_it_somebody_elses(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a file another user's; who is not root becomes another user instead."""
    if os.geteuid() == 0:
        os.chown(path, 65534, -1)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)


@BOTH
@pytest.mark.parametrize("folder", ["", "../../"])
def test_a_found_file_of_somebody_else_is_refused(name, head, folder, monkeypatch):
    """Who may write into a folder above must not decide what happens to errors: named, not used."""
    path = write(f"{folder}{name}", f"{head}enable = ['fallback']\n")
    make_it_somebody_elses(path, monkeypatch)

    told = refused()

    for part in (f"{path.name}: belongs to user", "neither you nor root", "QTASKS_PLUGGY_FILE="):
        assert part in told


@BOTH
def test_a_found_file_that_the_world_may_write_is_refused(name, head):
    """Whoever owns it, somebody else may have written it."""
    path = write(f"../{name}", f"{head}strict = true\n")
    path.chmod(0o646)

    assert f"{path}: may be written by everybody" in refused()


def test_a_found_file_that_its_group_may_write_is_used():
    """A umask of 002 is nothing to be afraid of."""
    write("qtasks_pluggy.toml", "strict = true\n").chmod(0o664)

    assert load(read_environment=True).settings.strict


@BOTH
def test_a_file_that_is_named_is_used_whoever_owns_it(name, head, monkeypatch):
    """``QTASKS_PLUGGY_FILE`` is the operator's word, for any folder; nothing else is looked for."""
    write("qtasks_pluggy.toml", "timeout = 1.0\n")
    path = write(f"../{name}", f"{head}strict = true\n")
    path.chmod(0o666)
    monkeypatch.setenv("QTASKS_PLUGGY_FILE", str(path))

    loaded = load(read_environment=True)

    assert (True, 5.0) == (loaded.settings.strict, loaded.settings.timeout)
    assert str(path) == loaded.sources["strict"]


def test_a_named_file_may_have_any_name(monkeypatch):
    """One of another name has the keys at its top, as ``qtasks_pluggy.toml`` has."""
    monkeypatch.setenv("QTASKS_PLUGGY_FILE", str(write("of the worker.conf", "strict = true\n")))

    assert load(read_environment=True).settings.strict


@pytest.mark.parametrize("name", ["nowhere.toml", "."])
def test_a_named_file_that_cannot_be_read_is_an_error(name, monkeypatch):
    """It is not passed over: the operator meant it."""
    monkeypatch.setenv("QTASKS_PLUGGY_FILE", name)

    assert f"{name}: cannot be read: " in refused()


def test_a_strangers_pyproject_without_a_section_of_ours_is_not_our_matter(monkeypatch):
    """It sets nothing, so it stops nothing."""
    path = write("../pyproject.toml", "[project]\nname = 'x'\n")
    make_it_somebody_elses(path, monkeypatch)

    assert load(read_environment=True).file is None


def test_the_file_in_use_is_logged_once():
    """At info level, however often the app starts."""
    path = write("../qtasks_pluggy.toml", "timeout = 1\n")
    app = QueueTasks("shop", discover=False)

    events = [event for _ in range(3) for event in start_and_stop(app)]

    assert [{"event": "settings_file_used", "file": str(path), "log_level": "info"}] == events


def test_without_a_file_none_is_logged():
    """There is nothing to be said of it."""
    assert [] == start_and_stop(QueueTasks("shop", discover=False))


# --- what is broken ------------------------------------------------------------------------------

BROKEN = {
    "invalid": b"timeout = 1\norder = [\n",
    "not UTF-8": b"timeout = '\xff'\n",
    "too deep": b"order = " + b"[" * 100_000 + b"]" * 100_000,
    "too many digits": b"quarantine_after = " + b"9" * 5000,
}
broken = pytest.mark.parametrize("text", BROKEN.values(), ids=BROKEN)


@broken
@BOTH
def test_a_file_of_ours_that_does_not_parse_is_an_error_that_names_it(name, head, text):
    """The reason is told too, as the parser has it."""
    path = write(f"../{name}", head.encode() + text)

    assert f"{path}: cannot be read: " in refused()


@broken
def test_somebody_elses_pyproject_that_does_not_parse_is_passed_over(text):
    """One warning names it and why; the search goes on in the folders above."""
    path = write("../pyproject.toml", b"[project]\n" + text)
    above = write("../../qtasks_pluggy.toml", "strict = true\n")
    app = QueueTasks("shop", discover=False)

    told = [event for _ in range(2) for event in start_and_stop(app)]

    assert app.plugins.settings.strict
    (warning,) = [event for event in told if event["event"] == "settings_file_skipped"]
    assert ("warning", str(path)) == (warning["log_level"], warning["file"])
    assert "cannot be read" in str(warning["reason"])
    assert str(above) in [event["file"] for event in told]


@pytest.mark.parametrize("text", ["[tool]\nqtasks_pluggy = 5\n", "tool = 5\n"])
def test_a_section_that_is_no_table(text):
    """The error says what it must be."""
    write("pyproject.toml", text)

    assert "[tool.qtasks_pluggy] must be a table" in refused()


@BOTH
def test_a_byte_order_mark_is_no_error(name, head):
    """As editors of Windows write it."""
    write(name, b"\xef\xbb\xbf" + f"{head}strict = true\r\n".encode())

    assert load(read_environment=True).settings.strict


@BOTH
def test_a_file_without_keys_hides_those_above(name, head):
    """One of comments only says: as the defaults are."""
    write("../qtasks_pluggy.toml", "strict = true\n")
    write(name, f"# nothing is set here\n{head}# nor here\n")

    assert not load(read_environment=True).settings.strict


# --- what is misspelt ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "section",
    ["tool.qtasks-pluggy", "tool.qtasks_plugy", "tool.QTasks_Pluggy", "qtasks_pluggy"],
)
def test_a_section_whose_name_is_nearly_ours_is_an_error(section):
    """It would be ignored without a word, and with it what it switches off."""
    path = write("../pyproject.toml", f"[{section}]\ndisable = ['x']\n")

    told = refused()

    assert f"{path}: [{section}] is not read; did you mean [tool.qtasks_pluggy]?" in told


@pytest.mark.parametrize("section", ["qtasks", "pluggy", "qtasks_admin", "pytest.ini_options"])
def test_sections_of_other_tools_are_theirs(section):
    """Names that have a part in common with ours are no slips."""
    write("pyproject.toml", f"[tool.{section}]\ndisable = ['x']\n")

    assert load(read_environment=True).file is None


def test_a_file_whose_name_is_the_distributions_is_an_error():
    """The error says what it has to be called."""
    path = write("../qtasks-pluggy.toml", "strict = true\n")

    assert f"{path}: is not read; rename it to qtasks_pluggy.toml" in refused()


def test_the_shared_files_section_in_our_own_file():
    """What was copied from one to the other has a line too many."""
    write("qtasks_pluggy.toml", "[tool.qtasks_pluggy]\nstrict = true\n")

    assert "write the keys without [tool.qtasks_pluggy]" in refused()
