"""``failures web``: the page that shows what failed, and where it is run again.

==================  ==========================================================================
``page.py``         ``failures_page``, its addresses, and what it answers: START HERE
``guard.py``        who may come in: hosts, tokens, cross-site forms; headers of every answer
``views.py``        what is looked at: groups, runs, plugins, acts
``forms.py``        what is done: states, and replays, which are looked at before they are sent
``jobs.py``         replays that are at work
``site.py``         what all pages have in common, and how a template becomes an answer
``browse.py``       the pages' questions to the store; each goes by a key
``show.py``         times, tracebacks, charts, trails and arguments, as people read them
``serve.py``        the server of the command
``templates/``      the pages; ``style.css`` and ``icon.svg`` are all else that is served
==================  ==========================================================================

No page has a script, and nothing comes from elsewhere.
"""

from __future__ import annotations

from qtasks_pluggy.failures.web.guard import Visitor
from qtasks_pluggy.failures.web.page import failures_page

__all__ = ["Visitor", "failures_page"]
