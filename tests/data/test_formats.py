"""Reading rows: six file types give the same rows, and every fault is named with its line."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from offbook.data.conversations import read_conversations
from offbook.data.formats import read_rows, resolve
from offbook.data.remarks import Remarks
from offbook.errors import DataError

LINES = [
    {"instruction": "Who are you?", "input": "", "output": 'The "keeper", of course.'},
    {"instruction": "你是谁？", "input": "雨夜", "output": "臣妾\n甄嬛。"},
    {"instruction": "🙂, [or] {not}", "input": "\\", "output": "Aye."},
]
TYPES = "use .json, .jsonl, .ndjson, .csv, .tsv, .parquet, .xlsx, "
TYPES += "or one of them as .gz, .zst or .zip"
ARRAY = "correct the JSON array"
BAD = "not valid JSON: "
NULL = "write null or a text in quotes"


def written(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def read(path: Path) -> list[tuple[object, int]]:
    """The rows and their lines, of a file without a fault."""
    rows, errors = sorted_out(path)
    assert errors == []
    places = [where.removeprefix(f"{path}:") for _, where in rows]
    assert len(set(places)) == len(places)
    return [(row, int(place.split(":")[0])) for (row, _), place in zip(rows, places, strict=True)]


def sorted_out(path: Path) -> tuple[list[tuple[object, str]], list[DataError]]:
    """The good rows, and the errors in place of bad ones."""
    rows = list(read_rows(path))
    good = [(row, where) for row, where in rows if not isinstance(row, DataError)]
    return good, [row for row, _ in rows if isinstance(row, DataError)]


def complaint(path: Path) -> str:
    """The error of a file that cannot be read to its end."""
    with pytest.raises(DataError) as caught:
        list(read_rows(path))
    return str(caught.value)


def store(path: Path, rows: list[dict[str, str]]) -> None:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix in (".csv", ".tsv"):
        with path.open("w", encoding="utf-8", newline="") as file:
            delimiter = "," if path.suffix == ".csv" else "\t"
            writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
            writer.writeheader()
            writer.writerows(rows)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows, ensure_ascii=False, indent=1), encoding="utf-8")
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.mark.parametrize("suffix", ["json", "jsonl", "ndjson", "csv", "tsv", "parquet", "JSONL"])
def test_every_file_type_gives_the_same_rows(tmp_path, suffix):
    path = tmp_path / f"rows.{suffix}"
    store(path, LINES)
    assert [row for row, _ in read(path)] == LINES


@pytest.mark.parametrize("suffix", ["json", "jsonl", "csv"])
def test_a_byte_order_mark_is_not_part_of_the_first_row(tmp_path, suffix):
    path = tmp_path / f"rows.{suffix}"
    store(path, LINES)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert [row for row, _ in read(path)] == LINES


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("last", [True, False], ids=["final-newline", "no-final-newline"])
@pytest.mark.parametrize(
    ("suffix", "lines", "expected"),
    [
        ("jsonl", ['{"a": "1"}', '{"a": "2"}'], [({"a": "1"}, 1), ({"a": "2"}, 2)]),
        ("json", ["[", '{"a": "1"},', '{"a": "2"}', "]"], [({"a": "1"}, 2), ({"a": "2"}, 3)]),
        ("csv", ["a", "1", "2"], [({"a": "1"}, 2), ({"a": "2"}, 3)]),
    ],
)
def test_line_ends_do_not_matter(tmp_path, suffix, lines, expected, end, last):
    text = end.join(lines) + (end if last else "")
    assert read(written(tmp_path, f"rows.{suffix}", text)) == expected


def test_blank_lines_are_skipped_and_counted(tmp_path):
    jsonl = written(tmp_path, "rows.jsonl", '\n{"a": "1"}\n \t\r\n\n{"a": "2"}\n\n')
    assert read(jsonl) == [({"a": "1"}, 2), ({"a": "2"}, 5)]
    array = written(tmp_path, "rows.json", '\n[\n\n{"a": "1"}\n,\n\n\n{"a": "2"}]\n\n')
    assert read(array) == [({"a": "1"}, 4), ({"a": "2"}, 8)]


def test_only_a_newline_ends_a_line_of_jsonl(tmp_path):
    path = written(tmp_path, "rows.jsonl", '{"a": "\u2028\u0085",\r"b": "2"}\n{"a": "3"}\n')
    assert read(path) == [({"a": "\u2028\u0085", "b": "2"}, 1), ({"a": "3"}, 2)]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("rows.json", "[]"),
        ("rows.json", "\n[ \n ]\n"),
        ("rows.jsonl", ""),
        ("rows.jsonl", "\n\n"),
        ("rows.csv", ""),
        ("rows.csv", "instruction,output\n"),
    ],
)
def test_a_file_without_rows_gives_none(tmp_path, name, text):
    assert read(written(tmp_path, name, text)) == []


def test_rows_after_the_first_of_a_line_have_their_column(tmp_path):
    path = written(tmp_path, "rows.json", '\n[{"a":1},{"a":2},\n{"a":3},  {"a":4}]')
    places = [where.removeprefix(f"{path}:") for _, where in read_rows(path)]
    assert places == ["2", "2:10", "3", "3:11"]
    path = written(tmp_path, "rows.jsonl", '{"a":1} {"a":2}\n{"a":3}\n')
    assert [where.removeprefix(f"{path}:") for _, where in read_rows(path)] == ["1", "1:9", "2"]


def test_faults_on_one_line_are_counted_and_told_by_column(tmp_path):
    rows = [{"instruction": "q", "output": n if n in (7, 9) else "a"} for n in range(12)]
    rows[2] |= {"outputt": "x"}
    rows[5] |= {"outputt": "x"}
    path = written(tmp_path, "rows.json", json.dumps(rows))
    with pytest.raises(DataError) as caught:
        list(read_conversations(str(path)))
    unknown, number = str(caught.value).splitlines()
    assert unknown.startswith(f'{path}:1:76: unknown key "outputt" in 2 rows')
    assert number.startswith(f'{path}:1:293: "output" is a number, not text (in 2 rows: 1:293, 1:')


def test_the_rows_of_an_indented_array_are_on_the_line_where_they_begin(tmp_path):
    path = written(tmp_path, "rows.json", json.dumps([{"a": 1, "b": [1]}, {"a": 2}], indent=4))
    assert read(path) == [({"a": 1, "b": [1]}, 2), ({"a": 2}, 8)]


def test_a_newline_escaped_inside_a_row_is_not_counted(tmp_path):
    path = written(tmp_path, "rows.json", '[\n{"a": "x\\n\\ny"},\n{"a": 2}]')
    assert read(path) == [({"a": "x\n\ny"}, 2), ({"a": 2}, 3)]


@pytest.mark.parametrize("chunk", [1, 7, 64])
@pytest.mark.parametrize("indent", [None, 2])
def test_a_row_across_chunks_is_read_whole_and_keeps_its_line(tmp_path, monkeypatch, chunk, indent):
    values = [
        *LINES,
        {},
        {"a": [1.5, -2e-7, 12345678901234567890, True, None, {"deep": [[], [{}]]}]},
        'a string, ] with } marks \\ " 🙂',
        [[], [1, [2]]],
        123456789,
        None,
        False,
        {"long": "x" * 200, "after": "\u2028\u00e9"},
    ]
    text = json.dumps(values, indent=indent, ensure_ascii=False) + "\n"
    path = written(tmp_path, "rows.json", text)
    at_once = read(path)
    monkeypatch.setattr("offbook.data.json_text.CHUNK_CHARS", chunk)
    assert read(path) == at_once
    assert [row for row, _ in at_once] == json.loads(text)


@pytest.mark.parametrize(
    ("text", "line", "what", "fix"),
    [
        ("", 1, "no rows: the file is empty", "the file should begin with ["),
        ("\n \n", 3, "no rows: the file is empty", "the file should begin with ["),
        ('\n"rows"', 2, "not a JSON array of rows", "the file should begin with ["),
        ('[\n{"a": 1},\n{"a": 2}\n', 4, f"{BAD}the file ends inside the array at column 1", ARRAY),
        (
            '[\n{"a": 1},\n{"a": 2',
            3,
            f"{BAD}Expecting ',' delimiter at column 8, after `{{\"a\": 2`",
            ARRAY,
        ),
        (
            '[\n{"a": 1},\n{"a": "two',
            3,
            f'{BAD}Unterminated string starting at column 7, after `{{"a": ` and before `"two`',
            ARRAY,
        ),
        ('[\n{"a": 1},\n', 3, f"{BAD}Expecting value at column 1", ARRAY),
        (
            '[\n{"a": 1},\n]',
            3,
            f"{BAD}Expecting value at column 1, before `]`",
            "remove the comma before the ]",
        ),
        (
            '[{"a": 1},,{"a": 2}]',
            1,
            f'{BAD}Expecting value at column 11, before `,{{"a": 2}}]`',
            ARRAY,
        ),
        (
            '[\n{"a": 1}\n]\n\nThe end.',
            5,
            f"{BAD}text after the end of the array at column 1, before `The end.`",
            "put all rows into it",
        ),
        (
            '[\n{"a": 1}\n{"a": 2}\n]',
            3,
            f'{BAD}no comma between rows at column 1, before `{{"a": 2}}`',
            ARRAY,
        ),
        ('[\n{"a": 1},\n{"a": NaN}\n]', 3, f"{BAD}NaN is not JSON", NULL),
        ('[\n{"a": 1},\n{"a": -Infinity}]', 3, f"{BAD}-Infinity is not JSON", NULL),
        (
            '[\n{"a": 1},\n{"b": {"a": 1, "c": 2, "a": 3}}\n]',
            3,
            f'{BAD}the key "a" appears twice in one object',
            "remove one of them",
        ),
    ],
)
def test_a_broken_array_is_refused_with_its_place(tmp_path, text, line, what, fix):
    path = written(tmp_path, "rows.json", text)
    assert complaint(path) == f"{path}:{line}: {what}; {fix}"


@pytest.mark.parametrize("indent", [None, 1, 4])
@pytest.mark.parametrize("before", [0, 3, 60])
def test_a_fault_is_named_with_line_column_and_the_text_around_it(tmp_path, indent, before):
    rows = [{"instruction": f"q{n}", "output": "a"} for n in range(before + 2)]
    text = json.dumps(rows, indent=indent).replace(f'"q{before}",', f'"q{before}" MARK ,')
    at = text.index("MARK")
    line, column = text.count("\n", 0, at) + 1, at - text.rfind("\n", 0, at)
    message = complaint(written(tmp_path, "rows.json", text))
    assert f"rows.json:{line}: " in message
    assert f" at column {column}, after `" in message
    assert f'"q{before}" ` and before `MARK ,' in message


def test_the_rows_before_a_broken_one_are_read(tmp_path):
    path = written(tmp_path, "rows.json", '[{"a": 1}, {"a": 2}, {"a"')
    reading = read_rows(path)
    assert [next(reading), next(reading)] == [({"a": 1}, f"{path}:1"), ({"a": 2}, f"{path}:1:12")]
    with pytest.raises(DataError):
        next(reading)


def test_bad_lines_of_jsonl_are_skipped_and_all_named(tmp_path):
    path = written(
        tmp_path,
        "rows.jsonl",
        '{"a": 1}\n'
        '{"a" 2}\n'
        '{"a": 3,}\n'
        "\n"
        '{"a": NaN}\n'
        '{"a": 6} and more\n'
        '{"a": 8, "a": 9}\n'
        "plain words\n"
        '{"a": 10}\n'
        '{"a": 11, "b"\n'
        '{"a": "twelve}\n'
        '{"a": 13}\n'
        '{"a": "cut',
    )
    rows, errors = sorted_out(path)
    assert rows == [
        ({"a": 1}, f"{path}:1"),
        ({"a": 6}, f"{path}:6"),
        ({"a": 10}, f"{path}:9"),
        ({"a": 13}, f"{path}:12"),
    ]
    comma = str(errors.pop(1))  # the words differ by Python version
    assert comma.startswith(f"{path}:3: {BAD}")
    assert comma.endswith(("; remove the comma before the }", "; remove that comma"))
    assert [str(error) for error in errors] == [
        f"{path}:2: {BAD}Expecting ':' delimiter at column 6, after `{{\"a\" ` and before `2}}`",
        f"{path}:5: {BAD}NaN is not JSON; {NULL}",
        f'{path}:6: {BAD}text after a row at column 10, after `{{"a": 6}} ` and before `and more`',
        f'{path}:7: {BAD}the key "a" appears twice in one object; remove one of them',
        f"{path}:8: {BAD}Expecting value at column 1, before `plain words`",
        f'{path}:10: {BAD}Expecting \':\' delimiter at column 14, after `{{"a": 11, "b"`',
        f"{path}:11: {BAD}Unterminated string starting at column 7, "
        'after `{"a": ` and before `"twelve}`',
        f"{path}:13: {BAD}Unterminated string starting at column 7, "
        'after `{"a": ` and before `"cut`',
    ]


def test_a_broken_row_on_several_lines_is_named_and_the_next_is_read(tmp_path):
    text = '{\n "a": 1\n}\n{\n "a": 2,\n "b" 3\n}\n{\n "a": 4\n}\n'
    path = written(tmp_path, "rows.jsonl", text)
    rows, errors = sorted_out(path)
    assert rows == [({"a": 1}, f"{path}:1"), ({"a": 4}, f"{path}:8")]
    assert [str(error) for error in errors] == [
        f"{path}:6: {BAD}Expecting ':' delimiter at column 6, after `\"b\" ` and before `3`"
    ]


def test_quotes_that_are_not_json_s_are_named(tmp_path):
    (error,) = sorted_out(written(tmp_path, "rows.jsonl", "{'a': 1}\n"))[1]
    assert str(error).endswith("; JSON's quotes are straight and double")


# What is read although the file's name or format says otherwise

SEVERAL = "several rows on one line"
COMMA = "a comma after a row, which is ignored"
LINES_OF_A_ROW = "a row on several lines"
SHAPES = {
    "comma": ("jsonl", ",\n", None, COMMA),
    "comma and CR": ("jsonl", " ,\r\n", None, COMMA),
    "one line": ("jsonl", "", None, SEVERAL),
    "one line, commas": ("ndjson", ", ", None, COMMA),
    "pretty": ("jsonl", "\n", 2, LINES_OF_A_ROW),
    "pretty, side by side": ("jsonl", "", 4, LINES_OF_A_ROW),
    "pretty, commas": ("jsonl", ",\n", 1, COMMA),
    "objects": ("json", "\n", None, "objects one after another, not an array of rows"),
    "pretty objects": ("json", "\n\n", 2, "objects one after another, not an array of rows"),
}
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20),
    lambda of: st.lists(of, max_size=3) | st.dictionaries(st.text(max_size=5), of, max_size=3),
    max_leaves=6,
)
ROWS = st.lists(
    st.fixed_dictionaries({"instruction": st.text(max_size=40), "more": VALUES}),
    min_size=2,
    max_size=6,
)
SURELY = settings(
    max_examples=25,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


def remarked(path: Path) -> tuple[list[object], list[str]]:
    remarks = Remarks()
    rows = [row for row, _ in read_rows(path, remarks)]
    return rows, [line.removeprefix(str(path)) for line in remarks.lines()]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("chunk", [3, 2**20])
def test_rows_in_another_shape_are_read_and_remarked_on(tmp_path, monkeypatch, shape, chunk):
    monkeypatch.setattr("offbook.data.json_text.CHUNK_CHARS", chunk)
    suffix, separator, indent, remark = SHAPES[shape]
    path = tmp_path / f"rows.{suffix}"

    @SURELY
    @given(ROWS, st.booleans())
    def holds(rows: list[object], plain: bool) -> None:
        said = (json.dumps(row, indent=indent, ensure_ascii=not plain) for row in rows)
        path.write_bytes((separator.join(said) + "\n").encode("utf-8", "surrogatepass"))
        read, lines = remarked(path)
        assert read == rows
        assert any(line.partition(": ")[2].startswith(remark) for line in lines)

    holds()


@pytest.mark.parametrize("indent", [None, 2])
def test_an_array_in_a_jsonl_file_is_read_with_its_lines(tmp_path, indent):
    path = written(tmp_path, "rows.jsonl", "\n" + json.dumps(LINES, indent=indent))
    rows, lines = remarked(path)
    assert rows == LINES
    assert lines == [":2: one array of rows, not a row on each line"]
    assert [line for _, line in read(path)] == ([2, 2, 2] if indent is None else [3, 8, 13])


def test_a_list_on_each_line_is_not_one_array(tmp_path):
    path = written(tmp_path, "rows.jsonl", '[{"a": 1}]\n[{"a": 2}]\n')
    assert read(path) == [([{"a": 1}], 1), ([{"a": 2}], 2)]


def test_one_object_is_one_row(tmp_path):
    path = written(tmp_path, "rows.json", '{"instruction": "a", "output": "b"}\n')
    assert read(path) == [({"instruction": "a", "output": "b"}, 1)]


def test_columns_become_rows(tmp_path):
    columns = {key: {str(n): row[key] for n, row in enumerate(LINES)} for key in LINES[0]}
    rows, lines = remarked(written(tmp_path, "rows.json", json.dumps(columns)))
    assert rows == LINES
    assert lines == [":1: an object of columns; each index is a row"]


@pytest.mark.parametrize("chunk", [5, 2**20])
@pytest.mark.parametrize("suffix", ["json", "jsonl"])
@pytest.mark.parametrize("inside", ["line one\nline two", "a\r\nb", "a\tb", "\n\n{\n"])
def test_line_breaks_inside_a_text_are_kept(tmp_path, monkeypatch, chunk, suffix, inside):
    rows = [{"a": "MARK", "b": 1}, {"a": 2}]
    text = json.dumps(rows) if suffix == "json" else "\n".join(map(json.dumps, rows))
    path = written(tmp_path, f"rows.{suffix}", text.replace("MARK", inside))
    read, lines = remarked(path)
    assert read == [{"a": inside, "b": 1}, {"a": 2}]
    assert lines[0].startswith(":1: a line break or control character inside a text")


def test_a_text_that_is_not_closed_does_not_swallow_rows(tmp_path):
    path = written(tmp_path, "rows.json", '[\n{"a": "x\n},\n{"a": "y"},\n{"a": "z"}\n]')
    assert complaint(path) == (
        f'{path}:2: {BAD}Invalid control character at column 9, after `{{"a": "x`; '
        "close the text with a quote before it"
    )


def run_advice(message: str, command: str) -> None:
    """Run the shell command that an error gives, which begins with `command`."""
    if not shutil.which(command):
        pytest.skip(f"needs {command}")
    _, found, rest = message.partition(f": {command} ")
    assert found, message
    subprocess.run(f"{command} {rest}", shell=True, check=True, timeout=60)


def test_the_rows_under_a_key_are_taken_out_by_the_advice(tmp_path):
    path = written(tmp_path, "my rows.json", json.dumps({"version": 1, "data": LINES}))
    message = complaint(path)
    assert 'one JSON object, whose rows are under "data"; take them out: jq' in message
    run_advice(message, "jq")
    assert [row for row, _ in read(tmp_path / "my rows-rows.jsonl")] == LINES


# Encodings


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32"])
@pytest.mark.parametrize("suffix", ["json", "jsonl", "csv", "tsv"])
def test_a_byte_order_mark_tells_the_encoding(tmp_path, encoding, suffix):
    path = tmp_path / f"rows.{suffix}"
    store(path, LINES)
    path.write_bytes(path.read_text(encoding="utf-8").encode(encoding))
    assert [row for row, _ in read(path)] == LINES


@pytest.mark.parametrize("suffix", ["json", "jsonl", "csv"])
@pytest.mark.parametrize(
    ("encoding", "advised"),
    [("utf-16-le", "UTF-16LE"), ("utf-16-be", "UTF-16BE"), ("gb18030", "GB18030")],
)
def test_another_encoding_is_converted_by_the_advice(tmp_path, suffix, encoding, advised):
    path = tmp_path / f"my rows.{suffix}"
    store(path, LINES)
    text = path.read_text(encoding="utf-8")
    if suffix == "jsonl":
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in LINES)
    path.write_bytes(text.encode(encoding))
    message = complaint(path)
    assert f"iconv -f {advised} -t UTF-8 " in message
    run_advice(message, "iconv")
    assert [row for row, _ in read(tmp_path / f"my rows-utf8.{suffix}")] == LINES


def test_what_a_file_would_say_in_gb18030_is_shown(tmp_path):
    path = written(tmp_path, "rows.jsonl", '{"a": 1}\n{"a": "你好"}\n'.encode("gbk"))
    assert complaint(path).startswith(
        f"{path}:2: not UTF-8 text at column 8 (bytes c4 e3 ba c3); as GB18030 it reads "
        '`你好"}`; if that is right, convert it: iconv -f GB18030 -t UTF-8 '
    )


def test_text_in_latin_1_is_converted_by_the_advice(tmp_path):
    path = written(tmp_path, "rows.jsonl", '{"a": "café, s\'il vous plaît"}\n'.encode("latin-1"))
    message = complaint(path)
    assert "; save the file as UTF-8, or convert it: iconv -f ITS-ENCODING " in message
    run_advice(message.replace("ITS-ENCODING", "LATIN1"), "iconv")
    expected = read(tmp_path / "rows-utf8.jsonl")
    assert [row for row, _ in expected] == [{"a": "café, s'il vous plaît"}]
    assert read(written(tmp_path, "rows.jsonl", path.read_text("latin-1").encode())) == expected


@pytest.mark.parametrize(
    "data",
    ["café, s'il vous plaît".encode("latin-1"), "你好，".encode() * 9 + b"\xff"],
    ids=["latin-1", "utf-8 with a broken byte"],
)
def test_other_text_is_not_taken_for_gb18030(tmp_path, data):
    path = written(tmp_path, "rows.jsonl", b'{"a": "' + data + b'"}\n')
    message = complaint(path)
    assert message.startswith(f"{path}:1: not UTF-8 text at column ")
    assert "GB18030" not in message


# CSV


@pytest.mark.parametrize("suffix", ["csv", "tsv"])
@pytest.mark.parametrize(
    ("delimiter", "name"), [(",", "commas"), (";", "semicolons"), ("\t", "tabs")]
)
def test_the_header_tells_the_separator(tmp_path, suffix, delimiter, name):
    path = tmp_path / f"rows.{suffix}"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(LINES[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows([*LINES, dict.fromkeys(LINES[0], "a, b; c\td")])
    rows, lines = remarked(path)
    assert rows == [*LINES, dict.fromkeys(LINES[0], "a, b; c\td")]
    usual = {"csv": ",", "tsv": "\t"}[suffix] == delimiter
    assert lines == [] if usual else [f":1: the fields are separated by {name}"]


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("line", ["sep={}\n", "SEP={}\r\n", '"sep={}"\n'])
def test_excels_line_tells_the_separator(tmp_path, delimiter, line):
    fields = [["instruction", "output"], ["a,b;c", "d"], ["e", "f", "g"]]
    path = tmp_path / "rows.csv"
    text = "".join(delimiter.join(f'"{field}"' for field in row) + "\n" for row in fields)
    path.write_text(line.format(delimiter) + text)
    remarks = Remarks()
    (row, where), (error, _) = read_rows(path, remarks)
    assert row == {"instruction": "a,b;c", "output": "d"}
    assert where == f"{path}:3"
    assert str(error).startswith(f"{path}:4: 3 columns, not 2; quote fields with ")
    assert remarks.lines() == [f"{path}:1: its first line tells the separator"]


def test_a_long_csv_field_is_read(tmp_path):
    assert csv.field_size_limit() <= 64 * 2**20
    text = "x y " * 100_000
    assert read(written(tmp_path, "rows.csv", f'a,b\n1,"{text}"\n')) == [({"a": "1", "b": text}, 2)]


# Faults


def test_half_a_surrogate_pair_is_not_refused_here(tmp_path):
    jsonl = written(tmp_path, "rows.jsonl", '{"a": "\\ud83d"}\n{"a": "\\ud83d\\ude42"}\n')
    assert read(jsonl) == [({"a": "\ud83d"}, 1), ({"a": "🙂"}, 2)]


def test_deep_nesting_is_refused_without_a_crash(tmp_path):
    array = written(tmp_path, "rows.json", "[" * 100_000)
    assert complaint(array) == f"{array}:1: not valid JSON: nested too deeply; {ARRAY}"
    jsonl = written(tmp_path, "rows.jsonl", '{"a": 1}\n' + "[" * 100_000 + '\n{"a": 3}\n')
    rows, errors = sorted_out(jsonl)
    assert rows == [({"a": 1}, f"{jsonl}:1"), ({"a": 3}, f"{jsonl}:3")]
    assert [error.where for error in errors] == [f"{jsonl}:2"]


def test_blank_lines_before_a_csv_header_are_skipped(tmp_path):
    assert read(written(tmp_path, "rows.csv", "\n\na,b\n\n1,2\n")) == [({"a": "1", "b": "2"}, 5)]


def test_a_line_of_jsonl_takes_bounded_memory(tmp_path, monkeypatch):
    monkeypatch.setattr("offbook.data.json_text.MAX_ROW_CHARS", 20)
    rows = ['{"a": "123456789"}'] * 1000
    path = written(tmp_path, "rows.jsonl", f'{{"a": "1"}}\n[{",".join(rows)}]\n')
    assert complaint(path) == (
        f"{path}:2: a row of more than 20 characters; put one row on each line"
    )
    assert len(read(written(tmp_path, "rows.jsonl", "\n".join(rows)))) == 1000


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("rows.csv", ":1: two columns are named "),
        ("rows.jsonl", ":1: not valid JSON: the key "),
    ],
)
def test_a_name_repeated_among_many_is_found_at_once(tmp_path, name, what):
    names = [f'"{number}"' for number in [*range(300_000), 299_999]]
    if name == "rows.jsonl":
        text = "{" + ":0,".join(names) + ":0}\n"
        (error,) = sorted_out(written(tmp_path, name, text))[1]
        message = str(error)
    else:
        message = complaint(written(tmp_path, name, ",".join(names)))
    assert f'{what}"299999"' in message


def test_quoted_commas_and_newlines_of_csv_belong_to_their_field(tmp_path):
    path = written(tmp_path, "rows.csv", 'a,b\n"x, y","one\ntwo\n\nthree"\n\n3,"say ""aye"""\n')
    rows = read(path)
    assert [row for row, _ in rows] == [
        {"a": "x, y", "b": "one\ntwo\n\nthree"},
        {"a": "3", "b": 'say "aye"'},
    ]
    assert [line for _, line in rows] == [2, 7]


