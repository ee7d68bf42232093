"""A page over a store of the test's own."""

from __future__ import annotations

import pytest

from tests.failures.web.sites import Shop


@pytest.fixture
def shop(place):
    """Give an app that records into the place's store, and its page."""
    with Shop(place) as shop:
        yield shop
