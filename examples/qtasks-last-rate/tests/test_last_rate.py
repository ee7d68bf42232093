"""The plugin in an app that finds it as every app does, by its entry point."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from qtasks_pluggy import QueueTasks
from qtasks_pluggy.exc import PluginRegistrationError

RATES = {
    "2022-04-14": {"USD": "1.0878", "RUB": "N/A"},  # the Thursday before Easter
    "2022-04-19": {"USD": "1.0803", "RUB": "N/A"},
}


def an_app(name: str = "eur_100", **section: Any) -> tuple[QueueTasks, Callable[..., float]]:
    """An app with the task; the section is the plugin's settings, and a fault of it is an error."""
    settings = {"allow": ["last-rate"], "plugin": {"last-rate": section}, "strict": True}
    app = QueueTasks("rates", settings=settings)

    def eur_100(day: str, currency: str) -> float:
        return round(100 * float(RATES[day][currency]), 2)

    return app, app.task(name=name)(eur_100)


@pytest.fixture
def eur_100() -> Iterator[Callable[..., float]]:
    """The task of an app that has started, without settings."""
    app, task = an_app()
    with app:
        yield task


@pytest.mark.parametrize("day", ["2022-04-15", "2022-04-18"])
def test_a_day_without_a_rate_gets_the_last_one(eur_100: Callable[..., float], day: str) -> None:
    """Good Friday and Easter Monday are answered with the Thursday before."""
    assert eur_100(day, "USD") == eur_100(currency="USD", day=day) == 108.78


def test_a_day_with_a_rate_is_left_alone(eur_100: Callable[..., float]) -> None:
    """A rate that was published is the result."""
    assert eur_100("2022-04-19", "USD") == 108.03


def test_the_name_may_have_a_module_in_front() -> None:
    """Celery names a task by module and function."""
    app, task = an_app("shop.rates.eur_100")
    with app:
        assert task("2022-04-15", "USD") == 108.78


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


def test_another_task_is_left_alone() -> None:
    """It answers the one task that it knows."""
    app, task = an_app("gbp_100")
    with app, pytest.raises(KeyError):
        task("2022-04-15", "USD")


def test_how_old_a_rate_may_be_is_a_setting() -> None:
    """With ``max_age_days`` of 6 the day that was too late by one is answered."""
    app, task = an_app(max_age_days=6)
    with app:
        assert task("2022-04-25", "USD") == 108.03


def test_apps_do_not_share_their_settings() -> None:
    """Each app has a plugin of its own."""
    (patient, task), (other, other_task) = an_app(max_age_days=6), an_app()
    with patient, other:
        assert task("2022-04-25", "USD") == 108.03
        with pytest.raises(KeyError):
            other_task("2022-04-25", "USD")


@pytest.mark.parametrize("days", [0, -1, 1.5, "5", True, None])
def test_a_wrong_setting_stops_the_start(days: object) -> None:
    """The app does not start, and says which setting is wrong."""
    app, _ = an_app(max_age_days=days)
    with pytest.raises(PluginRegistrationError, match="'max_age_days'"), app:
        pass