def test_a_csv_column_named_twice_is_refused(tmp_path):
    path = written(tmp_path, "rows.csv", "a,b,a\n1,2,3\n")
    assert complaint(path) == f'{path}:1: two columns are named "a"; rename one'


def test_csv_rows_of_another_width_are_skipped_and_all_named(tmp_path):
    path = written(tmp_path, "rows.csv", "a,b\n1,2\n3\n4,5,6\n7,8\n")
    rows, errors = sorted_out(path)
    assert rows == [
        ({"a": "1", "b": "2"}, f"{path}:2"),
        ({"a": "7", "b": "8"}, f"{path}:5"),
    ]
    assert [str(error) for error in errors] == [
        f"{path}:3: 1 columns, not 2; write all columns, also those that are empty",
        f"{path}:4: 3 columns, not 2; quote fields with commas",
    ]


def test_a_csv_quote_that_never_ends_is_refused(tmp_path):
    path = written(tmp_path, "rows.csv", 'a,b\n1,2\n3,"four\n')
    message = complaint(path)
    assert message.startswith(f"{path}:")
    assert message.endswith(
        ": not valid CSV: unexpected end of data; "
        "a quote inside a quoted field is written twice; look for one that is not closed"
    )


def test_parquet_rows_are_numbered(tmp_path):
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"a": list(range(2500))}), path, row_group_size=700)
    assert read(path) == [({"a": n}, n + 1) for n in range(2500)]


