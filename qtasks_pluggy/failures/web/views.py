"""The pages for reading: groups, runs, plugins, acts."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response

from qtasks_pluggy.failures.connection import StoreError
from qtasks_pluggy.failures.records import STATES, STATUSES, hour_of
from qtasks_pluggy.failures.replay import OtherArguments, left_out
from qtasks_pluggy.failures.web import browse, show
from qtasks_pluggy.failures.web.browse import Browser, Found, GroupsWanted, RunsWanted
from qtasks_pluggy.failures.web.site import address, render, site_of

_MOST_TEXT: Final = 1_000
"""Characters of what is searched for; no text that is longer is looked for as a whole."""
_MOST_DIGITS: Final = 9
"""Digits of a number that fits into 32 bits, whatever they are, as PostgreSQL's do."""
SHOWN_STATES: Final[Mapping[str, tuple[str, Sequence[str]]]] = {
    "": ("All but ignored", ("open", "regressed", "resolved")),
    "unresolved": ("Open and regressed", ("open", "regressed")),
    **{state: (state.capitalize(), (state,)) for state in STATES},
    "all": ("All", STATES),
}
_SORTS: Final = {"last": "Last seen", "first": "First seen", "runs": "Most runs"}
_DONE: Final = {
    "resolve": "The group is resolved. If it fails again it is marked as regressed.",
    "ignore": "The group is ignored. It is not shown unless you ask for it.",
    "reopen": "The group is open again.",
    "none": "Nothing was done: somebody did that before.",
    "sent": "The replay was sent.",
    "begun": "The replay has begun. Reload the page to see its progress.",
    "stopped": "The replay sends no further runs.",
    **{status: f"The replay was sent, and {word}." for status, word in show.WORDS.items()},
    "cancelled": "The replay was sent, and was cancelled.",
}


def groups(request: Request) -> Response:
    """Show failures by cause."""
    try:
        browser = site_of(request).browser()
    except StoreError as error:
        return render(request, "empty.html", why=str(error))
    text, now = _asked(request, "q"), time.time()
    if text and browser.one_run(text) is not None:
        return RedirectResponse(address(request, "runs", text), 303)
    state = _choice(request, "state", SHOWN_STATES)
    wanted = GroupsWanted(
        states=SHOWN_STATES[state][1],
        text=text,
        status=_choice(request, "status", ("", *STATUSES)),
        plugin=_asked(request, "plugin"),
        sort=_choice(request, "sort", _SORTS, "last"),
        after=_key(request),
    )
    listed, states = browser.list_groups(wanted), browser.states()
    if not states:
        return render(request, "empty.html", why="The store is empty.")
    ids = [row.id for row in listed.rows]
    hours = browser.hours(ids, now)
    return render(
        request,
        "groups.html",
        wanted=wanted,
        state=state,
        listed=listed,
        states=states,
        counts=browser.counts(ids),
        charts={one: show.chart(hours.get(one, {}), now) for one in ids},
        chart=show.chart(browser.all_hours(now), now),
        dropped=browser.dropped(),
        all_states=SHOWN_STATES,
        all_statuses=STATUSES,
        sorts=_SORTS,
        is_narrowed=bool(text or state or wanted.status or wanted.plugin),
    )


def group(request: Request) -> Response:
    """Show what the runs of one cause have in common, and the runs."""
    browser, now = site_of(request).browser(), time.time()
    found = group_of(browser, request)
    name = found.id
    wanted = RunsWanted(
        group=name,
        text=_asked(request, "q"),
        status=_choice(request, "status", ("", *STATUSES)),
        after=_key(request),
    )
    listed = browser.list_runs(wanted)
    newest = browser.newest_failed(name)
    attempts = () if newest is None else browser.attempts(newest).rows
    return render(
        request,
        "group.html",
        group=found,
        wanted=wanted,
        listed=listed,
        counts=browser.counts([name]).get(name, {}),
        deciders=browser.deciders(name),
        chart=show.chart(browser.hours([name], now).get(name, {}), now),
        newest=newest,
        links=show.links(attempts[-1].traceback) if attempts else [],
        done=_DONE.get(_asked(request, "done"), ""),
        job=site_of(request).jobs.of(name),
    )


def group_of(browser: Browser, request: Request) -> Found:
    """Find the group of an address.

    Raises:
        HTTPException: It is not there.
    """
    name = request.path_params["group"]
    found = browser.group(name)
    if found is None:
        raise HTTPException(404, f"Group {name} is not recorded: retention may have deleted it.")
    return found


def runs(request: Request) -> Response:
    """Show runs, the newest first."""
    wanted = RunsWanted(
        text=_asked(request, "q"),
        status=_choice(request, "status", ("", *STATUSES)),
        plugin=_asked(request, "plugin"),
        after=_key(request),
    )
    browser = site_of(request).browser()
    return render(
        request,
        "runs.html",
        wanted=wanted,
        listed=browser.list_runs(wanted),
        all_statuses=STATUSES,
    )


