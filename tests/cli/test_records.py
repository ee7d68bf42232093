"""Records: JSON lines, CSV files and the command's own arguments."""

from __future__ import annotations

import json

import pytest

from qtasks_pluggy._console.load import Trouble
from qtasks_pluggy.cli import _records
from qtasks_pluggy.cli._records import Record, Records, from_arguments


def read(workplace, content, name="in.jsonl"):
    """Read all records of a file with this content."""
    path = workplace.folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with Records(name) as records:
        return list(records)


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
    with pytest.raises(Trouble, match="keyword 'x' is given twice, the second time as 'x=2'"):
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
        (b"nonsense", "this line is not JSON: Expecting value at 1"),
        (b'{"a": 1', "not JSON: Expecting ',' delimiter"),
        (b"[NaN]", "not JSON: NaN is not JSON"),
        (b"[" + b"1" * 5000 + b"]", "not JSON: Exceeds the limit"),
        (b"[" * 100_000, "nested too deeply"),
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
    assert "and the file ends in this line: is it whole?" in found[2]


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
    with Records("in.jsonl") as records:
        seen = [records.position for _ in records]

    assert (9, [4, 9]) == (records.size, seen)


def test_a_csv_row_is_keywords_named_by_the_header(workplace):
    """Values are read as arguments are; quotes, line breaks and a mark are CSV's own."""
    content = 'path, n\na.py,1\n"b, c",true\n\n"two\nlines",x\n'
    found = read(workplace, b"\xef\xbb\xbf" + content.encode(), "in.CSV")

    assert [
        Record(2, (), {"path": "a.py", "n": 1}),
        Record(3, (), {"path": "b, c", "n": True}),
        Record(5, (), {"path": "two\nlines", "n": "x"}),
    ] == found


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (b"1", "this row has 1 values, but the header names 2"),
        (b"1,2,3", "this row has 3 values, but the header names 2"),
        (b'"a"b,1', "not a row of a CSV file"),
        (b"\xff,1", "not a row of a CSV file: this line is not UTF-8"),
        (b"x" * 200_000 + b",1", "not a row of a CSV file: field larger than field limit"),
    ],
)
def test_a_row_that_is_no_record_says_why_and_the_others_are_read(workplace, row, said):
    """Its line and its problem stand in its place."""
    before, bad, after = read(workplace, b"a,b\n1,2\n" + row + b"\n5,6\n", "in.csv")

    assert (Record(2, (), {"a": 1, "b": 2}), Record(4, (), {"a": 5, "b": 6})) == (before, after)
    assert bad.line == 3
    assert said in bad.problem


def test_a_csv_file_that_ends_within_quotes_says_so(workplace):
    """The row that was cut short is one problem, on the line where it begins."""
    found = read(workplace, 'a,b\n1,2\n3,"fo', "in.csv")

    assert Record(2, (), {"a": 1, "b": 2}) == found[0]
    assert {3: "this is not a row of a CSV file: unexpected end of data"} == problems(found)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "in.csv is empty; the first line of a CSV file names the keywords"),
        (b"\n1,2\n", "leaves a column without a name"),
        (b"a,,b\n1,2,3\n", "leaves a column without a name"),
        (b"a,b,a\n1,2,3\n", "names 'a' twice"),
        (b"a,\xff\n", "is no header: this line is not UTF-8"),
        (b'"a', "is no header: unexpected end of data"),
    ],
)
def test_a_csv_file_without_a_usable_header_is_refused(workplace, content, said):
    """Without names there are no keywords: nothing is run."""
    with pytest.raises(Trouble, match=said):
        read(workplace, content, "in.csv")


def test_a_file_that_cannot_be_read_is_refused(workplace):
    """What is missing, or a folder, is named together with what to do."""
    workplace.records([])
    (workplace.folder / "inner").mkdir()

    with pytest.raises(Trouble, match=r"in\.json: No such file .*; did you mean in\.jsonl\?"):
        Records("in.json")
    with pytest.raises(Trouble, match=r"nowhere/in: No such file .*; look at its folder"):
        Records("nowhere/in")
    with pytest.raises(Trouble, match="inner: Is a directory; name a file in it"):
        Records("inner")


def test_a_record_survives_what_json_can_carry(workplace):
    """Names of files that are not text travel as the surrogates that Python gives them."""
    name = b"\xff.py".decode("utf-8", "surrogateescape")

    assert [Record(1, (name,))] == read(workplace, json.dumps([name]) + "\n")
