"""Every file is read, or refused with its name and a reason; there is never a traceback.

Hypothesis generates the files: a few of each kind in the fast run, some thousands with `-m slow`,
always the same ones.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import sys
from itertools import chain
from operator import itemgetter
from pathlib import Path
from typing import Any
from unicodedata import category

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import strategies as st

from offbook.cli import main
from offbook.data.conversations import read_conversations
from offbook.data.messages import Conversation
from offbook.settings.config import Config, keys
from offbook.tokens.examples import Examples, tokenize
from offbook.tokens.template import ChatTemplate
from support.fuzzing import changed, hold, refusal, tries

DELIMITERS = {"csv": ",", "tsv": "\t"}
SUFFIXES = ("json", "jsonl", "csv", "tsv", "parquet")


# Rows.

# The csv module of Python 3.10 does not accept NUL.
TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=30)
INVISIBLE = ("Cc", "Cf", "Zs", "Zl", "Zp")
SAID = TEXT.filter(lambda text: any(category(char) not in INVISIBLE for char in text))
NAMES = st.sampled_from(
    [
        *("instruction", "input", "output", "system", "history"),
        *("conversations", "from", "value", "messages", "role", "content", "instrution", "id", ""),
        *("weight", "train", "loss_weight", "type", "text", "response"),
        *("user", "human", "assistant", "gpt", "</s>", "<s>", "\0", "\ufeff", "\ud83d", "\u2028"),
    ]
)
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), TEXT, NAMES, st.just(10**4000)
)
VALUES = st.recursive(
    SCALARS, lambda of: st.lists(of, max_size=4) | st.dictionaries(NAMES | TEXT, of, max_size=4)
)


def turns(user: str, assistant: str, role: str, text: str) -> st.SearchStrategy[list[Any]]:
    pair = st.tuples(SAID, SAID).map(
        lambda said: [{role: user, text: said[0]}, {role: assistant, text: said[1]}]
    )
    return st.lists(pair, min_size=1, max_size=3).map(lambda pairs: list(chain(*pairs)))


ALPACA = st.fixed_dictionaries({"instruction": SAID, "input": TEXT, "output": SAID, "system": TEXT})
SHAREGPT = st.fixed_dictionaries({"conversations": turns("human", "gpt", "from", "value")})
MESSAGES = st.fixed_dictionaries({"messages": turns("user", "assistant", "role", "content")})


def rows_of(row: st.SearchStrategy[Any]) -> st.SearchStrategy[list[Any]]:
    return st.lists(row, min_size=1, max_size=5)


def expected(row: dict[str, Any]) -> list[tuple[str, str]]:
    """The turns of a valid row."""
    if "messages" in row:
        return [(turn["role"], turn["content"]) for turn in row["messages"]]
    if "conversations" in row:
        roles = {"human": "user", "gpt": "assistant"}
        return [(roles[turn["from"]], turn["value"]) for turn in row["conversations"]]
    system = [("system", row["system"])] if row["system"] else []
    question = row["instruction"] + ("\n" + row["input"] if row["input"] else "")
    return [*system, ("user", question), ("assistant", row["output"])]


def stored(suffix: str, rows: list[Any], plain: bool = False, end: str = "\n") -> bytes:
    """Rows as the bytes of a file."""
    if suffix == "parquet":
        sink = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(rows), sink)
        return sink.getvalue()
    if suffix in ("csv", "tsv"):
        text = io.StringIO(newline="")
        # With "\n" as the end of a line, Python 3.11's csv leaves a field with "\r" unquoted.
        quoting = csv.QUOTE_ALL if end == "\n" else csv.QUOTE_MINIMAL
        writer = csv.DictWriter(
            text, list(rows[0]), delimiter=DELIMITERS[suffix], lineterminator=end, quoting=quoting
        )
        writer.writeheader()
        writer.writerows(rows)
        return text.getvalue().encode("utf-8", "surrogatepass")
    if suffix == "json":
        written = json.dumps(rows, ensure_ascii=plain, indent=None if plain else 1)
    else:
        written = "".join(json.dumps(row, ensure_ascii=plain) + end for row in rows)
    return written.encode("utf-8", "surrogatepass")


@st.composite
def shaped_rows(draw: st.DrawFn, rows: st.SearchStrategy[list[Any]]) -> bytes:
    """Rows one after another: on lines or not, with commas or not, indented or not."""
    separator = draw(st.sampled_from(["\n", ",\n", ",", "", "\n\n", " ,\r\n"]))
    indent = draw(st.sampled_from([None, 0, 2]))
    written = separator.join(json.dumps(row, indent=indent) for row in draw(rows))
    broken = written.replace("\\n", "\n") if draw(st.booleans()) else written
    return (f"[{broken}]" if draw(st.booleans()) else broken).encode()


@tries(20, 400)
def test_valid_rows_are_read_back_the_same_from_every_file_type(tmp_path, cases):
    rows = rows_of(ALPACA) | rows_of(SHAREGPT) | rows_of(MESSAGES)

    @hold(cases, rows, st.booleans(), st.sampled_from(["\n", "\r\n"]), st.booleans())
    def _(rows, plain, end, mark):
        for suffix in SUFFIXES:
            if suffix in DELIMITERS and "instruction" not in rows[0]:
                continue  # CSV has no lists
            path = tmp_path / f"rows.{suffix}"
            data = stored(suffix, rows, plain, end)
            path.write_bytes((b"\xef\xbb\xbf" if mark and suffix != "parquet" else b"") + data)
            read = [
                [(m.role, m.content) for m in c.messages] for c in read_conversations(str(path))
            ]
            assert read == [expected(row) for row in rows], suffix


# Files with faults.

PIECES = st.sampled_from(
    [
        *(b"[", b"]", b"{", b"}", b",", b":", b'"', b"'", b"\n", b"\r", b"\t", b"\\", b"\0"),
        *(b"\xef\xbb\xbf", b"\\ud83d", b"\\u0000", b"\xe2\x80\xa8", b"\xed\xa0\x80", b"PAR1"),
        *(b"NaN", b"-Infinity", b"1e999", b"9" * 5000, b"null", b"true", b"[" * 2000),
        *(b'{"messages":', b'"role"', b'"content"', b'"instruction"', b'"output"', b'""'),
        *(b"instruction,output\n", b"a" * 140_000, b'{"a":' * 2000, b"0", b" "),
    ]
)
SCRAPS = PIECES | PIECES | TEXT.map(str.encode) | st.binary(max_size=4)


def mostly_utf_8(data: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    """Mostly valid UTF-8: otherwise half of the changed files would fail for a split character."""
    whole = data.map(lambda data: data.decode(errors="ignore").encode())
    return whole | whole | whole | data


def text_files(suffix: str) -> st.SearchStrategy[bytes]:
    """Files of any content, most of them nearly valid."""
    near = st.one_of(
        rows_of(ALPACA | SHAREGPT | MESSAGES | VALUES),
        rows_of(st.dictionaries(NAMES, VALUES, max_size=5)),
    )
    if suffix in DELIMITERS:
        near = rows_of(st.fixed_dictionaries({"instruction": SCALARS, "output": SCALARS}))
    nearly = st.builds(stored, st.just(suffix), near, st.booleans(), st.sampled_from("\n\r"))
    soup = st.lists(SCRAPS, max_size=12).map(b"".join)
    valid = st.builds(stored, st.just(suffix), rows_of(ALPACA))
    if suffix in DELIMITERS:
        nearly |= st.builds(stored, st.sampled_from(list(DELIMITERS)), near)
    else:
        nearly |= shaped_rows(rows_of(ALPACA | MESSAGES | VALUES))
    codes = st.sampled_from(["utf-16", "utf-16-le", "utf-32", "gb18030", "utf-8-sig", "utf-7"])
    coded = st.builds(lambda data, code: data.decode().encode(code), valid, codes)
    return mostly_utf_8(
        st.one_of(nearly, changed(valid, SCRAPS), changed(nearly, SCRAPS), soup, coded, st.binary())
    )


FIELDS = NAMES.filter(str.isprintable)
FLAT = st.sampled_from(
    [
        *(pa.string(), pa.large_string(), pa.binary(), pa.int8(), pa.uint64(), pa.float32()),
        *(pa.bool_(), pa.null(), pa.date32(), pa.date64(), pa.time64("ns"), pa.duration("s")),
        *(pa.timestamp("ns"), pa.timestamp("us", "Nowhere/Town"), pa.decimal128(38, 2)),
        pa.dictionary(pa.int8(), pa.string()),
    ]
)
STRUCTS = st.lists(st.tuples(FIELDS, FLAT), min_size=1, max_size=3).map(pa.struct)
TYPES = FLAT | FLAT | FLAT | FLAT.map(pa.list_) | STRUCTS | STRUCTS.map(pa.list_)


@st.composite
def tables(draw: st.DrawFn) -> bytes:
    """A Parquet file with columns of any type and any bytes."""
    some = st.lists(st.tuples(FIELDS, TYPES), min_size=1, max_size=4, unique_by=itemgetter(0))
    columns = draw(some)
    count, arrays = draw(st.integers(1, 3)), []
    for _, kind in columns:
        values = draw(st.lists(TEXT, min_size=count, max_size=count))
        arrays.append(column(kind, values, draw(st.binary(min_size=64, max_size=64))))
    sink = io.BytesIO()
    try:
        pq.write_table(pa.Table.from_arrays(arrays, [name for name, _ in columns]), sink)
    except (pa.ArrowException, UnicodeError):
        return b"PAR1"  # such a file cannot be written
    return sink.getvalue()


def column(kind: pa.DataType, texts: list[str], raw: bytes) -> pa.Array:
    if pa.types.is_string(kind):
        return pa.array(texts, kind)
    if pa.types.is_primitive(kind) and kind.bit_width >= 8:
        return pa.Array.from_buffers(kind, len(texts), [None, pa.py_buffer(raw)])
    return pa.nulls(len(texts), kind)


def files(suffix: str) -> st.SearchStrategy[bytes]:
    if suffix != "parquet":
        return text_files(suffix)
    valid = st.builds(stored, st.just(suffix), rows_of(ALPACA) | rows_of(MESSAGES))
    return st.one_of(tables(), changed(valid, SCRAPS), changed(tables(), SCRAPS))


def rows_in(path: Path) -> int:
    """The number of rows of a file that is read, counted in another way."""
    if path.suffix == ".parquet":
        return pq.read_metadata(path).num_rows
    data = path.read_bytes()
    marked = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    text = data.decode(json.detect_encoding(data) if marked else "utf-8-sig")
    if path.suffix in (".csv", ".tsv"):
        delimiters = [DELIMITERS[path.suffix[1:]], *",;\t"]
        header = next(line for line in text.splitlines() if line)
        used = next(delimiter for delimiter in delimiters if delimiter in header)
        return sum(map(bool, csv.reader(io.StringIO(text, newline=""), delimiter=used))) - 1
    whole = text.strip().strip(",") if text.lstrip().startswith("[") else f"[{separated(text)}]"
    values = json.loads(whole, strict=False)
    if len(values) == 1 and isinstance(values[0].get("output"), dict):
        return len(values[0]["output"])  # columns
    return len(values)


def separated(text: str) -> str:
    """JSON values one after another, with a comma between each two."""
    decoder, values, rest = json.JSONDecoder(strict=False), [], text.lstrip(" \t\r\n,")
    while rest:
        _, end = decoder.raw_decode(rest)
        values.append(rest[:end])
        rest = rest[end:].lstrip(" \t\r\n,")
    return ",".join(values)


@pytest.mark.parametrize("suffix", SUFFIXES)
@tries(100, 800)
def test_a_data_file_is_read_or_refused_by_name(tmp_path, template: ChatTemplate, suffix, cases):
    path = tmp_path / f"rows.{suffix}"

    @hold(cases, files(suffix))
    def _(data):
        path.write_bytes(data)
        rows: list[Conversation] = []
        read: list[Examples] = []

        def work() -> None:
            rows.extend(read_conversations(str(path)))
            read.append(tokenize(rows, template, 64))

        refused = refusal(work)
        if refused is None:
            assert len(rows) == rows_in(path)
            # Every reply is trained on once, or named.
            replies = sum(len(row.replies) for row in rows)
            assert read[0].replies + len(read[0].dropped) == replies
        else:
            assert refused.startswith(str(path))
        assert path.read_bytes() == data


@pytest.mark.parametrize("suffix", SUFFIXES)
@tries(3, 50)
def test_check_ends_with_a_result_or_a_reason(
    tmp_path, tiny_base: Path, monkeypatch, capsys, suffix, cases
):
    path = tmp_path / f"rows.{suffix}"
    monkeypatch.setattr(sys, "argv", ["offbook", "check", str(path), "--model", str(tiny_base)])

    @hold(cases, files(suffix))
    def _(data):
        path.write_bytes(data)
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = stop.code
        message = capsys.readouterr().err
        assert code in (0, 2, 3)
        assert code == 0 or f"error: {path}" in message


# Settings.

WORDS = st.sampled_from(
    [
        *(*keys(), "model", "data", "lora", "train", "seed", "r", "validation", "target_modules"),
        *("null", "~", "yes", "off", "0", "0.1", "010", "1:30", "0x1F", "0b_", "1e-4", ".inf"),
        *("2024-05-01", "2024-99-99", "2001-01-01T25:00:00+99:99", "9" * 5000, "0x" + "f" * 5000),
        *("&a", "*a", "<<", "!!int", "!!timestamp", "!!binary", "!!python/object:os.system", "!x"),
        *("- ", "? ", ": ", "\n", "\n  ", "\t", "{", "}", "[", "]", ",", "#", "|", ">", "'", '"'),
        *("---", "...", "%YAML 9.9\n", '"\\ud83d"', '"\\0"', "~nobody/x", "a" * 300, "[" * 2000),
        *("\0", "\ufeff", "\u2028", "\x85", "\ud83d", "🙂", "=", "."),
    ]
)
PLAIN = st.recursive(SCALARS, lambda of: st.lists(of, max_size=3) | st.dictionaries(TEXT, of))


def yaml_of(values: object) -> bytes:
    return yaml.safe_dump(values, allow_unicode=True).encode("utf-8", "surrogatepass")


@st.composite
def setting_files(draw: st.DrawFn) -> bytes:
    """Configuration files of any content, most of them nearly valid."""
    valid = Config().to_yaml().encode()
    soup = st.lists(WORDS, max_size=12).map(lambda w: " ".join(w).encode("utf-8", "surrogatepass"))
    scraps = soup | SCRAPS
    if draw(st.booleans()):
        at = draw(st.integers(0, len(valid)))
        return valid[:at] + draw(scraps) + valid[at + draw(st.integers(0, 20)) :]
    if draw(st.booleans()):
        lines = Config().to_yaml().splitlines(keepends=True)
        number = draw(st.integers(0, len(lines) - 1))
        key, words = lines[number].partition(":")[0], draw(WORDS | st.lists(WORDS).map(" ".join))
        lines[number] = f"{key}: {words}\n"
        return "".join(lines).encode("utf-8", "surrogatepass")
    if draw(st.booleans()):
        values = Config().model_dump(mode="json")
        section = draw(st.sampled_from(["model", "data", "lora", "train"]))
        values[section][draw(st.sampled_from(list(values[section])))] = draw(PLAIN)
        return yaml_of(values)
    nearly = changed(st.just(valid), SCRAPS)
    return draw(st.one_of(soup, st.builds(yaml_of, PLAIN), nearly, st.binary()))


def loads_or_refuses(tmp_path: Path, path: Path | None, overrides: list[str]) -> None:
    def load() -> None:
        config = Config.load(path, overrides)
        assert_read_back(tmp_path, config)
        config.with_absolute_paths()

    refused = refusal(load)
    assert refused is None or refused.startswith((str(path), "command line"))


def assert_read_back(tmp_path: Path, config: Config) -> None:
    copy = tmp_path / "copy.yaml"
    copy.write_text(config.to_yaml(), encoding="utf-8")
    assert Config.load(copy) == config


@tries(100, 600)
def test_a_configuration_is_loaded_or_refused_by_name(tmp_path, cases):
    path = tmp_path / "role.yaml"

    @hold(cases, mostly_utf_8(setting_files()))
    def _(data):
        path.write_bytes(data)
        loads_or_refuses(tmp_path, path, [])
        assert path.read_bytes() == data


@tries(100, 400)
def test_an_override_is_applied_or_refused(tmp_path, cases):
    name = st.sampled_from(list(keys())) | st.lists(WORDS | TEXT, max_size=3).map(".".join)
    value = WORDS | st.lists(WORDS, max_size=4).map(" ".join) | TEXT
    override = st.builds("{}={}".format, name, value) | TEXT

    @hold(cases, st.lists(override, max_size=3))
    def _(overrides):
        loads_or_refuses(tmp_path, None, overrides)


@tries(100, 200)
def test_settings_are_read_back_from_their_yaml(tmp_path, cases):
    text = TEXT | NAMES.filter(lambda name: name != "\ud83d")
    valid = st.fixed_dictionaries(
        {
            "model": st.fixed_dictionaries({"base": text | NAMES, "revision": text}),
            "data": st.fixed_dictionaries(
                {
                    "train": text | NAMES,
                    "validation": st.floats(0, 0.5) | text.map("./{}".format),
                    "system": st.none() | text,
                    "input_separator": text,
                    "ignore_keys": st.lists(text),
                }
            ),
            "lora": st.fixed_dictionaries(
                {
                    "lora_alpha": st.floats(0, 1e9, exclude_min=True),
                    "target_modules": text | st.lists(text),
                }
            ),
            "train": st.fixed_dictionaries(
                {
                    "learning_rate": st.floats(0, 1, exclude_min=True),
                    "max_steps": st.none() | st.integers(1),
                    "seed": st.integers(0, 2**32 - 1),
                    "gradient_checkpointing": st.sampled_from([True, False, "auto"]),
                }
            ),
            "output_dir": text,
        }
    )

    @hold(cases, valid.map(Config.model_validate))
    def _(config):
        assert_read_back(tmp_path, config)
