"""The live page: whose files it shows, who may ask for it, and how it changes in a browser."""

from __future__ import annotations

import http.client
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from offbook.errors import ConfigError
from offbook.report.watch import Server, State, Watcher
from offbook.runs.directory import RunDirectory
from offbook.settings.config import Config
from offbook.training.train import train
from support.browsers import chromium, opened
from support.evaluations import write_evaluation
from support.runs import stop_after

MakeConfig = Callable[..., Config]


def steps_of(html: str) -> list[int]:
    """The steps of the loss in a page's table."""
    table = re.search(r'id="loss-table".*?</table>', html, re.DOTALL)
    return [int(step) for step in re.findall(r"<tr><td>(\d+)</td>", table[0])] if table else []


def curve_of(watcher: Watcher) -> list[int]:
    return steps_of(watcher.state.page())


def ask(server: Server, path: str = "/", **headers: str) -> tuple[http.client.HTTPResponse, str]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=20)
    connection.request("GET", path, headers={k.replace("_", "-"): v for k, v in headers.items()})
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    return answer, text


def test_a_run_from_before_its_beginning_to_its_evaluation(tiny_config: MakeConfig) -> None:
    config = tiny_config("train.max_steps=9", "train.save_steps=2")
    run = RunDirectory(Path(config.output_dir))
    watcher = Watcher(run)
    assert watcher.look()
    assert "The run has not begun yet." in watcher.state.page()
    assert not watcher.look()
    train(config, should_stop=stop_after(6))
    assert watcher.look()
    begun = curve_of(watcher)
    assert begun == list(range(begun[-1] + 1))
    assert 0 < begun[-1] < 9
    assert re.search(rf"Step {begun[-1]} of 9", watcher.state.page())
    train(config, resume=True)
    assert watcher.look()
    assert curve_of(watcher) == list(range(10))
    assert "Training has finished." in watcher.state.page()
    write_evaluation(run.path)
    assert watcher.look()
    assert "It took" in watcher.state.page()
    shutil.rmtree(run.path)
    assert watcher.look()
    assert "The run has not begun yet." in watcher.state.page()


def test_damaged_files_are_named_until_they_are_restored(runs: tuple[Path, Path]) -> None:
    watcher = Watcher(RunDirectory(runs[0]))
    metrics = runs[0] / "metrics.jsonl"
    whole = metrics.read_bytes()
    metrics.write_bytes(b"{\n" + whole)
    watcher.look()
    assert "metrics.jsonl:1: the line is damaged" in watcher.state.page()
    # A process that was killed may leave half a line at the end.
    metrics.write_bytes(whole + whole.splitlines()[0][:20])
    watcher.look()
    assert "the line is damaged" not in watcher.state.page()
    assert curve_of(watcher) == list(range(13))


def test_only_what_has_changed_is_sent(runs: tuple[Path, Path]) -> None:
    watcher = Watcher(RunDirectory(runs[1]))
    watcher.look()
    with Server(watcher.state) as server:
        first = json.loads(ask(server, "/state?since=")[1])
        assert {"heading", "curves", "receipt"} <= first["parts"].keys()
        version = first["version"]
        assert json.loads(ask(server, f"/state?since={version}")[1])["parts"] == {}
        write_evaluation(runs[1])
        watcher.look()
        changed = json.loads(ask(server, f"/state?since={version}")[1])["parts"]
        assert "scorecard" in changed
        assert "curves" not in changed
        # A page of an earlier server on this port gets everything.
        for other in ("0123-99", "-", "x", f"{version}x"):
            assert "curves" in json.loads(ask(server, f"/state?since={other}")[1])["parts"]


def test_only_this_machine_and_this_page_may_ask(runs: tuple[Path, Path]) -> None:
    watcher = Watcher(RunDirectory(runs[0]))
    watcher.look()
    with Server(watcher.state) as server:
        own = f"localhost:{server.server_port}"
        for path in ("/", "/state"):
            assert ask(server, path, Host=own)[0].status == 200
            assert ask(server, path, Host="[::1]")[0].status == 200
            assert ask(server, path, Host=own, Origin=f"http://{own}")[0].status == 200
            for host in ("evil.example", "192.168.1.4", f"evil.example:{server.server_port}", ""):
                assert ask(server, path, Host=host)[0].status == 421
            for origin in ("http://evil.example", "null", "http://localhost:1"):
                assert ask(server, path, Host=own, Origin=origin)[0].status == 403
        assert ask(server, "/etc/passwd")[0].status == 404
        answer, _ = ask(server)
        headers = {name.lower(): value for name, value in answer.getheaders()}
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cache-control"] == "no-store"
        assert not any(name.startswith("access-control") for name in headers)
        connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=20)
        connection.request("POST", "/state", body=b"{}")
        assert connection.getresponse().status == 501


def test_a_port_that_is_taken_is_left_for_another_as_advised() -> None:
    with Server(State()) as first:
        with pytest.raises(ConfigError, match=r"cannot listen .*; choose another --port, or leave"):
            Server(State(), first.server_port)
        with Server(State()) as other:
            assert other.server_port != first.server_port


def test_the_page_follows_the_run_in_a_browser(runs: tuple[Path, Path]) -> None:
    lines = (runs[1] / "metrics.jsonl").read_text().splitlines(keepends=True)
    metrics = runs[1] / "metrics.jsonl"
    metrics.write_text("".join(lines[:4]))
    # The losses of rows are no points of the curve.
    steps = [json.loads(line)["step"] for line in lines if '"losses"' not in line]
    begun = [json.loads(line)["step"] for line in lines[:4] if '"losses"' not in line]
    watcher = Watcher(RunDirectory(runs[1]))
    watcher.look()
    with (
        chromium() as browser,
        Server(watcher.state) as server,
        opened(browser, server.url) as page,
    ):
        page.click("#loss-table summary")
        rows = page.locator("#loss-table tbody tr")
        assert rows.count() == len({*begun})
        metrics.write_text("".join(lines))
        watcher.look()
        page.wait_for_selector(f"#loss-table tbody tr:nth-child({len({*steps})})")
        assert page.get_attribute("#loss-table", "open") is not None
        write_evaluation(runs[1])
        watcher.look()
        page.wait_for_selector("#verdict .finding.good")
        page.click("#language")
        assert page.inner_text("#verdict h3 >> nth=0") == "学会了"
        page.reload()
        assert rows.count() == len({*steps})
        assert page.locator("#replies img, #replies script").count() == 0


def test_a_page_says_when_nobody_answers_any_more(runs: tuple[Path, Path]) -> None:
    watcher = Watcher(RunDirectory(runs[0]))
    watcher.look()
    with chromium() as browser:
        context = browser.new_context(locale="en-US")
        page = context.new_page()
        with Server(watcher.state) as server:
            page.goto(server.url)
            port = server.server_port
        page.wait_for_selector("#lost:not([hidden])")
        assert "It took" in page.inner_text("#verdict")
        with Server(watcher.state, port):
            page.wait_for_selector("#lost", state="hidden")
        context.close()
