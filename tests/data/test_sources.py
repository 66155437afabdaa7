"""Rows that come from several places, in several formats, packed or not, and how often."""

from __future__ import annotations

import gzip
import json
import zipfile
from pathlib import Path

import openpyxl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from offbook.data.conversations import read_conversations
from offbook.data.sources import read_training
from offbook.errors import ConfigError, DataError
from offbook.settings.config import Config
from offbook.settings.sections import DataSettings

ROWS = [{"instruction": f"Question {k}", "output": f"Answer {k}"} for k in range(4)]
JSONL = "".join(json.dumps(row) + "\n" for row in ROWS)
TURNS = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]
MESSAGES = json.dumps({"messages": TURNS}) + "\n"


def replies(source: str | list[object]) -> list[str]:
    config = Config.load(None, [f"data.train={json.dumps(source)}"])
    return [conversation.messages[-1].content for conversation in read_training(config.data)]


def places(path: Path) -> list[str]:
    return [c.source.removeprefix(f"{path.parent}/") for c in read_conversations(str(path))]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "rows"
    (folder / "more").mkdir(parents=True)
    (folder / "b.jsonl").write_text(JSONL)
    (folder / "a.jsonl").write_text(MESSAGES)
    (folder / "more" / "c.csv").write_text("instruction,output\nQ,C\n")
    (folder / "notes.txt").write_text("no rows")
    (folder / ".hidden.jsonl").write_text("no rows")
    (folder / ".ipynb_checkpoints" / "old").mkdir(parents=True)
    (folder / ".ipynb_checkpoints" / "b-checkpoint.jsonl").write_text(JSONL)
    (folder / ".ipynb_checkpoints" / "old" / "b.jsonl").write_text(JSONL)
    return folder


def test_a_folder_and_a_pattern_are_all_their_files(folder: Path) -> None:
    answers = [row["output"] for row in ROWS]
    assert replies(str(folder)) == ["A", *answers, "C"]
    assert replies(f"{folder}/*.jsonl") == ["A", *answers]
    assert replies(f"{folder}/**/*.csv") == ["C"]
    described = read_conversations(str(folder)).describe()
    assert "a.jsonl: OpenAI rows" in described
    assert "b.jsonl, " in described


def test_a_list_says_how_often_each_is_read(folder: Path) -> None:
    one, two = str(folder / "a.jsonl"), str(folder / "b.jsonl")
    answers = [row["output"] for row in ROWS]
    assert replies([one, two]) == ["A", *answers]
    assert replies([{"data": one, "repeat": 3}, two]) == ["A", "A", "A", *answers]
    assert replies([{"data": two, "repeat": 0.5}]) == ["Answer 1", "Answer 3"]
    assert replies([{"data": two, "repeat": 1.5}]) == [answers[k] for k in (0, 1, 1, 2, 3, 3)]
    config = Config.load(None, [f"data.train=[{{data: {one}, repeat: 2}}, general-en]"])
    assert config.data.name == "a.jsonl x 2 + general-en"
    assert Config.load(None, []).data.name == "lighthouse"


def test_settings_with_a_list_are_read_back(tmp_path: Path, folder: Path) -> None:
    config = Config.load(None, [f"data.train=[{folder}/a.jsonl, {{data: general-en, repeat: 2}}]"])
    path = tmp_path / "role.yaml"
    path.write_text(config.to_yaml())
    assert Config.load(path) == config
    for wrong in ("[]", "[{file: a.jsonl}]", "[{data: a.jsonl, repeat: 0}]", "3"):
        with pytest.raises(ConfigError, match=r"data\.train"):
            Config.load(None, [f"data.train={wrong}"])