def test_a_parquet_column_named_twice_is_refused(tmp_path):
    path = tmp_path / "rows.parquet"
    columns = [pa.array(["the first reply"]), pa.array(["the second"])]
    pq.write_table(pa.Table.from_arrays(columns, ["output", "output"]), path)
    assert complaint(path) == f'{path}: two columns are named "output"; rename one'


@pytest.mark.parametrize(
    "type_",
    [pa.timestamp("ns"), pa.timestamp("us", tz="Nowhere/Town"), pa.duration("s"), pa.date32()],
    ids=str,
)
def test_a_parquet_date_that_python_cannot_represent_is_a_number(tmp_path, type_):
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"a": ["1"], "when": pa.array([2**31 - 1], type_)}), path)
    assert [sorted(row) for row, _ in read(path)] == [["a", "when"]]


def test_parquet_text_that_is_not_utf_8_is_refused(tmp_path):
    path = tmp_path / "rows.parquet"
    ends, text = (pa.py_buffer(data) for data in (b"\0\0\0\0\2\0\0\0", b"\xff\xfe"))
    pq.write_table(pa.table({"a": pa.StringArray.from_buffers(1, ends, text)}), path)
    assert complaint(path).startswith(f"{path}: not valid Parquet: 'utf-8' codec can't decode")


