"""The command line, as a user meets it."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from offbook import __version__
from offbook.cli.chat import HELP
from offbook.cli.console import ProgressMonitor, printable
from offbook.files import storage
from offbook.files.storage import verify
from offbook.runs.directory import RunDirectory
from support.disks import Failing
from support.shared import DEEPSEEK, HUANHUAN
from support.tiny import ROWS

Cli = Callable[..., tuple[int, str, str]]

COMMANDS = ("init", "settings", "check", "plan", "train", "watch", "report", "runs", "chat")
COMMANDS += ("lines", "sweep", "eval", "export", "serve", "demo")


@pytest.fixture
def tiny_arguments(tiny_base: Path, tmp_path: Path) -> list[str]:
    """Settings of a run that takes a second."""
    (tmp_path / "rows.jsonl").write_text(ROWS, encoding="utf-8")
    return [
        f"model.base={tiny_base}",
        "model.precision=float32",
        "data.train=rows.jsonl",
        "data.validation=0.2",
        "train.batch_size=3",
        "train.max_steps=4",
        "train.logging_steps=2",
        "output_dir=run",
    ]


# Plan.


def test_plan_prints_memory_and_time(cli: Cli, tiny_arguments: list[str]) -> None:
    code, out, err = cli("plan", *tiny_arguments)
    assert code == 0, err
    for name in ("weights", "activations of a micro-batch", "seconds per step", "time in total"):
        assert re.search(rf"^{name}  ", out, re.MULTILINE)
    code, out, _ = cli("plan", *tiny_arguments, "--json")
    assert code == 0
    facts = json.loads(out)
    parts = ("weights", "adapter", "activations", "loss", "process")
    assert facts["peak"] == sum(facts["plan"][part] for part in parts)


# Help and version.


@pytest.mark.parametrize(
    "command",
    [
        "",
        "init",
        "settings",
        "check",
        "plan",
        "train",
        "sweep",
        "watch",
        "eval",
        "report",
        "runs",
        "chat",
        "demo",
    ],
)
def test_help_has_examples(cli: Cli, command: str) -> None:
    code, out, _ = cli(*command.split(), "--help")
    assert code == 0
    assert re.search(rf"offbook {command or 'demo'}", out)


def test_the_version(cli: Cli) -> None:
    assert cli("--version")[:2] == (0, f"offbook {__version__}\n")


def test_help_does_not_load_torch() -> None:
    code = "import sys, offbook, offbook.cli; print([m for m in ('torch', 'transformers', 'numpy', "
    code += "'pyarrow') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_runs_are_listed_without_torch() -> None:
    code = "import sys, offbook.report.listing; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_the_module_is_the_command() -> None:
    program = Path(sys.executable).with_name("offbook")
    for arguments in (["--version"], ["check", "nothing.json"], ["train", "--help"]):
        by_name, by_module = (
            subprocess.run([*start, *arguments], capture_output=True, text=True)
            for start in ([program], [sys.executable, "-m", "offbook"])
        )
        assert by_name.returncode == by_module.returncode
        assert by_name.stdout == by_module.stdout
        assert by_name.stderr == by_module.stderr


# init.


def test_init_writes_files_that_work_as_they_are(cli: Cli, tmp_path: Path) -> None:
    code, out, _ = cli("init", "keeper")
    assert code == 0
    assert "offbook train keeper/config.yaml" in out
    code, out, _ = cli("check", "keeper/config.yaml", "--json")
    assert code == 0
    assert json.loads(out)["rows"] == 260
    code, _, err = cli("init", "keeper")
    assert (code, err) == (
        2,
        "error: keeper/config.yaml: it exists already; choose another folder\n",
    )


# check.


def test_check_counts_and_shows_what_is_trained_on(
    cli: Cli, tiny_arguments: list[str], tiny_base: Path
) -> None:
    code, out, err = cli("check", "rows.jsonl", "--model", tiny_base, "--show", "2")
    assert code == 0
    assert err == "rows.jsonl: alpaca rows (instruction, input, output)\n"
    assert "7 rows, 0 duplicates" in out
    assert "rows.jsonl:1, token by token" in out
    assert "rows.jsonl:2, token by token" in out
    trained = [line for line in out.splitlines() if line.startswith("trained on")]
    assert trained[0].replace("|", "").endswith("·I·am·the·keeper.</s>")


def test_check_prints_json_alone_on_stdout(
    cli: Cli, tiny_arguments: list[str], tiny_base: Path
) -> None:
    code, out, _ = cli("check", "rows.jsonl", "--model", tiny_base, "--json", "data.max_length=18")
    counts = json.loads(out)
    assert code == 0
    assert (counts["rows"], counts["format"], counts["dropped"]) == (7, "alpaca", 2)


@pytest.mark.parametrize("name", ["\x7f.jsonl", "\u2028.jsonl", "\udcff.jsonl"])
def test_check_opens_a_file_of_any_name(
    cli: Cli, tiny_base: Path, tmp_path: Path, name: str
) -> None:
    (tmp_path / name).write_text(ROWS, encoding="utf-8")
    code, _, err = cli("check", name, "--model", tiny_base, "--json")
    assert code == 0, err


def test_check_the_tutorials_data(cli: Cli) -> None:
    if not HUANHUAN.exists():
        pytest.skip(f"needs {HUANHUAN}")
    code, out, _ = cli("check", HUANHUAN, "--model", DEEPSEEK)
    assert code == 0
    assert "3,729 rows, 112 duplicates" in out
    assert "longest         240 tokens" in out
    view = out[out.index("token by token") :].splitlines()
    assert view[1:] == [
        "not trained <｜begin▁of▁sentence｜>|User|:|·|娘|娘|。|⏎|⏎|Assistant|:",
        "trained on  ·|你|放心|，|本|宫|到|任何|时候|都不会|自|轻|自|贱|委屈|了|这|孩子|。"
        "|<｜end▁of▁sentence｜>",
        "",
        "marks: · a space, ⏎ a line break",
    ]


def test_control_characters_in_rows_are_escaped(cli: Cli, tmp_path: Path, tiny_base: Path) -> None:
    row = {"instruction": "a", "output": "\x1b]0;title\x07 \u202eevil"}
    (tmp_path / "rows.json").write_text(json.dumps([row]))
    _, out, _ = cli("check", "rows.json", "--model", tiny_base)
    assert not set("\x1b\x07\u202e") & set(out)
    assert "\\x1b" in out


def test_printable_keeps_text_and_escapes_control() -> None:
    assert printable("naïve 你好 🙂\n\ttab") == "naïve 你好 🙂\n\ttab"
    assert printable("\x1b[31m\r\x9b\u202e") == "\\x1b[31m\\x0d\\x9b\\x202e"


def test_reading_a_large_file_is_reported_now_and_then(capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressMonitor() as monitor:
        for rows in range(102_400, 600_000, 102_400):
            monitor.reading(rows)
    assert capsys.readouterr().err == "204,800 rows read\n409,600 rows read\n"


# Errors.


def test_a_bad_row_exits_3_with_its_place(cli: Cli, tmp_path: Path) -> None:
    rows = [{"instruction": f"q{k}", "input": "", "output": "a"} for k in range(900)]
    lines = [json.dumps(row) for row in rows]
    lines[811] = lines[811].replace("instruction", "instrution")
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    code, out, err = cli("check", "rows.jsonl")
    assert (code, out) == (3, "")
    assert err.splitlines()[-1] == (
        'error: rows.jsonl:812: unknown key "instrution"; did you mean "instruction"?'
    )


def test_a_bad_setting_exits_2_with_a_suggestion(cli: Cli) -> None:
    code, out, err = cli("train", "train.learning_rat=1e-4")
    assert (code, out) == (2, "")
    assert err == (
        'error: command line: train.learning_rat=1e-4: unknown key "train.learning_rat"; '
        'did you mean "train.learning_rate"?\n'
    )


def test_exit_codes(cli: Cli, tmp_path: Path) -> None:
    assert cli("train", "no.yaml")[0] == 2
    assert cli("train", "data.train=lighthouse", "model.base=nothing")[0] == 2
    assert cli("train", "data.train=nothing.json")[0] == 3
    assert cli("train", "rows.jsonl")[2] == (
        "error: rows.jsonl: these are rows, not a configuration; name them as data:\n"
        "    offbook train data.train=rows.jsonl\n"
    )
    (tmp_path / "file").write_text("")
    assert cli("train", "data.train=lighthouse", "output_dir=file/run")[2] == (
        "error: file/run: cannot be made (Not a directory); set output_dir\n"
    )
    assert cli("chat", "nowhere")[0] == 4
    cli("init", "role")
    assert cli("chat", "role")[2] == (
        "error: role: not a run directory; `offbook train` makes one\n"
    )
    assert cli("chat", "nowhere", "--base")[0] == 2
    assert cli("chat", "nowhere", "--untuned")[0] == 2
    assert cli("chat", "nowhere", "-p", " ")[0] == 2
    assert cli("nonsense")[0] == 2


@pytest.mark.parametrize("address", ["http://x:y:z", "http://[::1"])
def test_an_address_of_a_hub_that_is_none(cli: Cli, tmp_path: Path, address: str) -> None:
    done = subprocess.run(  # a process of its own, as huggingface_hub reads it on import
        [sys.executable, "-m", "offbook", "check", "lighthouse"],
        env=os.environ | {"HF_ENDPOINT": address},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith(f"error: HF_ENDPOINT: {address} is not an address (")
    found = re.search(r"set it to one, such as (\S+), or unset it\n", done.stderr)
    assert found
    for better in ({"HF_ENDPOINT": found[1]}, {}):
        with pytest.MonkeyPatch.context() as patch:
            patch.delenv("HF_ENDPOINT", raising=False)
            for name, value in better.items():
                patch.setenv(name, value)
            assert cli("check", "lighthouse")[0] == 0


# train and chat.


def test_train_then_chat(cli: Cli, tiny_arguments: list[str]) -> None:
    code, out, err = cli("train", *tiny_arguments)
    assert code == 0
    assert "adapter in run/adapter" in out
    assert "talk to it:\n    offbook chat run\n" in out
    assert re.search(r"validation loss \d\.\d+ before, \d\.\d+ after \(.\d+%\)", out)
    assert re.search(r"step 2/4: loss \d\.\d+, \d+\.\d examples/s, left 00:00:\d\d", err)

    code, out, _ = cli("chat", "run", "-p", "hello", "--temperature", "0", "--max-new-tokens", "5")
    assert code == 0
    assert out.endswith("\n")
    code, reply, _ = cli(
        "chat", "run", "-p", "hello", "--temperature", "0", "--max-new-tokens", "5", "--json"
    )
    assert printable(json.loads(reply)["reply"]) + "\n" == out
    assert cli("chat", "run", "-p", "hello", "--top-p", "3")[0] == 2

    code, _, err = cli("train", *tiny_arguments)
    assert code == 2
    assert err.endswith(
        "there is a run here already; replace it with --overwrite, or set another output_dir\n"
    )
    code, out, _ = cli("train", "run", "--resume", "--json")
    result = json.loads(out)
    assert (code, result["run"], result["finished"], result["steps"]) == (0, "run", True, 4)


def test_every_chat_command(cli: Cli, tiny_arguments: list[str], tmp_path: Path) -> None:
    cli("train", *tiny_arguments)
    script = [
        "/retry",
        "hello",
        "/base",
        "/retry",
        "/undo",
        "one two",
        "/system You keep a lamp.",
        "what now",
        "/save saved.jsonl",
        "/reset",
        "/save other.jsonl",
        "/system",
        "/nonsense",
        "/retri",
        "/help",
        "/exit",
        "never asked",
    ]
    code, _, err = cli("chat", "run", "--max-new-tokens", "4", stdin="\n".join(script))
    assert code == 0
    notices = [line for line in err.splitlines() if not line.startswith("/")]
    assert [line for line in notices if not line.startswith("cut at ")] == [
        "loading run",
        "type a message, or a command: /base /retry /undo /reset /strength /system /save /help "
        "/exit",
        "there is no question yet",
        "removed the last question and reply",
        "system text: You keep a lamp.",
        "saved to saved.jsonl",
        "started a new conversation",
        "there is no reply yet",
        "no system text",
        "unknown command /nonsense; /help lists all",
        'unknown command /retri; did you mean "/retry"?',  # which has answered above
    ]
    assert HELP in err
    (line,) = (tmp_path / "saved.jsonl").read_text().splitlines()
    turns = json.loads(line)["messages"]
    assert turns[0] == {"role": "system", "content": "You keep a lamp."}
    assert [turn["content"] for turn in turns if turn["role"] == "user"] == ["one two", "what now"]


def test_a_deepseek_shaped_model_goes_through_its_recipe(cli: Cli, tmp_path: Path) -> None:
    if not DEEPSEEK.is_dir():
        pytest.skip(f"needs the DeepSeek-LLM tokenizer in {DEEPSEEK}")
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    base = tmp_path / "deepseek"
    base.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (base / name).write_bytes((DEEPSEEK / name).read_bytes())
    shape = json.loads((DEEPSEEK / "config.json").read_text())
    shape |= {"hidden_size": 128, "intermediate_size": 64, "num_hidden_layers": 2}
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**shape)).save_pretrained(base)
    recipe = Path(__file__).parents[2] / "recipes" / "deepseek-7b-chat.yaml"
    changes = ["data.train=teahouse-zh", f"model.base={base}", "output_dir=run"]
    code, _, err = cli("train", recipe, *changes, "train.max_steps=2")
    assert code == 0, err
    code, out, err = cli("chat", "run", "-p", "你是谁？", "--max-new-tokens", "3", "--seed", "1")
    assert code == 0, err
    assert out.strip()
    code, out, err = cli("train", recipe, *changes, "train.max_steps=2", "--resume", "--json")
    assert code == 0, err
    assert json.loads(out)["steps"] == 2


def wait_for_steps(process: subprocess.Popen[str], folder: Path) -> None:
    """Wait until the run in a folder has logged three lines."""
    metrics = folder / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (metrics.exists() and metrics.read_text().count("\n") >= 3):
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture
def training(tiny_arguments: list[str]) -> list[str]:
    """The command of a run that takes a few seconds."""
    return [sys.executable, "-m", "offbook", "train", *tiny_arguments, "train.max_steps=200"]


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        (signal.SIGINT, 130),
        (signal.SIGTERM, 143),
        pytest.param(signal.SIGHUP, 143, marks=pytest.mark.slow),
    ],
)
def test_a_run_stopped_by_a_signal_is_finished_by_resume(
    training: list[str], tmp_path: Path, sent: signal.Signals, expected: int
) -> None:
    process = subprocess.Popen(training, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    wait_for_steps(process, tmp_path)
    process.send_signal(sent)
    _, err = process.communicate(timeout=60)
    assert process.returncode == expected
    # The one with the lowest validation loss is kept besides the newest.
    step = RunDirectory(tmp_path / "run").steps()[-1][0]
    assert 2 <= step < 200
    if sent != signal.SIGHUP:  # after which the output is discarded
        assert f"stopped and saved after step {step}" in err
        assert "; continue with\n    offbook train run --resume\n" in err
    again = [*training, "--resume", "--json"]
    done = subprocess.run(again, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["steps"] == 200
    assert (tmp_path / "run" / "adapter" / "adapter_model.safetensors").is_file()


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("setsid"), reason="needs util-linux")
def test_a_closed_terminal_leaves_a_checkpoint(training: list[str], tmp_path: Path) -> None:
    terminal, inside = os.openpty()
    command = ["setsid", "--ctty", "--wait", *training]
    process = subprocess.Popen(
        command, cwd=tmp_path, stdin=inside, stdout=inside, stderr=inside, text=True
    )
    os.close(inside)
    drain = threading.Thread(target=lambda: os.read(terminal, 2**20))
    drain.start()
    wait_for_steps(process, tmp_path)
    drain.join()
    os.close(terminal)
    assert process.wait(timeout=60) == 143
    kept = RunDirectory(tmp_path / "run").steps()
    assert kept
    assert all(verify(folder) is None for _, folder in kept)


@pytest.mark.slow
def test_nohup_is_respected(training: list[str], tmp_path: Path) -> None:
    command = ["nohup", *training]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    wait_for_steps(process, tmp_path)
    process.send_signal(signal.SIGHUP)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert (tmp_path / "run" / "adapter").is_dir()


@pytest.mark.parametrize(("second", "expected"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_second_signal_leaves_at_once(
    training: list[str], tmp_path: Path, second: signal.Signals, expected: int
) -> None:
    # Many rows, so that it is still reading when the second signal comes.
    (tmp_path / "rows.jsonl").write_text(ROWS * 5000, encoding="utf-8")
    with subprocess.Popen(training, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        # On a slow machine there are lines in between that say that it is still at work.
        notices = (line for line in process.stderr if not line.endswith(" s so far\n"))
        assert "alpaca rows" in next(notices)
        process.send_signal(signal.SIGINT)
        assert next(notices) == ("stopping; press Ctrl-C again to exit at once\n")
        process.send_signal(second)
        assert list(notices) == []
        process.wait(timeout=30)
    assert process.returncode == expected


def test_a_full_disk_exits_5(
    cli: Cli, tiny_arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "disk", Failing(15, errno.ENOSPC))
    code, _, err = cli("train", *tiny_arguments)
    assert code == 5
    assert "No space left on device" in err
    assert "free some space, then continue with --resume" in err
