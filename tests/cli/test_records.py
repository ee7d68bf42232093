"""Records: JSON lines, CSV files and the command's own arguments."""

from __future__ import annotations

import itertools
import json
import tempfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qtasks_pluggy._console.load import Trouble
from qtasks_pluggy.cli import _records
from qtasks_pluggy.cli._records import Record, Records, from_arguments, open_input


def read(workplace, content, form="jsonl", **options):
    """Read all records of a file with this content."""
    path = workplace.folder / "in"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with open_input("in") as source:
        return list(Records(source, form, **options))


def problems(records):
    """The problems by line."""
    return {record.line: record.problem for record in records if record.problem}


@pytest.mark.parametrize(
    ("words", "args", "kwargs"),
    [
        ([], (), {}),
        (["1", "true", "null", "[1]", '{"a": 2}', '"1"'], (1, True, None, [1], {"a": 2}, "1"), {}),
        (["text", "007", "1e", "{", ""], ("text", "007", "1e", "{", ""), {}),
        (["NaN", "-Infinity"], ("NaN", "-Infinity"), {}),
        (["x=1", "y=text", "z=", "w=a=b"], (), {"x": 1, "y": "text", "z": "", "w": "a=b"}),
        (["=1", "a-b=1", "http://localhost/?q=1"], ("=1", "a-b=1", "http://localhost/?q=1"), {}),
        (["1" * 5000, "[" * 100_000], ("1" * 5000, "[" * 100_000), {}),
    ],
)
def test_arguments_are_json_else_text(words, args, kwargs):
    """``key=value`` is a keyword; a value that is not JSON is text."""
    assert Record(None, args, kwargs) == from_arguments(words)


def test_a_keyword_given_twice_is_refused():
    """Neither value wins in silence."""
    with pytest.raises(Trouble, match="keyword 'x' is given twice; leave one out"):
        from_arguments(["x=1", "x=2"])


def test_objects_are_keywords_and_arrays_are_positionals(workplace):
    """Empty lines count as lines, and are no records."""
    found = read(workplace, '{"a": 1}\n\n[1, "two"]\r\n  \n{}\n[]')

    assert [
        Record(1, (), {"a": 1}),
        Record(3, (1, "two"), {}),
        Record(5, (), {}),
        Record(6, (), {}),
    ] == found


def test_a_mark_at_the_beginning_is_no_part_of_the_record(workplace):
    """UTF-8 with a byte order mark is UTF-8."""
    assert [Record(1, (), {"a": "é"})] == read(workplace, b'\xef\xbb\xbf{"a": "\xc3\xa9"}\n')


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b"nonsense", "this line is not JSON: Expecting value (line 2, column 1)"),
        (b'{"a": 1', "not JSON: Expecting ',' delimiter"),
        (b"[NaN]", "not JSON: NaN is not JSON"),
        (b"[1e400]", "not JSON: the number 1e400 is too large"),
        (b'{"a": 1, "a": 2}', "not JSON: the key 'a' occurs twice"),
        (b'[{"b": {"a": 1, "a": 1}}]', "not JSON: the key 'a' occurs twice"),
        (b"[" + b"1" * 5000 + b"]", "not JSON: Exceeds the limit"),
        (b"[" * 100_000, "not JSON: it is nested too deeply"),
        (b"[\xff]", "not UTF-8: invalid start byte at 2"),
        (b'"text"', 'the JSON value "text", but a record is an object'),
        (b"7", "the JSON value 7, but a record is an object"),
    ],
)
def test_a_line_that_is_no_record_says_why_and_the_others_are_read(workplace, line, said):
    """Its number and its problem stand in its place."""
    before, bad, after = read(workplace, b"[1]\n" + line + b"\n[3]\n")

    assert (Record(1, (1,)), Record(3, (3,))) == (before, after)
    assert bad.line == 2
    assert said in bad.problem


def test_a_file_that_ends_within_a_record_says_so(workplace):
    """A half-written file is told from a wrong one."""
    found = problems(read(workplace, '{"a": 1}\n{"a": 1, "b'))

    assert list(found) == [2]
    assert "and the file ends here: is it whole?" in found[2]


