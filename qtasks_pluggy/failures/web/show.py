"""Times, tracebacks, charts, trails and arguments, as people read them."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

import attrs

from qtasks_pluggy.failures.records import STATUSES, about_retry, hour_of

HOURS: Final = 24
"""How far back the charts go."""
BAR: Final = 10
"""The width of one hour in a chart's own units; how wide it is shown, the style sheet says."""
HIGH: Final = 100
"""A chart's height in its own units."""
LEAST: Final = 4
"""The least height of what happened at all."""

WORDS: Final = {one: one.replace("_", "-") for one in STATUSES}
_DID: Final = {
    "answered": "answered",
    "no_opinion": "no opinion",
    "raised": "raised",
    "timed_out": "timed out",
    "filtered": "not asked: its filter",
    "quarantined": "not asked: in quarantine",
    "reentered": "not asked: already running",
}
# Control characters, those that turn the direction of what follows them, and lone surrogates.
_UNSEEN: Final = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)
_FRAME: Final = re.compile(r'  File "(?P<file>.*)", line (?P<line>\d+), in (?P<name>.*)')
_THEN: Final = re.compile(
    r"The above exception was the direct cause of the following exception:"
    r"|During handling of the above exception, another exception occurred:"
    r"|\(which is \d+ of the group's \d+\)"
)
_LIBRARY: Final = re.compile(
    r"[\\/](?:site|dist)-packages[\\/]|[\\/]lib(?:64)?[\\/]python3\.\d+[\\/]|^<frozen |^$"
)
_STEPS: Final = (
    (60, 1, "s"),
    (3_600, 60, "min"),
    (86_400, 3_600, "h"),
)


def visible(value: Any) -> Any:
    """Spell out what cannot be seen, or would turn what follows it; for all that is written."""
    if type(value) is not str or value.isprintable():
        return value
    return _UNSEEN.sub(_spell_out, value)


def _spell_out(found: re.Match[str]) -> str:
    r"""Write a character as ``\x1b``, or as JSON does, if JSON could hold it as it is.

    So JSON that is edited, or kept in a form, reads back as the same value.
    """
    one = found[0]
    return json.dumps(one).strip('"') if one > " " else one.encode("unicode_escape").decode()


def words(status: str) -> str:
    """Write a status for people."""
    return WORDS.get(status, status)


