"""The chat page in a browser."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from offbook.data.conversations import read_conversations
from offbook.settings.config import Config
from offbook.training.train import train
from support.serving import Served

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
if CHROMIUM is None:
    pytest.skip("there is no Chromium", allow_module_level=True)

# Without a sandbox, which root does not have; and without connections of the browser itself.
OPTIONS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync"]
WRITTEN = "#send:not([hidden])"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as tool:
        browser = tool.chromium.launch(executable_path=CHROMIUM, args=OPTIONS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Any, served: Served) -> Iterator[Any]:
    """The page, whose faults and requests to other places fail the test."""
    context = browser.new_context(locale="en-US")
    page, faults = context.new_page(), list[str]()
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda said: said.type == "error" and faults.append(said.text))
    own = (served.url, f"blob:{served.url}")
    page.on("request", lambda asked: asked.url.startswith(own) or faults.append(asked.url))
    page.goto(served.url)
    page.wait_for_selector("#model option:nth-child(3)", state="attached")
    page.fill("#temperature", "0")
    page.fill("#max_tokens", "5")
    yield page
    context.close()
    assert faults == []


def ask(page: Any, question: str) -> list[str]:
    page.fill("#question", question)
    page.keyboard.press("Enter")
    return written(page)


def written(page: Any) -> list[str]:
    """The last replies, when they are written."""
    page.wait_for_selector(WRITTEN)
    return list(page.locator("#log article:last-child .reply .text").all_inner_texts())


def test_asking_comparing_and_the_strength(page: Any, served: Served) -> None:
    assert ask(page, "who are you") == ["I am the keeper."]
    page.check("#compare")
    tuned, base = ask(page, "hello")
    assert tuned != base
    page.fill("#strength", "0.25")
    assert page.inner_text("#strength-now") == "0.25"
    weak, again = ask(page, "hello")
    assert weak != tuned
    assert page.inner_text("#log article:last-child h2 >> nth=0") == "captain × 0.25"
    assert again
    # Everything is there after a reload.
    before = page.inner_text("#log")
    page.reload()
    page.wait_for_selector("#log article >> nth=2")
    assert page.inner_text("#log").split() == before.split()
    assert page.input_value("#strength") == "0.25"
    assert page.input_value("#temperature") == "0"


def test_stopping_retrying_and_editing(page: Any) -> None:
    page.fill("#max_tokens", "15000")
    page.fill("#question", "hello")
    page.click("#send")
    page.wait_for_selector(".reply .text:not(:empty)")
    page.click("#stop")
    (cut,) = written(page)
    assert "stopped" in page.inner_text(".reply small")
    page.fill("#max_tokens", "2")
    page.click("text=Retry")
    (short,) = written(page)
    assert 0 < len(short) < len(cut)
    assert "cut at the limit of tokens" in page.inner_text(".reply small")
    ask(page, "one")
    assert page.locator("#log article").count() == 2
    page.click("text=Edit >> nth=0")
    assert page.input_value("#question") == "hello"
    page.keyboard.press("Escape")
    assert page.locator("#log article").count() == 2
    page.click("text=Edit >> nth=0")
    ask(page, "two")
    assert page.locator("#log article").count() == 1
    assert page.inner_text(".question .text") == "two"


def test_a_corrected_reply_is_trained_on(page: Any, served: Served, tmp_path: Path) -> None:
    rows = served.folder / "captain" / "corrections.jsonl"
    turns = [{"role": "user", "content": "one"}, {"role": "assistant", "content": "stays"}]
    rows.write_text(json.dumps({"messages": turns}))  # no end of line
    ask(page, "who are you")
    page.fill("#system", "You keep the lamp.")
    ask(page, "what now")
    page.click("text=Correct >> nth=1")
    page.fill(".reply textarea", "Mind the lamp, 小船 🚢.")
    page.click("text=Save as a row")
    page.wait_for_selector("#log article:last-child :text('captain/corrections.jsonl')")
    first, second = read_conversations(str(rows))
    assert first.messages[-1].content == "stays"
    assert [m.content for m in second.messages] == [
        "You keep the lamp.",
        "who are you",
        "I am the keeper.",
        "what now",
        "Mind the lamp, 小船 🚢.",
    ]
    assert second.replies == (4,)  # not the one that was not corrected
    config = Config.load(served.folder / "captain" / "config.yaml", [])
    settings = [f"data.train={rows}", "data.validation=0", "train.max_steps=1"]
    changed = config.override(*settings, f"output_dir={tmp_path / 'next'}")
    assert train(changed).finished


def test_conversations_are_exported_as_rows(page: Any, tmp_path: Path) -> None:
    ask(page, "who are you")
    page.click("#new")
    ask(page, "hello")
    assert page.locator("#conversations option").count() == 2
    with page.expect_download() as started:
        page.click("#export")
    path = tmp_path / "conversations.jsonl"
    started.value.save_as(path)
    last, first = read_conversations(str(path))
    assert [m.content for m in first.messages] == ["who are you", "I am the keeper."]
    assert last.messages[0].content == "hello"
    page.once("dialog", lambda dialog: dialog.accept())
    page.click("#delete")
    assert page.inner_text(".question .text") == "who are you"


def test_text_is_never_markup(page: Any) -> None:
    evil = "<img src=x onerror=alert(1)><script>alert(2)</script>"
    ask(page, evil)
    assert page.inner_text(".question .text") == evil
    assert page.locator("#log img, #log script").count() == 0
    options = page.locator("#conversations option").all_inner_texts()
    assert any(option.startswith("<img src=x") for option in options)


def test_the_page_in_chinese_by_keyboard_on_a_phone(browser: Any, served: Served) -> None:
    size = {"width": 390, "height": 844}
    context = browser.new_context(locale="zh-CN", viewport=size)
    page = context.new_page()
    page.goto(served.url)
    page.wait_for_selector("#model option", state="attached")
    assert page.inner_text("#send") == "发送"
    assert page.get_attribute("html", "lang") == "zh-CN"
    wide = page.evaluate("document.documentElement.scrollWidth")
    assert wide <= size["width"]
    reached = []
    for _ in range(12):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.id"))
    assert {"language", "conversations", "new", "export", "log", "question", "send"} <= {*reached}
    context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_keeps_anybody_out(browser: Any, served: Served, scheme: str, width: int) -> None:
    axe = pytest.importorskip(
        "axe_playwright_python.sync_playwright", reason="axe-core is not installed"
    )
    size = {"width": width, "height": 800}
    context = browser.new_context(viewport=size, color_scheme=scheme)
    page = context.new_page()
    page.goto(served.url)
    page.wait_for_selector("#model option", state="attached")
    page.evaluate("document.querySelector('#settings').open = true")
    page.fill("#max_tokens", "5")
    page.check("#compare")
    ask(page, "who are you")
    page.click("text=Correct")
    found = axe.Axe().run(page).response["violations"]
    assert [f"{one['id']}: {one['nodes'][0]['target']}" for one in found] == []
    context.close()


def test_a_page_of_another_machine_needs_the_key(browser: Any, runs: tuple[Path, Path]) -> None:
    from support.serving import serve

    with serve(runs[0].parent, "captain", "--host", "0.0.0.0") as served:
        url, _, key = served.url.partition("#key=")
        assert len(key) == 43
        url = url.replace("0.0.0.0", "127.0.0.1")
        context = browser.new_context()
        page = context.new_page()
        page.goto(url)
        page.fill("#key", key)
        page.keyboard.press("Enter")
        page.wait_for_selector("#model option", state="attached")
        context.close()
        context = browser.new_context()
        page = context.new_page()
        page.goto(f"{url}#key={key}")
        page.wait_for_selector("#model option", state="attached")
        assert key not in page.url
        context.close()