def test_parquet_fields_named_twice_are_refused(tmp_path):
    path = tmp_path / "rows.parquet"
    struct = pa.StructArray.from_arrays([pa.array(["a"]), pa.array(["b"])], ["x", "x"])
    pq.write_table(pa.table({"a": struct}), path)
    assert complaint(path).startswith(f"{path}: not valid Parquet: ")


def test_a_flipped_bit_in_parquet_with_checksums_is_noticed(tmp_path):
    path = tmp_path / "rows.parquet"
    plain = {"compression": "none", "use_dictionary": False, "write_statistics": False}
    pq.write_table(pa.table({"a": ["some text"]}), path, write_page_checksum=True, **plain)
    path.write_bytes(path.read_bytes().replace(b"some text", b"some tex\x75", 1))
    assert complaint(path).startswith(f"{path}: ")


def test_nested_parquet_columns_become_lists_and_objects(tmp_path):
    path = tmp_path / "rows.parquet"
    rows = [{"conversations": [{"from": "human", "value": "a"}], "system": None}]
    pq.write_table(pa.Table.from_pylist(rows), path)
    assert read(path) == [(rows[0], 1)]


@pytest.mark.parametrize("keep", [0, 8, 200])
def test_a_truncated_parquet_file_is_refused(tmp_path, keep):
    path = tmp_path / "rows.parquet"
    store(path, LINES)
    path.write_bytes(path.read_bytes()[:keep])
    assert complaint(path).startswith(f"{path}: not valid Parquet: Parquet ")


