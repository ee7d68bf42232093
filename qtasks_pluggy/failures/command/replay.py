"""``replay``: runs recorded runs again, or asks today's plugins about their errors."""

from __future__ import annotations

import logging
import os
import sys
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final, TypeVar

import attrs
import click

from qtasks_pluggy import QueueTasks
from qtasks_pluggy._console.load import Faults, Trouble, cannot_start, load_app
from qtasks_pluggy._console.say import json_option, say, say_json
from qtasks_pluggy.engines import worker_lifespan
from qtasks_pluggy.failures.command.asking import (
    SELECTION,
    Selection,
    ask,
    counted,
    find_runs,
    read_selection,
    who,
)
from qtasks_pluggy.failures.command.options import (
    NotThereError,
    hint_at_names,
    reading,
    store_url,
    takes,
    using_store,
)
from qtasks_pluggy.failures.records import FAILED_ONCE, FINAL, WAITING

if TYPE_CHECKING:
    from sqlalchemy import URL

    from qtasks_pluggy.failures.ask import Answered
    from qtasks_pluggy.failures.claims import Claims, Recorded
    from qtasks_pluggy.failures.queries import Reader
    from qtasks_pluggy.failures.replay import LeftOut, OtherArguments, Replay, Replayed

Step = TypeVar("Step")

_EVERYTHING: Final = "all that failed"
_WOULD: Final[Mapping[str, str]] = {
    "recovered": "would be recovered",
    "retried": "would be retried",
    "cancelled": "would be cancelled",
    "dead_lettered": "would be dead-lettered",
    "failed": "would fail with another error,",
}
_HOW: Final = [
    click.option(
        "--args", "args_json", metavar="JSON", help="Other positional arguments, as a JSON array."
    ),
    click.option(
        "--kwargs", "kwargs_json", metavar="JSON", help="Other keyword arguments, as a JSON object."
    ),
    click.option(
        "--rate",
        metavar="N",
        type=click.FloatRange(0, min_open=True),
        help="At most N runs a second.",
    ),
    click.option(
        "--stop-after",
        metavar="N",
        type=click.IntRange(1),
        help="Stop once N new runs have failed like the old ones; waits for the end of each run.",
    ),
    click.option("--again", is_flag=True, help="Include runs that were replayed before."),
    click.option(
        "--dry-run",
        is_flag=True,
        help="Send nothing; ask today's plugins what they would decide.",
    ),
    click.option(
        "--app",
        "app_spec",
        metavar="APP",
        required=True,
        help="The app that runs them: a QueueTasks, or one that install() was called on.",
    ),
    click.option("--url", metavar="URL", help="The store; by default that of the app's settings."),
    json_option,
]


@click.command(name="replay")
@takes(*SELECTION, *_HOW)
def replay(
    uuids: tuple[str, ...],
    app_spec: str,
    url: str | None,
    args_json: str | None,
    kwargs_json: str | None,
    rate: float | None,
    stop_after: int | None,
    *,
    yes: bool,
    again: bool,
    dry_run: bool,
    as_json: bool,
    **given: Any,
) -> None:
    """Run recorded runs again, in place or on the app's engine.

    Give ids of runs, of which the first characters are enough, or filters; without either, all
    failed runs are replayed. Each run is replayed once, unless --again is given. The command asks
    first; without a terminal it needs --yes. Arguments that you do not give stay as recorded.

    \b
    Exit codes:
      0    all runs were sent, and none is known to have failed
      1    a run was not sent, failed, was replayed before, or does not exist
      2    nothing was done: wrong usage, settings or import, or an unusable store
      130  interrupted; runs that were sent are marked as sent
    """  # noqa: D301  # \b is click's own mark, not an escape
    from qtasks_pluggy.failures.claims import Claims  # noqa: PLC0415  # an extra
    from qtasks_pluggy.failures.replay import OtherArguments, Replay  # noqa: PLC0415  # an extra

    selection = read_selection(uuids, given, _EVERYTHING)
    arguments = OtherArguments(_other("args", args_json), _other("kwargs", kwargs_json))
    app = load_app(app_spec, or_native=True)
    where = store_url(url, app)
    with reading(where) as reader:
        claims = Claims(where)
        found = _Found(claims, app, arguments, again=again or (dry_run and bool(uuids)))
        selection = find_runs(reader, selection)
        chosen = found.choose(reader, selection)
    if dry_run:
        code = _ask_plugins(app, claims.find(chosen), len(chosen), arguments, as_json=as_json)
        click.get_current_context().exit(code)
    _warn_of_repeats(found, len(chosen))
    if chosen:
        runs = counted(len(chosen), "run")
        ask(f"replay {runs} of app {app.name!r} ({selection.scope})", yes=yes)
    act = Replay(app, claims, arguments=arguments, again=again, rate=rate, stop_after=stop_after)
    code = _send(app, act, claims, chosen, selection.scope) if chosen else 0
    results = act.results()
    resolved = _resolve(act, where, selection.scope) if results else []
    if as_json:
        fields = ("uuid", "replay_of", "status")
        say_json([{name: getattr(one, name) for name in fields} for one in results])
    else:
        _show(results)
        if resolved:
            say(f"{counted(len(resolved), 'group')} resolved: no failures are left.")
    if act.stopped:
        say(f"Stopped before the end: {act.stopped}.", err=True)
    good = all(one.uuid is not None and one.status not in FINAL for one in results)
    click.get_current_context().exit(code or (0 if good and not act.stopped else 1))