def test_paths_in_a_list_become_absolute(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.chdir(folder.parent)
    config = Config.load(None, ["data.train=[rows/a.jsonl, rows/*.csv, rows/**/*.csv, general-en]"])
    found = [source.data for source in config.with_absolute_paths().data.sources.values()]
    whole = folder.parent.resolve()
    assert found == [f"{whole}/rows/a.jsonl", "rows/*.csv", f"{whole}/rows/**/*.csv", "general-en"]


def test_packed_files_are_read_with_their_places(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(JSONL.encode()))
    with pa.CompressedOutputStream(str(tmp_path / "b.csv.zst"), "zstd") as file:
        file.write(b'instruction;output\nQ;"A\nA"\nQ;B\n')
    with zipfile.ZipFile(tmp_path / "c.zip", "w") as archive:
        archive.writestr("rows/one.jsonl", JSONL)
        archive.writestr("two.tsv", "instruction\toutput\nQ\tA\n")
        archive.writestr("__MACOSX/rows/._one.jsonl", "no rows")
        archive.writestr("README.md", "no rows")
    assert places(tmp_path / "a.jsonl.gz") == [f"a.jsonl.gz:{k}" for k in (1, 2, 3, 4)]
    assert places(tmp_path / "b.csv.zst") == ["b.csv.zst:2", "b.csv.zst:4"]
    found = [f"c.zip/rows/one.jsonl:{k}" for k in (1, 2, 3, 4)]
    assert places(tmp_path / "c.zip") == [*found, "c.zip/two.tsv:2"]


def test_the_first_sheet_of_a_workbook(tmp_path: Path) -> None:
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    for row in (
        ("instruction", "output", None),
        ("Q", 5, None),
        (None, None, None),
        ("R", "B", ""),
    ):
        book.active.append(row)
    book.save(tmp_path / "a.xlsx")
    read = list(read_conversations(str(tmp_path / "a.xlsx")))
    assert [c.messages[1].content for c in read] == ["5", "B"]
    assert [c.source.rpartition(":")[2] for c in read] == ["2", "4"]


def test_cells_without_a_heading_are_named_and_skipped_as_advised(tmp_path: Path) -> None:
    openpyxl = pytest.importorskip("openpyxl")
    book, path = openpyxl.Workbook(), tmp_path / "a.xlsx"
    for row in [(None, "instruction", "output"), (0, "Q", "A"), (1, "R", "B"), (2, "S", "C", "D")]:
        book.active.append(row)
    book.save(path)
    with pytest.raises(DataError) as refused:
        list(read_conversations(str(path)))
    assert str(refused.value) == (
        f'{path}:2: unknown keys "column A", "column D" (from {path}:4) in 3 rows; skip them with '
        "'data.ignore_keys=[column A, column D]'"
    )
    settings = DataSettings(ignore_keys=("column A", "column D"))
    read = [[m.content for m in c.messages] for c in read_conversations(str(path), settings)]
    assert read == [["Q", "A"], ["R", "B"], ["S", "C"]]


@pytest.mark.parametrize(
    ("name", "content", "error"),
    [
        ("a.jsonl.gz", b"no gzip", "a.jsonl.gz: it is not packed; rename it to a.jsonl"),
        ("a.jsonl.gz", gzip.compress(JSONL.encode())[:-9], "a.jsonl.gz: it cannot be unpacked"),
        ("a.jsonl.gz", gzip.compress(b'{"a": \n'), "a.jsonl.gz:2: not valid JSON"),
        ("a.csv.gz", gzip.compress(b"instruction\xff"), "a.csv.gz:1: not UTF-8 text"),
        ("a.jsonl.zst", b"\x28\xb5\x2f\xfd no", "a.jsonl.zst: cannot be read"),
        ("a.zip", b"PK no zip", "a.zip: it cannot be unpacked"),
        ("a.xlsx", b"no workbook", "a.xlsx: not valid XLSX"),
        ("a.parquet.gz", gzip.compress(b"PAR1"), "a.parquet.gz: .parquet is packed already"),
    ],
    # The time is in what gzip packs: without a name, each worker would name the test otherwise.
    ids=["gzip", "cut", "rows", "text", "zstd", "zip", "workbook", "packed"],
)
def test_broken_packed_files_are_named(
    tmp_path: Path, name: str, content: bytes, error: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as refused:
        list(read_conversations(str(tmp_path / name)))
    assert str(refused.value).startswith(f"{tmp_path}/{error}")


@pytest.mark.parametrize(
    ("name", "right", "content"),
    [
        ("a.jsonl", "a.jsonl.gz", gzip.compress(JSONL.encode())),
        ("a.jsonl.gz", "a.jsonl", JSONL.encode()),
        ("a.json", "a.parquet", None),
    ],
    ids=["gzip", "text", "parquet"],
)
def test_a_misnamed_file_is_renamed_as_advised(
    tmp_path: Path, name: str, right: str, content: bytes | None
) -> None:
    if content is None:
        pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / name)
    else:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as refused:
        read_conversations(str(tmp_path / name))
    assert refused.value.fix == f"rename it to {right}"
    (tmp_path / name).rename(tmp_path / right)
    assert len(list(read_conversations(str(tmp_path / right)))) == len(ROWS)


def test_an_old_workbook_is_saved_as_advised(tmp_path: Path) -> None:
    (tmp_path / "a.xlsx").write_bytes(b"\xd0\xcf\x11\xe0 and so on")
    with pytest.raises(DataError, match=r"an old Office file.* save it as \.xlsx"):
        read_conversations(str(tmp_path / "a.xlsx"))
    book = openpyxl.Workbook()
    book.active.append(["instruction", "output"])
    book.active.append(["Q", "A"])
    book.save(tmp_path / "a.xlsx")
    assert len(list(read_conversations(str(tmp_path / "a.xlsx")))) == 1


def test_other_sheets_are_told(tmp_path: Path) -> None:
    book = openpyxl.Workbook()
    book.active.title = "Notes"
    book.active.append(["what Anna says"])
    for name, line in (("Anna", "A"), ("Bob", "B")):
        sheet = book.create_sheet(name)
        sheet.append(["instruction", "output"])
        sheet.append(["Q", line])
    book.save(tmp_path / "a.xlsx")
    reader = read_conversations(str(tmp_path / "a.xlsx"))
    assert [c.messages[1].content for c in reader] == ["A"]
    (said,) = reader.notices()
    assert said.endswith('a.xlsx: only the sheet "Anna" is read, not "Notes", "Bob"')


def test_files_in_an_archive_that_are_not_read_are_told(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "c.zip", "w") as archive:
        archive.writestr("a.jsonl", JSONL)
        archive.writestr("b.jsonl.gz", gzip.compress(JSONL.encode()))
    reader = read_conversations(str(tmp_path / "c.zip"))
    assert len(list(reader)) == len(ROWS)
    (said,) = reader.notices()
    assert said.endswith("1 of its files end in something else, and are not read: b.jsonl.gz")


@pytest.mark.parametrize(
    ("text", "row"),
    [
        ('instruction,output\nQ, "A, B"\n', {"instruction": "Q", "output": "A, B"}),
        ('instruction,output\nQ,"say, ""A"""\n', {"instruction": "Q", "output": 'say, "A"'}),
        ("instruction|output\nQ, R|A\n", {"instruction": "Q, R", "output": "A"}),
        ("instruction,output,,\nQ,A,,\n", {"instruction": "Q", "output": "A"}),
    ],
    ids=["space", "quoted", "bars", "blank headings"],
)
def test_other_ways_to_write_csv(tmp_path: Path, text: str, row: dict[str, str]) -> None:
    (tmp_path / "a.csv").write_text(text)
    (found,) = read_conversations(str(tmp_path / "a.csv"))
    assert [m.content for m in found.messages] == list(row.values())


def test_a_cell_under_no_heading_is_not_lost(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("instruction,output,,\nQ,A,,B\n")
    with pytest.raises(DataError, match='unknown key "column D"'):
        list(read_conversations(str(tmp_path / "a.csv")))


def test_what_has_no_rows_is_read_as_advised(tmp_path: Path) -> None:
    (tmp_path / "rows").mkdir()
    with zipfile.ZipFile(tmp_path / "c.zip", "w") as archive:
        archive.writestr("README.md", "no rows")
    for source, advice in (
        ("rows", "put files ending in .json, "),
        ("c.zip", "put files ending in .json, "),
        ("rows/*.jsonl", "give a pattern of files ending in .json, "),
    ):
        with pytest.raises(DataError, match=advice):
            read_conversations(f"{tmp_path}/{source}")
    (tmp_path / "rows" / "a.jsonl").write_text(JSONL)
    with zipfile.ZipFile(tmp_path / "c.zip", "a") as archive:
        archive.writestr("a.jsonl", JSONL)
    with gzip.open(tmp_path / "a.parquet.gz", "w") as file:
        pq.write_table(pa.Table.from_pylist(ROWS), file)
    with pytest.raises(DataError, match="packed already; unpack it"):
        read_conversations(f"{tmp_path}/a.parquet.gz")
    packed = (tmp_path / "a.parquet.gz").read_bytes()
    (tmp_path / "a.parquet").write_bytes(gzip.decompress(packed))
    assert len(list(read_conversations(f"{tmp_path}/a.parquet"))) == 4
    for source in ("rows", "c.zip", "rows/*.jsonl"):
        assert len(list(read_conversations(f"{tmp_path}/{source}"))) == 4


# Other names of keys.


@pytest.mark.parametrize("question", ["prompt", "question", "query"])
@pytest.mark.parametrize("answer", ["completion", "answer", "response"])
def test_common_names_are_read_and_told(tmp_path: Path, question: str, answer: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({question: "Q", answer: "A", "system": "S"}) + "\n")
    reader = read_conversations(str(path))
    assert [[m.content for m in c.messages] for c in reader] == [["S", "Q", "A"]]
    told = f'{path}:1: "{question}" is read as the instruction, "{answer}" as the output'
    assert reader.notices() == [told]


def test_prompts_and_completions_of_messages_are_one_conversation(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"prompt": TURNS[:1], "completion": TURNS[1:]}) + "\n")
    assert [[m.content for m in c.messages] for c in read_conversations(str(path))] == [["Q", "A"]]


