"""A Taskiq project's own middlewares and classes work as before, with plugins in its runs."""

from __future__ import annotations

import pytest
from taskiq import TaskiqMiddleware

from qtasks_hookspecs import Replace
from qtasks_pluggy import QueueTasks
from qtasks_pluggy.engines.taskiq import install
from tests.engines.huey_apps import Keeps
from tests.engines.taskiq_apps import app_on, broker_of, ended, working

pytestmark = pytest.mark.engines


@pytest.fixture(params=[False, True], ids=["in tasks", "in place"])
def native(request):
    """A broker of somebody's own."""
    return broker_of(await_inplace=request.param)


class Unpacks(TaskiqMiddleware):
    """Gives every run another message, with other arguments, as one that decrypts them does."""

    def pre_execute(self, message):
        args = [arg.removeprefix("packed ") for arg in message.args]
        return message.model_copy(update={"args": args})


async def test_a_middleware_added_later_may_replace_the_message(native):
    """A native run has the arguments of the message that the last middleware gave."""
    plugin = Keeps(Replace("answer"))

    @native.task(task_name="echo")
    async def echo(text, kind="good"):
        if kind == "bad":
            raise OSError(text)
        return text

    install(native, [plugin], discover=False)
    native.add_middlewares(Unpacks())
    async with working(native):
        good = await ended(await echo.kiq("packed one"))
        native.add_middlewares(Unpacks())
        await ended(await echo.kiq("packed packed two", kind="bad"))
    assert "one" == good.return_value
    assert [("two",)] == [message.args for message in plugin.messages]
    assert ["two"] == [str(cause) for cause in plugin.causes]


async def test_an_app_s_runs_have_the_replaced_message_too(native):
    """A run of an app has the arguments of the message that the last middleware gave."""
    app: QueueTasks = app_on(native)
    native.add_middlewares(Unpacks())

    @app.task
    async def echo(text):
        return text

    async with app:
        assert "one" == await (await echo.submit("packed one"))