class _Found:
    """The runs to replay, and why others are left out."""

    def __init__(
        self, claims: Claims, app: QueueTasks, arguments: OtherArguments, *, again: bool
    ) -> None:
        self._claims = claims
        self._app = app
        self._arguments = arguments
        self._again = again
        self.copies = 0
        """How many of them repeat others."""
        self.waiting = 0
        """How many of them wait for their next attempt."""

    def choose(self, reader: Reader, selection: Selection) -> list[str]:
        """Choose the runs, the oldest first; name those that are left out.

        Raises:
            NotThereError: A run that was named cannot be replayed.
        """
        if selection.uuids:
            return self._named(selection.uuids)
        uuids = reader.to_replay(selection.filters, is_claimed=None if self._again else False)
        claimed = attrs.evolve(selection.filters, limit=None)
        claimed_uuids = [] if self._again else reader.to_replay(claimed, is_claimed=True)
        chosen: list[str] = []
        others: Counter[str] = Counter()
        for run in self._claims.find([*reversed(uuids), *claimed_uuids]):
            if (why := self._left_out(run)) is None:
                chosen.append(run.uuid)
                self._count(run)
            else:
                others[why.kind] += 1
        if others:
            told = ", ".join(f"{number:,} {kind}" for kind, number in others.most_common())
            hint = "; --again includes them" if claimed_uuids else ""
            say(f"Left out: {told}{hint}.", err=True)
        if not chosen:
            _hint_at_others(reader, selection)
        return chosen

    def _named(self, uuids: Sequence[str]) -> list[str]:
        runs = list(self._claims.find(uuids))
        found = [(run.uuid, self._left_out(run)) for run in runs]
        refused = [f"run {uuid} {why.why}" for uuid, why in found if why is not None]
        if refused:
            msg = "\n".join([*refused, "Nothing was sent."])
            raise NotThereError(msg)
        for run in runs:
            self._count(run)
        return [run.uuid for run in runs]

    def _count(self, run: Recorded) -> None:
        self.copies += run.replay_of is not None
        self.waiting += run.status == WAITING

    def _left_out(self, run: Recorded) -> LeftOut | None:
        from qtasks_pluggy.failures.replay import left_out  # noqa: PLC0415  # an extra

        return left_out(run, self._app, self._arguments, again=self._again)


def _warn_of_repeats(found: _Found, number: int) -> None:
    """Say which of the runs will run twice, or have failed as replays before."""
    if found.waiting:
        runs = counted(found.waiting, "run")
        what = "waits for its" if found.waiting == 1 else "wait for their"
        say(f"{runs} {what} next attempt; what is still queued would run twice.", err=True)
    if found.copies:
        replays = "is a replay itself" if found.copies == 1 else "are replays themselves"
        say(f"{found.copies:,} of {counted(number, 'run')} {replays}.", err=True)


def _hint_at_others(reader: Reader, selection: Selection) -> None:
    """Say which other runs match, if filters found none of those that they select by default."""
    if hint := hint_at_names(reader, selection.filters).strip():
        say(hint, err=True)
    if selection.scope == _EVERYTHING or selection.filters.status is not None:
        return
    found: dict[str, int] = {}
    for status in FAILED_ONCE:
        if status not in FINAL:
            others = attrs.evolve(selection.filters, status=status, limit=None)
            found[status] = len(reader.to_replay(others, is_claimed=False))
    there = {status: number for status, number in found.items() if number}
    if there:
        told = ", ".join(f"{number:,} {status}" for status, number in there.items())
        options = " or ".join(f"--status {status}" for status in there)
        say(f"Runs with another status match: {told}; add {options}.", err=True)


def _send(app: QueueTasks, act: Replay, claims: Claims, chosen: list[str], scope: str) -> int:
    """Replay runs in an app that is started for it; return 130 if that is interrupted."""
    interrupted = False
    begun: int | None = None
    try:
        with _without_events_of_each(), started(app):
            with using_store(claims.url):
                begun = claims.begin_act(len(chosen), who=who(), scope=scope)
            for _ in _watched(act.run(claims.find(chosen)), len(chosen)):
                pass
    except KeyboardInterrupt:
        interrupted = True
        say("Interrupted.", err=True)
    finally:
        if begun is not None:
            from sqlalchemy.exc import SQLAlchemyError  # noqa: PLC0415  # an extra

            sent = sum(one.uuid is not None for one in act.done)
            with suppress(SQLAlchemyError, OSError):  # it said so already, if it is out of reach
                claims.end_act(begun, sent)
    return 130 if interrupted else 0


