"""The forms: they change the state of groups, and replay runs after a review.

A form that is sent twice acts once. A group's new state is given once; a replay claims its run as
it was when the form was written, so what was claimed since then is not sent again.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeAlias
from urllib.parse import parse_qsl

import attrs
from starlette.concurrency import run_in_threadpool
from starlette.endpoints import HTTPEndpoint
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from qtasks_pluggy import QueueTasks
from qtasks_pluggy.failures.acts import CHANGES, change_groups
from qtasks_pluggy.failures.claims import Claims, Recorded
from qtasks_pluggy.failures.records import FAILED_ONCE
from qtasks_pluggy.failures.replay import OtherArguments, left_out
from qtasks_pluggy.failures.values import UnreadableError, from_text
from qtasks_pluggy.failures.web import show
from qtasks_pluggy.failures.web.browse import Found
from qtasks_pluggy.failures.web.guard import VISITOR
from qtasks_pluggy.failures.web.jobs import Job
from qtasks_pluggy.failures.web.site import address, may_act, render, site_of
from qtasks_pluggy.failures.web.views import arguments_of, group_of, run_of

MOST_BYTES: Final = 1_048_576
"""The most bytes of a form."""
MOST_FIELDS: Final = 20
WAIT_SECONDS: Final = 5.0
"""How long an answer waits for the end of one replay; the replay itself goes on."""
MOST_RUNS: Final = 10_000
"""The most runs of one replay of a group."""

Form: TypeAlias = Mapping[str, str]


async def change_group(request: Request) -> Response:
    """Resolve, ignore or reopen a group, or begin or stop the replay of its runs."""
    form = await _form(request)
    act = request.path_params["act"]
    if act in CHANGES:
        return await run_in_threadpool(_change_state, request, act)
    if act == "replay":
        return await run_in_threadpool(_replay_group, request, form)
    if act == "stop":
        return _stop(request)
    raise HTTPException(404, f"A group has no {act}.")


def _change_state(request: Request, act: str) -> Response:
    site = site_of(request)
    group = group_of(site.browser(), request).id
    changed = change_groups(
        site.url, act, [group], who=request.scope[VISITOR].name, scope=f"--group {group}"
    )
    return _to_group(request, act if changed else "none")


def _to_group(request: Request, done: str) -> Response:
    return RedirectResponse(
        address(request, "groups", request.path_params["group"], done=done), 303
    )


def choose(request: Request) -> Response:
    """Show how many runs of a group a replay would be about."""
    return _show_choice(request, {}, "")


def _show_choice(request: Request, form: Form, wrong: str) -> Response:
    app, browser = _app(request), site_of(request).browser()
    found = group_of(browser, request)
    return render(
        request,
        "replays.html",
        status=422 if wrong else 200,
        group=found,
        waiting=browser.waiting_by_status(found.id, app.name, MOST_RUNS),
        form=form,
        wrong=wrong,
        most=MOST_RUNS,
    )


def _replay_group(request: Request, form: Form) -> Response:
    site, app, group = site_of(request), _app(request), request.path_params["group"]
    status = form.get("status", "")
    try:
        limit = _number(form, "limit", int, MOST_RUNS) or MOST_RUNS
        rate = _number(form, "rate", float, math.inf)
        stop_after = _number(form, "stop_after", int, MOST_RUNS)
    except ValueError as error:
        return _show_choice(request, form, str(error))
    if status not in FAILED_ONCE:
        return _show_choice(request, form, "Choose which runs.")
    uuids = site.browser().waiting(group, app.name, status, limit)
    claims = Claims(site.url)
    nothing = OtherArguments()
    runs = (one for one in claims.find(uuids) if left_out(one, app, nothing) is None)
    job = Job(
        app,
        site.url,
        runs,
        len(uuids),
        who=request.scope[VISITOR].name,
        scope=f"--group {group} --status {status} --limit {limit}",
        arguments=nothing,
        rate=rate,
        stop_after=stop_after,
    )
    begun = bool(uuids) and site.jobs.begin(group, job)
    return _to_group(request, "begun" if begun else "none")


def _number(form: Form, name: str, kind: Callable[[str], Any], most: float) -> Any:
    """Read a number above 0; None where none is given."""
    text = form.get(name, "")
    if not text:
        return None
    try:
        number = kind(text)
    except ValueError:
        number = 0
    if not 0 < number <= most or math.isinf(number):
        msg = f"{name.replace('_', ' ').capitalize()}: {text!r} is not a number above 0"
        if not math.isinf(most):
            msg = f"{msg}, {most:,} at most"
        raise ValueError(msg)
    return number


def _stop(request: Request) -> Response:
    job = site_of(request).jobs.of(request.path_params["group"])
    if job is not None:
        job.stop()
    return _to_group(request, "stopped" if job is not None else "none")


def edit(request: Request) -> Response:
    """Show a run's arguments for editing; the visitor has asked to see them."""
    _app(request)
    found = run_of(site_of(request).browser(), request)
    args, kwargs = arguments_of(found) or (None, None)
    form = {
        "args": "" if args is None else show.as_json(args),
        "kwargs": "" if kwargs is None else show.as_json(kwargs),
    }
    return _show_editor(request, found, form, {})