@pytest.mark.parametrize(("name", "suffix"), [("rows.txt", ".txt"), ("rows", "")])
def test_an_unknown_file_type_is_refused_with_the_known_ones(tmp_path, name, suffix):
    path = written(tmp_path, name, "[]")
    assert complaint(path) == f'{path}: unknown file type "{suffix}"; {TYPES}'


def test_a_file_that_vanished_is_refused(tmp_path):
    path = tmp_path / "rows.json"
    assert complaint(path) == f"{path}: cannot be read (No such file or directory)"


def refusal(source: str) -> str:
    with pytest.raises(DataError) as caught:
        resolve(source)
    return str(caught.value)


def test_a_path_is_its_own_file(tmp_path):
    path = written(tmp_path, "rows.json", "[]")
    assert resolve(str(path)) == [path]


def test_a_path_may_begin_with_the_home_folder(tmp_path, monkeypatch):
    path = written(tmp_path, "rows.json", "[]")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert resolve("~/rows.json") == [path]


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("lighthouse", "lighthouse.jsonl"),
        ("teahouse-zh", "teahouse-zh.json"),
        ("general-zh", "general-zh.jsonl"),
    ],
)
def test_a_sample_is_found_by_its_name(name, file):
    (path,) = resolve(name)
    assert path.name == file
    assert path.is_file()


