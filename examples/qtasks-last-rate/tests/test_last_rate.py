"""The plugin in an app that finds it as every app does, by its entry point."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from qtasks_pluggy.exc import PluginRegistrationError
from qtasks_pluggy.testing import PluginContract, assert_outcome, assert_trail

RATES = {
    "2022-04-14": {"USD": "1.0878", "RUB": "N/A"},  # the Thursday before Easter
    "2022-04-19": {"USD": "1.0803", "RUB": "N/A"},
}


class TestContract(PluginContract):
    """What every plugin has to keep, asked about a day and a currency."""

    plugin = "last-rate"
    args = ("2022-04-15", "USD")


def rate_of(day: str, currency: str) -> float:
    """Say what EUR 100 were worth, as the task in ``examples/rates`` does."""
    return round(100 * float(RATES[day][currency]), 2)


Task = Callable[..., float]


@pytest.fixture
def a_task(qtasks_installed: Callable[..., Any]) -> Callable[..., Task]:
    """Make the task of an app that finds this plugin and no other; the section is its settings."""

    def make(name: str = "eur_100", **section: Any) -> Task:
        settings = {"plugin": {"last-rate": section}}
        app = qtasks_installed("qtasks-last-rate", settings=settings, intercept=None)
        task: Task = app.task(name=name)(rate_of)
        return task

    return make


@pytest.fixture
def eur_100(a_task: Callable[..., Task]) -> Task:
    """The task, without settings."""
    return a_task()


@pytest.mark.parametrize("day", ["2022-04-15", "2022-04-18"])
def test_a_day_without_a_rate_gets_the_last_one(eur_100: Callable[..., float], day: str) -> None:
    """Good Friday and Easter Monday are answered with the Thursday before."""
    assert eur_100(day, "USD") == eur_100(currency="USD", day=day) == 108.78


def test_a_day_with_a_rate_is_left_alone(eur_100: Callable[..., float]) -> None:
    """A rate that was published is the result."""
    assert eur_100("2022-04-19", "USD") == 108.03


def test_the_name_may_have_a_module_in_front(a_task: Callable[..., Task]) -> None:
    """Celery names a task by module and function."""
    assert a_task("shop.rates.eur_100")("2022-04-15", "USD") == 108.78


@pytest.mark.parametrize(
    ("day", "currency", "error"),
    [
        ("2022-04-25", "USD", KeyError),  # the last rate is six days old
        ("2022-04-19", "RUB", ValueError),  # the days before have none either
        ("2022-04-18", "XYZ", KeyError),
        ("2022-04-31", "USD", KeyError),
    ],
)
def test_where_it_knows_no_rate_the_tasks_own_error_goes_on(
    eur_100: Callable[..., float], day: str, currency: str, error: type[Exception]
) -> None:
    """A rate that is too old, a currency without rates, no such currency and no such day."""
    with pytest.raises(error):
        eur_100(day, currency)


def test_another_task_is_left_alone(a_task: Callable[..., Task]) -> None:
    """It answers the one task that it knows."""
    with pytest.raises(KeyError):
        a_task("gbp_100")("2022-04-15", "USD")


def test_an_async_task_is_left_alone(qtasks_run: Callable[..., Any]) -> None:
    """It asks a plain task about the days before, and has no opinion about an async one."""
    run = qtasks_run("last-rate", rate_of, args=("2022-04-15", "USD"), name="eur_100")

    if run.style == "def":
        assert_outcome(run, "recovered", result=108.78, decided_by="last-rate")
    else:
        assert_outcome(run, "failed", error=KeyError, decided_by=None)
        assert_trail(run, "last-rate no opinion")


def test_how_old_a_rate_may_be_is_a_setting(a_task: Callable[..., Task]) -> None:
    """With ``max_age_days`` of 6 the day that was too late by one is answered."""
    assert a_task(max_age_days=6)("2022-04-25", "USD") == 108.03


def test_apps_do_not_share_their_settings(a_task: Callable[..., Task]) -> None:
    """Each app has a plugin of its own."""
    patient, other = a_task(max_age_days=6), a_task()

    assert patient("2022-04-25", "USD") == 108.03
    with pytest.raises(KeyError):
        other("2022-04-25", "USD")


@pytest.mark.parametrize("days", [0, -1, 1.5, "5", True, None])
def test_a_wrong_setting_stops_the_start(a_task: Callable[..., Task], days: object) -> None:
    """The app does not start, and says which setting is wrong."""
    with pytest.raises(PluginRegistrationError, match="'max_age_days'"):
        a_task(max_age_days=days)