def run(request: Request) -> Response:
    """Show one run, attempt by attempt; its arguments only if the visitor asks for them."""
    browser = site_of(request).browser()
    found = run_of(browser, request)
    before = _asked_number(request, "before")
    listed = browser.attempts(found, before)
    return render(
        request,
        "run.html",
        run=found,
        arguments=_shown_arguments(request, found),
        listed=listed,
        attempts=[(one, show.links(one.traceback), json.loads(one.trail)) for one in listed.rows],
        is_newest=before is None,
        replays=browser.replays(found.uuid),
        # Until the store has it: how the replay ended that led to this page.
        sent_status=_choice(request, "done", show.WORDS),
        why_not=_why_not_here(request, found),
        done=_DONE.get(_asked(request, "done"), ""),
    )


def _why_not_here(request: Request, found: Any) -> str:
    """Return why this page's app cannot replay a run, whatever its arguments; else empty."""
    app = site_of(request).app
    left = None if app is None else left_out(found, app, OtherArguments((), {}), again=True)
    return "" if left is None else left.why


def run_of(browser: Browser, request: Request) -> Found:
    """Find the run of an address.

    Raises:
        HTTPException: It is not there.
    """
    uuid = request.path_params["uuid"]
    found = browser.one_run(uuid)
    if found is None:
        raise HTTPException(404, f"Run {uuid} is not recorded: retention may have deleted it.")
    return found


def _shown_arguments(request: Request, found: Found) -> dict[str, Any] | None:
    """Read a run's arguments, if somebody asked for them and they may be shown."""
    if _asked(request, "arguments") != "shown":
        return None
    given = arguments_of(found)
    return {"rows": [] if given is None else list(show.call(*given)), "is_kept": given is not None}


def arguments_of(found: Found) -> tuple[list[Any], dict[str, Any]] | None:
    """Read a run's arguments; None if they are hidden or not kept."""
    given = json.loads(found.arguments or '{"hidden": true}')
    return None if given.get("hidden") else (given["args"], given["kwargs"])


def attempt(request: Request) -> Response:
    """Show all of one attempt's traceback, as text."""
    browser = site_of(request).browser()
    run, number = run_of(browser, request), _number(request.path_params["attempt"])
    found = None if number is None else browser.attempt(run, number)
    if found is None:
        raise HTTPException(404, "There is no such attempt.")
    return PlainTextResponse(found.traceback)


def plugins(request: Request) -> Response:
    """Show what each plugin decided, and how it did."""
    browser, now = site_of(request).browser(), time.time()
    asked: dict[str, Counter[str]] = {}
    seconds: Counter[str] = Counter()
    names: dict[str, str] = {}
    for line in browser.trails():
        plugin = line["plugin"]
        asked.setdefault(plugin, Counter())[line["status"]] += 1
        seconds[plugin] += line["seconds"]
        names[plugin] = f"{line['distribution']} {line['version']}" if line["distribution"] else ""
    decided = browser.deciding()
    return render(
        request,
        "plugins.html",
        names=sorted(
            {*asked, *decided}, key=lambda one: (-sum(decided.get(one, {}).values()), one)
        ),
        decided=decided,
        lately=browser.deciding(hour_of(now) - show.HOURS + 1),
        asked=asked,
        seconds=seconds,
        distributions=names,
        trails=browse.TRAILS,
        statuses=[one for one in STATUSES if any(one in some for some in decided.values())],
    )


def acts(request: Request) -> Response:
    """Show what people did."""
    before = _asked_number(request, "after")
    rows = site_of(request).browser().acts(browse.PAGE + 1, before)
    more = str(rows[browse.PAGE - 1].id) if len(rows) > browse.PAGE else None
    listed = browse.Listed(rows[: browse.PAGE], more)
    return render(request, "acts.html", listed=listed, is_first=before is None)


def _asked(request: Request, name: str) -> str:
    return request.query_params.get(name, "").strip()[:_MOST_TEXT]


def _choice(request: Request, name: str, choices: Any, usual: str = "") -> str:
    """Read a word that has to be one of some; another one is as none."""
    word = _asked(request, name)
    return word if word in choices else usual


def _asked_number(request: Request, name: str) -> int | None:
    """Read the number of a row from which a page goes on; None if there is none."""
    text = _asked(request, name)
    number = _number(text)
    if text and number is None:
        raise _not_whole()
    return number


def _number(text: str) -> int | None:
    """Read the number of a row; None for what is none, and for one that no store could hold."""
    return int(text) if text.isdecimal() and len(text) <= _MOST_DIGITS else None


def _key(request: Request) -> browse.Key | None:
    try:
        return browse.read_key(_asked(request, "after"))
    except browse.KeyFaultError:
        raise _not_whole() from None


def _not_whole() -> HTTPException:
    return HTTPException(400, "This link is not complete; begin at the first page.")
