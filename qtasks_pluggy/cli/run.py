"""``qtasks-pluggy run``: one run, or one for each record."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from contextlib import suppress
from typing import Any, Final

import click

from qtasks_pluggy import QueueTasks
from qtasks_pluggy._console.load import (
    Faults,
    Task,
    Trouble,
    cannot_start,
    give_engine,
    load_app,
    load_task,
)
from qtasks_pluggy._console.say import readable_json, say, say_json
from qtasks_pluggy._console.traceback import own_traceback
from qtasks_pluggy.cli._batch import Batch
from qtasks_pluggy.cli._ended import Ended, run_async, submit, submit_async
from qtasks_pluggy.cli._ended import run as run_here
from qtasks_pluggy.cli._output import STDOUT, Output, UnwritableResultError, as_line, to_json
from qtasks_pluggy.cli._records import Record, Records, from_arguments
from qtasks_pluggy.cli._screen import show_summary, watcher
from qtasks_pluggy.engines import worker_lifespan
from qtasks_pluggy.exc import QTasksError

CONCURRENCY: Final = 8


@click.command(name="run", context_settings={"max_content_width": 100})
@click.argument("app_spec", metavar="APP")
@click.argument("task_name", metavar="TASK")
@click.argument("words", metavar="[ARGS]...", nargs=-1)
@click.option(
    "--each",
    metavar="FILE",
    help="Run once for each record of FILE: JSON lines, or CSV if its name ends in .csv; - for"
    " JSON lines from standard input.",
)
@click.option(
    "--concurrency",
    metavar="N",
    type=click.IntRange(min=1),
    help=f"With --each: how many runs at a time.  [default: {CONCURRENCY}]",
)
@click.option(
    "--engine",
    metavar="URL",
    help="Submit the runs to this engine, memory:// or huey+sqlite:///FILE.db, and do them here.",
)
@click.option(
    "--out",
    metavar="FILE",
    help="With --each: write how each run ended to FILE, one JSON line a run, as they end; - for"
    " standard output.",
)
@click.option(
    "--json", "as_json", is_flag=True, help="Write what a script can read, not what people like."
)
def run(
    app_spec: str,
    task_name: str,
    words: tuple[str, ...],
    each: str | None,
    concurrency: int | None,
    engine: str | None,
    out: str | None,
    *,
    as_json: bool,
) -> None:
    """Run TASK of APP once, or once for each record of a file.

    APP is module:attribute or file.py:attribute; the attribute is app if left out. ARGS are JSON,
    else text, and key=value is a keyword; put -- before ARGS that begin with a dash. A record is
    a JSON object (keywords) or array (positional arguments), or a row of a CSV file whose header
    names the keywords.

    \b
    Exit codes:
      0    every run has a result
      1    a run has none, or a result could not be written
      2    nothing was run: usage, settings, plugins, import
      130  interrupted
    """  # noqa: D301  # \b is click's own mark, not an escape
    if each is None:
        _refuse_without_each(concurrency, out)
    elif words:
        msg = f"--each takes the arguments from {each}; leave out {' '.join(words)!r}"
        raise click.UsageError(msg)
    app = load_app(app_spec)
    task = load_task(app, task_name)
    size = 1 if each is None else concurrency or CONCURRENCY
    if engine is not None:
        give_engine(app, engine, size)
    by = engine is not None
    if each is None:
        code = _run_once(app, task, from_arguments(words), by_engine=by, as_json=as_json)
    else:
        code = _run_each(app, task, each, size, out, by_engine=by, as_json=as_json)
    click.get_current_context().exit(code)


def _refuse_without_each(concurrency: int | None, out: str | None) -> None:
    if concurrency is not None:
        msg = "--concurrency is for many runs; give --each FILE too, or leave it out"
        raise click.UsageError(msg)
    if out is not None:
        msg = "--out is for many runs; give --each FILE too, or use --json for a single one"
        raise click.UsageError(msg)


def _run_once(
    app: QueueTasks, task: Task, record: Record, *, by_engine: bool, as_json: bool
) -> int:
    ended: list[Ended] = []
    fault: QTasksError | None = None
    try:
        if task.task_func.is_async:
            asyncio.run(_within(app, task, record, ended, by_engine=by_engine))
        elif by_engine:
            with app:
                ended.append(submit(app, task, record, _nobody))
        else:
            with worker_lifespan(app):
                ended.append(run_here(app, task, record, _nobody))
    except Faults as error:
        if not ended:
            raise cannot_start(app, error) from None
        fault = error
    (one,) = ended
    if isinstance(one.error, KeyboardInterrupt):
        raise one.error
    line, unwritable = as_line(one)
    if as_json:
        say(line)
    elif one.error is None:
        _show_result(one, unwritable)
    else:
        _show_failure(task, one)
    if fault is not None:
        _say_error(f"app {app.name!r} did not stop well: {fault}")
    return 1 if one.error is not None or unwritable is not None or fault is not None else 0


async def _within(
    app: QueueTasks, task: Task, record: Record, ended: list[Ended], *, by_engine: bool
) -> None:
    life: Any = app if by_engine else worker_lifespan(app)
    async with life:
        one = await (submit_async if by_engine else run_async)(app, task, record, _nobody)
        me = asyncio.current_task()
        if isinstance(one.error, asyncio.CancelledError) and me is not None and me.cancelling():
            # Ctrl-C, which asyncio.run makes a KeyboardInterrupt again.
            raise one.error
        ended.append(one)


def _nobody(_: str) -> None:
    """Nobody asks for the id of the only run while it runs."""


def _show_result(ended: Ended, unwritable: UnwritableResultError | None) -> None:
    if ended.decided is not None:
        say(f"recovered by {ended.decided.who}", err=True)
    if unwritable is not None:
        _say_error(str(unwritable))
    elif sys.stdout.isatty():
        say(readable_json(ended.result))
    else:
        say(to_json(ended.result))


def _show_failure(task: Task, ended: Ended) -> None:
    if isinstance(ended.error, BaseException):
        say(own_traceback(ended.error), err=True)
    if ended.trail:
        say(f"{ended.trail}\n", err=True)
    status = ended.status.replace("_", "-")
    why = f"{ended.kind}: {ended.why}" if ended.why else ended.kind
    _say_error(f"task {task.name!r} {status}: {why} (run {ended.uuid})")


def _say_error(text: str) -> None:
    say(f"Error: {text}", err=True)


def _run_each(
    app: QueueTasks,
    task: Task,
    each: str,
    size: int,
    out: str | None,
    *,
    by_engine: bool,
    as_json: bool,
) -> int:
    with Records(each) as records:
        if out is not None and out != STDOUT and records.is_file(out):
            msg = f"--out {out} is the file that the records are read from; give another one"
            raise Trouble(msg)
        if records.is_terminal():
            say("Type one JSON record a line; Ctrl-D ends the input.", err=True)
        if out is None:
            return _run_batch(app, task, records, size, None, by_engine=by_engine, as_json=as_json)
        with Output(out) as output:
            return _run_batch(
                app, task, records, size, output, by_engine=by_engine, as_json=as_json
            )


def _run_batch(
    app: QueueTasks,
    task: Task,
    records: Records,
    size: int,
    output: Output | None,
    *,
    by_engine: bool,
    as_json: bool,
) -> int:
    to_stdout = output is not None and output.is_stdout
    typed = records.is_terminal() or (to_stdout and sys.stdout.isatty())
    begin = time.monotonic()
    fault: QTasksError | None = None
    with watcher(task.name, records, bar=not typed) as watching:
        batch = Batch(
            app, task, records, size=size, output=output, watcher=watching, by_engine=by_engine
        )
        try:
            batch.run()
        except Faults as error:
            if not batch.started:
                raise cannot_start(app, error) from None
            fault = error
        except KeyboardInterrupt:
            batch.tally.interrupted = True
    tally = batch.tally
    if batch.unheard:
        return tally.exit_code or 1
    seconds = time.monotonic() - begin
    if as_json:
        told = {"task": task.name, "seconds": round(seconds, 3), **tally.as_json()}
        say_json(told, indent=None, err=to_stdout)
    else:
        show_summary(tally, task.name, seconds, err=to_stdout)
        if output is not None and not to_stdout and batch.trouble is None:
            say(f"\nEvery run is a line in {output.name}.")
    if batch.trouble is not None:
        _say_error(batch.trouble)
    if fault is not None:
        _say_error(f"app {app.name!r} did not stop well: {fault}")
    code = tally.exit_code or (1 if batch.trouble or fault else 0)
    if tally.unfinished:
        # What was left behind would hold up an ordinary exit, perhaps for ever.
        with suppress(OSError):
            sys.stdout.flush()
        os._exit(code)
    return code
