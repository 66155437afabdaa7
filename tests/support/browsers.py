"""A page in Chromium, without a network, whose faults fail the test."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

# Without a sandbox, which root does not have; and without connections of the browser itself.
OPTIONS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync"]


@contextmanager
def chromium() -> Iterator[Any]:
    """A browser; the test is skipped where there is none."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("there is no Chromium")
    with playwright.sync_playwright() as tool:
        browser = tool.chromium.launch(executable_path=path, args=OPTIONS)
        yield browser
        browser.close()


@contextmanager
def opened(browser: Any, url: str, offline: bool = False, **options: Any) -> Iterator[Any]:
    """A page; errors on its console and requests to other places fail the test."""
    context = browser.new_context(**{"locale": "en-US", **options})
    context.set_offline(offline)
    page, faults = context.new_page(), list[str]()
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda said: said.type in ("error", "warning") and faults.append(said.text))
    page.on("request", lambda asked: asked.url.startswith(url) or faults.append(asked.url))
    page.goto(url)
    yield page
    context.close()
    assert faults == []


def violations(page: Any) -> list[str]:
    """What axe-core finds; the test is skipped where it is not installed."""
    axe = pytest.importorskip(
        "axe_playwright_python.sync_playwright", reason="axe-core is not installed"
    )
    found = axe.Axe().run(page).response["violations"]
    return [f"{one['id']}: {one['nodes'][0]['target']}" for one in found]
