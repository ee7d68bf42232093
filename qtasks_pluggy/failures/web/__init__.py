"""``failures web``: the page that shows failures and replays runs.

==================  ==========================================================================
``page.py``         ``failures_page``, its addresses, and what it answers: START HERE
``guard.py``        access: hosts, tokens, cross-site forms; headers of every answer
``views.py``        the pages for reading: groups, runs, plugins, acts
``forms.py``        the forms: states, and replays, which are reviewed before they are sent
``jobs.py``         replays in progress
``site.py``         what all pages have in common, and how a template becomes an answer
``browse.py``       the pages' queries; each uses an index
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
