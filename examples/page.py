import asyncio
from qtasks_pluggy import AsyncTask, BasePlugin, QueueTasks
from qtasks_pluggy.exc import TaskPluginTriggerError

app = QueueTasks("demo")

@app.task(echo=True)
async def test_task(self: AsyncTask):
    self.ctx.plugin_error(message="Non-standard situation")
    # or: raise TaskPluginTriggerError("Direct error")

class TestPlugin(BasePlugin):
    def __init__(self, name=None):
        super().__init__(name)
        self.handlers = {"task_executor_run_task_trigger_error": self.task_trigger_error}

    async def start(self, *args, **kwargs):
        return super().start(*args, **kwargs)

    async def stop(self, *args, **kwargs):
        return super().stop(*args, **kwargs)

    async def trigger(self, name, **kwargs):
        handler = self.handlers.get(name)
        if handler:
            return handler(**kwargs)
        return None

    def task_trigger_error(self, **kwargs):
        print(kwargs)
        return 123

app.add_plugin(TestPlugin())

async def main():
    async with app:
        return await test_task()

assert asyncio.run(main()) == 123
