"""What clients of servers leave behind is found after the test that made them."""

from __future__ import annotations

import gc
import warnings

import pytest


@pytest.fixture(autouse=True)
def _forget(request):
    yield
    if request.module.__name__.endswith("test_engines"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            gc.collect()
