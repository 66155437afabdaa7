"""The files in examples/cluster, as far as they can be read without a cluster; docs/scaling.md."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer
import yaml
from torch.distributed.run import get_args_parser

from offbook.cli import app

ROOT = Path(__file__).parents[1]
CLUSTER = ROOT / "examples" / "cluster"


def slurm() -> str:
    subprocess.run(["bash", "-n", CLUSTER / "slurm.sh"], check=True)
    return (CLUSTER / "slurm.sh").read_text(encoding="utf-8").split("bash -c '")[1].rstrip("'\n")


def skypilot() -> str:
    task = yaml.safe_load((CLUSTER / "skypilot.yaml").read_text(encoding="utf-8"))
    assert task["num_nodes"] == 2
    return str(task["run"])


def kubernetes() -> str:
    job = yaml.safe_load((CLUSTER / "kubernetes.yaml").read_text(encoding="utf-8"))
    assert job["kind"] == "PyTorchJob"
    commands = set()
    for part in job["spec"]["pytorchReplicaSpecs"].values():
        (container,) = part["template"]["spec"]["containers"]
        mounted = {mount["name"] for mount in container["volumeMounts"]}
        assert mounted == {volume["name"] for volume in part["template"]["spec"]["volumes"]}
        commands.add(container["args"][0])
    (command,) = commands
    return str(command)


@pytest.mark.skipif(sys.platform == "win32", reason="needs bash")
@pytest.mark.parametrize("read", [slurm, skypilot, kubernetes])
def test_the_command_of_each_node_is_one_that_torchrun_and_offbook_take(read: object) -> None:
    assert callable(read)
    # What a shell would put in.
    script = read().replace('"$(echo "$SKYPILOT_NODE_IPS" | head -n 1)"', "10.0.0.1")
    script = re.sub(r"\$(CONFIG|MASTER_ADDR)", "given", script)
    script = re.sub(r"\$\w+", "2", script)
    program, *arguments = shlex.split(script.replace("\\\n", " "))
    assert program == "torchrun"
    found = get_args_parser().parse_args(arguments)
    assert found.module
    assert found.training_script == "offbook"
    assert found.rdzv_backend == "static", "process 0 stays on the first node"
    name, *rest = found.training_script_args
    command = typer.main.get_command(app).commands[name]  # type: ignore[attr-defined]
    parsed = command.make_context(name, rest).params
    assert parsed["resume"]
    assert not parsed["evaluate"]


def test_the_script_for_ray_has_offbooks_names() -> None:
    tree = ast.parse((CLUSTER / "ray_train.py").read_text(encoding="utf-8"))
    names = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert {"train", "Config"} <= names


def test_the_tables_of_the_docs_are_those_of_the_script() -> None:
    script = ROOT / "benchmarks" / "scaling_on_paper.py"
    made = subprocess.run([sys.executable, script], check=True, capture_output=True, text=True)
    text = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")
    for table in made.stdout.strip().split("\n\n"):
        assert table in text
