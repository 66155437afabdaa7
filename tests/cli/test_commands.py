"""Every command line that the sources and the docs print can be run."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import typer

from offbook.cli import app
from offbook.settings.config import Config
from offbook.training.train import train
from support.shared import ROOT
from support.sources import texts

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]
NAMES = "|".join(COMMANDS)
# What stands for a value in a message, such as {result.run}.
VALUES = {
    "step_of(folder)": "100",
    "rows": "rows.json",
    "config": "myrole/config.yaml",
    "name": "myrole",
}
NO_COMMAND = re.compile(r"\.\.\.|KEY|FILE")
FERRY = ROOT / "src" / "offbook" / "samples" / "ferry.fountain"
DOCS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def printed() -> Iterator[str]:
    """The command lines in the strings of the sources, and in the docs."""
    for _, text in texts():
        yield from re.findall(rf"^ *(offbook (?:{NAMES})\b[^\n`]*)", text, re.MULTILINE)
        yield from re.findall(r"`((?:offbook|pip|hf|git|modelscope) [^`]+)`", text)
        yield from re.findall(rf"(?:\]|: ) *(offbook (?:{NAMES})\b[^\n`]*)", text)
    for path in DOCS:
        text = path.read_text(encoding="utf-8")
        for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL):
            yield from re.findall(r"^offbook .*", block, re.MULTILINE)
        yield from re.findall(rf"`(offbook (?:{NAMES})\b[^`]*)`", text)


def words(line: str) -> list[str]:
    """A command line as a shell would read it, with values in place of expressions."""
    line = re.sub(r"\{quoted\(f'([^']*)'\)\}", r"\1", line)
    line = re.sub(r"\{([^{}]+)\}", lambda match: VALUES.get(match[1], "runs/myrole"), line)
    return shlex.split(re.split(r"  +| #| \|| <", line)[0])


LINES = sorted({line.strip() for line in printed() if not NO_COMMAND.search(line)})
OURS = [line for line in LINES if line.startswith("offbook")]
OTHERS = [line for line in LINES if not line.startswith("offbook")]


def test_the_lines_are_found() -> None:
    assert {words(line)[1] for line in OURS} == set(COMMANDS)
    assert "offbook train runs/myrole --resume" in OURS
    assert any("modelscope" in line for line in OTHERS)


@pytest.mark.parametrize("line", OURS)
def test_printed_commands_are_parsed(line: str) -> None:
    _, name, *arguments = words(line)
    command = COMMANDS[name]
    if not arguments and any(p.required for p in command.params):
        return  # the name of a command in a sentence
    with command.make_context(name, arguments) as context:
        given = [*(context.params.get("settings") or [])]
        given += [str(context.params[key]) for key in ("config", "data") if context.params.get(key)]
        if name == "sweep":  # one of several values
            given = [setting.partition(",")[0] for setting in given]
        Config.load(None, [setting for setting in given if "=" in setting])


def test_what_is_installed_is_an_extra_or_a_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = [line for line in OTHERS if line.startswith("pip install")]
    assert len(lines) >= 3
    for line in lines:
        (name,) = [word for word in words(line)[2:] if not word.startswith("-")]
        extra = re.fullmatch(r"offbook\[(.+)\]", name)
        assert not extra or set(extra[1].split(",")) <= project["optional-dependencies"].keys()


# Programs that are not installed with offbook; the options are those of their documentation.
DOCUMENTED = {
    "hf": {"auth login"},
    "git": {"lfs pull"},
    "modelscope": {"download --model NAME --local_dir FOLDER"},
}


def test_commands_of_other_programs_are_as_documented() -> None:
    for line in OTHERS:  # git-lfs and modelscope are not there to be run
        program, *arguments = words(line)
        if program != "pip":
            shape = " ".join("NAME" if a == "runs/myrole" else a for a in arguments)
            assert shape in DOCUMENTED[program]
    hf = Path(sys.executable).with_name("hf")
    subprocess.run([hf, "auth", "login", "--help"], check=True, capture_output=True)


Cli = Callable[..., tuple[int, str, str]]
SHORT = ("train.num_train_epochs=0.05", "train.max_steps=null")
# Minutes of training; measured in tests/cli/test_plan.py; at the end of the test; and in
# tests/cli/test_serve.py, test_watch.py and test_reports.py.
SKIPPED = ("demo", "plan", "init", "serve", "watch", "runs")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_printed_commands_run(cli: Cli, tiny_config: Callable[..., Config], tmp_path: Path) -> None:
    """Each line that needs no other model and has no placeholder runs, where its files are."""
    config = tiny_config("data.train=lighthouse", "output_dir=runs/myrole", *SHORT)
    roles = ("mara.yaml", "brack.yaml")
    for name in ("myrole/config.yaml", "recipes/smollm2-demo.yaml", *roles):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        run = f"output_dir=runs/{path.stem}" if name in roles else "output_dir=runs/myrole"
        path.write_text(config.override(run).to_yaml(), encoding="utf-8")
    for name in ("rows.json", "other-rows.json", "myrole/rows.jsonl", "anna.jsonl", "mara.jsonl"):
        (tmp_path / name).write_text(
            '[{"instruction": "a", "output": "b"}, {"instruction": "c", "output": "d"}]'
        )
    scripts = {
        "play.txt": "TOM: Who is there?\nANNA: Nobody.\nTOM: Who?\nMISS A: It is me.\n" * 5,
        "season1/1.txt": "皇上：你来了？\n甄嬛：臣妾来了。\n皇上：坐。\n嬛嬛：是。\n莞贵人：谢。\n"
        * 5,
        "src/offbook/samples/ferry.fountain": FERRY.read_text(encoding="utf-8"),
    }
    for name, text in scripts.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    for name in ("myrole", "anna", "mara"):
        train(config.override(f"output_dir={tmp_path / 'runs' / name}"))
    shutil.copytree(tmp_path / "runs" / "myrole" / "adapter", tmp_path / "adapter-folder")
    for name in ("base-folder", "merged-model"):
        shutil.copytree(config.model.base, tmp_path / name)
    ran, failed = [], []
    commands = {tuple(words(re.sub(r"--checkpoint \d+", "--checkpoint 4", x))): x for x in OURS}
    for (_, name, *arguments), line in commands.items():
        if (
            not arguments
            or "{" in line
            or "RUN" in line
            or "ROWS" in line
            or name in SKIPPED
            or "--require" in line  # it says how the role took
            or "deepseek" in line
            or "cuda:" in line
            or "*" in line  # which a shell replaces
            or arguments == ["--many"]  # the name of an option in a sentence
            or name == "init"
        ):
            continue
        if name == "train" and "--resume" not in arguments:
            arguments += ["--overwrite", "--no-eval", *SHORT, f"model.base={config.model.base}"]
        if name == "eval":
            arguments += ["--short"]
        if name in ("lines", "check"):  # what they write is not there yet
            written = [tmp_path / arguments[-1]] if "-o" in arguments else tmp_path.glob("clean.*")
            for file in written:
                file.unlink(missing_ok=True)
        code, _, err = cli(name, *arguments, stdin="/exit\n")
        ran.append(name)
        if code:
            failed.append(f"{line}: {err}")
    assert not failed, "".join(failed)
    assert {"check", "train", "chat", "settings"} <= set(ran)
    assert cli("init", "another")[0] == 0
    Config.load(tmp_path / "another" / "config.yaml", [])
