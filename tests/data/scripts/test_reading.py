"""Which kind of script a file is, and what is said where it is none."""

from __future__ import annotations

from pathlib import Path

import pytest

from offbook.data.scripts.reading import Play
from offbook.errors import DataError

SPEECH = "ANNA: Who is there?\n\nBEN: Me.\n\nANNA: Oh.\n"


def kinds(path: Path) -> list[str]:
    return [notice.partition(": ")[2] for notice in Play([str(path)]).notices]


@pytest.mark.parametrize(
    "before", ["[A room. ANNA sits by the window.]\n\n", "{Act one}\n", "[LINE] Chat\n", "{{x}}\n"]
)
def test_a_bracket_does_not_make_a_script_json(tmp_path: Path, before: str) -> None:
    (tmp_path / "a.txt").write_text(before + SPEECH)
    assert kinds(tmp_path / "a.txt") == ["drama text (NAME: speech)"]
    assert [line.speaker for line, _ in Play([str(tmp_path / "a.txt")])] == ["ANNA", "BEN", "ANNA"]


@pytest.mark.parametrize(
    "time", ["[00:01]", "[00:01.00]", "[1:00:01]", "[00:00:01.000 --> 00:00:02.000]"]
)
def test_a_time_before_a_name_is_not_part_of_it(tmp_path: Path, time: str) -> None:
    path = tmp_path / "a.txt"
    path.write_text(f"{time} ANNA: Hi.\n{time}BEN: Hm.\n{time} ANNA: Oh.\n")
    lines = [line for line, _ in Play([str(path)])]
    assert [(line.speaker, line.text) for line in lines] == [
        ("ANNA", "Hi."),
        ("BEN", "Hm."),
        ("ANNA", "Oh."),
    ]


@pytest.mark.parametrize("begin", ['{"messages": [', '[{"a": 1', '\n[\n  {\n "a": 1'])
def test_json_with_another_name_is_json(tmp_path: Path, begin: str) -> None:
    (tmp_path / "a.txt").write_text(begin)
    with pytest.raises(DataError, match="not valid JSON"):
        Play([str(tmp_path / "a.txt")])


@pytest.mark.parametrize("suffix", [".doc", ".rtf"])
def test_a_file_of_a_word_processor_is_named(tmp_path: Path, suffix: str) -> None:
    (tmp_path / f"a{suffix}").write_bytes(b"\xd0\xcf\x11\xe0\0")
    with pytest.raises(DataError, match=rf"a\{suffix}: \{suffix} is not text; convert it: "):
        Play([str(tmp_path / f"a{suffix}")])


def test_files_of_a_folder_that_are_no_scripts_are_left_out_and_named(tmp_path: Path) -> None:
    others = {
        "notes.md": ("to do\n", "notes.md:1: no speakers found"),
        "empty.txt": ("", "empty.txt:1: the file is empty"),
        "package.json": ('{"a": 1}', "package.json: no list of messages"),
        "rows.json": ('[{"a": 1}]', "rows.json: not the messages of a chat that is known"),
        "table.csv": ("a,b\n1,2\n", "table.csv:2: not a WeChat export"),
    }
    for name, (content, _) in others.items():
        (tmp_path / name).write_text(content)
        with pytest.raises(DataError, match="; "):
            Play([str(tmp_path / name)])
    with pytest.raises(DataError, match="the file is empty"):
        Play([str(tmp_path)])  # nothing is left
    (tmp_path / "play.txt").write_text(SPEECH)
    play = Play([str(tmp_path)])
    assert len(list(play)) == 3
    first, *notices = play.notices
    assert first == f"{tmp_path}/play.txt: drama text (NAME: speech)"
    assert sorted(notices) == sorted(f"{tmp_path}/{what}, left out" for _, what in others.values())
    (tmp_path / "chat.json").write_text('{"messages": [')
    with pytest.raises(DataError, match="not valid JSON"):
        Play([str(tmp_path)])  # a script that is broken is not left out


def test_names_in_lower_case_are_refused_with_the_reason(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("anna: hi\nben: hello\nanna: bye\n")
    with pytest.raises(DataError, match="begin names with a capital letter, as in `Anna: Come"):
        Play([str(path)])
    path.write_text("Anna: hi\nBen: hello\nAnna: bye\n")
    assert len(list(Play([str(path)]))) == 3
