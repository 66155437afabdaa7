"""Personal data is found in the forms of several countries, and other numbers are left alone."""

from __future__ import annotations

import time

import pytest

from offbook.data.personal import Replacer, find

FOUND = [
    (
        "mail",
        "Write to ottilie.brack+light@example.co.uk, please.",
        "ottilie.brack+light@example.co.uk",
    ),
    ("mail", "邮箱是li_lei@example.com。", "li_lei@example.com"),
    ("phone", "call +49 151 2345 6789 tonight", "+49 151 2345 6789"),
    ("phone", "我的手机13800138000，别忘了", "13800138000"),
    ("phone", "138 0013 8000", "138 0013 8000"),
    ("phone", "办公室010-65129876找我", "010-65129876"),
    ("phone", "(212) 555-0123 is mine", "(212) 555-0123"),
    ("phone", "it is 212-555-0123.", "212-555-0123"),
    ("phone", "020 7946 0958", "020 7946 0958"),
    ("phone", "090-1234-5678", "090-1234-5678"),
    ("card", "my card 4111 1111 1111 1111 thanks", "4111 1111 1111 1111"),
    ("id", "身份证11010519491231002X。", "11010519491231002X"),
    ("id", "SSN 123-45-6789", "123-45-6789"),
    ("id", "IBAN DE89 3704 0044 0532 0130 00", "DE89 3704 0044 0532 0130 00"),
    ("id", "A123456789 in Taipei", "A123456789"),
    ("id", "加我 wxid_a1b2c3d4e5f6", "wxid_a1b2c3d4e5f6"),
    ("id", "QQ:123456789", "123456789"),
    ("id", "加我微信：zhangsanfeng", "zhangsanfeng"),
    ("id", "微信号:zhang-sanfeng，明天见", "zhang-sanfeng"),
    ("id", "加我微信：zhangsanfeng明天见", "zhangsanfeng"),
    ("address", "at 221B Baker Street, London every day", "221B Baker Street, London"),
    (
        "address",
        "1600 Amphitheatre Drive, Springfield, CA 94043",
        "1600 Amphitheatre Drive, Springfield, CA 94043",
    ),
    ("address", "我住在杭州市西湖区文三路478号3单元502室", "杭州市西湖区文三路478号3单元502室"),
    ("address", "in der Hauptstraße 12a, 10115 Berlin", "Hauptstraße 12a, 10115 Berlin"),
    (
        "link",
        "see https://example.com/reset?token=abcd1234 now",
        "https://example.com/reset?token=abcd1234",
    ),
    ("link", "https://user:secret@example.com/", "https://user:secret@example.com/"),
    ("link", "join https://discord.gg/AbCdEfGh", "https://discord.gg/AbCdEfGh"),
]


@pytest.mark.parametrize(("kind", "text", "value"), FOUND)
def test_each_kind_is_found(kind, text, value):
    (one,) = find(text)
    assert one.kind == kind
    assert text[one.start : one.end] == one.value == value


@pytest.mark.parametrize(
    "text",
    [
        "In 1914-1918 there were 20,000,000 dead.",
        "On 2024-01-02 at 12:30:45, or 02.01.2024.",
        "Version 3.11.7, 192.168.0.1, and pi is 3.14159265358979.",
        "4111 1111 1111 1112 has the wrong check digit",
        "order 110105194912310021",
        "https://example.com/12345678901/page",
        "https://docs.python.org/3/library/re.html#re.compile",
        "He lives on the street, 5 doors down.",
        "两百三十四号台风，路过第12号线",
        "I have 12345678 coins and 1234567890123 more.",
        "@everyone at 5",
        "Scene 12. INT. ROOM 1408 - NIGHT",
    ],
)
def test_other_numbers_and_links_are_left(text):
    assert find(text) == []
    assert Replacer().replace(text) == text


def test_the_same_value_has_the_same_replacement():
    replacer = Replacer()
    assert replacer.replace("call 13800138000 or 13900139000") == "call [phone 1] or [phone 2]"
    assert replacer.replace("138-0013-8000! A@B.org a@b.org") == "[phone 1]! [mail 1] [mail 1]"
    assert replacer.counts == {"phone": 3, "mail": 2}
    assert find(replacer.replace("[phone 1] [mail 1]")) == []


def test_the_time_is_linear():
    for piece in ("1", "1 ", "a", "a.", "@", "http://", "+1", "路1", "Ab ", "1-", "(0", "市"):
        text = piece * (100_000 // len(piece)) + "x1"
        started = time.process_time()
        find(text)
        assert time.process_time() - started < 3, piece
