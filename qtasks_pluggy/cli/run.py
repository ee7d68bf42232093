"""``qtasks-pluggy run``: one run, or one for each record."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, BinaryIO, Final, NoReturn

import attrs
import click

from qtasks_pluggy import QueueTasks
from qtasks_pluggy._console.load import Faults, Task, Trouble, cannot_start, load_app, load_task
from qtasks_pluggy._console.say import (
    json_option,
    keep_stdout,
    one_line,
    own_stdout,
    readable_json,
    say,
    say_error,
    say_json,
)
from qtasks_pluggy._console.traceback import own_traceback
from qtasks_pluggy.cli._each import Batch, count_runs
from qtasks_pluggy.cli._output import STDOUT, Output
from qtasks_pluggy.cli._records import FORMATS, Record, Records, from_arguments, open_input
from qtasks_pluggy.cli._runs import Run
from qtasks_pluggy.cli._summary import Tally, as_json, progress_bar, show_summary
from qtasks_pluggy.exc import EngineError

_FILE: Final = click.Path(exists=True, dir_okay=False, allow_dash=True)
_OUT: Final = click.Path(dir_okay=False, allow_dash=True)


@attrs.frozen
class Options:
    """What the command line asks for besides APP and TASK; its help has the meanings."""

    each: str | None
    out: str | None
    resume: str | None
    form: str | None
    json_cells: bool
    concurrency: int | None
    max_failures: int | None
    timeout: float | None
    engine: str | None
    quiet: bool
    as_json: bool

    def check(self, words: tuple[str, ...]) -> None:
        """Refuse what does not belong together.

        Raises:
            UsageError: Two options exclude each other, or one needs another.
        """
        many = {
            "--out": self.out,
            "--resume": self.resume,
            "--format": self.form,
            "--json-cells": self.json_cells or None,
            "--concurrency": self.concurrency,
            "--max-failures": self.max_failures,
        }
        lonely = [name for name, value in many.items() if value is not None]
        if self.each is None and lonely:
            msg = f"{lonely[0]} is for many runs; give --each FILE too, or leave it out"
            raise click.UsageError(msg)
        if self.each is not None and words:
            msg = "--each takes the arguments from its file; leave out ARGS"
            raise click.UsageError(msg)
        if self.timeout is not None and math.isnan(self.timeout):
            msg = "--timeout takes a number of seconds"
            raise click.UsageError(msg)
        if self.out is not None and self.resume is not None:
            msg = "--resume OUT writes to OUT; leave out --out"
            raise click.UsageError(msg)


@click.command(name="run")
@click.argument("app_spec", metavar="APP")
@click.argument("task_name", metavar="TASK")
@click.argument("words", metavar="[ARGS]...", nargs=-1)
@click.option(
    "-i", "--each", metavar="FILE", type=_FILE, help="Run once for each record of FILE; - is stdin."
)
@click.option(
    "-o", "--out", metavar="FILE", type=_OUT, help="Write a JSON line for each run; - is stdout."
)
@click.option(
    "--resume", metavar="OUT", type=_OUT, help="Skip the records that OUT has; add the others."
)
@click.option(
    "--format",
    "form",
    type=click.Choice(FORMATS),
    help="What FILE is, if its name does not tell.",
)
@click.option("--json-cells", is_flag=True, help="Read CSV cells as JSON where they are JSON.")
@click.option(
    "-c", "--concurrency", metavar="N", type=click.IntRange(1), help="Runs at a time. [default: 8]"
)
@click.option(
    "--max-failures", metavar="N", type=click.IntRange(1), help="Stop after N runs that failed."
)
@click.option(
    "--timeout",
    metavar="S",
    type=click.FloatRange(0, min_open=True),
    help="Give up on a run after S seconds.",
)
@click.option("--engine", metavar="URL", help="Submit the runs to an engine, and do them here.")
@click.option("-q", "--quiet", is_flag=True, help="Show results and errors, nothing else.")
@json_option
@click.pass_context
def run(
    ctx: click.Context, /, app_spec: str, task_name: str, words: tuple[str, ...], **given: Any
) -> None:
    """Run TASK of APP once, or once for each record of a file.

    APP is module:attribute or file.py:attribute; the attribute is app if you leave it out. ARGS
    are JSON, else text, and key=value is a keyword. Put -- before ARGS that begin with a dash.

    FILE has JSON lines (.jsonl), a JSON array (.json) or CSV (.csv). A record is an object
    (keywords) or an array (positional arguments); in CSV the header names the keywords, and cells
    are text.

    Ctrl-C and SIGTERM begin no further run, and give those in flight 10 seconds; once more ends
    at once.

    \b
    Examples:
      qtasks-pluggy run shop.py price tea
      qtasks-pluggy run shop.py price -i names.csv -o results.jsonl
      qtasks-pluggy run shop.py price -i names.csv --resume results.jsonl

    \b
    Exit codes:
      0    every run has a result
      1    a run has none, or a result could not be written
      2    nothing was run: usage, settings, plugins, import
      130  interrupted (Ctrl-C)
      143  terminated (SIGTERM)
    """  # noqa: D301  # \b is click's own mark, not an escape
    options = Options(**given)
    options.check(words)
    if options.out == STDOUT and not options.as_json:
        ctx.with_resource(keep_stdout())
    app = load_app(app_spec)
    task = load_task(app, task_name)
    size = 1 if options.each is None else options.concurrency or 8
    if options.engine is not None:
        try:
            app.set_engine(options.engine, size)
        except EngineError as error:
            msg = f"--engine: {error}"
            raise Trouble(msg) from None
    if options.each is None:
        ctx.exit(_run_once(app, task, from_arguments(words), options))
    with ExitStack() as files:
        ctx.exit(_Each(app, task, size, options, files).run())


def _run_once(app: QueueTasks, task: Task, record: Record, options: Options) -> int:
    ended: list[Run] = []

    batch = Batch(
        app,
        task,
        [record],
        take_down=ended.append,
        hear=_hear,
        give_up=lambda: _hear(f"{batch.word}."),
        by_engine=options.engine is not None,
        seconds=options.timeout,
        grace=0.0,
    )
    fault = _do(batch)
    if batch.ended_by is not None:
        _hear(f"{batch.word}.")
    is_good = fault is None and bool(ended)
    for one in ended:
        is_good &= _show_run(task, one, options)
    for trouble in filter(None, (fault, batch.trouble)):
        say_error(trouble)
    return _ended(batch, batch.exit_code or int(not is_good))


def _show_run(task: Task, run: Run, options: Options) -> bool:
    """Show how the only run ended; say whether it has a result that can be shown."""
    line, unwritable = run.as_line()
    if options.as_json:
        say(line)
    elif run.error is not None:
        if isinstance(run.error, BaseException) and not options.quiet:
            say(own_traceback(run.error), err=True)
        if run.trail and not options.quiet:
            say(f"{run.trail}\n", err=True)
        why = f"{run.kind}: {run.why}" if run.why else run.kind
        status = str(run.status).replace("_", "-")
        say_error(f"task {task.name!r} {status}: {why} (run {run.uuid})")
    elif unwritable is not None:
        say_error(unwritable)
    else:
        if run.decided is not None and not options.quiet:
            say(f"{run.outcome} by {run.decided.who}", err=True)
        say(readable_json(run.result) if own_stdout().isatty() else json.dumps(run.result))
    return run.error is None and unwritable is None


class _Each:
    """One run for each record of a file.

    Raises:
        Trouble: The input cannot be read, or the output not written.
    """

    def __init__(
        self, app: QueueTasks, task: Task, size: int, options: Options, files: ExitStack
    ) -> None:
        self._options = options
        self._tally = Tally()
        source = open_input(str(options.each))
        if source.seekable():
            files.callback(source.close)  # a pipe's would wait for whoever reads it
        self._output = _open_output(options, source, files)
        self._to_stdout = self._output is not None and self._output.is_stdout
        self._is_unheard = False
        is_typed = source.isatty()
        if is_typed:
            say("Type one JSON record a line; Ctrl-D ends the input.", err=True)
        suffix = Path(str(options.each)).suffix.lower().lstrip(".")
        form = options.form or (suffix if suffix in FORMATS else FORMATS[0])
        self._records = Records(source, form, json_cells=options.json_cells)
        self._bar = progress_bar(
            knows_size=bool(self._records.size),
            is_shown=not (options.quiet or is_typed or (self._to_stdout and own_stdout().isatty())),
        )
        description = one_line(task.name, sys.stderr, 40)
        self._row = self._bar.add_task(description, total=self._records.size, counts="")
        self._batch = Batch(
            app,
            task,
            self._pending(),
            take_down=self._take_down,
            hear=_hear,
            give_up=self._give_up,
            size=size,
            by_engine=options.engine is not None,
            seconds=options.timeout,
        )
        self._begun = time.monotonic()

    def run(self) -> int:
        """Do all runs, and show how they ended; return the exit code."""
        with self._bar:
            fault = _do(self._batch)
        if not self._is_unheard:
            self._show()
        if fault is not None:
            say_error(fault)
        return _ended(self._batch, self._exit_code or int(fault is not None))

    def _pending(self) -> Iterator[Record]:
        """Read the records that the output does not have yet."""
        done = set[tuple[int | None, str]]()
        if self._output is not None:
            self._output.begin()
            done |= self._output.done
        for record in self._records:
            if done and (record.line, record.digest) in done:
                self._tally.skipped += 1
            else:
                yield record

    def _take_down(self, run: Run) -> None:
        tally, most = self._tally, self._options.max_failures
        tally.add(run)
        if self._output is not None:
            self._write(self._output, run)
        if most is not None and tally.lost >= most:
            self._batch.stop(f"stopped after {most:,} failed runs, as --max-failures says")
        if not self._bar.disable:
            counts = count_runs(tally.runs) + (f", {tally.lost:,} failed" if tally.lost else "")
            self._bar.update(self._row, completed=self._records.position, counts=counts)

    def _write(self, output: Output, run: Run) -> None:
        line, unwritable = run.as_line()
        if unwritable is not None:
            self._tally.add_unwritten(run, type(run.result).__qualname__, unwritable)
        try:
            output.write(line)
        except OSError as error:
            self._is_unheard = output.is_stdout and isinstance(error, BrokenPipeError)
            why = error.strerror or str(error)
            self._tally.add_unwritten(run, "output", why)
            self._batch.stop(
                f"{output.name} cannot be written: {why}; what it holds are whole lines: mend"
                " that, and go on with --resume"
            )

    def _show(self) -> None:
        tally, batch, seconds = self._tally, self._batch, time.monotonic() - self._begun
        if self._options.as_json:
            say_json(as_json(tally, batch, seconds), indent=None, err=self._to_stdout)
        elif not self._options.quiet:
            show_summary(tally, batch, seconds, err=self._to_stdout)
        if batch.trouble is not None:
            say_error(batch.trouble)

    def _give_up(self) -> None:
        self._bar.stop()
        self._show()

    @property
    def _exit_code(self) -> int:
        batch = self._batch
        bad = not self._tally.is_good or batch.trouble is not None or batch.running
        return batch.exit_code or int(bool(bad))


def _open_output(options: Options, source: BinaryIO, files: ExitStack) -> Output | None:
    name = options.resume or options.out
    if name is None:
        return None
    output = Output(name, resume=options.resume is not None)
    files.callback(output.close)
    if output.is_file(source):
        msg = f"{name} is the file that the records are read from; name another one"
        raise Trouble(msg)
    return output


def _do(batch: Batch) -> str | None:
    """Do all runs; return what went wrong when the app stopped.

    Raises:
        Trouble: The app does not start.
    """
    try:
        batch.run()
    except Faults as error:
        if not batch.started:
            raise cannot_start(batch.app, error) from None
        return f"app {batch.app.name!r} did not stop well: {error}"
    return None


def _hear(text: str) -> None:
    say(text, err=True)


def _ended(batch: Batch, code: int) -> int:
    """Return the exit code; where something was left behind, it would hold up an ordinary exit."""
    if batch.running or batch.left_threads:
        _exit_at_once(code)
    return code


def _exit_at_once(code: int) -> NoReturn:
    with suppress(OSError):
        own_stdout().flush()
    os._exit(code)