def test_columns_of_any_name(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("q,a,output\nQ,A,other\n")
    config = Config.load(None, [f"data.train={path}", "data.columns={instruction: q, output: a}"])
    assert [[m.content for m in c.messages] for c in read_training(config.data)] == [["Q", "A"]]
    config = config.override("data.columns={instruction: qq, output: a}")
    with pytest.raises(DataError, match=r'a\.csv:2: no column "qq"; did you mean "q"'):
        read_training(config.data)
    config = config.override("data.columns={instruction: q, output: zzzz}")
    with pytest.raises(DataError, match=r'no column "zzzz"; correct data\.columns'):
        read_training(config.data)
    for wrong in ("{question: q}", "{instruction: q, output: q}"):
        with pytest.raises(ConfigError, match=r"data\.columns"):
            Config.load(None, [f"data.columns={wrong}"])


def test_a_column_may_be_called_text(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("q,text\nQ,A\n")
    columns = "data.columns={instruction: q, output: text}"
    config = Config.load(None, [f"data.train={path}", columns])
    assert [[m.content for m in c.messages] for c in read_training(config.data)] == [["Q", "A"]]


def test_columns_are_for_all_files_but_samples(tmp_path: Path) -> None:
    mine, other = tmp_path / "a.csv", tmp_path / "b.csv"
    mine.write_text("q,a\nQ,A\n")
    other.write_text("question,answer\nQ,A\n")
    columns = "data.columns={instruction: q, output: a}"
    config = Config.load(None, [f"data.train=[{mine}, general]", columns])
    mixed = list(read_training(config.data))
    assert [m.content for m in mixed[0].messages] == ["Q", "A"]
    assert len(mixed) == 1 + len(list(read_conversations("general", config.data)))
    with pytest.raises(DataError, match=r'no column "q"; correct data\.columns, or name the col'):
        read_conversations(str(other), config.data)
    other.write_text("q,a\nQ,A\n")
    assert len(list(read_conversations(str(other), config.data))) == 1


@pytest.mark.parametrize(
    ("row", "what"),
    [
        ({"prompt": "Q", "chosen": "A", "rejected": "B"}, "pairs of a preferred and another reply"),
        ({"prompt": "Q", "completion": "A", "label": True}, "tells good replies from bad ones"),
        ({"text": "Once upon a time"}, 'plain text ("text")'),
        ({"messages": TURNS, "tools": [{"name": "f"}]}, "tools that a model may call"),
    ],
)
def test_rows_for_other_trainings_are_named(
    tmp_path: Path, row: dict[str, object], what: str
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(row) + "\n")
    with pytest.raises(DataError) as refused:
        list(read_conversations(str(path)))
    assert what in str(refused.value)


def test_rows_with_tools_are_read_as_advised(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"messages": TURNS, "tools": [{"name": "f"}]}) + "\n")
    with pytest.raises(DataError, match=r"the replies alone, set .data\.ignore_keys=\[tools\]"):
        list(read_conversations(str(path)))
    config = Config.load(None, [f"data.train={path}", "data.ignore_keys=[tools]"])
    assert len(list(read_training(config.data))) == 1
