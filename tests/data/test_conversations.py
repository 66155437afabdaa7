"""Rows as conversations: three formats, faults named with their line, and the real data sets."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path

import pytest

from offbook.data.conversations import ConversationReader, read_conversations
from offbook.data.messages import Conversation, Message
from offbook.errors import DataError
from offbook.settings.sections import SAMPLES, DataSettings
from support.shared import HUANHUAN

GOOD = {"instruction": "Who goes there?", "output": "The keeper."}

QUOTES = "put it in quotes"
JOIN = "join its texts into one, or write a row for each"
PAIR = 'write it as a pair: ["question", "reply"]'
PAIRS = 'write it as JSON: [["question", "reply"]]'
FILL = "fill or remove the row"
SHARED = {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}
TURNS = "user and assistant take turns, the user first; system text goes before them"


def written(folder: Path, *rows: object) -> Path:
    """A JSONL file with these rows."""
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def read(path: Path, **settings: object) -> list[Conversation]:
    return list(read_conversations(str(path), DataSettings(**settings)))


def turns(conversation: Conversation) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in conversation.messages]


def complaint(path: Path, **settings: object) -> str:
    with pytest.raises(DataError) as caught:
        read(path, **settings)
    return str(caught.value)


# Formats


@pytest.mark.parametrize(
    ("row", "row_format", "expected"),
    [
        (
            {"instruction": "a", "input": "", "output": "b"},
            "alpaca",
            [("user", "a"), ("assistant", "b")],
        ),
        (
            {"instruction": "a", "input": None, "output": "b", "system": None, "history": None},
            "alpaca",
            [("user", "a"), ("assistant", "b")],
        ),
        (
            {"instruction": "a", "input": "more", "output": "b"},
            "alpaca",
            [("user", "a\nmore"), ("assistant", "b")],
        ),
        (
            {"instruction": "", "input": "only", "output": "b"},
            "alpaca",
            [("user", "only"), ("assistant", "b")],
        ),
        (
            {
                "system": "s",
                "history": [["q1", "r1"], ["q2", "r2"]],
                "instruction": "a",
                "output": "b",
            },
            "alpaca",
            [
                ("system", "s"),
                ("user", "q1"),
                ("assistant", "r1"),
                ("user", "q2"),
                ("assistant", "r2"),
                ("user", "a"),
                ("assistant", "b"),
            ],
        ),
        (
            {
                "system": "s",
                "conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}],
            },
            "sharegpt",
            [("system", "s"), ("user", "a"), ("assistant", "b")],
        ),
        (
            {
                "conversations": [
                    {"from": "system", "value": "s"},
                    {"from": "user", "value": "a"},
                    {"from": "assistant", "value": "b"},
                    {"from": "human", "value": "c"},
                    {"from": "gpt", "value": "d"},
                ]
            },
            "sharegpt",
            [("system", "s"), ("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")],
        ),
        (
            {
                "messages": [
                    {"role": "system", "content": "s"},
                    {"content": "a", "role": "user"},
                    {"role": "assistant", "content": " b\n"},
                ]
            },
            "messages",
            [("system", "s"), ("user", "a"), ("assistant", " b\n")],
        ),
    ],
)
def test_a_row_becomes_its_turns(tmp_path, row, row_format, expected):
    reader = read_conversations(str(written(tmp_path, row)))
    assert reader.row_format == row_format
    assert [turns(conversation) for conversation in reader] == [expected]


def test_the_separator_is_between_instruction_and_input(tmp_path):
    path = written(
        tmp_path,
        {"instruction": "a", "input": "b", "output": "c"},
        {"instruction": "a", "input": "", "output": "c"},
        {"instruction": "", "input": "b", "output": "c"},
    )
    prompts = [c.messages[0].content for c in read(path, input_separator="\n\n")]
    assert prompts == ["a\n\nb", "a", "b"]


def test_the_system_setting_is_for_rows_that_have_none(tmp_path):
    path = written(tmp_path, GOOD, {**GOOD, "system": "mine"}, {**GOOD, "system": ""})
    systems = [c.messages[0] for c in read(path, system="yours")]
    assert systems == [
        Message("system", "yours"),
        Message("system", "mine"),
        Message("system", "yours"),
    ]


@pytest.mark.parametrize(
    "row",
    [
        {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
    ],
)
def test_the_system_setting_is_for_every_format(tmp_path, row):
    (conversation,) = read(written(tmp_path, row), system="yours")
    assert turns(conversation) == [("system", "yours"), ("user", "a"), ("assistant", "b")]


def test_each_conversation_knows_its_line(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(f"\n{json.dumps(GOOD)}\n\n{json.dumps(GOOD)}\n")
    assert [c.source for c in read(path)] == [f"{path}:2", f"{path}:4"]


def test_a_reader_can_be_iterated_again_and_halfway(tmp_path):
    reader = read_conversations(str(written(tmp_path, *({**GOOD, "input": c} for c in "xyz"))))
    first = next(iter(reader))
    assert first.messages[0].content == "Who goes there?\nx"
    assert list(reader) == list(reader)
    assert len(list(reader)) == 3


def test_a_reader_of_several_files_gives_them_in_order(tmp_path):
    paths = []
    for name in ("one", "two", "three", "four", "five"):
        paths.append(tmp_path / f"{name}.jsonl")
        paths[-1].write_text(json.dumps({"instruction": name, "output": "b"}))
    reader = ConversationReader(paths, DataSettings())
    assert [c.messages[0].content for c in reader] == ["one", "two", "three", "four", "five"]
    assert reader.describe() == (
        f"{paths[0]}, {paths[1]}, {paths[2]}, and 2 more: alpaca rows (instruction, input, output)"
    )


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (GOOD, "alpaca rows (instruction, input, output)"),
        (
            {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
            "ShareGPT rows (conversations: from, value)",
        ),
        (
            {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
            "OpenAI rows (messages: role, content)",
        ),
    ],
)
def test_a_reader_describes_itself(tmp_path, row, words):
    path = written(tmp_path, row)
    assert read_conversations(str(path)).describe() == f"{path}: {words}"


# Faults


def test_a_misspelt_key_deep_in_a_file_is_refused_with_its_line(tmp_path):
    rows = [dict(GOOD) for _ in range(900)]
    rows[811] = {"instrution": "a", "output": "b"}
    path = tmp_path / "rows.json"
    path.write_text("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n")
    assert complaint(path) == (f'{path}:813: unknown key "instrution"; did you mean "instruction"?')


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"instruction": "a"}, 'no "output"; every row needs one'),
        ({"output": "b"}, 'no "instruction"; every row needs one'),
        (
            {**GOOD, "id": 7},
            "unknown key \"id\"; skip it with 'data.ignore_keys=[id]'",
        ),
        ({**GOOD, "systen": "s"}, 'unknown key "systen"; did you mean "system"?'),
        ({**GOOD, "instruction": 3}, f'"instruction" is a number, not text; {QUOTES}'),
        ({**GOOD, "output": None}, '"output" is null, not text; fill it, or remove the row'),
        ({**GOOD, "output": {}}, '"output" is an object, not text; write its text alone'),
        ({**GOOD, "input": ["a"]}, f'"input" is a list, not text; {JOIN}'),
        ({**GOOD, "system": True}, f'"system" is true or false, not text; {QUOTES}'),
        ({**GOOD, "history": "x"}, f'"history" is text, not a list of pairs; {PAIRS}'),
        ({**GOOD, "history": {"x": 1}}, f'"history" is an object, not a list of pairs; {PAIRS}'),
        (
            {**GOOD, "history": [["a", "b"], ["c"]]},
            f'"history" 2 is not a pair; {PAIR}',
        ),
        ({**GOOD, "history": ["ab"]}, f'"history" 1 is not a pair; {PAIR}'),
        ({**GOOD, "history": [["a", 1]]}, f'"history" 1 is a number, not text; {QUOTES}'),
        ({**GOOD, "history": [["a", " "]]}, f"the reply of turn 2 is empty; {FILL}"),
        ({**GOOD, "output": ""}, f"the reply is empty; {FILL}"),
        ({**GOOD, "output": " \n\t"}, f"the reply is empty; {FILL}"),
        ({**GOOD, "output": "\u200b\ufeff\n"}, f"the reply is empty; {FILL}"),
        ({**GOOD, "instruction": ""}, f"the prompt is empty; {FILL}"),
        (
            {**GOOD, "output": "half \ud83d"},
            '"output" has half a surrogate pair; correct the broken escape',
        ),
    ],
)
def test_a_faulty_alpaca_row_is_refused_with_its_line(tmp_path, row, problem):
    path = written(tmp_path, GOOD, row, GOOD)
    assert complaint(path) == f"{path}:2: {problem}"


def test_an_error_quotes_only_the_beginning_of_a_long_key(tmp_path):
    path = written(tmp_path, {**GOOD, "x" * 3_000_000: 1}, {**GOOD, "output": 3})
    first, second = complaint(path).splitlines()
    assert first.startswith(f'{path}:1: unknown key "{"x" * 100}')
    assert len(first) < 500
    assert second == f'{path}:2: "output" is a number, not text; {QUOTES}'


def said(*names: str, **texts: str) -> dict[str, object]:
    """An OpenAI row in which these roles speak in turn."""
    return {"messages": [{"role": name, "content": texts.get(name, "text")} for name in names]}


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"messages": []}, "no reply at the end; end with the assistant's turn"),
        (said("system"), "no reply at the end; end with the assistant's turn"),
        (said("user"), "no reply at the end; end with the assistant's turn"),
        (said("user", "assistant", "user"), "no reply at the end; end with the assistant's turn"),
        (
            said("assistant", "user"),
            f'turn 1 has the role "assistant", not "user"; {TURNS}',
        ),
        (
            said("system", "assistant"),
            f'turn 2 has the role "assistant", not "user"; {TURNS}',
        ),
        (
            said("user", "user", "assistant"),
            f'turn 2 has the role "user", not "assistant"; {TURNS}',
        ),
        (
            said("user", "assistant", "assistant"),
            f'turn 3 has the role "assistant", not "user"; {TURNS}',
        ),
        (
            said("user", "system", "assistant"),
            f'turn 2 has the role "system", not "assistant"; {TURNS}',
        ),
        (
            said("system", "system", "user", "assistant"),
            "turn 2 is system text, as is turn 1; join the two",
        ),
        (
            {"system": "s", **said("system", "user", "assistant")},
            'turn 1 is system text, as is the key "system"; join the two',
        ),
        (
            {"system": "s", **said("user", "assistant", "system", "assistant")},
            f'turn 3 has the role "system", not "user"; {TURNS}',
        ),
        (said("user", "asistant"), 'turn 2: unknown role "asistant"; did you mean "assistant"?'),
        (
            said("user", "tol"),
            'turn 2: unknown role "tol"; '
            "the roles are system, developer, user, human, "
            "assistant, gpt, chatgpt, bing, bard, model",
        ),
        (
            {"messages": [{"role": ["user"], "content": "a"}]},
            f'turn 1: "role" is a list, not text; {JOIN}',
        ),
        (said("user", "assistant", user=" "), f"the prompt is empty; {FILL}"),
        (
            said("user", "assistant", "user", "assistant", assistant=""),
            f"the reply of turn 2 is empty; {FILL}",
        ),
        (
            said("system", "user", "assistant", "user", "assistant", assistant=""),
            f"the reply of turn 3 is empty; {FILL}",
        ),
        ({"messages": "a"}, "the turns are text, not a list; write a list of turns"),
        ({"messages": None}, "the turns are null, not a list; write a list of turns"),
        ({"messages": ["a"]}, 'turn 1 has no "role" or "content"; every turn needs both'),
        (
            {"messages": [{"role": "user"}]},
            'turn 1 has no "role" or "content"; every turn needs both',
        ),
        (
            {"messages": [{"role": "user", "content": ["a"]}]},
            f"turn 1 is a list, not text; {JOIN}",
        ),
        (
            {**said("user", "assistant"), "id": 3},
            "unknown key \"id\"; skip it with 'data.ignore_keys=[id]'",
        ),
    ],
)
def test_faulty_turns_are_refused_with_their_line(tmp_path, row, problem):
    path = written(tmp_path, said("user", "assistant"), row)
    assert complaint(path) == f"{path}:2: {problem}"


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        (
            {**SHARED, "sytem": "s"},
            'unknown key "sytem"; did you mean "system"?',
        ),
        (
            {"conversations": [{"role": "human", "value": "a"}]},
            'unknown key "role" of a turn; did you mean "from"?\n'
            'PATH:1: turn 1 has no "from" or "value"; every turn needs both',
        ),
        (
            {"conversations": [{"from": "humn", "value": "a"}]},
            'turn 1: unknown role "humn"; did you mean "human"?',
        ),
        (
            {"system": "s", "conversations": [{"from": "system", "value": "t"}]},
            'turn 1 is system text, as is the key "system"; join the two',
        ),
    ],
)
def test_a_faulty_sharegpt_row_is_refused_with_its_line(tmp_path, row, problem):
    path = written(tmp_path, row)
    assert complaint(path) == f"{path}:1: {problem}".replace("PATH", str(path))


def test_only_keys_to_ignore_are_skipped(tmp_path):
    path = written(tmp_path, {"id": 1, **GOOD}, {"id": 2, "idd": 3, **GOOD})
    assert complaint(path, ignore_keys=("id",)) == (
        f"{path}:2: unknown key \"idd\"; skip it with 'data.ignore_keys=[id,idd]'"
    )
    assert len(read(path, ignore_keys=("id", "idd"))) == 2


def test_rows_of_another_format_than_the_first_are_refused(tmp_path):
    path = written(tmp_path, GOOD, said("user", "assistant"), GOOD)
    assert complaint(path) == (
        f'{path}:2: unknown key "messages"; put rows of another format into a file of their own'
    )


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        ("text", "text"),
        (5, "a number"),
        (["a", "b"], "a list"),
        (None, "null"),
        (True, "true or false"),
    ],
)
def test_a_row_that_is_not_an_object_is_refused_wherever_it_is(tmp_path, row, kind):
    first = written(tmp_path, row, GOOD)
    assert complaint(first) == f"{first}:1: a row is {kind}, not an object"
    later = written(tmp_path, GOOD, row)
    assert complaint(later) == f"{later}:2: a row is {kind}, not an object"


def test_keys_of_no_known_format_are_refused_with_the_known_ones(tmp_path):
    path = written(tmp_path, {"question": "a", "reply": "b"})
    assert complaint(path) == (
        f"{path}:1: cannot tell the format from the keys 'question', 'reply'; "
        'rename "question" to "instruction" and "reply" to "output"; or use '
        "instruction/input/output, conversations (from, value) or messages (role, content)"
    )


@pytest.mark.parametrize(
    ("name", "text"), [("rows.json", "[]"), ("rows.jsonl", "\n"), ("r.csv", "")]
)
def test_a_data_set_without_rows_is_refused(tmp_path, name, text):
    path = tmp_path / name
    path.write_text(text)
    assert complaint(path) == f"{path}: no rows; check that this is the right file"


def test_several_faults_are_reported_together_in_the_order_of_the_rows(tmp_path):
    path = tmp_path / "rows.jsonl"
    lines = [json.dumps(row) for row in (GOOD, {"instrution": "a"}, GOOD, {**GOOD, "output": 3})]
    path.write_text("\n".join(["{not json", *lines, '{"instruction": "a", "output']))
    assert complaint(path).splitlines() == [
        f"{path}:1: not valid JSON: Expecting property name enclosed in double quotes "
        "at column 2, after `{` and before `not json`",
        f'{path}:3: unknown key "instrution"; did you mean "instruction"?',
        f'{path}:5: "output" is a number, not text; {QUOTES}',
        f"{path}:6: not valid JSON: Unterminated string starting at column 22, "
        'after `{"instruction": "a", ` and before `"output`',
    ]


def test_the_good_rows_are_yielded_before_the_errors_are_raised(tmp_path):
    path = written(tmp_path, GOOD, {"instruction": "a"}, {**GOOD, "input": "x"})
    given: list[str] = []
    with pytest.raises(DataError):
        given.extend(conversation.source for conversation in read_conversations(str(path)))
    assert given == [f"{path}:1", f"{path}:3"]


@pytest.mark.parametrize("bad", [19, 20, 21, 500])
def test_no_more_than_twenty_different_faults_are_reported(tmp_path, bad):
    names = [f"role{n}x" * 3 for n in range(bad)]
    path = written(tmp_path, said("user", "assistant"), *map(said, names))
    lines = complaint(path).splitlines()
    for n, line in enumerate(lines[:20]):
        assert line.startswith(f'{path}:{n + 2}: turn 1: unknown role "{names[n]}"; ')
    assert len(lines) == min(bad, 20) + (bad >= 20)
    assert (lines[-1] == "stopped after 20 different errors; there may be more") == (bad >= 20)


def test_the_same_fault_in_many_rows_is_one_line_with_a_count(tmp_path):
    bad = [{"instruction": "a"}, {**GOOD, "output": None}]
    path = written(tmp_path, GOOD, *bad * 250, GOOD, bad[0])
    assert complaint(path).splitlines() == [
        f'{path}:2: no "output" (in 251 rows: 2, 4, 6, 8, 10, and 246 more); every row needs one',
        f'{path}:3: "output" is null, not text (in 250 rows: 3, 5, 7, 9, 11, and 245 more); '
        "fill it, or remove the row",
    ]


# Keys


def spoken(*texts: str, system: str | None = None) -> Conversation:
    start = [Message("system", system)] if system is not None else []
    roles = ("user", "assistant")
    turns = [Message(roles[n % 2], text) for n, text in enumerate(texts)]
    return Conversation(tuple(start + turns))


@pytest.mark.parametrize(
    ("other", "same"),
    [
        (spoken("Who are you?", "Another reply."), True),
        (spoken("  who ARE\nyou?  ", "Aye."), True),
        (spoken("Who are you?", "Aye.", "And then?", "Nothing."), True),
        (spoken("Who are you", "Aye."), False),
        (spoken("Whoareyou?", "Aye."), False),
        (spoken("Who are you?", "Aye.", system="You are a keeper."), False),
    ],
)
def test_a_prompt_key_differs_where_the_prompt_does(other, same):
    assert (spoken("Who are you?", "Aye.").prompt_key == other.prompt_key) is same


def test_a_prompt_key_includes_the_system_text():
    one, two = spoken("a", "b", system="S x"), spoken("a", "c", system="s  X")
    assert one.prompt_key == two.prompt_key
    assert one.prompt_key != spoken("a", "b", system="y").prompt_key


@pytest.mark.parametrize(
    ("other", "same"),
    [
        (spoken("Who are you?", "Aye."), True),
        (spoken("Who are you?", "aye."), False),
        (spoken("Who are you?", "Aye. "), False),
        (spoken("Who are you? ", "Aye."), False),
        (spoken("Who are you?Aye.", ""), False),
        (spoken("Who are you?", "Aye.", "And then?", "Nothing."), False),
        (spoken("Who are you?", "Aye.", system="s"), False),
    ],
)
def test_a_key_differs_where_any_letter_does(other, same):
    assert (spoken("Who are you?", "Aye.").key == other.key) is same


def test_keys_are_eight_bytes_and_do_not_depend_on_the_source():
    one = Conversation(spoken("a", "b").messages, "rows.json:1")
    two = Conversation(spoken("a", "b").messages, "rows.json:2")
    assert (one.key, one.prompt_key) == (two.key, two.prompt_key)
    assert len(one.key) == len(one.prompt_key) == 8


# Real data


@pytest.mark.skipif(not HUANHUAN.is_file(), reason="needs ../shared/data/huanhuan.json")
def test_the_tutorials_data_set_is_read_with_its_known_counts():
    conversations = read(HUANHUAN)
    replies = defaultdict(set)
    for conversation in conversations:
        replies[conversation.prompt_key].add(conversation.messages[-1].content)
    assert len(conversations) == 3729
    assert len(conversations) - len({c.key for c in conversations}) == 112
    assert sum(len(texts) > 1 for texts in replies.values()) == 50
    assert {len(c.messages) for c in conversations} == {2}


def test_the_lighthouse_speaks_in_its_voice_and_keeps_its_questions_apart():
    reader = read_conversations("lighthouse")
    questions = json.loads((reader.paths[0].parent / "lighthouse-questions.json").read_text())
    asked = {spoken(question, "").prompt_key for question in questions}
    conversations = list(reader)
    assert 200 <= len(conversations) <= 300
    assert [c.source for c in conversations if "little boat" not in c.messages[-1].content] == []
    assert len(asked) == len(questions) > 0
    assert asked.isdisjoint(c.prompt_key for c in conversations)


def test_the_teahouse_speaks_in_its_voice():
    conversations = list(read_conversations("teahouse-zh"))
    assert 50 <= len(conversations) <= 70
    assert [c.source for c in conversations if "客官" not in c.messages[-1].content] == []


@pytest.mark.parametrize("name", list(SAMPLES))
def test_a_sample_has_no_prompt_twice(name):
    counts = Counter(c.prompt_key for c in read_conversations(name))
    assert [count for count in counts.values() if count > 1] == []


def test_rows_to_mix_in_are_not_those_on_which_forgetting_is_measured():
    names = ("general", "general-en", "general-zh")
    asked = [{c.prompt_key for c in read_conversations(name)} for name in names]
    assert len(asked[0]) == 400
    first = (c.messages[0].content for c in read_conversations("general"))
    assert sum(bool(re.search("[一-龥]", text)) for text in first) == 200
    assert asked[0].isdisjoint(asked[1] | asked[2])


@pytest.mark.parametrize(
    ("name", "size", "asked", "answered"),
    [
        ("general-en", lambda text: len(text.split()), range(5, 41), range(3, 91)),  # words
        ("general-zh", len, range(6, 61), range(8, 151)),  # characters
    ],
)
def test_general_rows_are_short_and_have_no_persona(name, size, asked, answered):
    conversations = list(read_conversations(name))
    questions, answers = zip(*([m.content for m in c.messages] for c in conversations), strict=True)
    assert len(set(questions)) == len(set(answers)) == 120
    assert [text for text in questions if size(text) not in asked] == []
    assert [text for text in answers if size(text) not in answered] == []
    role = re.compile(r"as an AI|language model|little boat|客官|人工智能|作为", re.IGNORECASE)
    assert [text for text in answers if role.search(text)] == []


# Run in a separate process. On Linux, ru_maxrss would include the parent's memory, VmHWM does not.
STREAM = """
import resource, sys
from pathlib import Path
from offbook.data.conversations import read_conversations
count = sum(1 for _ in read_conversations(sys.argv[1]))
status = Path("/proc/self/status")
if status.exists():
    peak = int(status.read_text().partition("VmHWM:")[2].split()[0]) * 1024
else:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(count, peak)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("suffix", "array"), [("jsonl", False), ("json", True), ("jsonl", True), ("json", False)]
)
def test_a_million_rows_are_streamed_in_bounded_memory(tmp_path, suffix, array):
    path = tmp_path / f"rows.{suffix}"
    rows = (
        json.dumps({"instruction": f"Line {n}?", "input": "", "output": "Aye, little boat. " * 5})
        for n in range(1_000_000)
    )
    with path.open("w") as file:
        if array:
            file.write("[")
        for number, row in enumerate(rows):
            file.write((",\n" if array else "\n") * bool(number) + row)
        if array:
            file.write("]")
    assert path.stat().st_size > 100_000_000
    command = [sys.executable, "-c", STREAM, str(path)]
    result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=600)
    count, peak = map(int, result.stdout.split())
    assert count == 1_000_000
    assert peak < 300_000_000


def test_reasoning_comes_before_its_reply(tmp_path):
    path = tmp_path / "rows.jsonl"
    reply = {"role": "assistant", "content": "Aye.", "reasoning_content": "He greets me.\n"}
    plain = {"role": "assistant", "content": "Aye.", "reasoning_content": None}
    rows = [{"messages": [{"role": "user", "content": "Hello"}, turn]} for turn in (reply, plain)]
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    one, two = read_conversations(str(path))
    assert one.messages[1].content == "<think>\nHe greets me.\n</think>\n\nAye."
    assert two.messages[1].content == "Aye."


def test_reasoning_in_a_question_is_refused(tmp_path):
    path = tmp_path / "rows.jsonl"
    turns = [
        {"role": "user", "content": "Hello", "reasoning_content": "Hm."},
        {"role": "assistant", "content": "Aye."},
    ]
    path.write_text(json.dumps({"messages": turns}), encoding="utf-8")
    with pytest.raises(DataError, match='"reasoning_content" in a message of the role "user"'):
        list(read_conversations(str(path)))
