"""Rows of a role: what comes before a reply, who is named, and how rows are read back."""

from __future__ import annotations

import json
from pathlib import Path

from offbook.data.conversations import read_conversations
from offbook.data.messages import Message
from offbook.data.personal import Replacer
from offbook.data.scripts.reading import Play
from offbook.data.scripts.rows import Made
from offbook.settings.sections import DataSettings
from offbook.tokens.examples import tokenize

PLAY = """\
Scene 1

ANNA: First.
BEN: One.
CARL: Two.
ANNA: Three.
ANNA (sitting): Four.
BEN: Five.
ANNA: Six.

Scene 2

BEN: Seven.
ANNA: Eight.
"""


def made(tmp_path: Path, text: str, *role: str, context: int = 6, keep: bool = True):
    path = tmp_path / "play.txt"
    path.write_text(text, encoding="utf-8")
    makes = Made(None if keep else Replacer())
    return list(makes.of(Play([str(path)]), role, context)), makes


def turns(row) -> list[str]:
    """Each message as `u: text` or `a: text`, with `-` where it is not trained on."""
    return [
        f"{m['role'][0]}{'-' * (m.get('weight') == 0)}: {m['content']}" for m in row["messages"]
    ]


def test_the_scene_before_is_the_conversation(tmp_path: Path) -> None:
    rows, makes = made(tmp_path, PLAY, "anna")
    assert [turns(row) for row in rows] == [
        ["u: BEN: One.\nCARL: Two.", "a: Three. Four."],
        ["u: BEN: One.\nCARL: Two.", "a-: Three. Four.", "u: BEN: Five.", "a: Six."],
        ["u: Seven.", "a: Eight."],  # one other speaker has no name, and scenes are apart
    ]
    assert [row["source"].rpartition(":")[2] for row in rows] == ["6", "9", "14"]
    assert [place.rpartition(":")[2] for place in makes.unprompted] == ["3"]


def test_context_is_a_number_of_turns(tmp_path: Path) -> None:
    rows, _ = made(tmp_path, PLAY, "ANNA", context=1)
    assert [turns(row) for row in rows] == [
        ["u: Two.", "a: Three. Four."],
        ["u: Five.", "a: Six."],
        ["u: Seven.", "a: Eight."],
    ]


def test_all_names_of_a_role_are_one_speaker(tmp_path: Path) -> None:
    rows, _ = made(tmp_path, PLAY.replace("ANNA (sitting)", "MISS A"), "ANNA", "Miss A")
    assert turns(rows[0])[-1] == "a: Three. Four."


def test_personal_data_is_replaced_alike_everywhere(tmp_path: Path) -> None:
    text = (
        "1/5/24, 3:20 PM - Nora: I am nora@example.com\n"
        "1/5/24, 3:21 PM - +1 212-555-0123: And I am 212-555-0199\n"
        "1/5/24, 3:22 PM - Jem: Not NORA@example.com?\n"
    )
    rows, makes = made(tmp_path, text, "Jem", keep=False)
    assert turns(rows[0]) == [
        "u: Nora: I am [mail 1]\n[phone 2]: And I am [phone 1]",
        "a: Not [mail 1]?",
    ]
    assert makes.notices() == ["personal data replaced (2 mail, 2 phone); --keep-personal keeps it"]
    kept, _ = made(tmp_path, text, "Jem", keep=True)
    assert "nora@example.com" in turns(kept[0])[0]


def test_errors_and_examples_point_to_the_script(tmp_path: Path, template) -> None:
    rows, _ = made(tmp_path, PLAY, "ANNA")
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = list(read_conversations(str(path)))
    assert [c.source for c in found] == [row["source"] for row in rows]
    assert found[1].replies == (3,)
    assert found[2].messages == (Message("user", "Seven."), Message("assistant", "Eight."))
    assert list(tokenize(found, template).sources) == [row["source"] for row in rows]


def test_a_source_that_is_no_place_is_a_column_like_others(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    row = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    path.write_text(json.dumps({**row, "source": "oasst1"}))
    (found,) = read_conversations(str(path), DataSettings(ignore_keys=("source",)))
    assert found.source == f"{path}:1"
