"""The encoding of a script of a few lines, and what is said where it may be another."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from offbook.data.remarks import Remarks
from offbook.data.scripts.reading import Play
from offbook.data.scripts.script import Script
from offbook.errors import DataError

CHINESE = "安娜：你好。\n鲍勃：你好。\n安娜：走吧。\n鲍勃：好。\n"
BILINGUAL = "".join(
    f"{k}\n00:00:0{k},000 --> 00:00:0{k},900\n{cue}\n\n"
    for k, cue in enumerate(("安娜：你好\nANNA: Hello", "鲍勃：好\nBOB: Hi", "安娜：走\nANNA: Go"))
)
TAIWANESE = "安娜：你好。\n鮑勃：你吃飯了嗎？\n安娜：還沒有，等你呢。\n鮑勃：走吧。\n"
KOREAN = "안나: 오늘 날씨가 좋네요.\n밥: 네, 그렇습니다.\n안나: 갑시다.\n"
JAPANESE = "花子：こんにちは。\n太郎：はい、元気です。\n花子：行きましょう。\n"
RUSSIAN = "Анна: Привет, как дела?\nБорис: Хорошо.\nАнна: Пойдём домой.\n"
FRENCH = "ANNA : Tu es là ?\nBENOÎT : Ça alors, déjà l'été !\nANNA : Où ça ?\n"


@pytest.mark.parametrize(
    ("text", "encoding", "name"),
    [
        (CHINESE, "gb18030", "a.txt"),
        (BILINGUAL, "gb18030", "a.srt"),
        (KOREAN, "cp949", "a.txt"),
        (JAPANESE, "cp932", "a.txt"),
        (RUSSIAN, "cp1251", "a.txt"),
        (FRENCH, "cp1252", "a.txt"),
    ],
)
def test_the_encoding_of_a_few_lines(tmp_path: Path, text: str, encoding: str, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(text.encode(encoding))
    script = Script(path, Remarks())
    assert script.encoding == encoding
    assert [line for _, line in script.numbered()] == text.splitlines()
    (notice,) = Play([str(path)]).notices
    assert f"in the encoding {encoding.upper()} (detected); it is short: if " in notice
    assert f"iconv -f ITS-ENCODING -t UTF-8 {path} > " in notice


@pytest.mark.parametrize(("text", "encoding"), [(TAIWANESE, "big5"), (JAPANESE, "euc_jp")])
def test_a_few_lines_of_other_languages_are_not_simplified_chinese(
    tmp_path: Path, text: str, encoding: str
) -> None:
    (tmp_path / "a.txt").write_bytes(text.encode(encoding))
    assert Script(tmp_path / "a.txt", Remarks()).encoding != "gb18030"


def test_of_a_long_script_the_encoding_is_sure(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes((CHINESE * 10).encode("gb18030"))
    (notice,) = Play([str(tmp_path / "a.txt")]).notices
    assert notice.endswith("in the encoding GB18030 (detected)")


def test_a_wrong_guess_is_told_and_corrected_by_the_advice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(TAIWANESE.encode("big5"))
    with monkeypatch.context() as patch:
        patch.setattr("offbook.data.scripts.script._encoding", lambda _: ("cp932", True))
        with pytest.raises(DataError) as refused:
            Play([str(path)])
    message = str(refused.value)
    assert "no speakers found in it, read as CP932 (detected); name" in message
    _, found, command = message.partition("; if that is not its encoding, convert it: ")
    assert found
    if not shutil.which("iconv"):
        pytest.skip("needs iconv")
    command = command.replace("ITS-ENCODING", "BIG5")
    subprocess.run(command, shell=True, check=True, timeout=60)
    lines = [line for line, _ in Play([str(tmp_path / "a-utf8.txt")])]
    assert [line.speaker for line in lines] == ["安娜", "鮑勃"] * 2
