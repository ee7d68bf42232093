"""Arguments as text: what reads back, what is only shown, and what is hidden."""

from __future__ import annotations

import json
import pickle
from collections import OrderedDict
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from qtasks_pluggy.failures.values import Encoder, UnreadableError, read_args, read_kwargs

ENCODER = Encoder(["password", "*token*", "*secret*", "authorization", "api_key"], 65_536)

leaves = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(st.characters(codec=None)),
    st.binary(),
    st.decimals(),
    st.uuids(),
    st.dates(),
    st.times().map(lambda value: value.replace(fold=0)),
    st.timedeltas(),
    st.datetimes(timezones=st.sampled_from([None, UTC, timezone(timedelta(hours=5.5))])).map(
        lambda value: value.replace(fold=0)
    ),
)
# Python hashes no signaling NaN.
hashed = leaves.filter(lambda value: not isinstance(value, Decimal) or not value.is_snan())
hashable = st.one_of(hashed, st.tuples(hashed, hashed))
values = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.tuples(inner, inner),
        st.dictionaries(hashable, inner, max_size=3),
        st.dictionaries(st.sampled_from(["$date", "$repr", "$dict", "name"]), inner),
        st.sets(hashable, max_size=3),
        st.frozensets(hashable, max_size=3),
    ),
    max_leaves=10,
)


def decode(text):
    """Read the arguments of a run."""
    return read_args(text), read_kwargs(text)


def _same(one, other):
    """Compare as a task would: types too, in any order where there is none, and NaN as itself."""
    if type(one) is not type(other):
        return False
    if isinstance(one, (set, frozenset)):
        return sorted(map(repr, one)) == sorted(map(repr, other))
    if isinstance(one, dict):
        pairs = zip(one.items(), other.items(), strict=True)
        return len(one) == len(other) and all(_same(a, b) for a, b in pairs)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(_same, one, other))
    return repr(one) == repr(other)


@given(values, values)
@example({"$date": "2022-03-02"}, {"$x": {1: (set(), frozenset({None}))}})
def test_what_is_kept_reads_back_as_the_same_values(first, second):
    """Whatever is stored without a reason against it reads back as it was, types included."""
    kept = ENCODER.encode([first], {"second": second})

    assert kept.not_replayable is None
    args, kwargs = decode(kept.text)
    assert _same(((first,), {"second": second}), (args, kwargs))
    json.loads(kept.text, parse_constant=pytest.fail)


@pytest.mark.parametrize(
    ("value", "shown", "why"),
    [
        (Path("prices.csv"), "PosixPath('prices.csv')", "args[0] is a PosixPath"),
        ([{"on": Path("x")}], "x", "args[0][0]['on'] is a PosixPath"),
        (OrderedDict(a=1), "OrderedDict", "args[0] is an OrderedDict"),
        (
            datetime(2022, 3, 27, tzinfo=ZoneInfo("Europe/Berlin")),
            "ZoneInfo",
            "args[0] is a datetime that text does not hold",
        ),
        (time(2, 30, fold=1), "fold=1", "args[0] is a time that text does not hold"),
        pytest.param(1 << 20_000, "", "args[0] is a whole number of too many digits", id="int"),
    ],
)
def test_what_would_not_read_back_is_shown_with_the_reason(value, shown, why):
    """A value that text does not hold is kept as its repr, and the first such is named."""
    kept = ENCODER.encode([value], {})

    assert why == kept.not_replayable
    assert shown in kept.text
    with pytest.raises(UnreadableError, match=r"args\[0\].* kept only as text"):
        decode(kept.text)


@pytest.mark.parametrize(
    ("written", "told"),
    [
        ('{"args":[1,{"$hidden":true}]}', "args[1] is redacted"),
        ('{"args":[{"a":[{"$repr":"x"}]}]}', "args[0]['a'][0] is kept only as text"),
        ('{"args":[{"$later":1}]}', "args[0] is written as '$later', which cannot be read here"),
        ('{"args":[{"$date":"2022-02-30"}]}', "args[0] is written as '$date'"),
        ('{"args":[{"$dict":[1]}]}', "args[0] is written as '$dict'"),
        ('{"args":[{"$set":[[]]}]}', "args[0] is written as '$set'"),
        ('{"args":{}}', "args are not written as this version"),
        ("[]", "args are not written as this version"),
        ("[" * 100_000, "args are not written as this version"),
    ],
    ids=str,
)
def test_what_cannot_be_read_is_named(written, told):
    """Redacted values, unknown tags and damaged text end in one error that names the place."""
    with pytest.raises(UnreadableError) as caught:
        read_args(written)

    assert str(caught.value).startswith(told)


