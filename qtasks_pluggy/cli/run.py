"""``qtasks-pluggy run``: one run, or one for each record."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Final

import attrs
import click

from qtasks_pluggy import QueueTasks
from qtasks_pluggy._console.load import Task, Trouble, load_app, load_task
from qtasks_pluggy._console.say import (
    json_option,
    keep_stdout,
    one_line,
    own_stdout,
    own_traceback,
    readable_json,
    say,
    say_error,
    say_json,
)
from qtasks_pluggy.cli._each import Batch, count_runs
from qtasks_pluggy.cli._output import STDOUT, Output
from qtasks_pluggy.cli._records import FORMATS, Record, Records, from_arguments, open_input
from qtasks_pluggy.cli._runs import Run
from qtasks_pluggy.cli._summary import Tally, as_json, progress_bar, show_summary
from qtasks_pluggy.exc import EngineError

_FILE: Final = click.Path(exists=True, dir_okay=False, allow_dash=True)
_COUNT: Final = click.IntRange(1)
_OUT: Final = click.Path(dir_okay=False, allow_dash=True)


class _ForMany(click.Option):
    """An option that only applies to many runs."""

    def handle_parse_result(self, ctx: click.Context, opts: Any, args: list[str]) -> Any:
        """Refuse it without ``--each``."""
        if self.name in opts and "each" not in opts:
            msg = f"{self.opts[-1]} is for many runs; add --each FILE, or leave it out"
            raise click.UsageError(msg)
        return super().handle_parse_result(ctx, opts, args)


_for_many: Final = partial(click.option, cls=_ForMany)


@attrs.frozen
class _Options:
    """What the command line asks for besides APP and TASK; its help has the meanings."""

    each: str | None
    out: str | None
    resume: str | None
    retry_failed: bool
    form: str | None
    json_cells: bool
    concurrency: int
    max_failures: int | None
    timeout: float | None
    engine: str | None
    quiet: bool
    as_json: bool


@click.command(name="run")
@click.argument("app_spec", metavar="APP")
@click.argument("task_name", metavar="TASK")
@click.argument("words", metavar="[ARGS]...", nargs=-1)
@click.option(
    "-i", "--each", metavar="FILE", type=_FILE, help="Run once for each record of FILE; - is stdin."
)
@_for_many(
    "-o", "--out", metavar="FILE", type=_OUT, help="Write a JSON line for each run (replaces FILE)."
)
@_for_many(
    "--resume", metavar="OUT", type=_OUT, help="Skip the records that OUT has; add the others."
)
@_for_many("--retry-failed", is_flag=True, help="With --resume: run the failed records again.")
@_for_many(
    "--format",
    "form",
    type=click.Choice(FORMATS),
    help="FILE's format, if its name does not tell.",
)
@_for_many("--json-cells", is_flag=True, help="Parse CSV cells as JSON where possible.")
@_for_many(
    "-c",
    "--concurrency",
    metavar="N",
    type=_COUNT,
    default=8,
    show_default=True,
    help="Number of runs at a time.",
)
@_for_many("--max-failures", metavar="N", type=_COUNT, help="Stop after N failed runs.")
@click.option(
    "--timeout",
    metavar="S",
    type=click.FloatRange(0, min_open=True),
    help="Give up on a run after S seconds.",
)
@click.option("--engine", metavar="URL", help="Submit the runs to this engine, and run them here.")
@click.option("-q", "--quiet", is_flag=True, help="Show only results and errors.")
@json_option
@click.pass_context
def run(
    ctx: click.Context, /, app_spec: str, task_name: str, words: tuple[str, ...], **given: Any
) -> None:
    """Run TASK of APP once, or once for each record of a file.

    APP is module:attribute or file.py:attribute; the attribute defaults to app. Each of ARGS is
    read as JSON, or else as text; key=value is a keyword argument. Put -- before ARGS that begin
    with a dash.

    FILE contains JSON lines (.jsonl), a JSON array (.json) or CSV (.csv). A record is an object
    (keyword arguments) or an array (positional arguments). In CSV the header names the keyword
    arguments, and cells are text.

    After Ctrl-C or SIGTERM no further run begins, and runs in flight have 10 seconds to end. A
    second signal ends the command at once.

    \b
    Examples:
      qtasks-pluggy run shop.py price tea
      qtasks-pluggy run shop.py price -i names.csv -o results.jsonl
      qtasks-pluggy run shop.py price -i names.csv --resume results.jsonl

    \b
    Exit codes:
      0    every run has a result
      1    a run has no result, or a result could not be written
      2    nothing was run: wrong usage, settings, plugins or import
      130  interrupted (Ctrl-C)
      143  terminated (SIGTERM)
    """  # noqa: D301  # \b is click's own mark, not an escape
    options = _Options(**given)
    for is_wrong, msg in (
        (options.each and words, "--each takes the arguments from its file; leave out ARGS"),
        (options.out and options.resume, "--resume OUT writes to OUT; leave out --out"),
        (options.retry_failed and not options.resume, "--retry-failed goes with --resume OUT"),
        (math.isnan(options.timeout or 0), "--timeout takes a number of seconds"),
    ):
        if is_wrong:
            raise click.UsageError(msg)
    if options.out == STDOUT and not options.as_json:
        ctx.with_resource(keep_stdout())
    app = load_app(app_spec)
    task = load_task(app, task_name)
    if options.engine is not None:
        try:
            app.set_engine(options.engine, 1 if options.each is None else options.concurrency)
        except EngineError as error:
            msg = f"--engine: {error}"
            raise Trouble(msg) from None
    if options.each is None:
        batch, is_good = _run_once(app, task, from_arguments(words), options)
    else:
        each = _Each(ctx, app, task, options)
        batch, is_good = each.batch, each.run()
    is_good = is_good and batch.trouble is None and not batch.running
    code = batch.exit_code or int(not is_good)
    if batch.running or batch.left_threads:
        # Threads that were left behind would delay an ordinary exit.
        with suppress(OSError):
            own_stdout().flush()
        os._exit(code)
    ctx.exit(code)


def _run_once(app: QueueTasks, task: Task, record: Record, options: _Options) -> tuple[Batch, bool]:
    def tell_signal() -> None:
        if batch.ended_by is not None:
            say(f"{batch.word}.", err=True)

    ended: list[Run] = []
    by_engine, seconds = options.engine is not None, options.timeout
    batch = Batch(
        app,
        task,
        [record],
        ended.append,
        tell_signal,
        by_engine=by_engine,
        seconds=seconds,
        grace=0,
    )
    batch.run()
    tell_signal()
    is_good = all(_show_run(task, one, options) for one in ended) and bool(ended)
    if batch.trouble is not None:
        say_error(batch.trouble)
    return batch, is_good


def _show_run(task: Task, run: Run, options: _Options) -> bool:
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

    def __init__(self, ctx: click.Context, app: QueueTasks, task: Task, options: _Options) -> None:
        self._options = options
        self._tally = Tally()
        name = str(options.each)
        source = open_input(name)
        if source.seekable():
            ctx.call_on_close(source.close)  # a pipe's would wait for its reader
        out = options.resume or options.out
        self._output: Output | None = None
        if out:
            resume, again = bool(options.resume), options.retry_failed
            self._output = Output(out, source, resume=resume, retry_failed=again)
            ctx.call_on_close(self._output.close)
        self._to_stdout = self._output is not None and self._output.is_stdout
        self._is_unheard = False
        is_typed = source.isatty()
        if is_typed:
            say("Type one JSON record per line; Ctrl-D ends the input.", err=True)
        suffix = Path(name).suffix.lower().lstrip(".")
        form = options.form or (suffix if suffix in FORMATS else FORMATS[0])
        self._records = Records(source, form, json_cells=options.json_cells)
        size = self._records.size
        self._bar = progress_bar(
            knows_size=bool(size),
            is_shown=not (options.quiet or is_typed or (self._to_stdout and own_stdout().isatty())),
        )
        self._row = self._bar.add_task(one_line(task.name, sys.stderr, 40), total=size, counts="")
        self.batch = Batch(
            app,
            task,
            self._pending(),
            self._take_down,
            self._give_up,
            size=options.concurrency,
            may_wait=self._records.may_wait,
            by_engine=options.engine is not None,
            seconds=options.timeout,
        )
        self._begun = time.monotonic()

    def run(self) -> bool:
        """Do all runs, and show how they ended; say whether all have results."""
        with self._bar:
            self.batch.run()
        if not self._is_unheard:
            self._show()
        return self._tally.is_good

    def _pending(self) -> Iterator[Record]:
        """Read the records that are not in the output yet."""
        done: set[Any] = set()
        failed: set[Any] = set()
        if self._output is not None:
            self._output.begin()
            done, failed = self._output.done, self._output.failed
        for record in self._records:
            if done and (key := (record.line, record.digest)) in done:
                self._tally.skipped += 1
                self._tally.skipped_failed += key in failed
            else:
                yield record

    def _take_down(self, run: Run) -> None:
        tally, most = self._tally, self._options.max_failures
        tally.add(run)
        if self._output is not None:
            self._write(self._output, run)
        if most is not None and tally.lost >= most:
            self.batch.stop(f"stopped after {most:,} failed runs, as --max-failures says")
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
            self.batch.stop(
                f"{output.name} cannot be written: {why}; the lines in it are whole: fix"
                " that, and continue with --resume"
            )

    def _show(self) -> None:
        tally, batch, seconds = self._tally, self.batch, time.monotonic() - self._begun
        if self._options.as_json:
            say_json(as_json(tally, batch, seconds), indent=None, err=self._to_stdout)
        elif not self._options.quiet:
            show_summary(tally, batch, seconds, err=self._to_stdout)
        if batch.trouble is not None:
            say_error(batch.trouble)

    def _give_up(self) -> None:
        self._bar.stop()
        self._show()
