"""Each kind of script: who speaks how often, counted by hand, and the lines with their places."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import offbook
from offbook.data.remarks import Remarks
from offbook.data.scripts.reading import Play
from offbook.data.scripts.rows import Cast
from offbook.data.scripts.script import Script
from offbook.errors import DataError

SAMPLES = Path(__file__).with_name("samples")
FERRY = Path(offbook.__file__).with_name("samples") / "ferry.fountain"

# Of each sample: how often each speaker speaks, and how many scenes have speech.
CAST = {
    FERRY: ({"MARA": 44, "ELIAS": 21, "CLERK": 18, "TOBIN": 12}, 9),
    SAMPLES / "teahouse.txt": ({"苏姨": 11, "阿成": 5, "老顾": 4, "账房先生": 3, "众人": 1}, 3),
    SAMPLES / "harbour_en.txt": (
        {"Ottoline": 5, "the postman": 1, "Doctor Hale": 1, "the doctor": 1},
        2,
    ),
    SAMPLES / "harbour_zh.txt": ({"林婶": 4, "韩大夫": 2, "邮差": 1}, 2),
    SAMPLES / "episode.ass": ({"Vera": 4, "Old Finch": 4}, 2),
    SAMPLES / "episode.srt": ({"FINCH": 4, "VERA": 3}, 2),
    SAMPLES / "episode.vtt": ({"Vera": 2, "Old Finch": 1}, 1),
    SAMPLES / "whatsapp_android_us.txt": ({"Uncle Jem": 6, "Nora": 4}, 4),
    SAMPLES / "whatsapp_ios_de.txt": ({"Nora": 2, "Onkel Jem": 2}, 1),
    SAMPLES / "whatsapp_zh.txt": ({"阿杰叔": 3, "诺拉": 2}, 2),
    SAMPLES / "telegram.json": ({"Jem": 3, "Nora": 2}, 2),
    SAMPLES / "messages.html": ({"Nora": 2, "Jem": 2}, 1),
    SAMPLES / "discord.json": ({"Nora": 2, "jem": 2}, 2),
    SAMPLES / "wechat.csv": ({"诺拉": 2, "阿杰": 2}, 1),
    SAMPLES / "wechat.json": ({"诺拉": 1, "我": 1}, 1),
    SAMPLES / "slack": ({"Nora": 2, "Jem Marsh": 2}, 2),
}


def said(path: Path) -> list[tuple[int, str, str]]:
    """Line number, speaker and text."""
    lines = [line for line, _ in Play([str(path)])]
    return [(int(one.where.rpartition(":")[2]), one.speaker, one.text) for one in lines]


def texts(path: Path, content: str | bytes) -> list[tuple[str, str]]:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return [(speaker, text) for _, speaker, text in said(path)]


@pytest.mark.parametrize("path", CAST, ids=lambda path: path.name)
def test_the_speakers_are_those_counted_by_hand(path: Path) -> None:
    play = Play([str(path)])
    speakers, scenes = CAST[path]
    assert dict(Cast(line for line, _ in play).lines) == speakers
    assert len({line.scene for line, _ in play}) == scenes


@pytest.mark.parametrize("path", CAST, ids=lambda path: path.name)
def test_a_line_is_where_it_says(path: Path) -> None:
    for line, _ in Play([str(path)]):
        file, _, number = line.where.rpartition(":")
        around = Path(file).read_text(encoding="utf-8").splitlines()
        near = "\n".join(around[int(number) - 1 : int(number) + 9])
        assert line.text[:2] in near


def test_a_line_of_each_sample_is_read_as_it_is_meant() -> None:
    for name, line in (
        ("teahouse.txt", (31, "苏姨", "亏了就亏了，雨天的账，晴天再算。")),
        ("teahouse.txt", (33, "老顾", "她这个人，算盘打得比谁都响。")),
        ("harbour_en.txt", (7, "the postman", "The road was under water, and so was my bicycle.")),
        (
            "harbour_en.txt",
            (9, "Ottoline", "Then you should have rowed. Is there one from my brother?"),
        ),
        ("harbour_en.txt", (11, "", "There is one from the bank.")),
        ("harbour_zh.txt", (23, "林婶", "她一直醒着。她说睡觉是有钱人的事。")),
        ("episode.ass", (14, "Old Finch", "Clear, yes, but not empty.")),
        ("episode.srt", (11, "FINCH", "but not empty.")),
        ("episode.srt", (24, "VERA", "Then let her pass.")),
        ("episode.vtt", (10, "Old Finch", "Clear & quiet.")),
        (
            "whatsapp_android_us.txt",
            (4, "Uncle Jem", "It stopped at\nLittle Marsh,\n\nand so did my coffee."),
        ),
        ("whatsapp_android_us.txt", (11, "Uncle Jem", "Call me: +1 212-555-0123")),
        ("whatsapp_ios_de.txt", (6, "Onkel Jem", "Schon gut.")),
        ("telegram.json", (8, "Jem", "It is on me, see https://example.com/reset?token=abcdef12")),
        ("messages.html", (21, "Jem", "It is on me,\ndear.")),
        ("messages.html", (42, "Nora", "Oh no")),
        ("discord.json", (9, "jem", "The train is on me :cat:")),
        ("wechat.csv", (4, "阿杰", "火车在我身上，\n真的。")),
    ):
        assert line in said(SAMPLES / name), name
    assert said(SAMPLES / "slack")[:2] == [
        (3, "Nora", "Is the train late, @Jem Marsh?"),
        (5, "Jem Marsh", "It is on me."),  # in the thread, before what was said between
    ]


def test_what_is_left_out_is_counted() -> None:
    play = Play([str(SAMPLES / "whatsapp_android_us.txt")])
    list(play)
    notes = [line.partition(": ")[2] for line in play.remarks.lines()]
    assert notes == [
        "messages of the app itself, left out",
        "photos, deleted messages and the like, left out (2 times)",
    ]


# Drama text and screenplays.


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("ANNA: Come in.", ("ANNA", "Come in.")),
        ("  Anna Maria (softly): Come in.", ("Anna Maria", "Come in.")),
        ("**Anna:** Come in.", ("Anna", "Come in.")),
        ("**Anna**: *Come* in.", ("Anna", "*Come* in.")),
        ("__Anna (softly):__ Come in.", ("Anna", "Come in.")),
        ("Mr. Bell: Come in.", ("Mr. Bell", "Come in.")),
        ("The Captain of the Guard: Come in.", ("The Captain of the Guard", "Come in.")),
        ("甄嬛（笑）：皇上。", ("甄嬛", "皇上。")),
        ("甄嬛OS：皇上。", ("甄嬛", "皇上。")),
        ("Anna said one thing: come in.", None),
        ("At 12:30 the bell rang.", None),
        ("https://example.com", None),
        ("时间：清晨", None),
        ("Title: The Ferry House", None),
        ("He had three things: a hat, a coat and a boat.", None),
    ],
)
def test_a_name_before_a_colon(line: str, expected: tuple[str, str] | None) -> None:
    from offbook.data.scripts.names import split_name

    assert split_name(line) == expected


def test_a_speech_on_several_lines(tmp_path: Path) -> None:
    wrapped = "ANNA: To be or not\nto be. That is\nthe question.\n\nBEN: Is it?\n\nANNA: Yes.\n"
    assert texts(tmp_path / "a.txt", wrapped) == [
        ("ANNA", "To be or not to be. That is the question."),
        ("BEN", "Is it?"),
        ("ANNA", "Yes."),
    ]
    # Without blank lines between speeches, a line that nobody says is a direction.
    dense = "ANNA: Come in.\nShe opens the door.\nBEN: Thank\nyou.\nANNA: Sit.\nBEN: No.\n"
    assert texts(tmp_path / "b.txt", dense) == [
        ("ANNA", "Come in."),
        ("BEN", "Thank you."),
        ("ANNA", "Sit."),
        ("BEN", "No."),
    ]


@pytest.mark.parametrize(
    "before",
    [
        "Characters:\nANNA: a girl\nBEN: a boy\n\n",
        "Characters:\n\nANNA: a girl\nBEN: a boy\n\n",
        "# Dramatis Personae\nANNA: a girl\n\nBEN: a boy\n\n# Act 1\n",
        "CAST\nANNA: a girl\nBEN: a boy\nScene 1\n\n",
        "人物：\nANNA：四十岁。\nBEN：二十岁，话多。\n\n第一幕\n\n",
        "【主要人物介绍】\nANNA：四十岁。\nBEN：二十岁。\n",
        "人物：ANNA、BEN\n",
        "",
    ],
)
def test_a_list_of_characters_is_no_speech(tmp_path: Path, before: str) -> None:
    play = f"{before}ANNA: Hello?\nBEN: Hello.\nANNA: Come in.\n"
    assert texts(tmp_path / "a.txt", play) == [
        ("ANNA", "Hello?"),
        ("BEN", "Hello."),
        ("ANNA", "Come in."),
    ]


def test_names_in_the_middle_of_a_line_of_their_own(tmp_path: Path) -> None:
    page = (
        "The rain falls.\n\n                    Anna\n          Come in.\n\n"
        "                    Ben\n          (shaking)\n          I am wet.\n          And late.\n\n"
        "                    Anna\n          So is the rain.\n"
    )
    expected = [("Anna", "Come in."), ("Ben", "I am wet. And late."), ("Anna", "So is the rain.")]
    assert texts(tmp_path / "a.txt", page) == expected
    wide = page.replace("Anna", "安娜").replace("                    ", "　　　　　　")
    assert [name for name, _ in texts(tmp_path / "b.txt", wide)] == ["安娜", "Ben", "安娜"]


def test_the_marks_of_fountain(tmp_path: Path) -> None:
    script = (
        "Title: A\nAuthor: B\n\n/*\nBEN\nCut.\n\n*/\n.BINOCULARS\n\n@McAvoy\nHello [[check this]]"
        " *there*.\n\nANNA ^\n(beat)\n**No**, _never_.\n\nANNA (CONT'D)\nAs I said.\n\n"
        "> FADE TO:\n\n= A synopsis\n\nBEN (V.O.)\nTwo\n  \nlines.\n"
    )
    assert texts(tmp_path / "a.fountain", script) == [
        ("McAvoy", "Hello there."),
        ("ANNA", "No, never."),
        ("ANNA", "As I said."),
        ("BEN", "Two lines."),
    ]
    (tmp_path / "b.fountain").write_text("ANNA\nHello.\n\n/* never\n\nBEN\nclosed\n")
    with pytest.raises(DataError, match=r"b.fountain:4: a comment \(/\*\) is not closed"):
        said(tmp_path / "b.fountain")


# Encodings.


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "gb18030", "utf-16-be"]
)
def test_the_encoding_is_detected_and_told(tmp_path: Path, encoding: str) -> None:
    text = (SAMPLES / "teahouse.txt").read_text(encoding="utf-8")
    path = tmp_path / "play.txt"
    path.write_bytes(text.encode(encoding))
    assert said(path) == said(SAMPLES / "teahouse.txt")
    (notice,) = Play([str(path)]).notices
    assert ("in the encoding" in notice) == (not encoding.startswith("utf-8"))


def test_western_text_is_read_as_windows_writes_it(tmp_path: Path) -> None:
    french = "ANNA : Tu es là ?\n\nBENOÎT : Près du cœur, à côté.\n\nANNA : Où ça ?\n"
    expected = texts(tmp_path / "a.txt", french)
    assert expected[1] == ("BENOÎT", "Près du cœur, à côté.")
    assert texts(tmp_path / "b.txt", french.encode("cp1252")) == expected


@pytest.mark.parametrize("offset", range(4))
@pytest.mark.parametrize(
    ("encoding", "said"),
    [
        ("utf-8", "安娜：今天天气很好，我们出去走走吧。"),
        ("gb18030", "安娜：今天天气很好，我们出去走走吧。"),
        ("big5", "安娜：今天天氣很好，我們出去走走吧。"),
        ("shift-jis", "花子：いつでも来てください、待っています。"),
    ],
)
def test_a_long_script_is_read_wherever_its_beginning_ends(
    tmp_path: Path, encoding: str, said: str, offset: int
) -> None:
    """The encoding is found in the first bytes, which may end inside a character."""
    line = f"{said}\n".encode(encoding)
    (tmp_path / "a.txt").write_bytes(b"A" * offset + b"\n" + line * (2**18 // len(line) + 9))
    script = Script(tmp_path / "a.txt", Remarks())
    assert {text for number, text in script.numbered() if number > 1} == {said}
    assert (script.encoding == "utf-8-sig") == (encoding == "utf-8")


def test_line_ends_of_any_system(tmp_path: Path) -> None:
    lines = "ANNA: Hi.\n\nBEN: Hm.\n\nANNA: Bye.\n"
    for end in ("\n", "\r\n", "\r"):
        assert texts(tmp_path / "a.txt", lines.replace("\n", end).encode())[2] == ("ANNA", "Bye.")


# WhatsApp.


@pytest.mark.parametrize(
    "header",
    [
        "1/5/24, 3:20 PM - ",
        "1/5/24, 3:20\u202fPM - ",
        "05/01/2024, 15:20 - ",
        "05/01/2024 15:20 - ",
        "05/01/2024 à 15:20 - ",
        "05.01.24, 15:20 - ",
        "05-01-2024 15:20 - ",
        "2024-01-05, 15:20 - ",
        "5.1.2024 klo 15.20 - ",
        "5/1/24, 3:20 p. m. - ",
        "5/1/24, 3:20\u00a0p.\u00a0m. - ",
        "2024/1/5 下午3:20 - ",
        "2024年1月5日 下午3:20 - ",
        "2024. 1. 5. 오후 3:20 - ",
        "[05.01.24, 15:20:12] ",
        "\u200e[1/5/24, 3:20:12\u202fPM] ",
        "[2024/1/5 下午3:20:12] ",
        "[05/01/2024, 15:20:12] ",
    ],
)
def test_dates_of_any_locale(tmp_path: Path, header: str) -> None:
    later = header.replace("3:20", "3:59").replace("15:20", "15:59").replace("15.20", "15.59")
    later = later.replace("15:20", "15:59")
    chat = (
        f"{header}Nora: Hi: there\n{later}~\u202fJem: Hm\nand more\n{header}Nora changed the icon\n"
    )
    path = tmp_path / "chat.txt"
    path.write_text(chat, encoding="utf-8")
    play = Play([str(path)])
    assert [(line.speaker, line.text, line.scene) for line, _ in play] == [
        ("Nora", "Hi: there", 0),
        ("Jem", "Hm\nand more", 0),
    ]


@pytest.mark.parametrize(
    "event",
    [
        'Nora changed the subject to "x: y"',
        'Nora changed the subject from "a" to "x: y"',
        "Nora hat den Betreff zu „x: y“ geändert",
        "Nora将主题更改为“x: y”",
        "Nora a changé le sujet en « x: y »",
    ],
)
def test_a_subject_with_a_colon_is_no_message(tmp_path: Path, event: str) -> None:
    names = ("Nora", 'Jem "Jimmy" Marsh', "„Jem“ Marsh")
    chat = f"1/5/24, 3:20 PM - {event}\n" + "".join(
        f'1/5/24, 3:2{k} PM - {name}: about "x: y"\n' for k, name in enumerate(names)
    )
    assert texts(tmp_path / "a.txt", chat) == [(name, 'about "x: y"') for name in names]


def test_a_day_and_a_pause_cut_a_chat(tmp_path: Path) -> None:
    path = tmp_path / "chat.txt"
    clock = ("1/5/24, 11:58 AM", "1/5/24, 12:10 PM", "1/5/24, 1:09 PM", "1/5/24, 3:00 PM")
    times = [*clock, "1/6/24, 3:01 PM"]
    path.write_text("".join(f"{time} - N: {k}\n" for k, time in enumerate(times)))
    assert [line.scene for line, _ in Play([str(path)])] == [0, 0, 0, 1, 2]


@pytest.mark.parametrize(
    "times",
    [
        (1704439233000, 1704439299000, 1704450000000),
        ("1704439233", "1704439299", "1704450000"),
        ("2024/1/5 9:20", "2024/1/5 10:15", "2024/1/5 12:40"),
        ("2024-01-05T15:20:33+08:00", "2024-01-05 15:58:00", "2024-01-05  18:00"),
        ("2024年1月5日 9:20", "2024年1月5日 9:58", "2024年1月6日 9:59"),
    ],
)
def test_times_of_any_tool_cut_a_chat(tmp_path: Path, times: tuple[object, ...]) -> None:
    path = tmp_path / "chat.json"
    path.write_text(
        json.dumps([{"msg": "a", "is_sender": 0, "sender": "N", "CreateTime": t} for t in times])
    )
    assert [line.scene for line, _ in Play([str(path)])] == [0, 0, 1]


# JSON.


def test_half_a_character_is_replaced_and_told(tmp_path: Path) -> None:
    chat = f'{{"messages": [{MESSAGE},\n{MESSAGE}]}}'.replace('"text": "a"', r'"text": "a\ud83d"')
    assert texts(tmp_path / "a.json", chat) == [("N", "a\ufffd")] * 2
    play = Play([str(tmp_path / "a.json")])
    list(play)
    (remark,) = play.remarks.lines()
    assert remark.startswith(f"{tmp_path}/a.json:1: half a surrogate pair, replaced by \ufffd (2")


def test_an_export_of_all_telegram_chats(tmp_path: Path) -> None:
    one = json.loads((SAMPLES / "telegram.json").read_text())
    whole = {
        "about": "Here is your data",
        "personal_information": {"phone_number": "1"},
        "chats": {"about": "All", "list": [one, {**one, "messages": one["messages"][:2]}]},
    }
    path = tmp_path / "result.json"
    path.write_text(json.dumps(whole))
    scenes = [line.scene for line, _ in Play([str(path)])]
    assert len(scenes) == 6
    assert scenes[-1] > scenes[-2] > scenes[0]


@pytest.mark.parametrize(
    ("name", "content", "error"),
    [
        ("a.txt", "", "a.txt:1: the file is empty"),
        ("a.txt", "nothing is said here\nat all\n", "a.txt:1: no speakers found"),
        ("a.json", "[1, 2]", "a.json: not the messages of a chat"),
        ("a.json", '{"a": 1}', "a.json: no list of messages"),
        ("a.json", '{"messages": [{"type": "message"', "a.json:1: not valid JSON"),
        ("a.json", '{"messages": [', "a.json:1: not valid JSON"),
        ("a.json", '{"messages": [], "chats": [3]} x', "a.json:1: text after the end"),
        ("a.csv", "a,b\n1,2\n", "a.csv:2: not a WeChat export"),
        ("a.srt", "1\n00:00:01,0 --> never\nHi\n", "a.srt:2: a time that cannot be read"),
        ("a.ass", "[Events]\nDialogue: 0,0:00:01.00\n", "a.ass:2: an event without its times"),
        ("a.pdf", "%PDF", "a.pdf: .pdf is not text; convert it: pdftotext"),
        ("a.txt", f"ANNA: {'a' * 2**20}\n", "a.txt:1: a line of more than 1,048,576 characters"),
    ],
)
def test_other_files_are_named(tmp_path: Path, name: str, content: str, error: str) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(DataError) as refused:
        said(tmp_path / name)
    assert str(refused.value).startswith(f"{tmp_path}/{error}")


MESSAGE = '{"id": 1, "type": "message", "date": "2024-01-05T15:20:33", "from": "N", "text": "a"}'
LONG = "and on " * 2**18


@pytest.mark.parametrize(
    ("name", "before", "advice", "renamed", "after"),
    [
        (
            "a.json",
            '{"messages": 1}',
            "give the file that the chat",
            "",
            f'{{"messages": [{MESSAGE}]}}',
        ),
        ("a.json", '[{"a": 1}]', "give Telegram's result.json", "", f"[{MESSAGE}]"),
        (
            "a.txt",
            "Come in.\n",
            "name who speaks, as in",
            "",
            "ANNA: Come in.\nBEN: No.\nANNA: O.\n",
        ),
        (
            "a.txt",
            "Come in.\n",
            "or put speech in",
            "",
            "“Come in,” said Anna.\n\n“No,” said Ben.\n",
        ),
        (
            "a.fountain",
            "ANNA\nHi.\n\n/* no\n",
            "write */ where it ends",
            "",
            "ANNA\nHi.\n\n/* no */\n",
        ),
        ("a.txt", f"ANNA: {LONG}\n", "break the line", "", "ANNA: and on\n\nBEN: on\n\nANNA: on\n"),
        (
            "a.csv",
            "msg\nHi\n",
            "it needs a column StrContent",
            "",
            "StrContent,NickName,Type\nHi,N,1\n",
        ),
        (
            "a.pdf",
            "%PDF-1.4",
            "convert it: pdftotext",
            "a.pdf.txt",
            "ANNA: A.\nBEN: B.\nANNA: C.\n",
        ),
    ],
)
def test_refused_files_are_read_as_advised(
    tmp_path: Path, name: str, before: str, advice: str, renamed: str, after: str
) -> None:
    (tmp_path / name).write_text(before, encoding="utf-8")
    with pytest.raises(DataError) as refused:
        said(tmp_path / name)
    assert advice in str(refused.value)
    assert texts(tmp_path / (renamed or name), after)


def test_missing_scripts_are_found_as_advised(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="give a script, subtitles, a novel or a chat"):
        Play([str(tmp_path / "play")])
    (tmp_path / "play").mkdir()
    with pytest.raises(DataError, match=r"put files ending in \.txt, "):
        Play([str(tmp_path / "play")])
    (tmp_path / "play" / "a.txt").write_text("ANNA: A.\nBEN: B.\nANNA: C.\n")
    assert len(list(Play([str(tmp_path / "play")]))) == 3


def test_a_folder_is_read_in_the_order_of_its_names(tmp_path: Path) -> None:
    for number in (10, 2, 1):
        (tmp_path / f"part{number}.txt").write_text(f"ANNA: {number}.\nBEN: Yes.\nANNA: No.\n")
    (tmp_path / ".old").mkdir()
    (tmp_path / ".old" / "part3.txt").write_text("ANNA: 3.\nBEN: Yes.\nANNA: No.\n")
    play = Play([str(tmp_path)])
    assert [line.text for line, _ in play if line.text[0].isdigit()] == ["1.", "2.", "10."]
    assert len({line.scene for line, _ in play}) == 3
    with pytest.raises(DataError, match=r'did you mean "part1\.txt"'):
        Play([str(tmp_path / "prt1.txt")])


# Subtitles.


@pytest.mark.parametrize(
    ("cue", "said"),
    [
        ("We're #1 and they're #2", ["We're #1 and they're #2"]),
        ("# La la la #", []),
        ("# La la la\nla la la #", []),
        ("# La la #\nStop that.", ["Stop that."]),
        ("- # La la #\n- Stop that.", ["Stop that."]),
        ("♪ La la ♪ Stop.", ["Stop."]),
    ],
)
def test_music_is_no_speech(tmp_path: Path, cue: str, said: list[str]) -> None:
    found = texts(tmp_path / "a.srt", f"1\n00:00:01,000 --> 00:00:02,000\n{cue}\n")
    assert [text for _, text in found] == said


@pytest.mark.parametrize(
    ("cue", "said"),
    [
        (
            "<v.loud Bob Smith>Hey</v>\n<v Anna>What?</v>",
            [("Bob Smith", "Hey"), ("Anna", "What?")],
        ),
        ("<v Bob>Hey <v Anna>What\nis it?", [("Bob", "Hey"), ("Anna", "What is it?")]),
        ("<v Bob>Hey\nyou.</v>", [("Bob", "Hey you.")]),
    ],
)
def test_each_voice_of_a_cue_has_its_words(
    tmp_path: Path, cue: str, said: list[tuple[str, str]]
) -> None:
    timed = f"WEBVTT\n\n00:01.000 --> 00:02.000\n{cue}\n"
    assert texts(tmp_path / "a.vtt", timed) == said


# Speed.


def play_text(lines: int) -> str:
    return "".join(
        f"{('ANNA', 'BEN')[k % 2]}: Line {k} of it, (aside) and on.\n" for k in range(lines)
    )


def chat_text(lines: int) -> str:
    return "".join(f"1/5/24, 3:{k % 60:02} PM - N{k % 3}: Line {k}\nand on\n" for k in range(lines))


def novel_text(lines: int) -> str:
    return "".join(f"“Line {k},” said Anna. “And on.”\n\nThe rain.\n\n" for k in range(lines))


def html_text(lines: int) -> str:
    one = (SAMPLES / "messages.html").read_text()
    return one + one[one.index('<div class="message default') :] * (lines // 5)


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("a.txt", play_text),
        ("a.fountain", lambda lines: "INT. A\n\nANNA\nSome words.\n\n" * lines),
        ("chat.txt", chat_text),
        ("novel.txt", novel_text),
        ("a.html", html_text),
        ("one.txt", lambda lines: "ANNA: a\n\nBEN: b\n\n" * 500 + "ANNA: c\n" + "and on\n" * lines),
        (
            "one.txt",
            lambda lines: "1/5/24, 3:01 PM - A: a\n1/5/24, 3:01 PM - B: b\n" * 2 + "x\n" * lines,
        ),
    ],
)
def test_the_time_grows_with_the_length(
    tmp_path: Path, name: str, make: Callable[[int], str]
) -> None:
    seconds = []
    for lines in (4000, 16000):
        path = tmp_path / name
        path.write_text(make(lines), encoding="utf-8")
        play = Play([str(path)])
        started = time.process_time()
        assert sum(1 for _ in play)
        seconds.append(time.process_time() - started)
    assert seconds[1] < 4 * 2.5 * max(seconds[0], 0.05)
