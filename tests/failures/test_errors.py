"""Errors as they are taken down."""

from __future__ import annotations

import gc
import weakref

from qtasks_pluggy.failures.errors import tell


def _raised(error, cause=None):
    try:
        raise error from cause
    except BaseException as caught:
        return caught


def test_a_traceback_reads_as_python_writes_it():
    """File, line, function and source of each frame, causes first."""
    told = tell(_raised(ValueError("no price"), _raised(KeyError("EUR"))), 65_536)

    text = told.traceback
    assert ("ValueError", "no price") == (told.error, told.message)
    assert text.startswith("Traceback (most recent call last):\n  File ")
    assert ", in _raised\n    raise error from cause\nKeyError: 'EUR'\n\nThe above" in text
    assert text.endswith("ValueError: no price\n")


def test_an_error_of_ten_megabytes_is_cut_and_says_so():
    """Text and traceback keep their first bytes each, and the size of the whole."""
    told = tell(_raised(ValueError("\N{EURO SIGN}" * 10_000_000)), 65_536)

    assert told.message.endswith("... [cut: 10,000,000 characters]")
    assert len(told.message.encode()) < 66_000
    assert len(told.traceback.encode()) < 66_000


def test_an_error_that_cannot_be_told_is_named():
    """A __str__ that raises is said; class and frames are there."""

    class SulkyError(Exception):
        def __str__(self):
            raise ZeroDivisionError

    told = tell(_raised(SulkyError()), 65_536)

    assert "(no text: its __str__ raised ZeroDivisionError)" == told.message
    assert told.error.endswith("SulkyError")
    assert "in _raised" in told.traceback


def test_what_no_database_takes_is_spelt_out():
    """Lone surrogates and NUL are written as Python would."""
    told = tell(ValueError("a\ud800b\x00c"), 65_536)

    assert "a\\ud800b\\x00c" == told.message
    assert "\x00" not in told.traceback


def test_notes_and_the_parts_of_a_group_are_told():
    """What plugins noted on an error, and the errors in a group, are in the traceback."""
    error = ExceptionGroup("both", [KeyError("EUR"), ValueError("N/A")])
    error.add_note("plugin 'x' raised")

    text = tell(_raised(error), 65_536).traceback

    assert "plugin 'x' raised" in text
    assert "KeyError: 'EUR'" in text
    assert "ValueError: N/A" in text


def test_chains_and_recursions_are_bounded():
    """An error that is its own cause, and a thousand frames, end."""
    one, two = ValueError(1), ValueError(2)
    one.__cause__, two.__cause__ = two, one

    def deeper():
        deeper()

    try:
        deeper()
    except RecursionError as error:
        text = tell(error, 65_536).traceback

    assert 1 == tell(one, 65_536).traceback.count("ValueError: 1")
    assert "frames are left out" in text
    assert len(text) < 20_000


def test_nothing_of_the_program_is_kept_alive():
    """Neither the error nor what its frames hold lives on."""

    class Thing:
        pass

    def fail():
        thing = Thing()
        found.append(weakref.ref(thing))
        raise ValueError

    found = []
    try:
        fail()
    except ValueError as error:
        told = tell(error, 65_536)
    gc.collect()

    assert found[0]() is None
    assert "fail" in told.traceback
