"""Data sets and models from a hub: which files are fetched, and what is refused."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.hub_server import COMMIT, Hub, serving

ROW = b'{"instruction": "Who are you?", "output": "The keeper."}\n'
REPOS = {
    "datasets/someone/lines": {"README.md": b"# Lines", "train.jsonl": ROW * 3, "test.jsonl": ROW},
    "datasets/someone/parts": {
        "train-0.jsonl": ROW,
        "train-1.jsonl": ROW * 2,
        "loader.py": b"raise SystemExit('code from the hub was run')",
    },
    "datasets/someone/folders": {"young/rows.jsonl": ROW, "old/rows.jsonl": ROW * 4},
    "datasets/someone/prose": {"README.md": b"# Lines", "lines.txt": b"Aye."},
    "models/someone/pickled": {
        "config.json": b"{}",
        "tokenizer.json": b'{"version": "1.0"}',
        "pytorch_model.bin": b"pickle",
    },
    "models/someone/older": {"config.json": b"{}", "pytorch_model.bin": b"pickle"},
    "models/someone/older@refs/pr/1": {
        "config.json": b"{}",
        "model.safetensors": b"weights",
        "pytorch_model.bin": b"pickle",
    },
    "models/someone/model": {
        "config.json": b"{}",
        "chat_template.jinja": b"{{ messages }}",
        "consolidated.safetensors": b"weights",
        "model.safetensors": b"weights",
        "modeling_mine.py": b"raise SystemExit('code from the hub was run')",
        "pytorch_model.bin": b"pickle",
        "training_args.pt": b"pickle",
    },
}
FIX = "check the name, the revision and the network; or give what you have downloaded: "
WAYS = (
    "model.base=/path/to/folder",
    "HF_ENDPOINT",
    "HF_HUB_OFFLINE=1",
    "`modelscope download --model someone/model --local_dir FOLDER`, and set model.base=FOLDER",
)

# Each prints one JSON value: what was read or refused.
READ = """
import json
from pathlib import Path
from offbook.data.conversations import read_conversations
from offbook.errors import DataError
try:
    reader = read_conversations({source!r})
    print(json.dumps([[path.name for path in reader.paths], len(list(reader))]))
except DataError as error:
    print(json.dumps(str(error)))
"""
RESOLVE = """
import json
from offbook.models.base import require_weights, resolve_base
from offbook.errors import ModelError
names = None
try:
    folder = resolve_base({base!r}, {revision!r})
    names = sorted(path.name for path in folder.iterdir())
    require_weights(folder)
    print(json.dumps([names, None]))
except ModelError as error:
    print(json.dumps([names, str(error)]))
