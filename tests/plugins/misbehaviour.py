"""The table of plugins that misbehave: what each does, and what is to become of it."""

from __future__ import annotations

import asyncio
from typing import Any

import attrs

EACH = ("plain", "async", "blocking")


@attrs.frozen
class Row:
    """A plugin's ``answer``, and what is expected of it.

    Attributes:
        source: Its source; what it answers is the module's ``given``.
        status: Its status in the trail; None where the trail has nothing of it.
        as_: The kinds of hookimpl that the source is made into.
        again: The status when it is asked the second time, if that is another.
        ends: What leaves the run, because it is not a plugin's failure.
        under_async: What is different where the task is an ``async def`` that is awaited.
    """

    source: str
    status: str | None = "raised"
    as_: tuple[str, ...] = ("plain",)
    again: str | None = "the same"
    ends: type[BaseException] | None = None
    under_async: dict[str, Any] = attrs.field(factory=dict)

    @property
    def late(self) -> bool:
        """Whether it is about the time limit."""
        return self.status == "timed_out" or "time.sleep" in self.source


TABLE = {
    # It raises.
    "an error": Row("def answer(): raise ValueError('a bug')", as_=EACH),
    "StopIteration": Row("def answer(): raise StopIteration(1)", as_=EACH),
    "StopAsyncIteration": Row("def answer(): raise StopAsyncIteration", as_=EACH),
    "a cancellation": Row("def answer(): raise asyncio.CancelledError", as_=EACH),
    "a timeout of its own": Row("def answer(): raise TimeoutError", as_=EACH),
    "no memory": Row("def answer(): raise MemoryError", as_=EACH),
    "no stack": Row("def answer(): return answer()", as_=("plain", "blocking")),
    "a group": Row("def answer(): raise ExceptionGroup('g', [ValueError(), OSError()])", as_=EACH),
    "an error without a text": Row(
        """
        class Mute(Exception):
            __str__ = __repr__ = Garbage.fails
        def answer(): raise Mute(Garbage())
        """
    ),
    "an error that refuses notes": Row(
        """
        class Refuses(Exception):
            add_note = __setattr__ = Garbage.fails
        def answer(): raise Refuses
        """
    ),
    "an error with a loop of causes": Row(
        """
        def answer():
            error = OSError()
            error.__cause__ = error.__context__ = error
            raise error
        """
    ),
    "an error with causes without end": Row(
        """
        def answer():
            error = None
            for _ in range(2_000):
                before, error = error, OSError()
                error.__cause__ = before
            raise error
        """
    ),
    "the task's error": Row("def answer(e): raise e", as_=EACH),
    "its cause": Row("def answer(e): raise e.cause or e", as_=EACH),
    "the task's error, stripped": Row("def answer(e): raise e.with_traceback(None)", as_=EACH),
    "another from the task's": Row("def answer(e): raise OSError from e", as_=EACH),
    "PluginError": Row("def answer(): raise exc.PluginError('mine', task_error=None)", as_=EACH),
    "TaskCancelError": Row("def answer(): raise exc.TaskCancelError('mine')", as_=EACH),
    "a trigger": Row("def answer(): raise exc.TaskPluginTriggerError('mine')", as_=EACH),
    # It ends the program, and may.
    "exit": Row("def answer(): sys.exit(3)", None, EACH, ends=SystemExit),
    "Ctrl-C": Row("def answer(): raise KeyboardInterrupt", None, EACH, ends=KeyboardInterrupt),
    "GeneratorExit": Row("def answer(): raise GeneratorExit", None, EACH, ends=GeneratorExit),
    "no Exception": Row("def answer(): raise BaseException", None, EACH, ends=BaseException),
    "a group with Ctrl-C": Row(
        "def answer(): raise BaseExceptionGroup('g', [KeyboardInterrupt()])",
        *(None, EACH),
        ends=BaseExceptionGroup,
    ),
    # It is late.
    "hangs": Row("def answer(): await asyncio.Event().wait()", "timed_out", ("async",)),
    "hangs in its thread": Row("def answer(): release.wait(60)", "timed_out", ("blocking",)),
    "spins": Row(
        """
        async def answer():
            while True: await asyncio.sleep(0)
        """,
        "timed_out",
    ),
    "holds up the loop": Row("def answer(): time.sleep(0.05)", "no_opinion", ("async",)),
    "cannot be cut off": Row(
        """
        given = 7
        def answer(): return time.sleep(0.05) or given
        """,
        "answered",
    ),
    "swallows its cancellation": Row(
        """
        async def answer():
            try: await asyncio.Event().wait()
            except asyncio.CancelledError:
                while not release.is_set(): await asyncio.sleep(0.01)
        """,
        "timed_out",
    ),
    "answers its cancellation": Row(
        """
        async def answer():
            try: await asyncio.Event().wait()
            except asyncio.CancelledError: return "late"
        """,
        "timed_out",
    ),
    "fails at its cancellation": Row(
        """
        async def answer():
            try: await asyncio.Event().wait()
            except asyncio.CancelledError: raise OSError
        """,
        "timed_out",
    ),
    # It answers nonsense.
    "garbage": Row("given = Garbage()\ndef answer(): return given", "answered", EACH),
    "a decision's class": Row("def answer(): return Retry", as_=EACH),
    "a wrong decision": Row("def answer(): return Raise('a text')", as_=EACH),
    "a liar": Row(
        """
        class Liar:
            __class__ = property(lambda self: Retry)
        given = Liar()
        def answer(): return given
        """,
        "answered",
    ),
    "a value of an odd class": Row(
        """
        class Meta(type):
            __hash__ = None
        class Odd(metaclass=Meta): pass
        def answer(): return Odd()
        """
    ),
    "NotImplemented": Row("given = NotImplemented\ndef answer(): return given", "answered"),
    "an error as a value": Row("given = OSError()\ndef answer(): return given"),
    "a generator": Row("given = iter([])\ndef answer(): return given", "answered"),
    "a coroutine that is used up": Row(
        "once = asyncio.sleep(0)\ndef answer(): return once", "no_opinion", again="raised"
    ),
    "a future of a loop that is gone": Row(
        """
        loop = asyncio.new_event_loop()
        future = loop.create_future()
        loop.close()
        def answer(): return future
        """
    ),
    "awaits nothing": Row(
        """
        class Odd: __await__ = None
        def answer(): return Odd()
        """
    ),
    "awaits no iterator": Row(
        """
        class Odd: __await__ = lambda self: 5
        def answer(): return Odd()
        """
    ),
    "awaits what is no future": Row(
        """
        class Odd:
            def __await__(self): yield 5
        def answer(): return Odd()
        """
    ),
    # It meddles with event loops.
    "cancels itself": Row(
        """
        async def answer():
            asyncio.current_task().cancel()
            await asyncio.sleep(0)
        """
    ),
    "cancels itself at its end": Row(
        "def answer(): asyncio.current_task().cancel()", as_=("async",)
    ),
    "cancels everybody": Row(
        """
        async def answer():
            for task in asyncio.all_tasks() - {asyncio.current_task()}: task.cancel()
            await asyncio.sleep(0)
        """,
        under_async={"status": None, "ends": asyncio.CancelledError},
    ),
    "stops the loop": Row(
        "def answer(): asyncio.get_running_loop().stop()",
        under_async={"status": "no_opinion"},
    ),
    "closes the loop": Row("def answer(): asyncio.get_running_loop().close()", as_=EACH),
    "a loop of its own": Row(
        """
        given = 7
        def answer():
            coroutine = asyncio.sleep(0, given)
            try: return asyncio.run(coroutine)
            finally: coroutine.close()
        """,
        "answered",
        under_async={"status": "raised"},
    ),
    # It meddles with the run.
    "runs the task": Row(
        "def answer(task_func): return TaskExecutor(task_func, plugins=manager).execute_sync()",
        "answered",
        ("plain", "blocking"),
        again="raised",
    ),
    "awaits the task": Row(
        "def answer(task_func): return await TaskExecutor(task_func, plugins=manager).execute()",
        "answered",
        ("async",),
        again="raised",
    ),
    "runs the run": Row("def answer(task_executor): task_executor.execute_sync()", as_=EACH),
    "awaits the run": Row(
        "def answer(task_executor): await task_executor.execute()", as_=("async",)
    ),
    "asks once more": Row("def answer(task_executor): task_executor.ctx.plugin_error('mine')"),
    "changes the attempt": Row("def answer(task_executor): task_executor.attempt = 9", as_=EACH),
    "changes the task": Row("def answer(task_func): task_func.name = 'another'", as_=EACH),
    "changes the message": Row("def answer(task_broker): task_broker.name = 'x'", as_=EACH),
    # It meddles with the error.
    "changes the arguments": Row(
        "def answer(e): e.args = e.kwargs.update(message=Garbage()) or ('x',)", "no_opinion", EACH
    ),
    "takes the arguments": Row("def answer(e): e.kwargs = None", "no_opinion", EACH),
    "sets the text": Row("def answer(e): e.message = 'another'", as_=EACH),
    "takes the cause": Row("def answer(e): e.__cause__ = None", "no_opinion", EACH),
    "a loop of causes": Row("def answer(e): e.__cause__ = e", "no_opinion", EACH),
    "spoils the notes": Row(
        """
        def answer(e):
            e.__notes__ = (e.cause or e).__notes__ = 5
            raise OSError
        """
    ),
    # It meddles with the plugins.
    "unregisters itself": Row(
        "def answer(): manager.unregister(name=name)", "no_opinion", EACH, again=None
    ),
    "blocks itself": Row("def answer(): manager.set_blocked(name)", "no_opinion", EACH, again=None),
    "registers itself": Row("def answer(): manager.register(sys.modules[name])", as_=EACH),
    "moves the others": Row(
        """
        def answer():
            for other in ("first", "last"): manager.register(manager.unregister(name=other))
            manager.configure()
        """,
        "no_opinion",
    ),
    "renames itself": Row("def answer(): globals().update(name='other')", "no_opinion", EACH),
    "unmarks itself": Row("def answer(): vars(answer).clear()", "no_opinion", EACH),
    "deletes its module": Row("def answer(): del sys.modules[name]", "no_opinion", again="raised"),
    "imports itself": Row("def answer(): importlib.reload(sys.modules[name])", "no_opinion"),
    "clears its module": Row(
        "def answer(): asyncio; globals().clear()", "no_opinion", again="raised"
    ),
    # It is decorated.
    "a wrapped function": Row(
        """
        given = 7
        def asks(e, task_func): return given if e and task_func else None
        @functools.wraps(asks)
        def answer(*args, **kwargs): return asks(*args, **kwargs)
        """,
        "answered",
    ),
    "a wrapped coroutine": Row(
        """
        given = 7
        async def asks(e, *, task_func): return given if e and task_func else None
        @functools.wraps(asks)
        def answer(*args, **kwargs): return asks(*args, **kwargs)
        """,
        "answered",
    ),
    # It logs badly.
    "breaks the log": Row(
        """
        def answer():
            structlog.configure(processors=[Garbage.fails])
            raise OSError
        """
    ),
    "logs nonsense": Row("def answer(task_executor): task_executor.log.info('x', event='y')"),
    "takes stderr": Row(
        """
        def answer():
            structlog.reset_defaults()
            sys.stderr = None
            raise OSError
        """
    ),
    # It is a wrapper.
    "fails before the others": Row("def answer(): raise OSError; yield"),
    "fails after the others": Row("def answer(): raise (yield) or OSError"),
    "yields never": Row("def answer():\n    if answer is None: yield"),
    "yields twice": Row("def answer(): yield (yield)"),
    "a wrapper that exits": Row("def answer(): sys.exit((yield))", None, ends=SystemExit),
}
