"""`offbook sweep`: its table, its exit codes, and what it leaves."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

from support.tiny import ROWS

Cli = Callable[..., tuple[int, str, str]]


def test_a_sweep_ends_in_a_table_and_the_best_settings(
    cli: Cli, tiny_base: Path, tmp_path: Path
) -> None:
    (tmp_path / "rows.jsonl").write_text(ROWS, encoding="utf-8")
    settings = [
        f"model.base={tiny_base}",
        "model.precision=float32",
        "data.train=rows.jsonl",
        "data.validation=0.2",
        "train.batch_size=3",
        "train.max_steps=8",
        "output_dir=runs/role",
    ]
    vary = ["lora.r=2,4", "train.learning_rate=0.001,0.01"]
    code, out, err = cli("sweep", *settings, *vary)
    assert code == 0, err
    assert re.search(r"^ ?lora.r +train.learning_rate +steps +validation loss +seconds", out)
    assert len(re.findall(r"^ ?[24] +0\.01?0?1? +[58] +\d\.\d{4} +\d+", out, re.MULTILINE)) == 4
    assert "the best settings are in runs/role/best.yaml" in out
    assert Path("runs/role/sweep.html").is_file()
    assert "lora.r=2, train.learning_rate=0.001\n" in err
    assert err.count("\nthe first 5 of 8 steps\n") == 4  # a quarter and a half would be fewer
    assert err.count(": all the steps\n") == 1
    (command,) = re.findall(r"^    offbook (chat .*)$", out, re.MULTILINE)
    short = ["-p", "hello", "--max-new-tokens", "2"]
    assert cli(*command.split(), *short)[0] == 0
    assert cli("train", "runs/role/best.yaml", "output_dir=runs/again")[0] == 0

    code, out, _ = cli("sweep", *settings, *vary, "--json")
    assert code == 0
    found = json.loads(out)
    assert found["finished"]
    assert [one["steps"] for one in found["candidates"]] == [8, 5, 5, 5]


def test_what_cannot_be_compared_is_refused(cli: Cli) -> None:
    for arguments, said in (
        (["lora.r=8"], "no setting has several values"),
        (["model.base=a,b"], "model.base: the runs of a sweep have this in common"),
        (["lora.rr=8,16"], 'unknown key "lora.rr"; did you mean "lora.r"?'),
        (["nothing.yaml", "lora.r=8,16"], "cannot read the configuration"),
    ):
        code, _, err = cli("sweep", *arguments)
        assert code == 2
        assert said in err