def _resolve(act: Replay, where: URL, scope: str) -> list[str]:
    """Resolve the groups of which no failure is left; what fails again later is a regression."""
    from sqlalchemy.exc import SQLAlchemyError  # noqa: PLC0415  # an extra

    from qtasks_pluggy.failures.acts import change_groups  # noqa: PLC0415  # an extra
    from qtasks_pluggy.failures.connection import StoreError  # noqa: PLC0415  # an extra

    try:
        groups = act.mended()
        return change_groups(where, "resolve", groups, who=who(), scope=f"replay of {scope}")
    except (StoreError, SQLAlchemyError, OSError):
        return []  # what went wrong with the store was said, or is said by the next command


def _ask_plugins(
    app: QueueTasks,
    runs: Iterable[Recorded],
    number: int,
    arguments: OtherArguments,
    *,
    as_json: bool,
) -> int:
    """Ask an app's plugins about recorded errors; they are started, and its engine is not."""
    from qtasks_pluggy.failures.ask import ask as ask_about  # noqa: PLC0415  # an extra

    answers: list[Answered] = []
    with started(app, by=worker_lifespan):
        answers.extend(_watched(ask_about(app, runs, arguments), number))
    if as_json:
        fields = ("uuid", "decided_by", "decision")
        say_json([{name: getattr(one, name) for name in fields} for one in answers])
    else:
        say(_forecast([one for one in answers if not one.why_not]))
    stand_ins = sum(one.is_stand_in for one in answers)
    if stand_ins:
        errors = counted(stand_ins, "error")
        say(f"Stand-ins were used for {errors} that could not be rebuilt.", err=True)
    for why, count in Counter(one.why_not for one in answers if one.why_not).most_common():
        say(f"{counted(count, 'run')} could not be asked about: {why}.", err=True)
    return 0


def _forecast(answers: Sequence[Answered]) -> str:
    """Return what plugins would decide: ``303 asked: 300 would be recovered by retry, 3 not``."""
    if not answers:
        return "There is nothing to ask about."
    by = Counter((one.status, one.decided_by) for one in answers if one.decided_by is not None)
    parts = [f"{n:,} {_WOULD[str(how)]} by {plugin}" for (how, plugin), n in by.most_common()]
    rest = len(answers) - by.total()
    if rest:
        parts.append(f"{rest:,} not" if parts else "no plugin would decide")
    return f"{len(answers):,} asked: {', '.join(parts)}"


def _show(results: Sequence[Replayed]) -> None:
    if not results:
        say("There is nothing to replay.")
        return
    sent = [one for one in results if one.uuid is not None]
    ends = Counter((one.status or "not known yet").replace("_", "-") for one in sent)
    told = ", ".join(f"{number:,} {end}" for end, number in ends.most_common())
    say(f"{counted(len(sent), 'run')} replayed{': ' if told else ''}{told}")
    for why, count in Counter(one.why_not for one in results if one.why_not).most_common():
        say(f"{counted(count, 'run')} not sent: {why}", err=True)


@contextmanager
def started(app: QueueTasks, by: Callable[[Any], Any] = lambda app: app) -> Generator[None]:
    """Start an app, and stop it afterwards.

    Args:
        app: The app.
        by: Returns what to enter: the app itself, or only its plugins' life.

    Raises:
        Trouble: It does not start.
    """
    is_started = False
    try:
        with by(app):
            is_started = True
            yield
    except Faults as error:
        if is_started:
            say(f"Error: app {app.name!r} did not stop cleanly: {error}", err=True)
            return
        raise cannot_start(app, error) from None


@contextmanager
def _without_events_of_each() -> Generator[None]:
    """Leave out the log event for each failed replay: what they came to is said at the end."""
    logger = logging.getLogger("qtasks_pluggy")

    def is_other(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith("replay_failed ")

    logger.addFilter(is_other)
    try:
        yield
    finally:
        logger.removeFilter(is_other)


def _watched(steps: Iterable[Step], number: int) -> Iterator[Step]:
    """Show how far it is, on a terminal."""
    if number == 1 or not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
        yield from steps
        return
    from rich.console import Console  # noqa: PLC0415  # slow to import
    from rich.progress import track  # noqa: PLC0415  # slow to import

    console = Console(stderr=True, highlight=False)
    yield from track(steps, "", total=number, console=console, transient=True)


def _other(name: str, text: str | None) -> Any:
    """Read the option of other arguments, ``args`` or ``kwargs``; None if it is not given.

    Raises:
        Trouble: It cannot be read.
    """
    from qtasks_pluggy.failures.values import UnreadableError, from_text  # noqa: PLC0415  # an extra

    try:
        return None if text is None else from_text(name, text)
    except UnreadableError as error:
        msg = f"--{name}: {error}"
        raise Trouble(msg) from None