def test_a_samples_name_means_the_sample_whatever_the_folder_holds(tmp_path, monkeypatch):
    written(tmp_path, "lighthouse", "[]")
    monkeypatch.chdir(tmp_path)
    assert resolve("lighthouse")[0].name == "lighthouse.jsonl"
    assert resolve("./lighthouse") == [Path("lighthouse")]


def test_a_missing_file_is_refused_with_the_one_that_was_meant(tmp_path):
    written(tmp_path, "huanhuan.json", "[]")
    source = str(tmp_path / "huanhaun.json")
    meant = tmp_path / "huanhuan.json"
    assert refusal(source) == f'{source}: no such file; did you mean "{meant}"?'


def test_a_missing_sample_is_refused_with_the_one_that_was_meant(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert refusal("lighthose") == 'lighthose: no such file; did you mean "lighthouse"?'


def test_a_missing_file_unlike_any_other_is_refused_with_the_possible_types(tmp_path):
    source = str(tmp_path / "rows.json")
    assert refusal(source) == (
        f"{source}: no such file; give a file ending in .json, .jsonl, .ndjson, .csv, .tsv, "
        ".parquet, .xlsx, or one of lighthouse, teahouse-zh, general-en, general-zh, general"
    )


def test_a_missing_file_in_a_folder_is_not_looked_up_on_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert refusal("dataset/rows.json").startswith("dataset/rows.json: no such file; ")


@pytest.mark.parametrize(
    "source", ["x" * 300 + ".json", "~nobody-of-this-name/rows.json", "a\0b/rows.json", "\udcff"]
)
def test_a_name_that_no_file_can_have_is_a_missing_file(source):
    assert "no such file; " in refusal(source)
