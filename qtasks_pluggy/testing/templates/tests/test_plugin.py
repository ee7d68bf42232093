"""The plugin, alone: no other plugin, no setting and no file of this machine changes a test."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from qtasks_pluggy import QueueTasks
from qtasks_pluggy.exc import PluginRegistrationError
from qtasks_pluggy.testing import PluginContract, Run, assert_outcome, no_delays

NAME = "{{ name }}"


class TestContract(PluginContract):
    """What every plugin has to keep."""

    plugin = NAME


def test_a_lost_connection_is_tried_again(qtasks_run: Callable[..., Run]) -> None:
    """The second attempt succeeds."""
    prices = [None, 3.5]

    def price() -> float:
        price = prices.pop(0)
        if price is None:
            raise ConnectionError
        return price

    run = qtasks_run(NAME, price, settings={"delay": 0})

    assert_outcome(run, "succeeded", result=3.5, attempts=2)


def test_it_gives_up_after_the_limit(qtasks_run: Callable[..., Run]) -> None:
    """Then the task's own error goes on."""

    def price() -> None:
        raise ConnectionError

    with no_delays():
        run = qtasks_run(NAME, price, settings={"limit": 2})

    assert_outcome(run, "failed", error=ConnectionError, attempts=3)


def test_other_errors_are_left_alone(qtasks_run: Callable[..., Run]) -> None:
    """Nobody decides about them."""

    def price() -> None:
        raise ValueError

    assert_outcome(qtasks_run(NAME, price), "failed", error=ValueError, decided_by=None)


def test_a_wrong_setting_stops_the_start(qtasks_app: Callable[..., QueueTasks]) -> None:
    """The error names the key."""
    with pytest.raises(PluginRegistrationError, match="'limit'"):
        qtasks_app(NAME, settings={"plugin": {NAME: {"limit": "many"}}})


def test_the_readme_lists_settings_that_it_takes(qtasks_app: Callable[..., QueueTasks]) -> None:
    """What users paste from there does not stop their app."""
    readme = Path(__file__).parents[1].joinpath("README.md").read_text("utf-8")
    settings = tomllib.loads(readme.split("```toml\n")[1].split("```")[0])

    qtasks_app(NAME, settings={"plugin": {NAME: settings["plugin"][NAME]}})


def test_apps_find_it(qtasks_installed: Callable[..., QueueTasks]) -> None:
    """Its entry point makes it a plugin of every app that it is installed for."""
    app = qtasks_installed("{{ distribution }}")

    assert [one.name for one in app.plugins.list_plugin_info() if one.enabled] == [NAME]