def test_a_line_without_end_is_not_held_in_memory(workplace, monkeypatch):
    """A line longer than the limit is skipped as it is read."""
    monkeypatch.setattr(_records, "MOST_BYTES", 1024)
    content = b"[1]\n[" + b" " * 5000 + b"]\n[3]\n" + b" " * 5000
    found = read(workplace, content)

    assert [1, 2, 3, 4] == [record.line for record in found]
    assert [2, 4] == list(problems(found))


def test_the_position_tells_how_much_has_been_read(workplace):
    """Bytes read, of a size that is known for a file."""
    (workplace.folder / "in.jsonl").write_text("[1]\n[22]\n", "utf-8")
    with open_input("in.jsonl") as source:
        records = Records(source, "jsonl")
        seen = [records.position for _ in records]

    assert (9, [4, 9]) == (records.size, seen)


def test_a_csv_row_is_keywords_named_by_the_header(workplace):
    """Cells are text, or JSON where that is asked for; quotes and line breaks are CSV's own."""
    content = 'path, n\na.py,1.10\n"b, c",null\n\n"two\nlines",12E4x\n'
    content = b"\xef\xbb\xbf" + content.encode()

    def records(*values):
        paths = ("a.py", "b, c", "two\nlines")
        rows = zip((2, 3, 5), paths, values, strict=True)
        return [Record(line, (), {"path": path, "n": value}) for line, path, value in rows]

    assert records("1.10", "null", "12E4x") == read(workplace, content, "csv")
    assert records(1.1, None, "12E4x") == read(workplace, content, "csv", json_cells=True)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (b"1", "this row cannot be used: it has 1 values, but the header names 2"),
        (b"1,2,3", "this row cannot be used: it has 3 values, but the header names 2"),
        (b'"a"b,1', "this row cannot be used: ',' expected after"),
        (b"\xff,1", "this row cannot be used: it is not UTF-8"),
        (b"x" * 200_000 + b",1", "this row cannot be used: field larger than field limit"),
    ],
)
def test_a_row_that_is_no_record_says_why_and_the_others_are_read(workplace, row, said):
    """Its line and its problem stand in its place."""
    before, bad, after = read(workplace, b"a,b\n1,2\n" + row + b"\n5,6\n", "csv")

    assert (Record(2, (), {"a": "1", "b": "2"}), Record(4, (), {"a": "5", "b": "6"})) == (
        before,
        after,
    )
    assert bad.line == 3
    assert said in bad.problem


def test_a_csv_file_that_ends_within_quotes_says_so(workplace):
    """The row that was cut short is one problem, on the line where it begins."""
    found = read(workplace, 'a,b\n1,2\n3,"fo', "csv")

    assert Record(2, (), {"a": "1", "b": "2"}) == found[0]
    assert {3: "this row cannot be used: unexpected end of data"} == problems(found)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "the input is empty; the first line of a CSV file names the keywords"),
        (b"\n1,2\n", "has a column without a name"),
        (b"a,,b\n1,2,3\n", "has a column without a name"),
        (b"a,b,a\n1,2,3\n", "names 'a' twice"),
        (b"a,\xff\n", "is not a header: it is not UTF-8"),
        (b'"a', "is not a header: unexpected end of data"),
    ],
)
def test_a_csv_file_without_a_usable_header_is_refused(workplace, content, said):
    """Without names there are no keywords: nothing is run."""
    with pytest.raises(Trouble, match=said):
        read(workplace, content, "csv")


def test_a_file_that_cannot_be_read_is_refused(workplace):
    """What cannot be opened is named, with the reason."""
    (workplace.folder / "inner").mkdir()

    with pytest.raises(Trouble, match="cannot be read from inner: Is a directory"):
        open_input("inner")


def test_a_json_array_is_records(workplace):
    """Its items count from 1, wherever its line ends are."""
    content = b'\xef\xbb\xbf[{"a": 1},\n[2, "x"]\n, {}]\n'

    assert [Record(1, (), {"a": 1}), Record(2, (2, "x")), Record(3)] == read(
        workplace, content, "json"
    )
    assert [] == read(workplace, " [ ] ", "json")


