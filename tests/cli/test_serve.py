"""`offbook serve` as a user sees it."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("xllamacpp", reason="llama.cpp is not installed")
pytest.importorskip("uvicorn", reason="the extra `serve` is not installed")

from support.exports import train_run
from support.families import make_family
from support.serving import serve

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("serve")
    return train_run(folder, make_family("llama", folder / "base")).path


def test_what_is_refused_before_anything_is_loaded(cli: Cli, run: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "rows.json").write_text("[]")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for arguments, code, said in (
            (["empty"], 4, "empty: "),
            ([run, "--port", port], 2, f"127.0.0.1:{port}: cannot listen (Address already in use)"),
            ([run, "--host", "no.such.host.invalid"], 2, "cannot listen ("),
            ([run, "--rows", "rows.json"], 2, "rows are added to JSONL files"),
            (
                [run, "--context", "100000"],
                2,
                "this base, llama.cpp takes at most 256",
            ),
            ([run, run], 2, "two models would have the name 'run'"),
        ):
            options = () if "--port" in arguments else ("--port", "0")
            found, out, err = cli("serve", *arguments, *options)
            assert (found, out) == (code, ""), err
            assert said in err
            assert "Traceback" not in err


def test_what_is_refused_is_served_as_advised(
    cli: Cli, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served: list[object] = []
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("offbook.serve.server.run_server", lambda *facts: served.append(facts))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        code, _, err = cli("serve", run, "--port", port)
        assert (code, "choose another --host or --port" in err) == (2, True)
        assert cli("serve", run, "--port", "0")[0] == 0
    code, _, err = cli("serve", run, "--port", "0", "--rows", "rows.json")
    assert (code, "name another file, which ends in .jsonl" in err) == (2, True)
    assert cli("serve", run, "--port", "0", "--rows", "rows.jsonl")[0] == 0
    assert len(served) == 2


def test_an_adapter_that_cannot_be_served_is_exported_as_advised(cli: Cli, tmp_path: Path) -> None:
    run = train_run(tmp_path, make_family("llama", tmp_path / "base"), "lora.use_dora=true").path
    code, _, err = cli("serve", run, "--port", "0")
    assert (code, "export it as a whole model:\n    offbook export " in err) == (4, True)
    assert cli("export", run, "--to", "gguf", "-o", "whole")[0] == 0


def test_without_the_extra_it_is_named(
    cli: Cli, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        "offbook.cli.serve.find_spec", lambda name: None if name == "uvicorn" else find(name)
    )
    code, _, err = cli("serve", run)
    assert code == 2
    assert "uvicorn is not installed; run\n    pip install 'offbook[serve]'\n" in err
    monkeypatch.setitem(sys.modules, "xllamacpp", None)
    code, _, err = cli("chat", run, "-p", "hello", "--engine", "llama.cpp")
    assert code == 2
    assert "llama.cpp is not installed; run\n    pip install 'offbook[gguf]'\n" in err


def test_a_chat_with_the_other_engine(
    cli: Cli, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    options = ["-p", "who are you", "--temperature", "0", "--max-new-tokens", "5", "--json"]
    torch = json.loads(cli("chat", run, *options)[1])
    code, out, err = cli("chat", run, *options, "--engine", "llama.cpp")
    assert code == 0
    assert json.loads(out) == torch
    assert "cut at 5 tokens" in err
    assert cli("chat", run, "--engine", "llama.cpp", stdin="hello\n/base\n/retry\n")[0] == 0


def test_the_key_is_made_and_demanded_on_a_network(run: Path) -> None:
    with serve(run.parent, run.name, "--host", "0.0.0.0") as served:
        url, _, key = served.url.partition("#key=")
        assert url.startswith("http://0.0.0.0:")
        assert len(key) == 43  # 32 bytes in base64
        assert served.process.stdout
        lines = [served.process.stdout.readline() for _ in range(2)]
        assert lines[1] == f"key:  {key}\n"
        request = urllib.request.Request(url.replace("0.0.0.0", "127.0.0.1") + "v1/models")
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(request)
        request.add_header("Authorization", f"Bearer {key}")
        with urllib.request.urlopen(request) as answer:
            assert len(json.load(answer)["data"]) == 2


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_a_server_that_is_stopped_ends_its_replies(run: Path, stop: signal.Signals) -> None:
    cache = run.parent / "cache" / "offbook"
    with serve(run.parent, run.name) as served:
        assert [path.name for path in cache.glob(".serving-*")]
        served.process.send_signal(stop)
        assert served.process.wait(10) == 0
        assert not list(cache.glob(".serving-*"))


def test_a_server_that_was_killed_is_started_again(run: Path) -> None:
    cache = run.parent / "cache" / "offbook"
    command = [sys.executable, "-m", "offbook", "serve", run.name, "--port", "0"]
    environment = os.environ | {"XDG_CACHE_HOME": str(cache.parent)}
    killed = subprocess.Popen(
        command, cwd=run.parent, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert killed.stdout
    assert killed.stdout.readline()
    killed.kill()
    killed.wait()
    killed.stdout.close()
    assert len(list(cache.glob(".serving-*"))) == 1
    with serve(run.parent, run.name) as served:
        assert len(list(cache.glob(".serving-*"))) == 1  # its own
        with urllib.request.urlopen(f"{served.url}health") as answer:
            assert json.load(answer) == {"status": "ok"}
        time.sleep(0.1)
    assert not list(cache.glob(".serving-*"))