def _show_editor(request: Request, found: Found, form: Form, wrong: Form) -> Response:
    return render(
        request, "edit.html", status=422 if wrong else 200, run=found, form=form, wrong=wrong
    )


async def review(request: Request) -> Response:
    """Show old and new arguments side by side; nothing is sent yet."""
    form = await _form(request)
    return await run_in_threadpool(_review, request, form)


def _review(request: Request, form: Form) -> Response:
    _app(request)
    found = run_of(site_of(request).browser(), request)
    _, given, wrong = _checked(request, found, form)
    if wrong or "edit" in form:
        return _show_editor(request, found, form, wrong)
    old = arguments_of(found) or ([], {})
    args = json.loads(form["args"]) if given.args is not None else old[0]
    kwargs = json.loads(form["kwargs"]) if given.kwargs is not None else old[1]
    return render(
        request,
        "review.html",
        run=found,
        form={name: form.get(name, "") for name in ("args", "kwargs")},
        seen=_seen(found),
        changes=show.changes(old, (args, kwargs)),
        is_hidden=arguments_of(found) is None,
    )


def _read_arguments(form: Form) -> tuple[OtherArguments, dict[str, str]]:
    """Read what somebody wrote; what is empty is as it was."""
    given: dict[str, Any] = {}
    wrong: dict[str, str] = {}
    for name in ("args", "kwargs"):
        if text := form.get(name, ""):
            try:
                given[name] = from_text(name, text)
            except UnreadableError as error:
                wrong[name] = f"This cannot be read: {error}."
    return OtherArguments(**given), wrong


class Send(HTTPEndpoint):
    """Sends a run again. A run's id may contain anything, so no other route matches its address."""

    async def post(self, request: Request) -> Response:
        """Send it, and wait a moment for what it comes to."""
        form = await _form(request)
        return await run_in_threadpool(_send, request, form)


def _send(request: Request, form: Form) -> Response:
    app, site = _app(request), site_of(request)
    found = run_of(site.browser(), request)
    run, given, wrong = _checked(request, found, form)
    if wrong:
        return _show_editor(request, found, form, wrong)
    if form.get("seen", "") != _seen(found):
        return _to_run(request, "none")
    is_edited = given.args is not None or given.kwargs is not None
    job = Job(
        app,
        site.url,
        [run],
        1,
        who=request.scope[VISITOR].name,
        scope=f"run {run.uuid}{', arguments edited' if is_edited else ''}",
        arguments=given,
        again=True,
    )
    job.start()
    job.join(WAIT_SECONDS)
    if job.is_alive():
        return _to_run(request, "begun")
    sent = [one for one in job.results if one.uuid is not None]
    if not sent:
        text = job.why_ended or "Nothing was sent."
        return render(request, "fault.html", status=409, title="It was not replayed", text=text)
    return _to_run(request, sent[0].status or "sent")


def _checked(
    request: Request, found: Found, form: Form
) -> tuple[Recorded, OtherArguments, dict[str, str]]:
    """Read a form about a run, and say what is wrong with it."""
    given, wrong = _read_arguments(form)
    run = next(Claims(site_of(request).url).find([found.uuid]), None)
    if run is None:
        raise HTTPException(404, f"Run {found.uuid} is no longer recorded.")
    # Claimed as it was when it was looked at.
    run = attrs.evolve(run, claimed_at=found.claimed_at)
    refusal = None if wrong else left_out(run, _app(request), given, again=True)
    if refusal is not None:
        wrong["all"] = f"It {refusal.why}."
    return run, given, wrong


def _to_run(request: Request, done: str) -> Response:
    return RedirectResponse(address(request, "runs", request.path_params["uuid"], done=done), 303)


def _seen(found: Found) -> str:
    """Return when a run was last claimed, as text for a form."""
    return "" if found.claimed_at is None else repr(found.claimed_at)


def _app(request: Request) -> QueueTasks:
    """Find the app that replays, if the visitor may replay.

    Raises:
        HTTPException: They may not, or there is none.
    """
    app = site_of(request).app
    if not may_act(request):
        raise HTTPException(403, "You may look, but not change anything.")
    if app is None:
        raise HTTPException(409, "This page cannot replay runs: start it with --app APP.")
    return app


async def _form(request: Request) -> Form:
    """Read a form, if its sender may act; browsers end each line of it with CRLF.

    Raises:
        HTTPException: They may not, or it is none, or too large.
    """
    if not may_act(request):
        raise HTTPException(403, "You may look, but not change anything.")
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > MOST_BYTES:
            raise HTTPException(413, f"A form has at most {MOST_BYTES:,} bytes.")
    if body and kind != "application/x-www-form-urlencoded":
        raise HTTPException(415, "A form is sent as application/x-www-form-urlencoded.")
    try:
        pairs = parse_qsl(body.decode("ascii"), keep_blank_values=True, max_num_fields=MOST_FIELDS)
    except ValueError:
        raise HTTPException(400, "This form cannot be read.") from None
    return {name: re.sub("\r\n?", "\n", value).strip() for name, value in pairs}