def ago(when: float, now: float | None = None) -> str:
    """Return how long ago a time was, in words."""
    passed = (time.time() if now is None else now) - when
    if passed < 1:
        return "just now"
    for below, unit, word in _STEPS:
        if passed < below:
            return f"{int(passed // unit)} {word} ago"
    days = int(passed // 86_400)
    return f"{days} day{'s' if days > 1 else ''} ago"


def iso(when: float) -> str:
    """Write a time for machines."""
    return _utc(when).isoformat(timespec="milliseconds")


def exact(when: float) -> str:
    """Write a time for people, to the second."""
    return f"{_utc(when):%Y-%m-%d %H:%M:%S} UTC"


def _utc(when: float) -> datetime:
    return datetime.fromtimestamp(when, UTC)


def short_class(name: str) -> str:
    """Name a class without its module."""
    return name.rpartition(".")[2] or name


def lasted(seconds: float) -> str:
    """Write how long something took, in the unit that fits."""
    if seconds >= 1:
        return f"{seconds:,.2f} s"
    thousandths = seconds * 1000
    return f"{thousandths:,.1f} ms" if thousandths >= 1 else f"{thousandths * 1000:,.0f} µs"


@attrs.frozen
class Frame:
    """One frame of a traceback."""

    file: str
    line: int
    name: str
    code: str

    @property
    def is_own(self) -> bool:
        """Whether it is the app's, and not Python's or a library's."""
        return not _LIBRARY.search(self.file)


@attrs.frozen
class Link:
    """One error of a traceback's chain."""

    then: str
    frames: Sequence[Frame]
    text: str

    @property
    def own(self) -> Sequence[Frame]:
        """The app's own frames; all of them where none is known to be."""
        return [one for one in self.frames if one.is_own] or self.frames


def links(traceback: str) -> list[Link]:
    """Read a traceback that was recorded; the error that led to all others comes first."""
    found: list[Link] = []
    then, part = "", list[str]()
    for line in traceback.splitlines():
        if _THEN.fullmatch(line):
            found.append(_link(then, part))
            then, part = line, []
        else:
            part.append(line)
    return [*found, _link(then, part)]


def _link(then: str, lines: Iterable[str]) -> Link:
    frames: list[Frame] = []
    text: list[str] = []
    for line in lines:
        frame = _FRAME.fullmatch(line)
        if text or (line.strip() and not line.startswith(("  ", "Traceback (most recent"))):
            text.append(line)
        elif frame is not None:
            frames.append(Frame(frame["file"], int(frame["line"]), frame["name"], ""))
        elif frames and not frames[-1].code and line.startswith("    "):
            frames[-1] = attrs.evolve(frames[-1], code=line.strip())
    return Link(then, frames, "\n".join(text).strip())


@attrs.frozen
class Bar:
    """A part of a chart: the runs of one hour that ended in one way."""

    status: str
    x: int
    y: float
    height: float
    title: str


@attrs.frozen
class Chart:
    """Runs by hour and by how they ended.

    Attributes:
        bars: What is drawn.
        most: The most runs of an hour.
        totals: How many runs ended how.
        begin: When it starts, in seconds since the epoch.
    """

    bars: Sequence[Bar]
    most: int
    totals: Mapping[str, int]
    begin: float

    @property
    def width(self) -> int:
        """Its width in its own units."""
        return HOURS * BAR

    @property
    def label(self) -> str:
        """What it shows, for those who do not see it."""
        told = ", ".join(f"{runs:,} {WORDS.get(one, one)}" for one, runs in self.totals.items())
        return f"Runs by hour in the last {HOURS} hours: {told or 'none'}"


def chart(counts: Mapping[tuple[int, str], int], now: float) -> Chart:
    """Draw runs by hour.

    Args:
        counts: How many runs of an hour since the epoch ended in a way.
        now: The time.
    """
    last = hour_of(now)
    hours = range(last - HOURS + 1, last + 1)
    most = max((_of_hour(counts, hour) for hour in hours), default=0)
    totals = {one: sum(max(counts.get((hour, one), 0), 0) for hour in hours) for one in STATUSES}
    bars = [bar for hour in hours for bar in _bars(counts, hour, (hour - hours[0]) * BAR, most)]
    return Chart(bars, most, {one: n for one, n in totals.items() if n > 0}, hours[0] * 3600.0)


def _of_hour(counts: Mapping[tuple[int, str], int], hour: int) -> int:
    return sum(max(counts.get((hour, one), 0), 0) for one in STATUSES)


def _bars(counts: Mapping[tuple[int, str], int], hour: int, x: int, most: int) -> Iterator[Bar]:
    """Draw one hour: parts that stand on each other, none too low to be seen."""
    runs = {one: counts.get((hour, one), 0) for one in STATUSES if counts.get((hour, one), 0) > 0}
    heights = {one: max(number * HIGH / most, LEAST) for one, number in runs.items()}
    over = sum(heights.values()) - HIGH
    if over > 0:
        heights[max(runs, key=lambda one: runs[one])] -= over
    top = float(HIGH)
    for status, height in heights.items():
        top -= height
        title = f"{_utc(hour * 3600):%H:%M} UTC: {runs[status]:,} {words(status)}"
        yield Bar(status, x, round(max(top, 0), 2), round(height, 2), title)


def did(line: Mapping[str, Any], attempt: int) -> str:
    """Return what a plugin did in an attempt, in words."""
    status: str = line["status"]
    told, kind = _DID.get(status, status), line["kind"]
    if kind and status == "no_opinion":
        told = f"{told}: {kind} did not count"
    elif kind:
        told = f"{told} {kind}"
    if more := about_retry(line, attempt):
        told = f"{told}, {more}"
    return f"{told}, observed only" if line["observed"] else told


def as_json(value: Any) -> str:
    """Write a value as people edit it."""
    return json.dumps(value, indent=2, ensure_ascii=False)


def call(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Name each argument of a call, with its value."""
    for place, value in enumerate(args):
        yield f"args[{place}]", as_json(value)
    for name, value in kwargs.items():
        yield name, as_json(value)


@attrs.frozen
class Change:
    """One argument before and after."""

    name: str
    before: str | None
    after: str | None

    @property
    def is_change(self) -> bool:
        """Whether it is not as it was."""
        return self.before != self.after


def changes(
    before: tuple[Sequence[Any], Mapping[str, Any]], after: tuple[Sequence[Any], Mapping[str, Any]]
) -> list[Change]:
    """Lay the arguments of two calls side by side."""
    old, new = dict(call(*before)), dict(call(*after))
    return [Change(name, old.get(name), new.get(name)) for name in {**old, **new}]