def test_each_half_is_read_alone():
    """What cannot be read among the keywords keeps nobody from reading the others."""
    kept = ENCODER.encode([date(2022, 3, 2)], {"password": "hunter2"})

    assert (date(2022, 3, 2),) == read_args(kept.text)
    with pytest.raises(UnreadableError, match=r"kwargs\['password'\] is redacted"):
        read_kwargs(kept.text)


def test_values_that_contain_themselves_are_shown():
    """A list in itself, and one that holds itself twice, end."""
    one, two = [], []
    one.append(one)
    two.extend([two, two])

    for value in (one, two):
        kept = ENCODER.encode([value], {})
        assert "args[0]" in kept.not_replayable
        assert len(kept.text) < 2000


@pytest.mark.parametrize(
    "value",
    [b"x" * 50_000_000, "x" * 50_000_000, "\N{EURO SIGN}" * 20_000, [["x" * 1000] * 50_000]],
    ids=["bytes", "text", "escaped", "lists"],
)
def test_an_argument_that_is_too_large_is_cut(value):
    """Of 50 MB some hundred characters are kept, and the other arguments whole."""
    kept = ENCODER.encode([value, "whole"], {})

    assert "args[0] is more than fits into 65,536 bytes" == kept.not_replayable
    assert len(kept.text) < 1000
    assert "whole" == json.loads(kept.text)["args"][1]


def test_arguments_beyond_the_bound_are_left_out_and_named():
    """Of a million arguments the first are kept; the first that is not is named."""
    kept = ENCODER.encode(["x" * 100] * 1_000_000, {})

    assert len(kept.text) < 70_000
    assert "args[655] is more than fits into 65,536 bytes" == kept.not_replayable


def test_a_half_that_was_cut_is_not_read_as_if_it_were_whole():
    """Where arguments are missing each half says so itself, whatever the first reason was."""
    kept = ENCODER.encode([Path("x"), *["x" * 1000] * 100], {"a": 1, "b": 2})

    assert "args[0] is a PosixPath" == kept.not_replayable
    for read in (read_args, read_kwargs):
        with pytest.raises(UnreadableError):
            read(kept.text)


def test_secrets_are_hidden_by_name_at_any_depth():
    """Names in mappings, keywords and positional parameters hide what they stand for."""
    kept = ENCODER.encode(
        ["ann", "hunter2", {"a": [{"Access_Token": "hunter2"}], 1: {"password": "hunter2"}}],
        {"API_KEY": {"x": "hunter2"}, "my_secret_thing": "hunter2", "user": "bob"},
        names=("user", "password"),
    )

    assert "hunter2" not in kept.text
    assert ("ann", "bob") == (
        json.loads(kept.text)["args"][0],
        json.loads(kept.text)["kwargs"]["user"],
    )
    assert "args[1] is redacted" == kept.not_replayable


def test_secrets_are_hidden_in_what_objects_say_of_themselves():
    """A field of a secret's name is hidden in a repr, wherever the value ends."""
    nested = {"auth_token": "hunter, 2"}
    user = SimpleNamespace(name="ann", password="hunter2", nested=nested)  # noqa: S106  # the claim

    kept = ENCODER.encode([user], {})

    assert "hunter" not in kept.text
    assert "name='ann'" in kept.text


def test_an_object_whose_repr_raises_is_named():
    """Of an object whose repr fails its class is told."""

    class Sulky:
        def __repr__(self):
            raise ZeroDivisionError

    kept = ENCODER.encode([Sulky()], {})

    assert "<Sulky instance at " in kept.text


def test_nothing_is_unpickled_or_imported():
    """A pickle is bytes, before and after."""
    pickled = pickle.dumps(test_nothing_is_unpickled_or_imported)

    args, _ = decode(ENCODER.encode([pickled], {}).text)

    assert (pickled,) == args


def test_tags_are_readable():
    """A date is stored as somebody would write it."""
    given_ = [date(2022, 3, 2), time(12), Decimal("1.50"), UUID(int=1), timedelta(hours=1), {1}]

    text = ENCODER.encode(given_, {}).text

    assert '{"$date":"2022-03-02"}' in text
    assert '{"$decimal":"1.50"}' in text
    assert '{"$set":[1]}' in text