@pytest.mark.parametrize(
    ("item", "said"),
    [
        ('{"a": 1, "a": 2}', "the key 'a' occurs twice"),
        ("[NaN]", "NaN is not JSON"),
        ("[-1e400]", "the number -1e400 is too large"),
        (f"[{'1' * 10_000}]", "Exceeds the limit"),
        ('"text"', 'the JSON value "text", but a record is'),
    ],
)
def test_an_item_that_is_no_record_says_why_and_the_others_are_read(workplace, item, said):
    """As in lines, its number and its problem stand in its place."""
    before, bad, after = read(workplace, f"[[1], {item}, [3]]", "json")

    assert (Record(1, (1,)), Record(3, (3,))) == (before, after)
    assert bad.line == 2
    assert said in bad.problem


def test_a_fault_in_an_array_says_line_and_column(workplace):
    """As an editor counts them."""
    _, bad = read(workplace, "[[1],\n[1 2]]", "json")

    assert "Expecting ',' delimiter (line 2, column 4); nothing after it can be read" in bad.problem


@pytest.mark.parametrize(
    ("end", "said"),
    [
        ("", "a comma or the end of the array is missing before this"),
        (" 5]", "a comma or the end of the array is missing before this"),
        (", ", "nothing after it can be read"),
        (", {nonsense}, [3]]", "nothing after it can be read"),
        (f", {'[' * 100_000}", "it is nested too deeply; nothing after it can be read"),
        ("] [2]", "this comes after the end of the array"),
    ],
)
def test_an_array_that_is_broken_is_one_problem(workplace, end, said):
    """The items before are records."""
    before, bad = read(workplace, f"[[1]{end}", "json")

    assert (Record(1, (1,)), 2) == (before, bad.line)
    assert said in bad.problem


@pytest.mark.parametrize("content", ["", '{"a": 1}', "[1]\n[2]\xff"])
def test_an_input_that_is_no_array_is_refused(workplace, content):
    """Nothing is run."""
    with pytest.raises(Trouble, match="the input is no"):
        read(workplace, content.encode("latin-1"), "json")


def test_an_array_given_as_lines_is_told_what_to_do(workplace):
    """Who pipes a whole array in learns of ``--format``."""
    found = problems(read(workplace, '[\n{"a": 1}\n]\n'))

    assert [1, 3] == list(found)
    assert "for a JSON array give --format json" in found[1]


@pytest.mark.parametrize("word", ['{"a": 1, "a": 2}', "x=[1e400]", "[NaN]"])
def test_an_argument_that_is_json_nobody_can_use_is_refused(word):
    """It does not become text in silence, and is not shown: it may hold a secret."""
    with pytest.raises(Trouble, match="argument 2 cannot be used") as caught:
        from_arguments(["s3cret", word])

    assert word not in str(caught.value)


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)
calls = st.lists(json_values) | st.dictionaries(st.text(), json_values)


@given(st.lists(calls), st.sampled_from([None, 1]))
def test_lines_and_arrays_bring_the_same_records(values, indent):
    """Whatever JSON can hold arrives as it is, in either form, and digests tell inputs apart."""
    lines = "".join(f"{json.dumps(value)}\n" for value in values)
    both = [
        read_text(text, form)
        for text, form in ((lines, "jsonl"), (json.dumps(values, indent=indent), "json"))
    ]
    same = [
        one.kwargs if isinstance(value, dict) else list(one.args)
        for one, value in zip(both[0], values, strict=True)
    ]

    assert values == same
    assert both[0] == both[1]
    for one, other in itertools.pairwise(both[0]):
        alike = (one.args, one.kwargs) == (other.args, other.kwargs)
        assert alike or one.digest != other.digest


def read_text(text, form):
    """Read all records of a file that is nowhere."""
    with tempfile.TemporaryFile() as file:
        file.write(text.encode())
        file.seek(0)
        return list(Records(file, form))


def test_a_record_survives_what_json_can_carry(workplace):
    """Names of files that are not text travel as the surrogates that Python gives them."""
    name = b"\xff.py".decode("utf-8", "surrogateescape")

    assert [Record(1, (name,))] == read(workplace, json.dumps([name]) + "\n")
