"""The projects that how-to pages show, for tests that run them as a reader would."""

from __future__ import annotations

import re
from pathlib import Path

HOW_TO = Path(__file__).parents[2] / "docs/how-to"


def module_of(page, replaced):
    """Give the first Python block of a page, which is a module.

    Args:
        page: The page's name.
        replaced: Texts that name a reader's servers, and those of the test for them.
    """
    text = (HOW_TO / page).read_text("utf-8")
    source = re.search(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)[1]
    for old, new in replaced.items():
        assert old in source
        source = source.replace(old, new)
    return source


def files_of(page):
    """Give the files of a page, blocks that begin with their path, by their paths."""
    text = (HOW_TO / page).read_text("utf-8")
    return dict(re.findall(r"^```py\n# (\S+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL))
