"""Reading rows: five file types give the same rows, and every fault is named with its line."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from offbook.data.formats import read_rows, resolve
from offbook.errors import DataError

LINES = [
    {"instruction": "Who are you?", "input": "", "output": 'The "keeper", of course.'},
    {"instruction": "你是谁？", "input": "雨夜", "output": "臣妾\n甄嬛。"},
    {"instruction": "🙂, [or] {not}", "input": "\\", "output": "Aye."},
]
TYPES = "use .json, .jsonl, .ndjson, .csv, .parquet"
ARRAY = "correct the JSON array"


def written(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def read(path: Path) -> list[tuple[object, int]]:
    """The rows and their lines, of a file without a fault."""
    rows, errors = sorted_out(path)
    assert errors == []
    return [(row, int(where.removeprefix(f"{path}:"))) for row, where in rows]


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
    elif path.suffix == ".csv":
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows, ensure_ascii=False, indent=1), encoding="utf-8")
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.mark.parametrize("suffix", ["json", "jsonl", "ndjson", "csv", "parquet", "JSONL"])
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


def test_the_rows_of_a_compact_array_are_on_one_line(tmp_path):
    path = written(tmp_path, "rows.json", '\n[{"a":1},{"a":2},{"a":3}]')
    assert read(path) == [({"a": 1}, 2), ({"a": 2}, 2), ({"a": 3}, 2)]


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
    monkeypatch.setattr("offbook.data.formats.CHUNK_CHARS", chunk)
    assert read(path) == at_once
    assert [row for row, _ in at_once] == json.loads(text)


@pytest.mark.parametrize(
    ("text", "line", "what", "fix"),
    [
        ("", 1, "no rows: the file is empty", "the file should begin with ["),
        ("\n \n", 3, "no rows: the file is empty", "the file should begin with ["),
        ('\n"rows"', 2, "not a JSON array of rows", "the file should begin with ["),
        ('[\n{"a": 1},\n{"a": 2}\n', 4, "the file ends inside the array", ARRAY),
        ('[\n{"a": 1},\n{"a": 2', 3, "not valid JSON: Expecting ',' delimiter", ARRAY),
        ('[\n{"a": 1},\n{"a": "two', 3, "not valid JSON: Unterminated string starting at", ARRAY),
        ('[\n{"a": 1},\n', 3, "not valid JSON: Expecting value", ARRAY),
        ('[\n{"a": 1},\n]', 3, "not valid JSON: Expecting value", ARRAY),
        ('[{"a": 1},,{"a": 2}]', 1, "not valid JSON: Expecting value", ARRAY),
        ('[\n{"a": 1}\n]\n\nThe end.', 5, "text after the end of the array", ARRAY),
        ('[\n{"a": 1}]]', 2, "text after the end of the array", ARRAY),
        ('[\n{"a": 1}\n{"a": 2}\n]', 3, "no comma between rows", ARRAY),
        ('[\n{"a": 1},\n{"a": NaN}\n]', 3, "not valid JSON: NaN is not JSON", ARRAY),
        ('[\n{"a": 1},\n{"a": -Infinity}]', 3, "not valid JSON: -Infinity is not JSON", ARRAY),
        (
            '[\n{"a": 1},\n{"b": {"a": 1, "c": 2, "a": 3}}\n]',
            3,
            'not valid JSON: the key "a" appears twice in one object',
            ARRAY,
        ),
    ],
)
def test_a_broken_array_is_refused_with_its_line(tmp_path, text, line, what, fix):
    path = written(tmp_path, "rows.json", text)
    assert complaint(path) == f"{path}:{line}: {what}; {fix}"


def test_the_rows_before_a_broken_one_are_read(tmp_path):
    path = written(tmp_path, "rows.json", '[{"a": 1}, {"a": 2}, {"a"')
    reading = read_rows(path)
    assert [next(reading), next(reading)] == [({"a": 1}, f"{path}:1"), ({"a": 2}, f"{path}:1")]
    with pytest.raises(DataError):
        next(reading)


def test_one_object_is_refused_with_what_it_may_be(tmp_path):
    path = written(tmp_path, "rows.json", '{"instruction": "a", "output": "b"}\n')
    assert complaint(path) == (
        f"{path}: one JSON object, not an array of rows; "
        "put the rows in [ ], or name the file .jsonl if it has one object a line"
    )


def test_bad_lines_of_jsonl_are_skipped_and_all_named(tmp_path):
    path = written(
        tmp_path,
        "rows.jsonl",
        '{"a": 1}\n'
        '{"a" 2}\n'
        '{"a": 3,}\n'
        "\n"
        '{"a": NaN}\n'
        '{"a": 6} {"a": 7}\n'
        '{"a": 8, "a": 9}\n'
        "plain words\n"
        '{"a": 10}\n'
        '{"a": "cut',
    )
    rows, errors = sorted_out(path)
    assert rows == [({"a": 1}, f"{path}:1"), ({"a": 10}, f"{path}:9")]
    before, *others = [str(error) for error in errors[:2]]
    assert before == f"{path}:2: not valid JSON: Expecting ':' delimiter"
    assert others[0].startswith(f"{path}:3: not valid JSON: ")  # the words differ by Python version
    assert [str(error) for error in errors[2:]] == [
        f"{path}:5: not valid JSON: NaN is not JSON",
        f"{path}:6: not valid JSON: Extra data",
        f'{path}:7: not valid JSON: the key "a" appears twice in one object',
        f"{path}:8: not valid JSON: Expecting value",
        f"{path}:10: not valid JSON: Unterminated string starting at",
    ]


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


@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl", "rows.csv"])
def test_text_that_is_not_utf_8_is_refused_with_its_line(tmp_path, name):
    path = written(tmp_path, name, '\n[{"a": "你好"}]'.encode("gbk"))
    assert complaint(path) == (
        f"{path}:2: not UTF-8 text (invalid continuation byte); save the file as UTF-8"
    )


def test_blank_lines_before_a_csv_header_are_skipped(tmp_path):
    assert read(written(tmp_path, "rows.csv", "\n\na,b\n\n1,2\n")) == [({"a": "1", "b": "2"}, 5)]


def test_a_line_of_jsonl_takes_bounded_memory(tmp_path, monkeypatch):
    monkeypatch.setattr("offbook.data.formats.MAX_ROW_CHARS", 20)
    path = written(tmp_path, "rows.jsonl", '{"a": "1"}\n["' + "x" * 10_000 + '"]\n')
    assert complaint(path) == (
        f"{path}:2: a line of more than 20 characters; put one row on each line"
    )
    assert read(written(tmp_path, "short.jsonl", '{"a": "123456789"}\n')) != []


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
        f"{path}:3: 1 columns, not 2; quote fields with commas",
        f"{path}:4: 3 columns, not 2; quote fields with commas",
    ]


def test_a_csv_quote_that_never_ends_is_refused(tmp_path):
    path = written(tmp_path, "rows.csv", 'a,b\n1,2\n3,"four\n')
    message = complaint(path)
    assert message.startswith(f"{path}:")
    assert message.endswith(": not valid CSV: unexpected end of data")


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
    ("name", "file"), [("lighthouse", "lighthouse.jsonl"), ("teahouse-zh", "teahouse-zh.json")]
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
    assert refusal(source) == f'{source}: no such file; did you mean "huanhuan.json"?'


def test_a_missing_sample_is_refused_with_the_one_that_was_meant(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert refusal("lighthose") == 'lighthose: no such file; did you mean "lighthouse"?'


def test_a_missing_file_unlike_any_other_is_refused_with_the_possible_types(tmp_path):
    source = str(tmp_path / "rows.json")
    assert refusal(source) == (
        f"{source}: no such file; give a file ending in .json, .jsonl, .ndjson, .csv, .parquet, "
        "or one of lighthouse, teahouse-zh"
    )


def test_a_missing_file_in_a_folder_is_not_looked_up_on_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert refusal("dataset/rows.json").startswith("dataset/rows.json: no such file; ")


@pytest.mark.parametrize(
    "source", ["x" * 300 + ".json", "~nobody-of-this-name/rows.json", "a\0b/rows.json", "\udcff"]
)
def test_a_name_that_no_file_can_have_is_a_missing_file(source):
    assert "no such file; " in refusal(source)


def test_a_folder_is_refused(tmp_path):
    assert refusal(str(tmp_path)).startswith(f"{tmp_path}: this is a folder, not a file; ")
