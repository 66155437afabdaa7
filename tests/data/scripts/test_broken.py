"""Generated scripts of each kind become rows, or are refused with a place; never a traceback."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
from hypothesis import strategies as st

import offbook
from offbook.data.conversations import ConversationReader
from offbook.data.personal import Replacer
from offbook.data.scripts.reading import Play
from offbook.data.scripts.rows import Cast, Made
from offbook.settings.sections import DataSettings
from support.fuzzing import changed, hold, refusal, tries

SAMPLES = Path(__file__).with_name("samples")
FERRY = Path(offbook.__file__).with_name("samples") / "ferry.fountain"
KINDS = [
    FERRY,
    *sorted(path for path in SAMPLES.iterdir() if path.is_file()),
    SAMPLES / "slack" / "general" / "2024-01-05.json",
]

PIECES = (
    'ANNA: §安娜：§\n§\n\n§\r\n§\r§(§)§（§）§[§]§"§“§”§「§INT. §@§/*§*/§[[§]]§=§> §said§说：§'
    "WEBVTT§-->§00:00:01,000 --> 00:00:02,000§<v Anna>§</v>§{\\p1}§Dialogue: §[Events]§"
    "1/5/24, 3:20 PM - §[05.01.24, 15:20:12] §2024/1/5 下午3:20 - §\u200e§\u202f§Nora: §<§>§"
    '<div class="text">§</div>§<!--§<![§&#x110000;§&amp;§{§}§,§:§null§true§1e999§[[[[§'
    '{"messages": [§"type": "message"§"text": §"from": §"ts": "1.2"§'
    '"author": {}§"msg": §\0§\ufeff§\ud83d§第一场§Chapter 2§***§13800138000§a@b.co'
)
SCRAPS = st.one_of(
    st.sampled_from([*re.split("§", PIECES), "9" * 50, " " * 200, "a" * 3000]).map(
        lambda text: text.encode("utf-8", "surrogatepass")
    ),
    st.text(max_size=8).map(lambda text: text.encode("utf-8", "surrogatepass")),
    st.binary(max_size=4),
)


@tries(15, 2000 if os.environ.get("OFFBOOK_TEST_FULL") else 100)
@pytest.mark.parametrize("kind", KINDS, ids=lambda path: path.name)
def test_a_broken_script_becomes_rows_or_is_refused_with_a_place(
    tmp_path: Path, kind: Path, cases: int
) -> None:
    path, rows = tmp_path / kind.name, tmp_path / "rows.jsonl"

    def read() -> None:
        play = Play([str(path)])
        cast = Cast(line for line, _ in play)
        lines = path.read_bytes().count(b"\n") + path.read_bytes().count(b"\r") + 1
        for name in list(cast.lines)[:3]:
            made = list(Made(Replacer()).of(play, [name]))
            for row in made:
                file, _, number = row["source"].rpartition(":")
                assert file == str(path)
                assert 1 <= int(number) <= lines
            written = "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in made)
            rows.write_text(written, encoding="utf-8")
            if made:
                read_back = list(ConversationReader([rows], DataSettings()))
                assert [one.source for one in read_back] == [row["source"] for row in made]

    @hold(cases, st.one_of(changed(st.just(kind.read_bytes()), SCRAPS), st.binary(max_size=200)))
    def _(content: bytes) -> None:
        path.write_bytes(content)
        error = refusal(read)
        assert error is None or re.match(rf"{re.escape(str(path))}(?::\d+)?: ", error), error
