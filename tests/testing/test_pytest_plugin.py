"""The pytest plugin in real runs of pytest: it keeps out of the way, and its fixtures are alone."""

from __future__ import annotations

import os
import subprocess
import sys
from textwrap import dedent

import pytest

from qtasks_pluggy.testing import assert_outcome
from tests.plugins.conftest import distributions  # noqa: F401  # a fixture
from tests.runs import answering, failing


def run_pytest(folder, source, *args, path=()):
    """Run pytest in a folder that has no settings of ours, with one file of tests."""
    # Without a file of its own pytest would look for one in the folders above.
    (folder / "pytest.ini").write_text("[pytest]\n", "utf-8")
    (folder / "test_it.py").write_text(dedent(source), "utf-8")
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PYTEST_", "QTASKS_", "COV"))
    }
    environment["PYTHONPATH"] = os.pathsep.join(map(str, path))
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *args],
        cwd=folder,
        env=environment,
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_nothing_of_ours_is_imported_before_a_fixture_is_used(tmp_path):
    """In a project that does not use us, pytest has imported one file of ours, and no more."""
    source = """
        import sys

        def ours():
            return {one for one in sys.modules if one.startswith(("qtasks_", "structlog"))}

        def test_a_none():
            assert ours() == set()
            assert "pytest_qtasks_pluggy" in sys.modules

        def test_b_some(qtasks_run):
            assert "qtasks_pluggy.testing" in ours()
            assert "click" not in sys.modules and "jinja2" not in sys.modules
        """

    ended = run_pytest(tmp_path, source, "-p", "no:randomly", "-p", "no:xdist")

    assert "3 passed" in ended.stdout, ended.stdout + ended.stderr


SUITE = """
    import pytest
    from qtasks_hookspecs import Retry, on_error
    from qtasks_pluggy.exc import PluginRegistrationError
    from qtasks_pluggy.testing import PluginContract, assert_outcome

    class Mine:
        name = "mine"

        @on_error(ConnectionError)
        def again(self):
            return Retry(limit=1)

    class TestMine(PluginContract):
        plugin = Mine

    def test_run(qtasks_run):
        def price():
            raise ConnectionError
        assert_outcome(qtasks_run(Mine, price), "failed", attempts=2)

    def test_left_alone(qtasks_run):
        def price():
            raise KeyError
        assert_outcome(qtasks_run(Mine, price), "failed", decided_by=None)

    def test_app(qtasks_app):
        price = qtasks_app(Mine).task(lambda: 1)
        assert price() == 1

    def test_installed(qtasks_installed):
        app = qtasks_installed("qtasks-mine")
        assert [one.name for one in app.plugins.list_plugin_info() if one.enabled] == ["installed"]

    def test_not_installed(qtasks_installed):
        with pytest.raises(PluginRegistrationError, match="not installed"):
            qtasks_installed("qtasks-no-such")
"""


@pytest.mark.parametrize("args", [("-p", "no:randomly"), ("-p", "randomly", "-n", "2")])
def test_a_suite_is_alone_beside_a_plugin_that_answers_everything(tmp_path, distributions, args):  # noqa: F811  # the fixture
    """Also with xdist and in random order, and whatever settings lie in the folder."""
    distributions.answering("greedy", "eaten")
    source = "from qtasks_hookspecs import on_error\n@on_error()\ndef answer(): return 1"
    distributions.add("qtasks-mine", {"installed": "mine_installed"}, mine_installed=source)
    (tmp_path / "qtasks_pluggy.toml").write_text("disable = ['mine']\nstrict = false", "utf-8")

    ended = run_pytest(tmp_path, SUITE, *args, path=[distributions.site()])

    assert "18 passed" in ended.stdout, ended.stdout + ended.stderr


def test_a_contract_without_a_plugin_is_one_clear_error(tmp_path):
    """It is told when the tests are collected."""
    source = """
        from qtasks_pluggy.testing import PluginContract

        class TestMine(PluginContract):
            pass
        """

    ended = run_pytest(tmp_path, source)

    assert "TestMine(PluginContract) has no plugin; write plugin = ..." in ended.stdout
    assert ended.returncode == 2


def test_a_contract_that_is_broken_shows_the_remedy(tmp_path):
    """The report has the finding, and what to do."""
    source = """
        from types import SimpleNamespace
        from qtasks_pluggy.testing import PluginContract

        class TestMine(PluginContract):
            plugin = SimpleNamespace(name="mine")
        """

    ended = run_pytest(tmp_path, source, "-k", "names")

    assert "has no hookimpl" in ended.stdout
    assert "-> mark its functions with @hookimpl" in ended.stdout


def test_the_fixtures_work_here_too(qtasks_run, qtasks_app):
    """In our own suite, whose settings are strict."""
    assert_outcome(qtasks_run(answering(1), failing("function", KeyError())), "recovered")
    assert qtasks_app(answering(2)).task(failing("function", KeyError()))() == 2


def test_apps_of_the_fixture_are_stopped_after_the_test(tmp_path):
    """Also after a test that fails."""
    source = """
        from types import SimpleNamespace
        from qtasks_hookspecs import hookimpl

        stopped = []

        @hookimpl
        def qtasks_stop():
            stopped.append(1)

        def test_a(qtasks_app):
            qtasks_app(SimpleNamespace(name="mine", qtasks_stop=qtasks_stop))
            assert not stopped
            raise ValueError

        def test_b():
            assert stopped == [1]
        """

    ended = run_pytest(tmp_path, source, "-p", "no:randomly")

    assert "1 failed, 1 passed" in ended.stdout, ended.stdout