"""


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serving(REPOS) as hub:
        yield hub


def said(hub: Hub, code: str, home: Path) -> object:
    result = hub.run(code, home)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def fetched(hub: Hub) -> set[str]:
    """The files whose content was asked for."""
    gets = [seen for seen in hub.requests_seen if seen.startswith("GET /") and "/resolve/" in seen]
    return {seen.partition(f"/resolve/{COMMIT}/")[2] for seen in gets}


def test_the_training_files_of_a_data_set_are_read(hub, tmp_path):
    source = "someone/lines"
    assert said(hub, READ.format(source=source), tmp_path) == [["train.jsonl"], 3]


def test_training_files_in_parts_are_read_together_and_no_code_is_fetched(hub, tmp_path):
    code = READ.format(source="someone/parts")
    assert said(hub, code, tmp_path) == [["train-0.jsonl", "train-1.jsonl"], 3]
    assert fetched(hub) == {"train-0.jsonl", "train-1.jsonl"}


@pytest.mark.parametrize(
    ("source", "name", "count"),
    [
        ("someone/lines:train.jsonl", "train.jsonl", 3),
        ("someone/lines:test.jsonl", "test.jsonl", 1),
        ("someone/folders:old/rows.jsonl", "old/rows.jsonl", 4),
    ],
)
def test_a_named_file_is_fetched_alone(hub, tmp_path, source, name, count):
    assert said(hub, READ.format(source=source), tmp_path) == [[Path(name).name], count]
    assert fetched(hub) == {name}


@pytest.mark.parametrize(
    ("source", "found", "example"),
    [
        ("someone/folders", "old/rows.jsonl, young/rows.jsonl", "someone/folders:old/rows.jsonl"),
        ("someone/prose", "none found", "someone/prose:rows.json"),
        ("someone/lines:rows.jsonl", "none found", "someone/lines:rows.json"),
    ],
)
def test_a_data_set_that_leaves_the_file_open_is_read_as_advised(
    hub, tmp_path, source, found, example
):
    repo = source.partition(":")[0]
    assert said(hub, READ.format(source=source), tmp_path) == (
        f"{repo}: cannot tell which files to train on: {found}; name one, as in {example}"
    )
    named = example if found != "none found" else "someone/lines:test.jsonl"
    (names, count) = said(hub, READ.format(source=named), tmp_path)
    assert names == [Path(named.partition(":")[2]).name]
    assert count


def test_a_data_set_that_does_not_exist_is_refused(hub, tmp_path):
    message = said(hub, READ.format(source="someone/nothing"), tmp_path)
    assert message == (
        "someone/nothing: neither a local path nor a public repository on the hub; "
        "check the name; for a private repository, run `hf auth login`; or give what you have "
        "downloaded: data.train=/path/to/rows.jsonl"
    )
    assert hub.requests_seen == ["GET /api/datasets/someone/nothing/revision/main"]
    rows = tmp_path / "rows.jsonl"
    rows.write_bytes(ROW)
    assert said(hub, READ.format(source=str(rows)), tmp_path) == [["rows.jsonl"], 1]
    assert said(hub, READ.format(source="someone/lines"), tmp_path) == [["train.jsonl"], 3]


def test_a_data_set_once_fetched_is_read_without_the_hub(hub, tmp_path):
    code = READ.format(source="someone/lines")
    first = said(hub, code, tmp_path)
    seen = len(hub.requests_seen)
    hub.server_close()
    assert said(hub, code, tmp_path) == first == [["train.jsonl"], 3]
    assert len(hub.requests_seen) == seen


def test_a_hub_out_of_reach_is_refused(tmp_path):
    with serving(REPOS) as hub:
        pass
    message = said(hub, READ.format(source="someone/lines"), tmp_path)
    assert message.startswith(
        "someone/lines: not on this machine, and cannot be downloaded from the hub ("
    )
    assert f"); {FIX}data.train=/path/to/rows.jsonl; or set HF_ENDPOINT" in message
    assert "model" not in message


@pytest.mark.skipif(importlib.util.find_spec("socksio") is not None, reason="socksio is here")
@pytest.mark.parametrize("variable", ["ALL_PROXY", "HTTPS_PROXY", "HTTP_PROXY"])
def test_a_proxy_that_needs_another_package_is_named(hub, tmp_path, variable):
    """Or one with an address that is none."""
    code = READ.format(source="someone/lines")
    socks = f"import os; os.environ[{variable!r}] = 'socks5://127.0.0.1:9'\n"
    message = said(hub, socks + code, tmp_path)
    assert message.startswith("someone/lines: the hub cannot be reached with what is installed")
    assert "for a SOCKS proxy, run `pip install socksio`" in message
    unset = f"import os; os.environ.pop({variable!r}, None)\n"
    assert said(hub, socks + unset + code, tmp_path / "unset") == [["train.jsonl"], 3]
    wrong = f"import os; os.environ[{variable!r}] = 'http://x:y'\n"
    assert said(hub, wrong + code, tmp_path).startswith("someone/lines: ")


def test_the_ways_to_a_model_without_the_hub_are_named_and_work(hub, tmp_path):
    with serving(REPOS) as closed:
        pass
    code = RESOLVE.format(base="someone/model", revision="main")
    _, problem = said(closed, code, tmp_path / "none")
    assert all(way in problem for way in WAYS)
    # A mirror: the same repository at another HF_ENDPOINT.
    names, problem = said(hub, code, tmp_path / "cache")
    assert problem is None
    # Without a connection, from the cache; an empty cache says that offline mode is on.
    offline = "import os; os.environ['HF_HUB_OFFLINE'] = '1'\n" + code
    assert said(closed, offline, tmp_path / "cache") == [names, None]
    _, problem = said(closed, offline, tmp_path / "none")
    assert "HF_HUB_OFFLINE is set, so nothing is downloaded: unset it" in problem
    # A folder, from wherever it was downloaded.
    (folder,) = (tmp_path / "cache").glob("hub/models--someone--model/snapshots/*")
    code = RESOLVE.format(base=str(folder), revision="main")
    assert said(closed, code, tmp_path / "none") == [names, None]


def test_neither_code_nor_pickles_nor_second_weights_of_a_model_are_fetched(hub, tmp_path):
    names, problem = said(hub, RESOLVE.format(base="someone/model", revision="main"), tmp_path)
    assert problem is None
    assert names == ["chat_template.jinja", "config.json", "model.safetensors"]
    assert fetched(hub) == set(names)


def test_a_model_with_pickled_weights_only_is_refused_without_fetching_them(hub, tmp_path):
    names, problem = said(hub, RESOLVE.format(base="someone/pickled", revision="main"), tmp_path)
    assert names == ["config.json", "tokenizer.json"]
    assert fetched(hub) == set(names)
    assert not any(path.suffix == ".bin" for path in tmp_path.rglob("*"))
    folder = tmp_path / f"hub/models--someone--pickled/snapshots/{COMMIT}"
    assert problem == (
        f"{folder}: no safetensors weights; use a revision with safetensors; on the hub, "
        "model.revision=refs/pr/N names the pull request that converts them"
    )


def test_a_model_that_the_hub_has_converted_comes_from_the_pull_request(hub, tmp_path):
    names, problem = said(hub, RESOLVE.format(base="someone/older", revision="main"), tmp_path)
    assert problem is None
    assert names == ["config.json", "model.safetensors"]
    assert not any(path.suffix == ".bin" for path in tmp_path.rglob("*"))


def test_a_revision_with_safetensors_is_used_as_advised(hub, tmp_path):
    folder = tmp_path / "pickled"  # as another program has downloaded it
    folder.mkdir()
    for name, content in REPOS["models/someone/older"].items():
        (folder / name).write_bytes(content)
    _, problem = said(hub, RESOLVE.format(base=str(folder), revision="main"), tmp_path)
    assert problem.endswith(
        "use a revision with safetensors; on the hub, model.revision=refs/pr/N names the pull "
        "request that converts them"
    )
    named = RESOLVE.format(base="someone/older", revision="refs/pr/1")
    assert said(hub, named, tmp_path) == [["config.json", "model.safetensors"], None]


def test_weights_are_not_fetched_where_a_tokenizer_is_enough(hub, tmp_path):
    code = RESOLVE.replace("{revision!r}", "{revision!r}, weights=False")
    names, _ = said(hub, code.format(base="someone/model", revision="main"), tmp_path)
    assert names == ["chat_template.jinja", "config.json"]


def test_a_revision_that_does_not_exist_is_refused(hub, tmp_path):
    names, problem = said(hub, RESOLVE.format(base="someone/model", revision="v9"), tmp_path)
    assert names is None
    assert problem.startswith(
        "someone/model: not on this machine, and cannot be downloaded from the hub ("
    )
    assert f"); {FIX}model.base=/path/to/folder; or" in problem
    assert hub.requests_seen == ["GET /api/models/someone/model/revision/v9"]
